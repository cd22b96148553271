package gateway

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// inboxLink is the stream to one inbox instance. What it has to say collects
// in lists while a batch is on its way and goes out as the next one.
type inboxLink struct {
	g     *Gateway
	index int
	cc    *grpc.ClientConn
	wake  chan struct{} // capacity 1, never closed
	quit  chan struct{} // closed when nothing more will be queued

	frames []sharedFrame // scratch of handle
	conns  []*conn       // likewise
	runs   uint64        // of deliveries so far; of handle

	mu sync.Mutex
	up bool
	// epoch numbers the streams: a session opened in an earlier one does not
	// exist for the instance any more.
	epoch   uint64
	reset   context.CancelFunc // ends the current stream
	opens   []*conn
	acks    []*conn
	closes  []*rpc.SessionClose
	reads   []*rpc.ReceiptUpdate
	queries []*rpc.ReceiptsQuery
	privacy []*conn              // each at most once, see presence.queued
	batches chan *rpc.OwnerBatch // of the current stream, for behind
}

func newInboxLink(g *Gateway, index int, cc *grpc.ClientConn) *inboxLink {
	return &inboxLink{g: g, index: index, cc: cc, wake: make(chan struct{}, 1), quit: make(chan struct{})}
}

func (l *inboxLink) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

func (l *inboxLink) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// openSession tells the instance of a session; while there is no stream, the
// next one begins with all sessions there are. A session that was opened on an
// earlier stream and whose epoch never came cannot be told from one that has been
// replaced since: its client has to connect again.
func (l *inboxLink) openSession(c *conn) {
	known := true
	l.mu.Lock()
	if l.up {
		known = l.openLocked(c)
	}
	l.mu.Unlock()
	if !known {
		c.close(wire.CloseOwnerLost)
		return
	}
	l.poke()
}

func (l *inboxLink) openLocked(c *conn) (known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.synced || c.closing || c.openedIn == l.epoch {
		return true
	}
	if c.openedIn != 0 && c.epoch == 0 {
		return false
	}
	// From here the instance counts from 1 again, the client does not.
	c.openedIn, c.base, c.acked = l.epoch, c.delivered, c.delivered
	l.opens = append(l.opens, c)
	return true
}

func (l *inboxLink) closeSession(c *conn) {
	l.mu.Lock()
	if l.up {
		l.closes = append(l.closes, &rpc.SessionClose{Conn: c.id, User: c.user})
		if len(l.closes) > maxCloses {
			l.g.m.closeQueue.Dropped.Inc()
			l.reset()
		}
	}
	l.mu.Unlock()
	l.poke()
}

// queueAck has the connection's newest acknowledgement sent with the next
// batch; conn.ackQueued keeps it in the list once.
func (l *inboxLink) queueAck(c *conn) {
	l.mu.Lock()
	first := len(l.acks) == 0
	l.acks = append(l.acks, c)
	l.mu.Unlock()
	if first {
		l.poke()
	}
}

// queueRead passes a read receipt to the sender's shard, best effort.
func (l *inboxLink) queueRead(reader uint64, r *wire.Read) {
	l.mu.Lock()
	full := len(l.reads) >= l.g.limits.ReadQueue
	if !full {
		l.reads = append(l.reads, &rpc.ReceiptUpdate{To: r.GetFrom(), ToDevice: r.GetFromDevice(),
			Group: r.GetGroup(), Peer: reader, ReadSeq: r.GetUptoSeq()})
	}
	l.mu.Unlock()
	if full {
		l.g.m.readQueue.Dropped.Inc()
		return
	}
	l.poke()
}

// queueQuery passes a request for a list of receipts to the user's own shard.
// It reports false when it cannot.
func (l *inboxLink) queueQuery(c *conn, r *wire.ReceiptsRequest) bool {
	l.mu.Lock()
	ok := l.up && len(l.queries) < maxQueries
	if ok {
		l.queries = append(l.queries, &rpc.ReceiptsQuery{Conn: c.id, User: c.user, Request: r})
	}
	l.mu.Unlock()
	if !ok {
		l.g.m.queryQueue.Dropped.Inc()
		return false
	}
	l.poke()
	return true
}

