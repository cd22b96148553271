package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

const (
	// queueLimit bounds the messages that wait for a loop; senders wait then,
	// except for receipts, which are dropped. Each message is one RPC batch.
	queueLimit = 1024
	// turnLimit bounds the events of one turn, and so of one transaction.
	turnLimit = 4096
	// turnGap is the least time between the starts of two turns. A transaction has
	// a price of its own, and pages that its rows share are written once.
	turnGap = 10 * time.Millisecond
	// tick is how often an idle loop looks at its timers.
	tick = wheelSlot
	// deferFor and deferMost bound how long and how many deletions wait to be
	// made together, which dirties fewer pages. What a kill loses of them is
	// delivered once more, and the device drops it.
	deferFor  = 250 * time.Millisecond
	deferMost = 4000
	// saveEvery is how often receipts of devices that are not live are stored.
	saveEvery = time.Second
	// sweepEvery and sweepOften bound how often rows beyond their time are looked
	// for; in between it is eight times in that time.
	sweepEvery = time.Hour
	sweepOften = time.Second
	// scanRows is how many rows a scan reads in one tick.
	scanRows = 1000
	// claimRetry is the wait after a failed claim.
	claimRetry = 200 * time.Millisecond
)

// message is what other goroutines tell a loop. The fields of one kind are set.
type message struct {
	epoch uint64

	items []*Item

	gateway *gatewayStream
	opens   []*rpc.SessionOpen
	acks    []*rpc.SessionAck
	closes  []*rpc.SessionClose
	queries []*rpc.ReceiptsQuery
	privacy []*rpc.PrivacyUpdate
	gone    bool // the gateway's stream has ended

	receipts []*rpc.ReceiptUpdate

	register []Registration
	ask      *unknown     // users to look up
	done     chan<- error // told when the registration is durable, or ask has its answer

	pushed []pushResult
}

// unknown asks which users do not exist. The answer takes their place.
type unknown struct{ users []uint64 }

type pushResult struct {
	ref     uint64
	outcome rpc.PushOutcome
}

func (m *message) events() int {
	return 1 + len(m.items) + len(m.opens) + len(m.acks) + len(m.closes) + len(m.queries) + len(m.privacy) + len(m.receipts) + len(m.register) + len(m.pushed)
}

// loop drives one core. Everything but queue and incarnation belongs to its goroutine.
type loop struct {
	in     *Inbox
	n      int
	shards []int
	store  Store
	queue  chan message
	dead   chan struct{} // closed when the loop has returned

	incarnation uint64 // guarded by Inbox.mu; 0: not serving

	core     *Core
	gateways map[uint64]*outbox
	rows     int
	marks    int       // of the core, as last published
	ahead    int       // likewise
	users    int       // likewise
	deferred time.Time // when the oldest waiting deletion came
	saved    time.Time
	swept    time.Time
	scan     scan
	turnBuf  []message
	missing  []uint64
}

// scan is a walk through the rows of the store in the order of seq.
type scan struct {
	running bool
	expiry  bool // ends at the first row that is within its time
	after   uint64
}

func newLoop(in *Inbox, n int, st Store) *loop {
	l := &loop{in: in, n: n, store: st, queue: make(chan message, queueLimit), dead: make(chan struct{})}
	for s := range placement.InboxShards {
		if placement.InboxInstance(s, in.cfg.Instances) == in.cfg.Instance && s/in.cfg.Instances%len(in.cfg.Stores) == n {
			l.shards = append(l.shards, s)
		}
	}
	return l
}

// post hands a message to the loop, waiting while its queue is full.
func (l *loop) post(ctx context.Context, m message) error {
	select {
	case l.queue <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.dead:
		return errCut
	}
}

// offer hands a message to the loop unless its queue is full.
func (l *loop) offer(m message) {
	select {
	case l.queue <- m:
	default:
		l.in.m.queues[l.n].Dropped.Add(float64(m.events() - 1))
	}
}

