// Package client is a client of the chat protocol: one WebSocket, its frames,
// acknowledgements. It knows nothing of load or populations; the engine and
// tests build on it. It may import only system/wire.
//
// On Linux, to gateways at ws://, an idle connection is a socket, a
// websocket.Conn with the least buffer, and nothing else: a few pollers wait
// for all sockets (epoll), read what has come into a buffer of their own, and run
// the protocol on whole messages. Elsewhere, and for wss://, each connection has
// a goroutine that waits in a read.
package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"throng/system/wire"
)

const (
	// writeTimeout bounds a write to a gateway that has stopped reading.
	writeTimeout = 10 * time.Second
	// closeTimeout is how long a gateway may take to answer a close frame.
	closeTimeout = 5 * time.Second
	// writeBuffer holds a frame while it is made; what is larger is fragmented.
	writeBuffer = 8 << 10
)

// Handler receives what a connection brings. Its methods are called one at a
// time for each connection, and must not block: other connections wait too.
type Handler interface {
	// Frame is called for each frame. The frame is the handler's to keep.
	Frame(c *Conn, f *wire.Frame)
	// Closed is called once, after the last Frame. err is nil when the
	// connection was ended by Close here, a *websocket.CloseError when the
	// server said why it closed, ErrSilent when its heartbeat ended it, any other
	// error otherwise.
	Closed(c *Conn, err error)
}

// Conn is a connection of one device. Deliver frames are acknowledged by
// themselves, cumulatively, when everything that has come was handled: what
// arrives together is acknowledged together, in one write with whatever the
// handler wrote.
type Conn struct {
	ws      *websocket.Conn
	socket  socket
	handler Handler
	dialer  *Dialer

	closing   atomic.Bool
	silent    atomic.Bool  // ended by its heartbeat
	framesIn  atomic.Int64 // written by us
	framesOut atomic.Int64 // received

	delivered uint64 // owned by the reader
	acked     uint64 // owned by the reader

	writeMu sync.Mutex
	timeout *time.Timer // of a close, guarded by writeMu

	lastRx atomic.Int64 // when something last came, on the clock of the heartbeat
	beat   beat         // set before Start, then the heartbeat's own
}

// socket carries the bytes of a connection. What is written between hold and
// release goes out together.
type socket interface {
	net.Conn
	hold()
	release()
	// start begins to call what the connection brings.
	start(c *Conn)
	// abort ends the connection for both sides.
	abort()
}

// Grid is when a busy client looks up: at most once in each step, so that what
// comes within one shares its wake-up, which costs more than a frame does. What is
// timed at its moments is timed up to a step too late, never too early. The zero
// Grid looks up for everything.
type Grid struct {
	Epoch time.Time
	Step  time.Duration
}

// After returns the first moment that is not before at. Both count from Epoch.
func (g Grid) After(at time.Duration) time.Duration {
	if g.Step <= 0 || at%g.Step == 0 {
		return at
	}
	return at.Truncate(g.Step) + g.Step
}

// Dialer opens connections. The zero value works. What it keeps running goes
// with its last connection.
type Dialer struct {
	// HandshakeTimeout bounds connect and upgrade; 0 means 10 s.
	HandshakeTimeout time.Duration
	// Sources are local addresses to dial from, taken in turn; none:
	// the system chooses. Every pair of addresses has its own space of ports: with
	// one pair, a connect among 16,000 others spends 0.4 ms of CPU on looking for
	// a free port.
	Sources []netip.Addr
	// NetDial connects instead of the system, for a server in this process; nil: the
	// system connects.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Grid is when sockets that are often ready are looked at, of gateways at ws:// on
	// Linux.
	Grid Grid
	// TLS is for gateways at wss://; nil: the system's certificates.
	TLS *tls.Config

	next    atomic.Uint64 // source
	pollers pollers

	// Buffers are shared: an idle connection holds none.
	writes sync.Pool // of the WebSocket layer
	frames sync.Pool // *[]byte, frames being made and read, and what waits to be written
}

// Dial connects a device whose bearer token is given to the gateway at url
// ("ws://host:port"), and starts reading once Start is called.
func (d *Dialer) Dial(ctx context.Context, url, token string, h Handler) (*Conn, error) {
	timeout := d.HandshakeTimeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	c := &Conn{handler: h, dialer: d}
	dialer := websocket.Dialer{
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var source netip.Addr
			if len(d.Sources) > 0 {
				source = d.Sources[d.next.Add(1)%uint64(len(d.Sources))]
			}
			if d.NetDial != nil {
				nc, err := d.NetDial(ctx, network, addr)
				c.socket = &blocking{Conn: nc}
				return c.socket, err
			}
			var err error
			if strings.HasPrefix(url, "ws://") {
				c.socket, err = d.connect(ctx, network, addr, source)
			} else {
				c.socket, err = dialBlocking(ctx, network, addr, source)
			}
			return c.socket, err
		},
		ReadBufferSize: 1, WriteBufferSize: writeBuffer, WriteBufferPool: &d.writes, // 1: the least that the layer takes
		Subprotocols: []string{wire.SubprotocolProto}, TLSClientConfig: d.TLS,
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ws, resp, err := dialer.DialContext(ctx, url+wire.Path, http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		if resp != nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
			_ = resp.Body.Close()
			return nil, &RefusedError{Status: resp.StatusCode, Body: string(body)}
		}
		return nil, fmt.Errorf("client: dial %s: %w", url, err)
	}
	c.ws = ws
	return c, nil
}