// run keeps a stream open until ctx is done, or quit is closed and all that
// was queued has been sent.
func (l *inboxLink) run(ctx context.Context) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	wasUp := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.quit:
			return
		case <-retry.C:
		}
		reached, err := l.stream(ctx)
		if (reached || wasUp) && ctx.Err() == nil {
			l.g.log.Warn("no stream to inbox instance", "instance", l.index, "err", err)
		}
		wasUp = reached
		retry.Reset(reopenDelay)
	}
}

// stream runs one stream to its end. reached says whether the instance
// answered at all.
func (l *inboxLink) stream(ctx context.Context) (reached bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := rpc.NewInboxClient(l.cc).Sessions(ctx)
	if err != nil {
		return false, fmt.Errorf("inbox instance %d: open: %w", l.index, err)
	}
	hello := &rpc.GatewayBatch{Hello: &rpc.GatewayHello{Gateway: l.g.cfg.ID, Incarnation: l.g.incarnation}}
	if err := s.Send(hello); err != nil {
		return false, fmt.Errorf("inbox instance %d: hello: %w", l.index, err)
	}
	impatience := time.AfterFunc(helloTimeout, cancel)
	first, err := s.Recv()
	impatience.Stop()
	if err != nil {
		return false, fmt.Errorf("inbox instance %d: hello: %w", l.index, err)
	}
	l.begin(cancel)
	l.g.log.Info("stream to inbox instance", "instance", l.index, "owner", first.GetIncarnation())

	batches := make(chan *rpc.OwnerBatch, waitingBatches)
	l.mu.Lock()
	l.batches = batches
	l.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { defer cancel(); l.send(ctx, s) })
	wg.Go(func() { l.handle(first, batches) })
	var rerr error
	for {
		b, err := s.Recv()
		if err != nil {
			rerr = err
			break
		}
		batches <- b
	}
	cancel()
	close(batches)
	wg.Wait()
	// Every delivery of this stream has been handled: the next one may begin.
	l.end()
	return true, fmt.Errorf("inbox instance %d: %w", l.index, rerr)
}

// begin marks the stream as up and opens all sessions of this instance on it.
func (l *inboxLink) begin(reset context.CancelFunc) {
	l.mu.Lock()
	l.epoch++
	l.up, l.reset = true, reset
	l.mu.Unlock()
	// Whoever syncs from here on opens itself; openedIn keeps it to once.
	n := len(l.g.inboxes)
	for _, c := range l.g.table.all() {
		if placement.UserInboxInstance(c.user, n) == l.index {
			l.openSession(c)
		}
	}
	l.poke()
}

func (l *inboxLink) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.batches = false, nil
	for _, c := range l.opens { // these were not told
		c.mu.Lock()
		c.openedIn = 0
		c.mu.Unlock()
	}
	l.opens, l.closes, l.queries = nil, nil, nil
	for _, c := range l.privacy { // said again when the session is open again
		c.mu.Lock()
		c.presence.queued = false
		c.mu.Unlock()
	}
	l.privacy = nil
	for _, c := range l.acks {
		c.mu.Lock()
		c.ackQueued = false
		c.mu.Unlock()
	}
	l.acks = nil
}

// ackGather is how long acknowledgements and reads wait for more of them. Each
// batch alone costs both processes a wake-up and two system calls; nobody waits
// for an acknowledgement but the next page of a drain, and the inbox makes a turn
// in 5 ms at most.
const ackGather = 5 * time.Millisecond