// run serves until ctx is done. A failed transaction makes it start over from
// the store; to everybody else that is a restart of the instance.
func (l *loop) run(ctx context.Context) error {
	defer close(l.dead)
	for {
		if err := l.claim(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		err := l.serve(ctx)
		if err == nil {
			return nil
		}
		l.in.owned(l, 0)
		l.in.cut(false)
		if errors.Is(err, ErrFenced) {
			return err
		}
		l.in.m.restarts.Inc()
		l.in.cfg.Log.Error("inbox: loop starts over", "loop", l.n, "err", err)
	}
}

// claim becomes the owner of the shards, trying until it is or ctx is done.
func (l *loop) claim(ctx context.Context) error {
	for {
		inc, rows, err := l.store.Claim(ctx, l.shards, uint64(time.Now().Unix()))
		if err == nil {
			now := time.Now()
			l.core = NewCore(l.in.cfg.Limits, inc, now.UnixNano(),
				func(user uint64) bool { return l.in.loopOf(user) == l }, l.in.cfg.Plant == PlantDrop)
			l.gateways = make(map[uint64]*outbox)
			l.in.m.rows.Add(float64(rows - l.rows))
			l.rows, l.saved, l.swept, l.deferred = rows, now, now, time.Time{}
			l.scan = scan{running: rows > 0}
			l.in.owned(l, inc)
			return nil
		}
		if errors.Is(err, ErrOtherShards) || ctx.Err() != nil {
			return fmt.Errorf("claim: %w", err)
		}
		l.in.cfg.Log.Warn("inbox: claim failed, trying again", "loop", l.n, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(claimRetry):
		}
	}
}

func (l *loop) serve(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	pace := rpc.NewPace(turnGap)
	for {
		ticked := false
		select {
		case m := <-l.queue:
			pace.Wait(ctx.Done()) // when that ends, the turn is made all the same
			l.turnBuf = append(l.turnBuf[:0], m)
			l.gather(m.events())
		case <-ticker.C:
			ticked = true
			l.observe()
			l.turnBuf = l.turnBuf[:0]
			l.gather(0)
		case <-ctx.Done():
			return l.stop(context.WithoutCancel(ctx))
		}
		err := l.turn(ctx, ticked)
		clear(l.turnBuf)
		if err != nil {
			return err
		}
	}
}

// observe publishes how full things are.
func (l *loop) observe() {
	l.in.m.queues[l.n].Depth.Set(float64(len(l.queue)))
	l.in.m.marks.Depth.Add(float64(l.core.Marks() - l.marks))
	l.marks = l.core.Marks()
	l.in.m.ahead.Depth.Add(float64(l.core.ahead - l.ahead))
	l.ahead = l.core.ahead
	l.in.m.users.Depth.Add(float64(len(l.core.users) - l.users))
	l.users = len(l.core.users)
}

func (l *loop) gather(events int) {
	for events < turnLimit {
		select {
		case m := <-l.queue:
			l.turnBuf = append(l.turnBuf, m)
			events += m.events()
		default:
			return
		}
	}
}

// stop writes what was deferred.
func (l *loop) stop(ctx context.Context) error {
	l.core.SaveReceipts(true)
	l.core.Unhold()
	l.core.End()
	if l.core.Urgent() || l.core.Waiting() > 0 {
		return l.commit(ctx, true)
	}
	return nil
}

// turn is one turn of the core with everything in turnBuf.
func (l *loop) turn(ctx context.Context, ticked bool) error {
	ctx = context.WithoutCancel(ctx) // a transaction under way is finished
	now := time.Now()
	err := l.decide(ctx, now, ticked)
	for err == nil {
		lapsed := l.lapsed(now)
		if !lapsed && !l.core.Urgent() {
			break
		}
		err = l.commit(ctx, lapsed)
	}
	for i := range l.turnBuf {
		if d := l.turnBuf[i].done; d != nil {
			d <- err // buffered
		}
	}
	if err != nil {
		return err
	}
	l.release()
	l.in.m.add(l.core.TakeStats())
	l.in.m.turn.Done(time.Since(now), false)
	return nil
}

// decide loads the users that the turn is about and feeds the core.
func (l *loop) decide(ctx context.Context, now time.Time, ticked bool) error {
	var scanned []ScanRow
	if ticked {
		var err error
		if scanned, err = l.scanStep(ctx, now); err != nil {
			return err
		}
	}
	epoch := l.in.currentEpoch()
	l.missing = l.missing[:0]
	for i := range l.turnBuf {
		if m := &l.turnBuf[i]; m.epoch == epoch {
			for _, it := range m.items {
				l.want(it.Users...)
			}
			for _, o := range m.opens {
				l.want(o.User)
			}
			for _, p := range m.privacy {
				l.want(p.User)
			}
			if m.ask != nil {
				l.want(m.ask.users...)
			}
		}
	}
	for i := range scanned {
		l.want(scanned[i].User)
	}
	if len(l.missing) > 0 {
		asked := unique(l.missing)
		began := time.Now()
		states, err := l.store.Load(ctx, asked)
		l.in.m.load.Done(time.Since(began), err != nil)
		if err != nil {
			return err
		}
		l.core.Loaded(asked, states)
	}
	l.core.Begin(now.UnixNano())
	for i := range l.turnBuf {
		l.feed(&l.turnBuf[i], epoch)
	}
	l.core.Scanned(scanned)
	if now.Sub(l.saved) >= saveEvery {
		l.saved = now
		l.core.SaveReceipts(false)
	}
	l.core.End()
	return nil
}

func (l *loop) want(users ...uint64) {
	for _, u := range users {
		if l.core.Missing(u) {
			l.missing = append(l.missing, u)
		}
	}
}

func (l *loop) feed(m *message, epoch uint64) {
	if m.gone {
		l.core.GatewayLost(m.gateway.id)
		delete(l.gateways, m.gateway.id)
		return
	}
	l.core.pushResults(m.pushed)
	l.core.Forwarded(m.receipts)
	if m.epoch != epoch {
		if m.done != nil {
			m.done <- errCut
			m.done = nil
		}
		return // from a stream that has been cut: its caller sends it again
	}
	l.core.Provision(m.register)
	if m.ask != nil {
		m.ask.users = slices.DeleteFunc(m.ask.users, func(u uint64) bool { return l.core.touch(u).exists })
	}
	for _, it := range m.items {
		l.core.Append(it)
	}
	g := m.gateway
	if g == nil || g.ended.Load() {
		return
	}
	if l.gateways[g.id] == nil {
		l.gateways[g.id] = &outbox{stream: g}
	}
	// A conn is used once, so what a batch opens it cannot have acknowledged,
	// but it may have closed it again; and a device that came back may have
	// acknowledged on the connection before.
	for _, a := range m.acks {
		l.core.Ack(g.id, a.Conn, a.User, a.Upto)
	}
	for _, o := range m.opens {
		l.core.Open(g.id, o)
	}
	for _, p := range m.privacy {
		l.core.Privacy(p.User, p.Privacy.GetHideLastSeen())
	}
	l.core.queried(g.id, m.queries)
	for _, c := range m.closes {
		l.core.Close(g.id, c.Conn, c.User)
	}
}

func (c *Core) pushResults(rs []pushResult) {
	for _, r := range rs {
		c.PushResult(r.ref, r.outcome)
	}
}

// lapsed reports whether what could wait has waited enough.
func (l *loop) lapsed(now time.Time) bool {
	n := l.core.Waiting()
	if n == 0 {
		return false
	}
	if l.deferred.IsZero() {
		l.deferred = now
	}
	return n >= deferMost || now.Sub(l.deferred) >= deferFor
}

func (l *loop) commit(ctx context.Context, all bool) error {
	b := l.core.TakeBatch(all)
	if l.core.Waiting() == 0 {
		l.deferred = time.Time{}
	}
	began := time.Now()
	res, err := l.store.Commit(ctx, b)
	l.in.m.commit.Done(time.Since(began), err != nil)
	if err != nil {
		return err
	}
	l.rows += res.Inserted - res.Deleted
	l.in.m.committed(&res)
	return l.core.Committed(&res)
}

// scanStep reads the next rows of a scan, or starts one that is due. Deletions
// that wait are written first, so that the scan does not see those rows.
func (l *loop) scanStep(ctx context.Context, now time.Time) ([]ScanRow, error) {
	if now.Sub(l.swept) >= min(sweepEvery, max(sweepOften, l.in.cfg.Limits.Expiry/8)) && !l.scan.running {
		l.swept = now
		l.scan = scan{running: true, expiry: true}
		l.core.batch.ExpireMarks = now.Add(-l.in.cfg.Limits.Expiry).Unix()
	}
	if !l.scan.running {
		return nil, nil
	}
	if l.core.Waiting() > 0 {
		if err := l.commit(ctx, true); err != nil {
			return nil, err
		}
	}
	rows, err := l.store.Scan(ctx, l.scan.after, scanRows)
	if err != nil {
		return nil, err
	}
	if len(rows) > 0 {
		l.scan.after = rows[len(rows)-1].Seq
	}
	expired := now.Add(-l.in.cfg.Limits.Expiry).Unix()
	if len(rows) < scanRows || l.scan.expiry && rows[len(rows)-1].At >= expired {
		l.scan = scan{}
	}
	return rows, nil
}

// release lets the effects of the turn out, in order.
func (l *loop) release() {
	e := l.core.TakeEffects()
	l.answer(e.Answers)
	l.send(&e)
	for i := range e.Pushes {
		l.in.push(l, &e.Pushes[i])
	}
	for _, c := range e.Cancels {
		l.in.cancelPush(l, c)
	}
	l.forward(e.Forward)
}

func (l *loop) answer(answers []Answer) {
	for i := range answers {
		a := &answers[i]
		a.Item.Ref.(*call).part(a)
	}
}

// outbox is what a turn has for one gateway.
type outbox struct {
	stream *gatewayStream
	out    []*rpc.Outbound
	opened []*rpc.SessionOpened
	kicks  []*rpc.Kick
}

// send gives each gateway its frames, one hand-over for a turn.
func (l *loop) send(e *Effects) {
	frames := e.Frames
	if len(frames)+len(e.Opened)+len(e.Kicks) == 0 {
		return
	}
	for i := range e.Opened {
		o := &e.Opened[i]
		if g := l.gateways[o.Gateway]; g != nil {
			g.opened = append(g.opened, o.told())
		}
	}
	slab := make([]rpc.Outbound, len(frames))
	for i := range frames {
		f := &frames[i]
		if g := l.gateways[f.Gateway]; g != nil {
			slab[i].Frame, slab[i].Conns, slab[i].Deliver = f.Frame, f.Conns, f.Deliver
			slab[i].Traceparent = f.Traceparent
			if f.Stamped {
				slab[i].Frame, slab[i].Stamped = wire.WithStamps(f.Frame, &wire.Stamps{InboxOutUs: time.Now().UnixMicro()}), true
			}
			g.out = append(g.out, &slab[i])
		}
	}
	for _, k := range e.Kicks {
		if g := l.gateways[k.Gateway]; g != nil {
			g.kicks = append(g.kicks, &rpc.Kick{Conn: k.Conn, CloseCode: uint32(k.Code)})
		}
	}
	for _, g := range l.gateways {
		if len(g.out)+len(g.opened)+len(g.kicks) > 0 {
			g.stream.put(g.out, g.opened, g.kicks)
			clear(g.out)
			g.out, g.opened, g.kicks = g.out[:0], nil, nil
		}
	}
}

// forward routes receipts to the loops and instances of the senders. They are
// best effort: what does not fit is dropped and counted.
func (l *loop) forward(updates []*rpc.ReceiptUpdate) {
	if len(updates) == 0 {
		return
	}
	l.in.routeReceipts(updates)
}

func unique(users []uint64) []uint64 {
	seen := make(map[uint64]struct{}, len(users))
	out := users[:0]
	for _, u := range users {
		if _, ok := seen[u]; !ok {
			seen[u] = struct{}{}
			out = append(out, u)
		}
	}
	return out
}
