package inbox

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"throng/system/internal/rpc"
)

const (
	// peerLimit bounds the receipts that wait for another instance.
	peerLimit = 20_000
	// pushGap is the least time between two batches to a push instance.
	pushGap = 5 * time.Millisecond
	// reopen is the wait before a stream to another role is opened again.
	reopen = 200 * time.Millisecond
)

// peer sends receipts to another inbox instance, best effort.
type peer struct {
	in   *Inbox
	addr string
	wake chan struct{} // holds one token; never closed

	mu    sync.Mutex
	queue []*rpc.ReceiptUpdate
}

func newPeer(in *Inbox, addr string) *peer {
	return &peer{in: in, addr: addr, wake: make(chan struct{}, 1)}
}

func (p *peer) put(us []*rpc.ReceiptUpdate) {
	p.mu.Lock()
	n := min(len(us), peerLimit-len(p.queue))
	p.queue = append(p.queue, us[:n]...)
	p.mu.Unlock()
	p.in.m.peerQueue.Depth.Add(float64(n))
	p.in.m.peerQueue.Dropped.Add(float64(len(us) - n))
	wake(p.wake)
}

func (p *peer) run(ctx context.Context, h stats.Handler) {
	conn, err := rpc.Dial(p.addr, grpc.WithStatsHandler(h), p.in.cfg.Identity.Dialling("inbox"))
	if err != nil {
		p.in.cfg.Log.Error("inbox: receipts for a peer are lost", "peer", p.addr, "err", err)
		return
	}
	defer conn.Close()
	for ctx.Err() == nil {
		if err := p.stream(ctx, conn); err != nil && ctx.Err() == nil {
			p.in.cfg.Log.Debug("inbox: stream to a peer ended", "peer", p.addr, "err", err)
		}
		pause(ctx, reopen)
	}
}

func (p *peer) stream(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := rpc.NewReceiptsClient(conn).Forward(ctx)
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-p.wake:
		}
		p.mu.Lock()
		all := p.queue
		p.queue = nil
		p.mu.Unlock()
		p.in.m.peerQueue.Depth.Sub(float64(len(all)))
		for len(all) > 0 {
			n := min(len(all), sendItems)
			if err := stream.Send(&rpc.ReceiptBatch{Items: all[:n]}); err != nil {
				return err
			}
			all = all[n:]
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// pusher asks one push instance. What waits is bounded by Limits.Pushes of
// each loop. A request whose stream breaks goes back to its loop, which asks
// again if the rows are still there.
type pusher struct {
	in   *Inbox
	addr string
	wake chan struct{} // holds one token; never closed

	mu      sync.Mutex
	next    uint64
	queue   []*rpc.PushRequest
	cancels []uint64             // refs on the stream
	pending map[uint64]pushOwner // by the ref on the stream
	refs    map[pushOwner]uint64 // the other way round
}

type pushOwner struct {
	loop *loop
	ref  uint64
}

func newPusher(in *Inbox, addr string) *pusher {
	return &pusher{in: in, addr: addr, wake: make(chan struct{}, 1), pending: make(map[uint64]pushOwner),
		refs: make(map[pushOwner]uint64)}
}

// push hands a request to the push instance of the user. Without any push
// instance it stays unanswered.
func (in *Inbox) push(l *loop, r *PushRequest) {
	if len(in.pushers) == 0 {
		return
	}
	p := in.pushers[r.User%uint64(len(in.pushers))]
	req := &rpc.PushRequest{User: r.User, Device: r.Device, Token: r.Token, MessageId: r.Message[:],
		CollapseKey: r.collapseKey(), Waiting: uint32(r.Waiting)}
	p.mu.Lock()
	p.next++
	req.Ref = p.next
	owner := pushOwner{l, r.Ref}
	p.pending[req.Ref], p.refs[owner] = owner, req.Ref
	p.queue = append(p.queue, req)
	p.mu.Unlock()
	in.m.pushQueue.Depth.Inc()
	wake(p.wake)
}

// cancelPush takes a request back. It is answered like any other, unless it has
// an answer on the way.
func (in *Inbox) cancelPush(l *loop, c PushCancel) {
	if len(in.pushers) == 0 {
		return
	}
	p := in.pushers[c.User%uint64(len(in.pushers))]
	p.mu.Lock()
	if ref, ok := p.refs[pushOwner{l, c.Ref}]; ok {
		p.cancels = append(p.cancels, ref)
	}
	p.mu.Unlock()
	wake(p.wake)
}

func (p *pusher) run(ctx context.Context, h stats.Handler) {
	conn, err := rpc.Dial(p.addr, grpc.WithStatsHandler(h), p.in.cfg.Identity.Dialling("push"))
	if err != nil {
		p.in.cfg.Log.Error("inbox: no pushes", "push", p.addr, "err", err)
		return
	}
	defer conn.Close()
	for ctx.Err() == nil {
		if err := p.stream(ctx, conn); err != nil && ctx.Err() == nil {
			p.in.cfg.Log.Debug("inbox: stream to a push instance ended", "push", p.addr, "err", err)
		}
		p.giveBack(ctx)
		pause(ctx, reopen)
	}
}

func (p *pusher) stream(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := rpc.NewPushClient(conn).Notify(ctx)
	if err != nil {
		return err
	}
	var recv sync.WaitGroup
	defer recv.Wait()
	defer cancel()
	recv.Go(func() {
		defer cancel()
		for {
			b, err := stream.Recv()
			if err != nil {
				return
			}
			p.results(ctx, b.Items)
		}
	})
	pace := rpc.NewPace(pushGap)
	for {
		pace.Wait(ctx.Done())
		p.mu.Lock()
		all, cancels := p.queue, p.cancels
		p.queue, p.cancels = nil, nil
		p.mu.Unlock()
		for len(all)+len(cancels) > 0 { // what is cancelled was asked for before
			n := min(len(all), sendItems)
			b := &rpc.PushBatch{Items: all[:n]}
			if all = all[n:]; len(all) == 0 {
				b.Cancel, cancels = cancels, nil
			}
			if err := stream.Send(b); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.wake:
		}
	}
}

func (p *pusher) results(ctx context.Context, rs []*rpc.PushResult) {
	byLoop := make(map[*loop][]pushResult)
	p.mu.Lock()
	for _, r := range rs {
		if o, ok := p.pending[r.Ref]; ok {
			delete(p.pending, r.Ref)
			delete(p.refs, o)
			byLoop[o.loop] = append(byLoop[o.loop], pushResult{o.ref, r.Outcome})
		}
	}
	p.mu.Unlock()
	p.tell(ctx, byLoop)
}

// giveBack returns everything unanswered to the loops.
func (p *pusher) giveBack(ctx context.Context) {
	byLoop := make(map[*loop][]pushResult)
	p.mu.Lock()
	for _, o := range p.pending {
		byLoop[o.loop] = append(byLoop[o.loop], pushResult{ref: o.ref})
	}
	clear(p.pending)
	clear(p.refs)
	p.queue, p.cancels = nil, nil
	p.mu.Unlock()
	p.tell(ctx, byLoop)
}

func (p *pusher) tell(ctx context.Context, byLoop map[*loop][]pushResult) {
	for l, rs := range byLoop {
		p.in.m.pushQueue.Depth.Sub(float64(len(rs)))
		if l.post(ctx, message{pushed: rs}) != nil {
			return
		}
	}
}
