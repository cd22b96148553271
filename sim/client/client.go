// Package client is a client of the chat protocol: one WebSocket, its frames,
// acknowledgements. It knows nothing of load or populations; the engine and
// tests build on it. It may import only system/wire.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"throng/system/wire"
)

// writeTimeout bounds a write to a gateway that has stopped reading.
const writeTimeout = 10 * time.Second

// Handler receives what a connection brings. Its methods are called by the
// connection's reader, one at a time, and must not block.
type Handler interface {
	// Frame is called for each frame. The frame is the handler's to keep.
	Frame(c *Conn, f *wire.Frame)
	// Closed is called once, after the last Frame. err is nil when the
	// connection was ended by Close here, a *websocket.CloseError when the
	// server said why it closed, any other error otherwise.
	Closed(c *Conn, err error)
}

// Conn is a connection of one device. Deliver frames are acknowledged by
// themselves, cumulatively, just before the reader would wait for more: what
// arrives together is acknowledged together.
type Conn struct {
	ws      *websocket.Conn
	handler Handler
	buffers *sync.Pool

	closing   atomic.Bool
	framesIn  atomic.Int64 // written by us
	framesOut atomic.Int64 // received

	delivered uint64 // owned by the reader
	acked     uint64 // owned by the reader

	writeMu sync.Mutex
}

// Dialer opens connections. The zero value works.
type Dialer struct {
	// HandshakeTimeout bounds connect and upgrade; 0 means 10 s.
	HandshakeTimeout time.Duration
	// Sources are local addresses to dial from, taken in turn; none:
	// the system chooses. Every pair of addresses has its own space of ports: with
	// one pair, a connect among 16,000 others spends 0.4 ms of CPU on looking for
	// a free port.
	Sources []netip.Addr
	// TLS is for gateways at wss://; nil: the system's certificates.
	TLS *tls.Config

	next atomic.Uint64 // source

	// Buffers are shared: an idle connection holds none.
	writes sync.Pool
	reads  sync.Pool
}

// Dial connects a device whose bearer token is given to the gateway at url
// ("ws://host:port"), and starts reading once Start is called.
func (d *Dialer) Dial(ctx context.Context, url, token string, h Handler) (*Conn, error) {
	timeout := d.HandshakeTimeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	c := &Conn{handler: h, buffers: &d.reads}
	nd := net.Dialer{Timeout: timeout, KeepAlive: -1}
	if len(d.Sources) > 0 {
		source := d.Sources[d.next.Add(1)%uint64(len(d.Sources))]
		nd.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		nd.Control = portAtConnect
	}
	dialer := websocket.Dialer{
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := nd.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &ackingConn{Conn: nc, owner: c}, nil
		},
		HandshakeTimeout: timeout,
		ReadBufferSize:   512, WriteBufferSize: 512, WriteBufferPool: &d.writes,
		Subprotocols: []string{wire.SubprotocolProto}, TLSClientConfig: d.TLS,
	}
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

// ackingConn acknowledges before it blocks: the WebSocket layer calls Read
// exactly when everything it had buffered is used up.
type ackingConn struct {
	net.Conn
	owner *Conn
}

func (a *ackingConn) Read(p []byte) (int, error) {
	if a.owner.delivered > a.owner.acked {
		a.owner.flushAck()
	}
	return a.Conn.Read(p)
}

func (c *Conn) flushAck() {
	upto := c.delivered
	// A failed write shows as a failed read; there is nobody else to tell.
	if c.Write(&wire.Frame{Kind: &wire.Frame_Ack{Ack: &wire.Ack{Upto: upto}}}) == nil {
		c.acked = upto
	}
}

// Start starts the reader, which calls the handler until the connection ends.
func (c *Conn) Start() { go c.read() }

func (c *Conn) read() {
	err := c.readFrames()
	if c.closing.Load() {
		err = nil
	}
	_ = c.ws.Close()
	c.handler.Closed(c, err)
}

func (c *Conn) readFrames() error {
	var buf []byte
	for {
		_, r, err := c.ws.NextReader()
		if err != nil {
			return err
		}
		bp, _ := c.buffers.Get().(*[]byte)
		if bp == nil {
			bp = new([]byte)
		}
		buf, err = readAll(r, (*bp)[:0])
		if err != nil {
			return err
		}
		f := &wire.Frame{}
		err = f.UnmarshalVT(buf)
		*bp = buf
		c.buffers.Put(bp)
		if err != nil {
			return fmt.Errorf("client: frame from the server: %w", err)
		}
		f.CollectStamps()
		c.framesOut.Add(1)
		if _, ok := f.Kind.(*wire.Frame_Deliver); ok {
			c.delivered++
		}
		c.handler.Frame(c, f)
	}
}

func readAll(r io.Reader, buf []byte) ([]byte, error) {
	if cap(buf) == 0 {
		buf = make([]byte, 0, 1024)
	}
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
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

// Write sends one frame. It is safe for concurrent use. An error means that
// the connection is gone; Closed follows.
func (c *Conn) Write(f *wire.Frame) error {
	b, err := f.MarshalVT()
	if err != nil {
		return fmt.Errorf("client: marshal: %w", err)
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.ws.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("client: write: %w", err)
	}
	if err := c.ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
		return fmt.Errorf("client: write: %w", err)
	}
	c.framesIn.Add(1)
	return nil
}

// Frames returns how many frames were written to and received from the server.
func (c *Conn) Frames() (in, out int64) { return c.framesIn.Load(), c.framesOut.Load() }

// Close ends the connection as a client does that goes to the background: a
// close frame, then the socket. What was received is acknowledged first, by
// the reader. The reader ends on its own when the server answers or the
// deadline passes; Closed is called with nil.
func (c *Conn) Close() {
	if c.closing.Swap(true) {
		return
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	msg := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = c.ws.WriteControl(websocket.CloseMessage, msg, time.Now().Add(time.Second))
	_ = c.ws.SetReadDeadline(time.Now().Add(5 * time.Second))
}

// Abort closes the socket at once, without a close frame.
func (c *Conn) Abort() {
	c.closing.Store(true)
	_ = c.ws.NetConn().Close()
}
