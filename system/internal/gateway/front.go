package gateway

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"throng/system/wire"
)

// front takes clients in: it accepts, answers the upgrade requests through
// Gateway.ServeHTTP and reads what comes. There are two: evented
// (epoll_linux.go), which has neither a goroutine nor a buffer for an idle
// connection, and streams, which works on every system and with TLS.
type front interface {
	// serve accepts clients until stop; then it returns nil.
	serve() error
	// stop accepts nobody any more and ends the handshakes under way.
	stop()
	// sweep ends handshakes that take too long; the sweeper calls it.
	sweep(now time.Duration)
	// close releases what serves the connections, when all have gone.
	close()
}

// socket is the transport of one connection. Its methods are called with
// conn.mu held and do not wait; but for close, which only the reader calls, as
// the last of them and without the lock.
type socket interface {
	// write takes as much of b as it does without waiting. Less than all is no
	// error; conn.writable is called when there may be room again.
	write(b []byte) (int, error)
	// closeWrite ends the stream to the client after what has been written.
	closeWrite()
	// abort has the reader see the end of the stream.
	abort()
	close()
}

// streams is the front of any net.Listener, served by net/http: a goroutine
// reads each connection, and another writes while there is something to write.
type streams struct {
	g   *Gateway
	ln  net.Listener
	srv *http.Server
}

// newStreams returns the front for ln, with TLS if cfg is not nil.
func (g *Gateway) newStreams(ln net.Listener, cfg *tls.Config) *streams {
	ln = counted{ln, g}
	if cfg != nil {
		cfg = cfg.Clone()
		cfg.NextProtos = []string{"http/1.1"} // there are no WebSockets over HTTP/2 here
		ln = tls.NewListener(ln, cfg)
	}
	return &streams{g: g, ln: ln, srv: &http.Server{
		Handler: g,
		// A client that dribbles its request has this long for all of it.
		ReadHeaderTimeout: g.limits.HandshakeTimeout,
		ReadTimeout:       g.limits.HandshakeTimeout,
		WriteTimeout:      g.limits.HandshakeTimeout,
		IdleTimeout:       g.limits.HandshakeTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		ConnState:         g.countHandshakes,
	}}
}

func (s *streams) serve() error {
	if err := s.srv.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *streams) stop() {
	if err := s.srv.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.g.log.Warn("closing the listener", "err", err)
	}
}

func (s *streams) sweep(time.Duration) {} // net/http has timers for them
func (s *streams) close()              {}

// countHandshakes bounds sockets that are not upgraded yet: a client that only
// connects costs a socket until HandshakeTimeout.
func (g *Gateway) countHandshakes(nc net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		if g.handshakes.Add(1) > int64(g.limits.MaxHandshakes) {
			g.m.refused.WithLabelValues("handshakes").Inc()
			nc.Close()
		}
	case http.StateHijacked, http.StateClosed:
		g.handshakes.Add(-1)
		if c, ok := bareOf(nc).(*countedConn); ok {
			c.hello()
		}
	}
}

// stream is the socket of streams.
type stream struct {
	c    *conn
	nc   net.Conn
	bare net.Conn // nc, or what is under its TLS
}

// streamReadBytes is the size of the read buffer that a stream keeps.
const streamReadBytes = 1024

// bareOf returns nc, or what is under its TLS.
func bareOf(nc net.Conn) net.Conn {
	if t, ok := nc.(*tls.Conn); ok {
		return t.NetConn()
	}
	return nc
}

// adoptStream makes a connection of an upgraded one of net/http, and reports
// whether it was admitted.
func (g *Gateway) adoptStream(nc net.Conn, format wire.Format, claims wire.Claims, t ticket) bool {
	c := g.newConn()
	s := &stream{c: c, nc: nc, bare: bareOf(nc)}
	c.sock = s
	under := s.bare
	if cc, ok := under.(*countedConn); ok {
		under = cc.Conn
	}
	if tc, ok := under.(*net.TCPConn); ok {
		if err := tc.SetWriteBuffer(g.limits.SendBufferBytes); err != nil {
			g.log.Debug("send buffer of a socket", "err", err)
		}
	}
	if !g.admit(c, format, claims, t) {
		nc.Close()
		return false
	}
	go c.readStream(nc)
	return true
}

// readStream reads the connection to its end.
func (c *conn) readStream(nc net.Conn) {
	buf := make([]byte, streamReadBytes)
	for {
		n, err := nc.Read(buf)
		if n > 0 {
			c.received(buf[:n])
		}
		// An error is the end of the connection, whatever it says.
		if err != nil || c.ended {
			break
		}
	}
	c.finish()
}

// write takes nothing: a write to a net.Conn may have to wait, and so it is the
// writer's, who is started here.
func (s *stream) write([]byte) (int, error) {
	// finish has not run, so the reader still holds one count of conns.
	s.c.g.conns.Add(1)
	go s.c.writeStream(s.nc)
	return 0, nil
}

func (s *stream) closeWrite() {
	w, ok := s.nc.(interface{ CloseWrite() error })
	if !ok {
		return
	}
	s.c.g.conns.Add(1)
	go func() { // TLS has something to write
		defer s.c.g.conns.Done()
		_ = w.CloseWrite() // an error: the peer has ended it already, and then the reader knows
	}()
}

func (s *stream) abort() { _ = s.nc.SetDeadline(time.Unix(1, 0)) } // fails when it has ended

// close says nothing to the client, as TLS would and wait for: closeWrite has.
func (s *stream) close() { _ = s.bare.Close() }

// writeStream writes until there is nothing left. It is the only writer
// meanwhile.
func (c *conn) writeStream(nc net.Conn) {
	defer c.g.conns.Done()
	sent := 0
	for {
		c.mu.Lock()
		// dropPendingLocked may have reset the sum meanwhile.
		c.pendBytes = max(c.pendBytes-sent, 0)
		c.blockedAt = c.g.sinceStart() // each write has WriteTimeout, which the sweeper looks after
		b := c.takeLocked()
		if c.closed || len(b) == 0 {
			c.unblockLocked()
			c.flushLocked() // ends a connection that is closing
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		n, err := nc.Write(b)
		c.g.m.writes.Inc()
		c.g.m.txBytes.Add(float64(n))
		if err != nil {
			c.mu.Lock()
			c.abortLocked("client")
			c.unblockLocked()
			c.mu.Unlock()
			return
		}
		sent = n
	}
}

// takeLocked takes what goes into the next write.
func (c *conn) takeLocked() []byte {
	b, n := c.backlog, 0
	c.backlog = nil
	for n < len(c.pend) && len(b) < scratchBytes {
		b = append(b, c.pend[n]...)
		n++
	}
	c.popLocked(n)
	return b
}
