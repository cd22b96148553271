package client

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// blocking is a socket whose reader waits in a goroutine.
type blocking struct {
	net.Conn
	owner *Conn // nil until started

	mu   sync.Mutex
	held int
	out  []byte // written while held
}

func dialBlocking(ctx context.Context, network, addr string, source netip.Addr) (socket, error) {
	d := net.Dialer{KeepAlive: -1}
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		d.Control = portAtConnect
	}
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &blocking{Conn: nc}, nil
}

// start begins to read. What the handler and acknowledgements write goes out
// before the reader waits again.
func (b *blocking) start(c *Conn) {
	b.owner = c
	b.hold()
	go func() {
		var err error
		for err == nil {
			err = c.read()
		}
		b.release()
		_ = b.Conn.Close()
		c.ended(err)
	}()
}

// Read is called by the layers above exactly when everything that they had is
// used up.
func (b *blocking) Read(p []byte) (int, error) {
	if b.owner != nil {
		b.owner.acknowledge()
		b.release()
		defer b.hold()
	}
	n, err := b.Conn.Read(p)
	if b.owner != nil && n > 0 {
		b.owner.heard()
	}
	return n, err
}

func (b *blocking) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held > 0 {
		b.out = append(b.out, p...)
		return len(p), nil
	}
	return b.write(p)
}

func (b *blocking) write(p []byte) (int, error) {
	if err := b.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return b.Conn.Write(p)
}

func (b *blocking) hold() {
	b.mu.Lock()
	b.held++
	b.mu.Unlock()
}

func (b *blocking) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held--; b.held > 0 || len(b.out) == 0 {
		return
	}
	// A failed write shows as a failed read.
	_, _ = b.write(b.out)
	b.out = nil
}

func (b *blocking) abort() { _ = b.Conn.Close() }
