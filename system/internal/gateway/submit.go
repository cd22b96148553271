package gateway

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// submitGap is the least time between two batches to a message instance.
const submitGap = 2 * time.Millisecond

// messageLink is the stream to one message instance.
type messageLink struct {
	g     *Gateway
	index int
	cc    *grpc.ClientConn
	wake  chan struct{} // capacity 1, never closed

	mu         sync.Mutex
	up         bool
	next       uint64 // ref of the next submission
	queue      []*rpc.Submission
	queueBytes int
	// refs holds the sends without an answer, queued ones included. It is
	// bounded by Limits.InFlight for each connection.
	refs map[uint64]sendRef
}

type sendRef struct {
	conn, clientMsgID uint64
	at                time.Duration // queued, since Gateway.start
	span              *obs.Span
}

func newMessageLink(g *Gateway, index int, cc *grpc.ClientConn) *messageLink {
	return &messageLink{g: g, index: index, cc: cc, wake: make(chan struct{}, 1), refs: make(map[uint64]sendRef)}
}

func (l *messageLink) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// submit queues a send. It returns why not, "" if it was queued.
func (l *messageLink) submit(c *conn, s *wire.Send) string {
	l.mu.Lock()
	switch {
	case !l.up:
		l.mu.Unlock()
		return "message service is not reachable"
	case len(l.queue) >= l.g.limits.SubmitQueue || l.queueBytes+len(s.GetBody()) > l.g.limits.SubmitQueueBytes:
		l.mu.Unlock()
		l.g.m.submitQueue.Dropped.Inc()
		return "message service is behind"
	}
	l.next++
	item := &rpc.Submission{Ref: l.next, User: c.user, Device: c.device, Send: s}
	span := l.g.traceSend(c, s)
	item.Traceparent = span.Traceparent("")
	l.refs[l.next] = sendRef{conn: c.id, clientMsgID: s.GetClientMsgId(), at: l.g.sinceStart(), span: span}
	if every := l.g.cfg.StampEvery; every > 0 && l.next%uint64(every) == 0 {
		item.ReceivedUs = time.Now().UnixMicro()
	}
	l.queue = append(l.queue, item)
	l.queueBytes += len(s.GetBody())
	first := len(l.queue) == 1
	l.mu.Unlock()
	if first {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return ""
}

// run keeps a stream open until ctx is done.
func (l *messageLink) run(ctx context.Context) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	wasUp := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		}
		reached, err := l.stream(ctx)
		if (reached || wasUp) && ctx.Err() == nil {
			l.g.log.Warn("no stream to message instance", "instance", l.index, "err", err)
		}
		wasUp = reached
		retry.Reset(reopenDelay)
	}
}

// stream runs one stream to its end. reached says whether there was one.
func (l *messageLink) stream(ctx context.Context) (reached bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := rpc.NewMessageClient(l.cc).Submit(ctx)
	if err != nil {
		return false, fmt.Errorf("message instance %d: open: %w", l.index, err)
	}
	l.mu.Lock()
	l.up = true
	l.mu.Unlock()
	l.g.log.Info("stream to message instance", "instance", l.index)

	results := make(chan *rpc.SubmitResultBatch, waitingBatches)
	var wg sync.WaitGroup
	wg.Go(func() { defer cancel(); l.send(ctx, s) })
	wg.Go(func() { l.handle(results) })
	var rerr error
	for {
		b, err := s.Recv()
		if err != nil {
			rerr = err
			break
		}
		results <- b
	}
	cancel()
	close(results)
	wg.Wait()
	l.end()
	return true, fmt.Errorf("message instance %d: %w", l.index, rerr)
}

// end answers every send that was on the stream, or waited for it: nobody
// knows whether it was accepted, and a retry is safe.
func (l *messageLink) end() {
	l.mu.Lock()
	refs := l.refs
	l.up, l.refs = false, make(map[uint64]sendRef)
	l.queue, l.queueBytes = nil, 0
	l.mu.Unlock()
	now := l.g.sinceStart()
	for _, r := range refs {
		l.g.m.send.Done(now-r.at, true)
		r.span.End("message service was lost")
		c := l.g.table.get(r.conn)
		if c == nil {
			continue
		}
		c.inFlight.Add(-1)
		c.replyError(&wire.Error{Code: wire.Code_CODE_RETRY, ClientMsgId: r.clientMsgID,
			Detail: "message service was lost", RetryAfterMs: retryAfterMS})
	}
}

// send sends what collects until the stream ends.
func (l *messageLink) send(ctx context.Context, s grpc.BidiStreamingClient[rpc.SubmitBatch, rpc.SubmitResultBatch]) {
	pace := rpc.NewPace(submitGap)
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		pace.Wait(ctx.Done())
		for items := l.take(); len(items) > 0; items = l.take() {
			if err := s.Send(&rpc.SubmitBatch{Items: items}); err != nil {
				return // Recv has the reason
			}
		}
	}
}

func (l *messageLink) take() []*rpc.Submission {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, bytes := 0, 0
	for n < len(l.queue) && n < submitBatchItems && (n == 0 || bytes < submitBatchBytes) {
		bytes += len(l.queue[n].GetSend().GetBody())
		n++
	}
	items := l.queue[:n:n]
	l.queue = l.queue[n:]
	if len(l.queue) == 0 {
		l.queue = nil
	}
	l.queueBytes -= bytes
	l.g.m.submitQueue.Depth.Set(float64(len(l.queue)))
	return items
}

// handle answers the senders; see inboxLink.handle for the order of things.
func (l *messageLink) handle(results <-chan *rpc.SubmitResultBatch) {
	var dirty []*conn
	for b := range results {
		dirty = l.apply(b, dirty)
	more:
		for range waitingBatches {
			select {
			case b, ok := <-results:
				if !ok {
					break more
				}
				dirty = l.apply(b, dirty)
			default:
				break more
			}
		}
		for i, c := range dirty {
			c.flush()
			dirty[i] = nil
		}
		dirty = dirty[:0]
	}
}

func (l *messageLink) apply(b *rpc.SubmitResultBatch, dirty []*conn) []*conn {
	now := l.g.sinceStart()
	for _, r := range b.GetItems() {
		l.mu.Lock()
		ref, ok := l.refs[r.GetRef()]
		delete(l.refs, r.GetRef())
		l.mu.Unlock()
		if !ok {
			l.g.log.Error("result for a send that nobody made", "instance", l.index, "ref", r.GetRef())
			continue
		}
		l.g.m.send.Done(now-ref.at, r.GetSent() == nil)
		ref.span.End(whyRefused(r))
		c := l.g.table.get(ref.conn)
		if c == nil {
			continue // the sender has gone and will send it again
		}
		c.inFlight.Add(-1)
		kind, f := kindSent, &wire.Frame{}
		switch {
		case r.GetSent() != nil:
			f.Kind = &wire.Frame_Sent{Sent: r.GetSent()}
		case r.GetError() != nil:
			kind = kindError
			f.Kind = &wire.Frame_Error{Error: r.GetError()}
		default:
			kind = kindError
			f.Kind = &wire.Frame_Error{Error: &wire.Error{Code: wire.Code_CODE_INTERNAL, ClientMsgId: ref.clientMsgID}}
		}
		if c.queueReply(kind, f) {
			dirty = append(dirty, c)
		}
	}
	return dirty
}
