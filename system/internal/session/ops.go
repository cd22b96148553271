package session

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"throng/system/internal/obs"
)

// op is one thing to do in Redis.
type op struct {
	what    opKind
	user    uint64
	device  uint32 // register, unregister
	conn    uint64 // register, unregister
	at      int64  // register, unregister: Unix ms
	topic   string // publish
	payload []byte
	answer  func(online bool, lastSeen time.Time) // presence
}

type opKind uint8

const (
	opRegister opKind = iota
	opUnregister
	opPublish
	opPresence
)

// Register says that a device is connected here as conn.
func (r *Registry) Register(user uint64, device uint32, conn uint64) {
	now := time.Now().UnixMilli()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries[conn] = entry{user: user, device: device, since: now}
	select {
	case r.registry <- op{what: opRegister, user: user, device: device, conn: conn, at: now}:
	default: // it is in entries: it will be made with all of them
		r.m.registry.Dropped.Inc()
		r.resync.Store(true)
	}
}

// Unregister says that conn has ended, and that the user was seen until now.
func (r *Registry) Unregister(user uint64, device uint32, conn uint64) {
	now := time.Now().UnixMilli()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.entries, conn)
	select {
	case r.registry <- op{what: opUnregister, user: user, device: device, conn: conn, at: now}:
	default:
		r.m.registry.Dropped.Inc()
	}
}

// field names a connection in its user's hash. Only Run's goroutines call it.
func (r *Registry) field(o op) string {
	return strconv.FormatUint(uint64(o.device), 10) + r.identity + strconv.FormatUint(o.conn, 10)
}

// Publish sends payload to whoever is subscribed to topic, on any gateway. It
// may be lost.
func (r *Registry) Publish(topic string, payload []byte) {
	r.queueEphemeral(op{what: opPublish, topic: topic, payload: payload})
}

// Presence asks whether a user is connected anywhere. answer is called on
// another goroutine, or not at all when Redis does not answer.
func (r *Registry) Presence(user uint64, answer func(online bool, lastSeen time.Time)) {
	r.queueEphemeral(op{what: opPresence, user: user, answer: answer})
}

func (r *Registry) queueEphemeral(o op) {
	select {
	case r.ephemeral <- o:
	default:
		r.m.ephemeral.Dropped.Inc()
	}
}

// work does what is queued, as many at once as are waiting, until ctx is done;
// then, if last, what still waits. One goroutine does all of a queue, so that
// the end of a registration comes after it.
func (r *Registry) work(ctx context.Context, queue chan op, m *obs.Queue, last bool) {
	batch := make([]op, 0, batchOps)
	retry := time.NewTicker(max(r.cfg.RenewEvery/4, time.Millisecond))
	defer retry.Stop()
	for {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			if last {
				r.flush(queue)
			}
			return
		case o := <-queue:
			batch = append(batch, o)
		case <-retry.C: // looks whether there is something to do again
		}
		batch = fill(batch, queue)
		m.Depth.Set(float64(len(queue)))
		ok := true
		if last && r.resync.Swap(false) {
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

func fill(batch []op, queue chan op) []op {
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
func (r *Registry) flush(queue chan op) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	for batch := fill(nil, queue); len(batch) > 0 && ctx.Err() == nil; batch = fill(nil, queue) {
		r.do(ctx, batch)
	}
}

// registerAll registers every connection there is again. It runs in the
// goroutine of the registry queue: an end that is queued later comes after it.
func (r *Registry) registerAll(ctx context.Context) bool {
	r.mu.Lock()
	all := make([]op, 0, len(r.entries))
	for conn, e := range r.entries {
		all = append(all, op{what: opRegister, user: e.user, device: e.device, conn: conn, at: e.since})
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
// registrations and their ends will be made again, and the rest is lost.
func (r *Registry) do(ctx context.Context, batch []op) bool {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	c, err := r.redis(ctx)
	if err != nil {
		r.failed(batch)
		return false
	}
	cmds := make(rueidis.Commands, 0, 3*len(batch))
	for _, o := range batch {
		cmds = r.commands(cmds, c, o)
	}
	results := c.DoMulti(ctx, cmds...)
	var asked []op
	var hashes []map[string]string
	i := 0
	for _, o := range batch {
		n := o.what.commands()
		for _, res := range results[i : i+n] {
			if e := res.Error(); e != nil {
				err = e
			}
		}
		if o.what == opPresence {
			if h, e := results[i].AsStrMap(); e == nil {
				asked, hashes = append(asked, o), append(hashes, h)
			}
		}
		i += n
	}
	if len(asked) > 0 {
		r.answer(ctx, c, asked, hashes)
	}
	if err != nil {
		r.log.Debug("redis", "err", err)
		r.failed(batch)
		return false
	}
	return true
}

// answer answers look-ups.
func (r *Registry) answer(ctx context.Context, c rueidis.Client, asked []op, hashes []map[string]string) {
	leases, err := r.leases(ctx, c, hashes)
	if err != nil {
		r.m.failed.Add(float64(len(asked)))
		return
	}
	for i, o := range asked {
		u := userOf(hashes[i], leases)
		o.answer(len(u.Sessions) > 0, u.LastSeen)
	}
}

func (r *Registry) failed(batch []op) {
	r.m.failed.Add(float64(len(batch)))
	for _, o := range batch {
		switch o.what {
		case opRegister:
			r.resync.Store(true)
		case opUnregister: // what it deletes nobody writes again, so it may come later
			select {
			case r.registry <- o:
			default:
				r.m.registry.Dropped.Inc()
			}
		}
	}
}

// commands is how many Redis commands an op is.
func (k opKind) commands() int {
	switch k {
	case opRegister, opUnregister:
		return 2
	}
	return 1
}

func (r *Registry) commands(cmds rueidis.Commands, c rueidis.Client, o op) rueidis.Commands {
	at := strconv.FormatInt(o.at, 10)
	switch o.what {
	case opRegister:
		r.m.ops.WithLabelValues("hset").Inc()
		r.m.ops.WithLabelValues("expire").Inc()
		return append(cmds,
			c.B().Hset().Key(userKey(o.user)).FieldValue().FieldValue(r.field(o), at).Build().Pin(),
			c.B().Expire().Key(userKey(o.user)).Seconds(int64(keep.Seconds())).Build().Pin())
	case opUnregister:
		r.m.ops.WithLabelValues("hdel").Inc()
		r.m.ops.WithLabelValues("hset").Inc()
		return append(cmds,
			c.B().Hdel().Key(userKey(o.user)).Field(r.field(o)).Build().Pin(),
			c.B().Hset().Key(userKey(o.user)).FieldValue().FieldValue(seenField, at).Build().Pin())
	case opPublish:
		r.m.ops.WithLabelValues("publish").Inc()
		return append(cmds, c.B().Publish().Channel(channelPrefix+o.topic).Message(rueidis.BinaryString(o.payload)).Build().Pin())
	}
	r.m.ops.WithLabelValues("hgetall").Inc()
	return append(cmds, c.B().Hgetall().Key(userKey(o.user)).Build().Pin())
}
