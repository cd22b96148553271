package session

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"throng/system/internal/rpc"
)

// op is a thing to write.
type op struct {
	what   opKind
	user   uint64
	device uint32
	conn   uint64
	at     int64 // Unix ms
}

type opKind uint8

const (
	opRegister opKind = iota
	opEnd             // of a connection: its user was seen then
	opEndUnseen
	opHide
	opShow
)

// Register says that a device is connected here as conn.
func (r *Registry) Register(user uint64, device uint32, conn uint64) {
	now := time.Now().UnixMilli()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries[conn] = entry{user: user, device: device, since: now}
	if !r.queue(op{user: user, device: device, conn: conn, at: now}) {
		r.resync.Store(true) // it is in entries: it will be made with all of them
	}
}

// Unregister says that conn has ended; seen: and that the user was seen until now.
func (r *Registry) Unregister(user uint64, device uint32, conn uint64, seen bool) {
	now := time.Now().UnixMilli()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.entries, conn)
	what := opEndUnseen
	if seen {
		what = opEnd
	}
	r.queue(op{what: what, user: user, device: device, conn: conn, at: now})
}

// Hide says, for a connection that is registered, whether its user shows nobody
// when they are here or were last seen. What is hidden is erased.
func (r *Registry) Hide(conn uint64, hidden bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[conn]
	if !ok {
		return
	}
	e.hidden = hidden
	r.entries[conn] = e
	what := opShow
	if hidden {
		what = opHide
	}
	if !r.queue(op{what: what, user: e.user}) && hidden {
		r.resync.Store(true)
	}
}

// queue is called with mu held. It reports false when there is no room.
func (r *Registry) queue(o op) bool {
	select {
	case r.registry <- o:
		return true
	default:
		r.m.registry.Dropped.Inc()
		return false
	}
}

// field names a connection in its user's hash. Only Run's goroutines call it.
func (r *Registry) field(o op) string {
	return strconv.FormatUint(uint64(o.device), 10) + "@" + r.self + "/" + strconv.FormatUint(o.conn, 10)
}

// work does what is queued, as many at once as are waiting, until ctx is done;
// then what still waits. One goroutine does all of it, so that the end of a
// registration comes after it.
func (r *Registry) work(ctx context.Context) {
	batch := make([]op, 0, batchOps)
	retry := time.NewTicker(max(r.cfg.RenewEvery/4, time.Millisecond))
	defer retry.Stop()
	pace := rpc.NewPace(registryGap)
	for {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			r.flush()
			return
		case o := <-r.registry:
			batch = append(batch, o)
			pace.Wait(ctx.Done())
		case <-retry.C: // looks whether there is something to do again
		}
		batch = fill(batch, r.registry)
		r.m.registry.Depth.Set(float64(len(r.registry)))
		ok := true
		if r.resync.Swap(false) {
			ok = r.registerAll(ctx)
		}
		if len(batch) > 0 {
			ok = r.do(ctx, batch) && ok
		}
		if !ok { // Redis is away: do not ask it as fast as it refuses
			select {
			case <-ctx.Done():
			case <-retry.C:
			}
		}
	}
}

func fill[T any](batch []T, queue chan T) []T {
	for len(batch) < batchOps {
		select {
		case o := <-queue:
			batch = append(batch, o)
		default:
			return batch
		}
	}
	return batch
}

// flush does what is left after the end.
func (r *Registry) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	for batch := fill(nil, r.registry); len(batch) > 0 && ctx.Err() == nil; batch = fill(nil, r.registry) {
		r.do(ctx, batch)
	}
}

// registerAll registers every connection there is again. It runs in the
// goroutine of the registry queue: an end that is queued later comes after it.
func (r *Registry) registerAll(ctx context.Context) bool {
	r.mu.Lock()
	all := make([]op, 0, len(r.entries))
	for conn, e := range r.entries {
		all = append(all, op{user: e.user, device: e.device, conn: conn, at: e.since})
		if e.hidden {
			all = append(all, op{what: opHide, user: e.user})
		}
	}
	r.mu.Unlock()
	r.log.Info("registering all connections again", "connections", len(all))
	for len(all) > 0 && ctx.Err() == nil {
		n := min(len(all), batchOps)
		if !r.do(ctx, all[:n]) {
			return false // do has set resync: it is tried again
		}
		all = all[n:]
	}
	return true
}

// do makes one exchange with Redis. It reports false when that failed; then
// all of the batch will be made again.
func (r *Registry) do(ctx context.Context, batch []op) bool {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	c, err := r.redis(ctx)
	if err != nil {
		r.failed(batch)
		return false
	}
	cmds := make(rueidis.Commands, 0, 2*len(batch)) // at most two each
	for _, o := range batch {
		cmds = r.commands(cmds, c, o)
	}
	for _, res := range c.DoMulti(ctx, cmds...) {
		if e := res.Error(); e != nil {
			err = e
		}
	}
	if err != nil {
		r.log.Debug("redis", "err", err)
		r.failed(batch)
		return false
	}
	return true
}

func (r *Registry) failed(batch []op) {
	r.m.failed.Add(float64(len(batch)))
	for _, o := range batch {
		if o.what == opRegister || o.what == opHide {
			r.resync.Store(true)
			continue
		}
		select { // what it deletes nobody writes again, so it may come later
		case r.registry <- o:
		default:
			r.m.registry.Dropped.Inc()
		}
	}
}

// commands appends what o is in Redis. The end of a connection writes when the
// user was seen before it deletes: a hash that loses its last field is gone,
// and its time to live with it.
func (r *Registry) commands(cmds rueidis.Commands, c rueidis.Client, o op) rueidis.Commands {
	key, at := userKey(o.user), strconv.FormatInt(o.at, 10)
	hset := func(field, value string) rueidis.Completed {
		r.count("hset", 1)
		return c.B().Hset().Key(key).FieldValue().FieldValue(field, value).Build().Pin()
	}
	hdel := func(field string) rueidis.Completed {
		r.count("hdel", 1)
		return c.B().Hdel().Key(key).Field(field).Build().Pin()
	}
	switch o.what {
	case opEnd:
		return append(cmds, hset(seenField, at), hdel(r.field(o)))
	case opEndUnseen:
		return append(cmds, hdel(r.field(o)))
	case opHide:
		return append(cmds, hset(hiddenField, "1"), hdel(seenField))
	case opShow:
		return append(cmds, hdel(hiddenField))
	}
	r.count("expire", 1)
	return append(cmds,
		hset(r.field(o), at),
		c.B().Expire().Key(key).Seconds(int64(keep.Seconds())).Build().Pin())
}

func (r *Registry) count(command string, n int) { r.m.ops.WithLabelValues(command).Add(float64(n)) }
