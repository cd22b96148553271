package infra

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// How often keys are aged: miniredis does not expire keys by itself, and its
// own clock-driven mode walks all keys at every command. A pass, in which nobody
// is served, may take one hundredth of the time between two, within these bounds:
// 0.3 s for the 300,000 users of milli_whatsapp.
const (
	minAging = time.Second
	maxAging = time.Minute
)

// maxHeldReplies bounds the bytes that wait for a write.
const maxHeldReplies = 64 << 10

// RunRedis serves a Redis on listen until ctx is done.
func RunRedis(ctx context.Context, listen string) error {
	ln, err := listenRetry(ctx, listen, func() (net.Listener, error) { return net.Listen("tcp", listen) })
	if err != nil {
		return fmt.Errorf("infra: redis: listen on %s: %w", listen, err)
	}
	m := miniredis.NewMiniRedis()
	defer m.Close()
	first, err := m.Dial() // starts it without a listener of its own
	if err != nil {
		ln.Close()
		return fmt.Errorf("infra: redis: %w", err)
	}
	first.Close()
	var accepting sync.WaitGroup
	defer accepting.Wait()
	defer ln.Close()
	failed := make(chan error, 1)
	accepting.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				failed <- err
				return
			}
			m.Server().ServeConn(&pipelined{Conn: conn})
		}
	})
	last := time.Now()
	timer := time.NewTimer(minAging)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("infra: redis: %w", err)
		case <-timer.C:
		}
		now := time.Now()
		m.FastForward(now.Sub(last))
		last = now
		timer.Reset(min(max(100*time.Since(now), minAging), maxAging))
	}
}

// pipelined is a connection on which the replies to commands that came together
// leave together. miniredis writes each reply by itself, and those writes were
// half of what it cost. It reads when it has used up what it had read: until
// then replies are held, after that they are written at once.
type pipelined struct {
	net.Conn

	mu      sync.Mutex
	held    []byte
	reading bool // the peer waits for the client
	broken  error
}

func (p *pipelined) Read(b []byte) (int, error) {
	p.mu.Lock()
	p.flush()
	p.reading = true
	p.mu.Unlock()
	n, err := p.Conn.Read(b)
	p.mu.Lock()
	p.reading = false
	p.mu.Unlock()
	return n, err
}

func (p *pipelined) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, b...)
	if p.reading || len(p.held) >= maxHeldReplies {
		p.flush()
	}
	if p.broken != nil {
		return 0, p.broken
	}
	return len(b), nil
}

// flush writes what is held; p.mu is held. A failure shows in the next Write
// and, the connection being gone, in Read.
func (p *pipelined) flush() {
	if len(p.held) == 0 || p.broken != nil {
		return
	}
	_, err := p.Conn.Write(p.held)
	p.held = p.held[:0]
	if err != nil {
		p.broken = errors.Join(err, p.Conn.Close())
	}
}