// RefusedError is an upgrade that the gateway answered with something else.
type RefusedError struct {
	Status int
	Body   string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("client: gateway refused the upgrade: status %d: %s", e.Status, e.Body)
}

// Start starts reading: the handler is called until the connection ends.
func (c *Conn) Start() { c.socket.start(c) }

// read reads one message, which must be there or come, and hands its frame to
// the handler.
func (c *Conn) read() error {
	_, r, err := c.ws.NextReader()
	if err != nil {
		return err
	}
	bp := c.dialer.buffer()
	defer c.dialer.frames.Put(bp)
	if *bp, err = readAll(r, (*bp)[:0]); err != nil {
		return err
	}
	f := &wire.Frame{}
	if err := f.UnmarshalVT(*bp); err != nil {
		return fmt.Errorf("client: frame from the server: %w", err)
	}
	f.CollectStamps()
	c.framesOut.Add(1)
	if _, ok := f.Kind.(*wire.Frame_Deliver); ok {
		c.delivered++
	}
	c.handler.Frame(c, f)
	return nil
}

// acknowledge says what has been delivered, when all that has come is handled.
func (c *Conn) acknowledge() {
	if c.delivered == c.acked {
		return
	}
	upto := c.delivered
	// A failed write shows as a failed read; there is nobody else to tell.
	if c.Write(&wire.Frame{Kind: &wire.Frame_Ack{Ack: &wire.Ack{Upto: upto}}}) == nil {
		c.acked = upto
	}
}

// ended tells the handler. The socket is closed already.
func (c *Conn) ended(err error) {
	switch {
	case c.closing.Load():
		err = nil
	case c.silent.Load():
		err = ErrSilent
	}
	if c.beat.of != nil {
		c.beat.of.forget(c)
	}
	c.writeMu.Lock()
	if c.timeout != nil {
		c.timeout.Stop()
	}
	c.writeMu.Unlock()
	c.handler.Closed(c, err)
}

// buffer returns an empty buffer, for frames to be put back into.
func (d *Dialer) buffer() *[]byte {
	bp, _ := d.frames.Get().(*[]byte)
	if bp == nil {
		b := make([]byte, 0, 1024)
		bp = &b
	}
	*bp = (*bp)[:0]
	return bp
}

func readAll(r io.Reader, buf []byte) ([]byte, error) {
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
	}
}

// Write sends frames, several in one write. It is safe for concurrent use. An
// error means that the connection is gone; Closed follows.
func (c *Conn) Write(frames ...*wire.Frame) error {
	c.socket.hold()
	defer c.socket.release()
	bp := c.dialer.buffer()
	defer c.dialer.frames.Put(bp)
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	for _, f := range frames {
		n := f.SizeVT()
		if cap(*bp) < n {
			*bp = make([]byte, n)
		}
		b := (*bp)[:n]
		if _, err := f.MarshalToSizedBufferVT(b); err != nil {
			return fmt.Errorf("client: marshal: %w", err)
		}
		if err := c.ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
			return fmt.Errorf("client: write: %w", err)
		}
	}
	c.framesIn.Add(int64(len(frames)))
	return nil
}

// Frames returns how many frames were written to and received from the server.
func (c *Conn) Frames() (in, out int64) { return c.framesIn.Load(), c.framesOut.Load() }

// Close ends the connection as a client does that goes to the background: it
// writes the last frames and a close frame, and the socket goes when the server
// has answered or has had time to. Closed is called with nil. Of several calls
// the first counts.
func (c *Conn) Close(last ...*wire.Frame) {
	if c.closing.Load() {
		return
	}
	c.socket.hold()
	defer c.socket.release()
	if len(last) > 0 {
		_ = c.Write(last...)
	}
	if c.closing.Swap(true) {
		return
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	msg := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = c.ws.WriteControl(websocket.CloseMessage, msg, time.Now().Add(time.Second))
	c.timeout = time.AfterFunc(closeTimeout, c.socket.abort)
}

// Abort closes the socket at once, without a close frame.
func (c *Conn) Abort() {
	c.closing.Store(true)
	c.socket.abort()
}
