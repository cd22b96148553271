package fanout

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

const (
	// chunkRecords bounds the records that are resolved together.
	chunkRecords = 128
	// resolveParallel bounds the Members calls of a partition at a time.
	resolveParallel = 16
	callTimeout     = 3 * time.Second
)

// worker is one partition for as long as it is assigned.
type worker struct {
	f    *Fanout
	part Partition
	ctx  context.Context
	// groups holds what is known of the groups' versions at the position
	// reached. It belongs to the goroutine that reads, and starts empty with
	// each assignment: changes may have gone by while another process read.
	groups *simplelru.LRU[uint64, groupState]
	// batches collects, by inbox instance, what goes out together.
	batches [][]rpc.Appendee
	fetchAt time.Time // when the records at hand were fetched; of the reading goroutine
	applies sync.WaitGroup

	closed atomic.Bool
	room   chan struct{} // capacity 1: the watermark moved; never closed

	mu       sync.Mutex
	track    tracker
	high     int64             // of the log, at the last fetch
	lag      int64             // as added to the gauge
	applying map[uint64]uint64 // greatest version whose Applied is not answered, by group
}

// groupState is a group's membership at the position reached.
type groupState struct {
	// version is the version in force, if exact; else a lower bound that was
	// seen in the log.
	version uint64
	exact   bool
}

// handle works on one partition until it is taken away.
func (f *Fanout) handle(ctx context.Context, part Partition) {
	groups, err := simplelru.NewLRU[uint64, groupState](f.cfg.MaxGroups, nil)
	if err != nil {
		panic("fanout: " + err.Error()) // MaxGroups is positive
	}
	w := &worker{
		f: f, part: part, ctx: ctx, groups: groups, batches: make([][]rpc.Appendee, len(f.appenders)),
		room: make(chan struct{}, 1), applying: map[uint64]uint64{},
	}
	log := f.cfg.Log.With("partition", part.Name())
	log.Debug("partition taken")
	f.m.partitions.Inc()
	f.m.queue.Limit.Add(float64(f.cfg.MaxInFlight))
	defer f.m.partitions.Dec()
	defer f.m.queue.Limit.Sub(float64(f.cfg.MaxInFlight))
	w.run()
	<-ctx.Done() // a stopping process keeps the partition while it drains
	w.close()
	log.Debug("partition left")
}

// close makes everything in flight of the partition void.
func (w *worker) close() {
	w.closed.Store(true)
	w.mu.Lock()
	w.f.inFlight.Add(-int64(len(w.track.entries)))
	w.f.m.inFlight.Add(-float64(len(w.track.entries)))
	w.f.m.queue.Depth.Add(-float64(len(w.track.entries)))
	w.track = tracker{}
	w.f.m.lag.Add(-float64(w.lag))
	w.lag = 0
	w.mu.Unlock()
	w.applies.Wait()
}

func (w *worker) run() {
	read, cancel := context.WithCancel(w.ctx)
	defer cancel()
	defer context.AfterFunc(w.f.stopping, cancel)()
	for {
		offsets, values, high, err := w.part.Fetch(read)
		if err != nil {
			return
		}
		w.fetchAt = time.Now()
		w.f.m.records.Add(float64(len(offsets)))
		w.fetched(high, offsets[0])
		if w.f.cfg.Plant == PlantCommitEarly {
			w.part.Commit(offsets[len(offsets)-1] + 1)
			if !sleep(read, commitEarly) {
				return
			}
		}
		for len(offsets) > 0 {
			n := min(len(offsets), chunkRecords)
			if !w.chunk(read, offsets[:n], values[:n]) {
				return
			}
			offsets, values = offsets[n:], values[n:]
		}
	}
}

// record is a decoded record; both are nil when it could not be decoded.
type record struct {
	offset     int64
	trace      *parts // of a message that is traced
	message    *rpc.Envelope
	membership *rpc.Membership
}