// send sends what collects until the stream ends.
func (l *inboxLink) send(ctx context.Context, s grpc.BidiStreamingClient[rpc.GatewayBatch, rpc.OwnerBatch]) {
	gather := time.NewTimer(ackGather)
	defer gather.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.quit:
			if l.sendQueued(s) && s.CloseSend() == nil {
				<-ctx.Done() // the instance ends the stream when it has read it
			}
			return
		case <-l.wake:
		}
		// A login or its end goes at once, with what the readers that are
		// runnable add. Acknowledgements and reads are in no hurry.
		if l.urgent() {
			runtime.Gosched()
		} else if gather.Reset(ackGather); !l.gather(ctx, gather) {
			continue
		}
		if !l.sendQueued(s) {
			return
		}
	}
}

// urgent says whether a session is to be opened or closed, or a user hides.
func (l *inboxLink) urgent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.opens)+len(l.closes)+len(l.privacy) > 0
}

// gather waits for t, and says whether the stream still goes on.
func (l *inboxLink) gather(ctx context.Context, t *time.Timer) bool {
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	case <-l.quit:
		return false
	}
}

// sendQueued sends all there is. It reports false when the stream is broken;
// Recv has the reason.
func (l *inboxLink) sendQueued(s grpc.BidiStreamingClient[rpc.GatewayBatch, rpc.OwnerBatch]) bool {
	for b := l.take(); b != nil; b = l.take() {
		if err := s.Send(b); err != nil {
			return false
		}
	}
	return true
}

// take returns the next batch, nil if there is nothing to say.
func (l *inboxLink) take() *rpc.GatewayBatch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.opens)+len(l.acks)+len(l.closes)+len(l.reads)+len(l.queries)+len(l.privacy) == 0 {
		return nil
	}
	b := &rpc.GatewayBatch{
		Closes: cut(&l.closes), Reads: cut(&l.reads), Queries: cut(&l.queries),
	}
	if conns := cut(&l.opens); len(conns) > 0 {
		opens := make([]rpc.SessionOpen, len(conns))
		b.Opens = make([]*rpc.SessionOpen, 0, len(conns))
		for i, c := range conns {
			c.mu.Lock()
			closing, epoch := c.closing, c.epoch
			c.mu.Unlock()
			// The close of one that has ended meanwhile may have gone already:
			// it must not be opened after it.
			if closing {
				continue
			}
			o := &opens[i]
			o.User, o.Device, o.Conn, o.Epoch = c.user, c.device, c.id, epoch
			o.InboxSeq = c.inboxSeq // set once, before the conn came into the list
			b.Opens = append(b.Opens, o)
		}
	}
	b.Privacy = privacyOf(cut(&l.privacy))
	if conns := cut(&l.acks); len(conns) > 0 {
		acks := make([]rpc.SessionAck, len(conns))
		b.Acks = make([]*rpc.SessionAck, 0, len(conns))
		for i, c := range conns {
			c.mu.Lock()
			c.ackQueued = false
			upto := c.acked - c.base
			open := c.openedIn == l.epoch
			c.mu.Unlock()
			if open && upto > 0 {
				a := &acks[i]
				a.Conn, a.User, a.Upto = c.id, c.user, upto
				b.Acks = append(b.Acks, a)
			}
		}
	}
	l.g.m.readQueue.Depth.Set(float64(len(l.reads)))
	l.g.m.queryQueue.Depth.Set(float64(len(l.queries)))
	l.g.m.closeQueue.Depth.Set(float64(len(l.closes)))
	return b
}

// cut takes the first batchItems of a list. A list taken whole starts anew, so
// that a burst leaves no large array behind.
func cut[T any](list *[]T) []T {
	l := *list
	if len(l) <= batchItems {
		*list = nil
		return l
	}
	*list = l[batchItems:]
	return l[:batchItems:batchItems]
}

