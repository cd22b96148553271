package inbox

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

const (
	// outLimit bounds the frames that wait for a gateway's stream, outBytes
	// their bytes. A gateway that does not keep up loses its stream, and so its
	// sessions: it alone pays.
	outLimit = 1 << 16
	outBytes = 64 << 20
	// sendBytes bounds one message to a gateway, sendItems to an appender.
	sendBytes = 1 << 20
	sendItems = 4096
)

// gatewayStream is one Sessions stream.
type gatewayStream struct {
	streamCtl
	id    uint64
	name  string
	m     *metrics
	ended atomic.Bool
	wake  chan struct{} // holds one token; never closed

	mu     sync.Mutex
	out    []*rpc.Outbound
	bytes  int
	opened []*rpc.SessionOpened // counts with out for the bound
	kicks  []*rpc.Kick          // at most one for each session
}

// put queues frames. It never waits.
func (g *gatewayStream) put(out []*rpc.Outbound, opened []*rpc.SessionOpened, kicks []*rpc.Kick) {
	bytes := 0
	for _, o := range out {
		bytes += len(o.Frame) + 8*len(o.Conns)
	}
	g.mu.Lock()
	full := len(g.out)+len(g.opened)+len(out)+len(opened) > outLimit || g.bytes+bytes > outBytes
	if !full {
		g.out = append(g.out, out...)
		g.opened = append(g.opened, opened...)
		g.kicks = append(g.kicks, kicks...)
		g.bytes += bytes
	}
	g.mu.Unlock()
	if full {
		g.m.gatewayQueue.Dropped.Add(float64(len(out)))
		g.cancel(errOverflow)
		return
	}
	g.m.gatewayQueue.Depth.Add(float64(len(out)))
	wake(g.wake)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take returns the next message for the gateway, nil if there is nothing.
func (g *gatewayStream) take() *rpc.OwnerBatch {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.out)+len(g.opened)+len(g.kicks) == 0 {
		return nil
	}
	n, bytes := 0, 0
	for n < len(g.out) && bytes < sendBytes {
		bytes += len(g.out[n].Frame) + 8*len(g.out[n].Conns)
		n++
	}
	b := &rpc.OwnerBatch{Out: g.out[:n:n], Opened: g.opened}
	g.opened = nil
	g.out = g.out[n:]
	g.bytes -= bytes
	if len(g.out) == 0 {
		g.out = nil
		b.Kicks, g.kicks = g.kicks, nil // after every frame that came before them
	}
	g.m.gatewayQueue.Depth.Sub(float64(n))
	return b
}

// run sends what is queued until ctx is done.
func (g *gatewayStream) run(ctx context.Context, stream rpc.Inbox_SessionsServer) {
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.m.gatewayQueue.Depth.Sub(float64(len(g.out)))
		g.out = nil
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		}
		for b := g.take(); b != nil; b = g.take() {
			if err := stream.Send(b); err != nil {
				g.cancel(err)
				return
			}
		}
	}
}

// appendStream is one Append stream. What waits for it is bounded by what its
// caller has unanswered.
type appendStream struct {
	streamCtl
	wake chan struct{} // holds one token; never closed

	mu      sync.Mutex
	results []*rpc.AppendResult
}

// call is an item of a stream, of which each loop has a part.
type call struct {
	stream       *appendStream
	ref          uint64
	left         atomic.Int32
	live, stored atomic.Uint32
	code         atomic.Int32
	op           *obs.Op
	at           time.Time
	span         *obs.Span // nil if it is not traced
}

// part counts one loop's answer and answers the caller after the last.
func (c *call) part(a *Answer) {
	c.live.Add(a.Live)
	c.stored.Add(a.Stored)
	if a.Code != 0 {
		c.code.Store(int32(a.Code))
	}
	if c.left.Add(-1) == 0 {
		c.done()
	}
}

func (c *call) done() {
	c.op.Done(time.Since(c.at), c.code.Load() != 0)
	c.endTrace()
	r := &rpc.AppendResult{Ref: c.ref, Code: wire.Code(c.code.Load()), Live: c.live.Load(), Stored: c.stored.Load()}
	c.stream.mu.Lock()
	c.stream.results = append(c.stream.results, r)
	c.stream.mu.Unlock()
	wake(c.stream.wake)
}

// run sends results until ctx is done.
func (s *appendStream) run(ctx context.Context, stream rpc.Inbox_AppendServer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		s.mu.Lock()
		all := s.results
		s.results = nil
		s.mu.Unlock()
		for len(all) > 0 {
			n := min(len(all), sendItems)
			if err := stream.Send(&rpc.AppendResultBatch{Items: all[:n]}); err != nil {
				s.cancel(err)
				return
			}
			all = all[n:]
		}
	}
}