// chunk handles records in order. It returns false when ctx ended before all
// were handed on.
func (w *worker) chunk(ctx context.Context, offsets []int64, values [][]byte) bool {
	records := make([]record, len(offsets))
	for i, o := range offsets {
		records[i] = w.decode(o, values[i])
	}
	found, ok := w.warm(ctx, records)
	if !ok {
		return false
	}
	for _, r := range records {
		if !w.waitForRoom(ctx) {
			w.flush()
			return false
		}
		switch {
		case r.message != nil:
			set, ok := w.membersAt(ctx, r, found)
			if !ok {
				w.flush()
				return false
			}
			w.deliver(r, set, 0)
		case r.membership != nil:
			if !w.change(ctx, r, found) {
				w.flush()
				return false
			}
		default:
			w.add(r.offset, 0)
		}
	}
	w.flush()
	w.f.m.resolve.Done(time.Since(w.fetchAt), false) // a chunk is handed on together
	return true
}

func (w *worker) decode(offset int64, value []byte) record {
	var rec rpc.GroupRecord
	r := record{offset: offset}
	if err := rec.UnmarshalVT(value); err != nil {
		w.poison(offset, err.Error())
		return r
	}
	r.message, r.membership = rec.GetMessage(), rec.GetMembership()
	switch {
	case r.message == nil && r.membership == nil:
		w.poison(offset, "neither message nor membership")
	case r.message != nil && r.message.Group == 0, r.membership != nil && r.membership.Group == 0:
		w.poison(offset, "no group")
		r.message, r.membership = nil, nil
	case r.message != nil:
		r.message.Offset = offset
		r.trace = w.trace(r.message)
		if st := r.message.Stamps; st != nil {
			st.FanoutInUs = w.fetchAt.UnixMicro()
		}
	}
	return r
}

// poison counts a record that cannot be handled; it must not stop the others.
func (w *worker) poison(offset int64, why string) {
	w.f.m.poison.Inc()
	w.f.cfg.Log.Error("record skipped", "partition", w.part.Name(), "offset", offset, "reason", why)
}

// add notes a record in flight, in log order.
func (w *worker) add(offset int64, parts int) (id uint64) {
	w.f.inFlight.Add(1)
	w.f.m.inFlight.Inc()
	w.f.m.queue.Depth.Inc()
	w.mu.Lock()
	defer w.mu.Unlock()
	id = w.track.add(offset, parts)
	w.track.entries[len(w.track.entries)-1].fetched = w.fetchAt
	if parts == 0 {
		w.advance()
	}
	return id
}

// done notes that a part of a record is resolved. It may be called after close.
func (w *worker) done(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed.Load() {
		return
	}
	w.track.done(id)
	w.advance()
}

// advance commits the watermark if it moved. Called with mu held.
func (w *worker) advance() {
	before := w.track.entries
	n, next := w.track.advance()
	if n == 0 {
		return
	}
	now := time.Now()
	for i := range before[:n] {
		w.f.m.record.Done(now.Sub(before[i].fetched), false)
	}
	w.f.inFlight.Add(-int64(n))
	w.f.m.inFlight.Sub(float64(n))
	w.f.m.queue.Depth.Sub(float64(n))
	if w.f.cfg.Plant != PlantCommitEarly {
		w.part.Commit(next)
	}
	w.setLag(next)
	select {
	case w.room <- struct{}{}:
	default:
	}
}

// fetched notes how far the log goes.
func (w *worker) fetched(high, first int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.high = high
	if len(w.track.entries) > 0 {
		first = w.track.entries[0].offset
	}
	w.setLag(first)
}

// setLag adjusts the gauge to a watermark. Called with mu held.
func (w *worker) setLag(next int64) {
	lag := max(w.high-next, 0)
	w.f.m.lag.Add(float64(lag - w.lag))
	w.lag = lag
}

// waitForRoom waits while MaxInFlight records are in flight.
func (w *worker) waitForRoom(ctx context.Context) bool {
	for {
		w.mu.Lock()
		n := len(w.track.entries)
		w.mu.Unlock()
		if n < w.f.cfg.MaxInFlight {
			return ctx.Err() == nil
		}
		w.flush()
		select {
		case <-w.room:
		case <-ctx.Done():
			return false
		}
	}
}

// flush hands what was collected to the inbox instances.
func (w *worker) flush() {
	for i, items := range w.batches {
		if len(items) > 0 {
			w.f.appenders[i].Add(items...)
			clear(items)
			w.batches[i] = items[:0]
		}
	}
}