// handle writes what the instance sends to the connections. It takes all
// batches that are waiting before it writes, so that a connection's backlog
// leaves in one write, and a frame alone leaves at once.
func (l *inboxLink) handle(first *rpc.OwnerBatch, batches <-chan *rpc.OwnerBatch) {
	var dirty []*conn
	dirty = l.apply(first, dirty)
	for b := range batches {
		dirty = l.apply(b, dirty)
	more:
		for range waitingBatches {
			select {
			case b, ok := <-batches:
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

// apply appends a batch to its connections and adds those that have to be
// flushed to dirty.
func (l *inboxLink) apply(b *rpc.OwnerBatch, dirty []*conn) []*conn {
	g := l.g
	for _, o := range b.GetOpened() {
		if c := g.table.get(o.GetConn()); c != nil {
			c.told(o)
		}
	}
	for outs := b.GetOut(); len(outs) > 0; {
		n := run(outs)
		dirty = l.applyRun(outs[:n], dirty)
		outs = outs[n:]
	}
	for _, k := range b.GetKicks() {
		if c := g.table.get(k.GetConn()); c != nil {
			c.close(wire.CloseCode(k.GetCloseCode()))
		}
	}
	return dirty
}

// run is how many of outs, from the first, deliver to the same connections: a
// busy group's messages mostly do. Each connection then takes them at once.
func run(outs []*rpc.Outbound) int {
	n := 1
	for n < len(outs) && n < pendRoom && outs[0].GetDeliver() && outs[n].GetDeliver() &&
		slices.Equal(outs[0].GetConns(), outs[n].GetConns()) {
		n++
	}
	return n
}

// timeEvery: the first run of deliveries and then one in so many is timed until its
// acknowledgements; a reading of the clock and an observation for each frame are not free.
const timeEvery = 16

// sample returns the time if a run is one of those that are timed, else 0.
func (l *inboxLink) sample(first *rpc.Outbound) time.Duration {
	if !first.GetDeliver() {
		return 0
	}
	if l.runs++; l.runs%timeEvery != 1 {
		return 0
	}
	return l.g.sinceStart()
}

// applyRun is apply for a run.
func (l *inboxLink) applyRun(outs []*rpc.Outbound, dirty []*conn) []*conn {
	frames := l.frames[:0]
	for _, o := range outs {
		frame := o.GetFrame()
		if o.GetStamped() {
			frame = wire.WithStamps(frame, &wire.Stamps{GatewayOutUs: time.Now().UnixMicro()})
		}
		frames = append(frames, sharedFrame{g: l.g, kind: frameKind(frame), traceparent: o.GetTraceparent(),
			proto: wire.AppendServerMessage(make([]byte, 0, wire.ServerHeaderLen(len(frame))+len(frame)), wire.OpBinary, frame)})
	}
	conns := l.g.table.find(l.conns[:0], outs[0].GetConns())
	at := l.sample(outs[0])
	for _, c := range conns {
		mustFlush := false
		if frames[0].kind == kindCurrent {
			if m := l.current(c, outs[0].GetFrame(), frames[0].in(c.format)); m != nil {
				mustFlush = c.push(m, false)
			}
		} else {
			mustFlush = c.pushAll(frames, outs[0].GetDeliver(), at)
		}
		if mustFlush {
			dirty = append(dirty, c)
		}
	}
	for i := range frames {
		l.g.m.tx[frames[i].kind].Add(float64(len(conns)))
	}
	clear(frames)
	clear(conns)
	l.frames, l.conns = frames, conns
	return dirty
}

// current returns the Current message for c. The instance counts from the
// opening of the session, the client from the start of the connection.
func (l *inboxLink) current(c *conn, frame, message []byte) []byte {
	c.mu.Lock()
	base := c.base
	c.mu.Unlock()
	if base == 0 {
		return message
	}
	f, err := wire.Proto.Decode(frame)
	if err == nil && f.GetCurrent() == nil {
		err = errors.New("not a Current")
	}
	if err == nil {
		f.GetCurrent().Delivered += base
		message, err = c.format.ServerMessage(f)
	}
	if err != nil {
		l.g.log.Error("frame of an inbox", "instance", l.index, "err", err)
		return nil
	}
	return message
}
