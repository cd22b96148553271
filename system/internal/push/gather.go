package push

import (
	"context"
	"net"
	"sync"
	"time"
)

const (
	// gatherFor is how long what is written to the provider waits for more. HTTP/2
	// writes each frame by itself, and a request is two.
	gatherFor = 2 * time.Millisecond
	// gatherMost bounds the bytes that wait.
	gatherMost = 32 << 10
	// closeTimeout bounds the last write of a connection.
	closeTimeout = time.Second
)

// dialGathered connects to the provider.
func dialGathered(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return gather(conn), nil
}

func gather(conn net.Conn) *gathered {
	g := &gathered{Conn: conn}
	g.timer = time.AfterFunc(gatherFor, g.due)
	return g
}

// gathered is a connection whose writes leave together. That one has failed is
// seen by the next one.
type gathered struct {
	net.Conn
	timer *time.Timer // runs due while something is held

	mu   sync.Mutex
	held []byte
	err  error
}

// Write implements net.Conn.
func (g *gathered) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		if len(g.held) == 0 {
			g.timer.Reset(gatherFor)
		}
		if g.held = append(g.held, b...); len(g.held) >= gatherMost {
			g.flush()
		}
	}
	if g.err != nil {
		return 0, g.err
	}
	return len(b), nil
}

func (g *gathered) due() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flush()
}

// flush writes what is held; mu is held. Whoever reads learns of a failure too.
func (g *gathered) flush() {
	if len(g.held) == 0 || g.err != nil {
		return
	}
	_, g.err = g.Conn.Write(g.held)
	g.held = g.held[:0]
	if g.err != nil {
		_ = g.Conn.Close() // it is broken
	}
}

// Close implements net.Conn; what is held is still written, unless the peer
// does not read.
func (g *gathered) Close() error {
	_ = g.SetWriteDeadline(time.Now().Add(closeTimeout)) // else Close below ends the write
	g.due()
	g.timer.Stop()
	return g.Conn.Close()
}