// deliver hands a message to the inbox instances of its addressees, and to the
// sender's own for its other devices, if the sender is still a member. The
// record has more parts besides.
func (w *worker) deliver(r record, set *memberSet, more int) (id uint64) {
	if set == nil || r.message == nil {
		r.trace.expect(0, 0)
		return w.add(r.offset, more)
	}
	sender, recipients, parts := set.instanceOf(r.message.From), set.size, more
	if sender >= 0 {
		recipients--
	}
	for _, users := range set.byInbox {
		if len(users) > 0 {
			parts++
		}
	}
	w.f.m.recipients.Add(float64(recipients))
	if m := r.message; len(m.Media) == len(wire.MediaID{}) && len(m.MessageId) == len(wire.MessageID{}) {
		m.MediaGrant = wire.SignMediaGrant(w.f.cfg.Key, wire.MediaID(m.Media),
			wire.MediaGrant{Message: wire.MessageID(m.MessageId), From: m.From, Group: m.Group, Version: set.version})
	}
	r.trace.expect(parts-more, recipients)
	id = w.add(r.offset, parts)
	for i, users := range set.byInbox {
		if len(users) == 0 {
			continue
		}
		d := &delivery{worker: w, id: id, trace: r.trace, item: rpc.AppendItem{Message: r.message, Users: users}}
		if i == sender {
			d.item.Recipients = uint32(recipients)
		}
		w.batches[i] = append(w.batches[i], d)
	}
	return id
}

// delivery is a message on its way to one inbox instance.
type delivery struct {
	worker *worker
	id     uint64
	trace  *parts
	item   rpc.AppendItem
}

func (d *delivery) Item() *rpc.AppendItem { return &d.item }
func (d *delivery) Cancelled() bool       { return d.worker.closed.Load() }

func (d *delivery) Resolve(res *rpc.AppendResult) bool {
	switch res.Code {
	case 0:
	case wire.Code_CODE_NO_SUCH_USER, wire.Code_CODE_INVALID, wire.Code_CODE_TOO_LARGE:
		// It will never be taken: there is nobody to deliver it to.
		d.worker.poison(d.item.Message.Offset, "refused by the inbox: "+res.Code.String())
	default:
		return d.Cancelled()
	}
	d.worker.done(d.id)
	d.trace.answered()
	return true
}

// change tells the members of a change and reports its position; the watermark
// does not pass it before that is answered. It returns false if ctx ended.
func (w *worker) change(ctx context.Context, r record, found map[int64]*lookup) bool {
	m := r.membership
	if st, known := w.groups.Get(m.Group); known && m.Version <= st.version {
		w.add(r.offset, 0)
		return true // said again by the outbox after a crash
	}
	told, ok := w.told(ctx, r, found)
	if !ok {
		return false
	}
	r.message = systemMessage(r.offset, m)
	id := w.deliver(r, told, 1)
	w.mu.Lock()
	w.applying[m.Group] = max(w.applying[m.Group], m.Version)
	w.mu.Unlock()
	w.applies.Go(func() {
		err := w.call(w.ctx, m.Group, func(ctx context.Context, c rpc.GroupClient) error {
			_, err := c.Applied(ctx, &rpc.AppliedRequest{Group: m.Group, Version: m.Version, Offset: r.offset})
			return err
		})
		if err != nil && w.ctx.Err() != nil {
			return // the next owner does it
		}
		if err != nil {
			w.poison(r.offset, "membership change refused: "+err.Error())
		}
		w.mu.Lock()
		if w.applying[m.Group] == m.Version {
			delete(w.applying, m.Group)
		}
		w.mu.Unlock()
		w.done(id)
	})
	return true
}

// call asks the group service until it answers, another instance after each
// failure. It fails when ctx ends or the answer is that the thing does not
// exist or is malformed, which will not change.
func (w *worker) call(ctx context.Context, group uint64, do func(context.Context, rpc.GroupClient) error) error {
	groups := w.f.groups
	wait := 20 * time.Millisecond
	for attempt := placement.GroupInstance(group, len(groups)); ; attempt++ {
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		err := do(callCtx, groups[attempt%len(groups)])
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if c := status.Code(err); c == codes.NotFound || c == codes.InvalidArgument {
			return err
		}
		w.f.m.groupErrors.Inc()
		w.f.cfg.Log.Warn("group service, will go on trying", "partition", w.part.Name(), "group", group, "err", err)
		if !sleep(ctx, wait) {
			return err
		}
		wait = min(2*wait, time.Second)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
