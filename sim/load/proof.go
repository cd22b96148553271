package load

import (
	"context"
	"fmt"
	"sync"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/system/wire"
)

// quietFor is how long nothing may have moved before the proof believes that
// what has not arrived will not.
const quietFor = 4 * time.Second

// quietBlind is the same where nobody can see what lies in the groups' log. It
// is longer than a group of consumers takes to notice that one has died.
const quietBlind = 20 * time.Second

// settle lets the system finish: all sends answered, the groups' log consumed.
// It takes at least the scenario's settle time and at most that and
// settleExtra, and says what was still moving when it gave up.
func (e *Engine) settle(ctx context.Context) {
	const settleExtra = 30 * time.Second
	start := e.now()
	least := start + seconds(e.spec.Phases.SettleS)
	for {
		why := e.moving(ctx)
		now := e.now()
		if ctx.Err() != nil || (why == "" && now >= least) {
			return
		}
		if now > least+settleExtra {
			e.event("warning", "the system had not settled: "+why)
			return
		}
		e.sleepUntil(ctx, now+250*time.Millisecond)
	}
}

// moving says what is still on its way, "" when nothing is.
func (e *Engine) moving(ctx context.Context) string {
	unanswered := 0
	for _, m := range e.flying.unanswered() {
		m.dev.mu.Lock()
		if m.dev.state == open {
			unanswered++
		}
		m.dev.mu.Unlock()
	}
	if unanswered > 0 {
		return fmt.Sprintf("%d sends unanswered", unanswered)
	}
	if !e.offers.Log {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	samples, err := e.target.Scrape(ctx)
	if err != nil {
		return "the counters cannot be read: " + err.Error()
	}
	var partitions, records float64
	for _, s := range samples {
		if s.Role == "fanout" {
			partitions += s.Values["throng_fanout_partitions"]
			records += s.Values["throng_fanout_lag"] + s.Values["throng_fanout_inflight"]
		}
	}
	want := float64(e.offers.Partitions)
	if want == 0 {
		want = float64(e.spec.Topology.Partitions)
	}
	if partitions < want {
		return fmt.Sprintf("the fan-out reads %.0f of %.0f partitions of the groups' log", partitions, want)
	}
	if records > 0 {
		return fmt.Sprintf("%.0f group messages in the log", records)
	}
	return ""
}

// prove connects every device that has something to come, or something
// unanswered to send, until it is up to date. Devices that are connected keep
// their session. What a drained device still lacks when the system is quiet
// is lost; a device that could not be drained in time is unproved.
func (e *Engine) prove(ctx context.Context) {
	deadline := e.now() + max(seconds(e.spec.Phases.ProofS)*2, time.Minute)
	lastProgress, best := e.now(), -1
	quiet := quietFor
	if !e.offers.Log {
		quiet = quietBlind
	}
	for {
		todo := e.unproved()
		e.pending.Store(int64(len(todo)))
		if len(todo) == 0 || ctx.Err() != nil {
			return
		}
		now := e.now()
		if best < 0 || len(todo) < best {
			best, lastProgress = len(todo), now
		}
		if now > deadline {
			break
		}
		if now-lastProgress > quiet && e.moving(ctx) == "" {
			return // drained, quiet, and still not there: the audit calls it lost
		}
		e.drainAll(ctx, todo, deadline)
		e.sleepUntil(ctx, e.now()+200*time.Millisecond)
	}
	for _, k := range e.unproved() {
		e.audit.Unprovable(k)
	}
}

// unproved lists the devices that lack something or have unanswered sends.
func (e *Engine) unproved() []audit.Device {
	todo := e.audit.Pending()
	have := make(map[audit.Device]bool, len(todo))
	for _, k := range todo {
		have[k] = true
	}
	for _, m := range e.flying.unanswered() {
		if !have[m.dev.key] {
			have[m.dev.key] = true
			todo = append(todo, m.dev.key)
		}
	}
	return todo
}

// drainAll drains the devices, proofInFlight at a time.
func (e *Engine) drainAll(ctx context.Context, todo []audit.Device, deadline time.Duration) {
	var wg sync.WaitGroup
	work := make(chan audit.Device)
	for range min(proofInFlight, len(todo)) {
		wg.Go(func() {
			for k := range work {
				e.drainOne(ctx, k)
				e.pending.Add(-1)
			}
		})
	}
	for _, k := range todo {
		if ctx.Err() != nil || e.now() > deadline {
			break
		}
		work <- k
	}
	close(work)
	wg.Wait()
}

// drainOne opens a proof session, waits until the device is up to date and its
// sends are answered, and closes it. A device that is in a session has it
// ended by its user first when it is up to date, so that what it lacks can
// only be in its inbox.
func (e *Engine) drainOne(ctx context.Context, k audit.Device) {
	d := e.device(k.User, k.Device)
	d.mu.Lock()
	old := d.conn
	current := make(chan struct{})
	d.current, d.proof = current, true
	d.conn = nil
	e.endSession(d)
	d.openedAt, d.until = e.now(), e.now()+time.Hour
	d.state = connecting
	d.mu.Unlock()
	if old != nil {
		old.Close()
	}
	e.connect(d)
	wait := time.NewTimer(20 * time.Second)
	defer wait.Stop()
	select {
	case <-current:
		e.awaitAnswers(ctx, d)
		e.audit.Drained(k)
	case <-wait.C:
	case <-ctx.Done():
	}
	d.mu.Lock()
	conn := d.conn
	d.conn, d.state, d.current = nil, offline, nil
	d.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// awaitAnswers gives the device's unanswered sends a moment.
func (e *Engine) awaitAnswers(ctx context.Context, d *device) {
	for end := e.now() + 5*time.Second; e.now() < end && ctx.Err() == nil; {
		d.mu.Lock()
		n := len(d.byID)
		d.mu.Unlock()
		if n == 0 {
			return
		}
		e.sleepUntil(ctx, e.now()+20*time.Millisecond)
	}
}

// watchPushes takes note of the pushes that the provider accepted: latency,
// proof, and the opens they cause.
func (e *Engine) watchPushes(ctx context.Context) {
	err := e.target.Pushes(ctx, func(user uint64, dev uint32, id wire.MessageID, at time.Time) {
		e.stats.pushes.Add(1)
		d := e.device(user, dev)
		d.mu.Lock()
		d.lastPush = max(d.lastPush, at.Sub(e.start))
		d.mu.Unlock()
		if index, ok := e.indexOf(id); ok {
			a := e.replies.sends[index]
			if !a.Backlog {
				e.rec.Record(e.kinds.push, (at.Sub(e.start) - e.loadStart - a.At).Microseconds())
			}
		}
		if e.backlog.Load() || e.closing.Load() {
			return
		}
		e.pushOpens(d)
	})
	if err != nil && ctx.Err() == nil {
		e.event("warning", fmt.Sprintf("the feed of accepted pushes ended: %v", err))
		e.feedEnded.Store(&err)
	}
}

// pushOpens lets the owner of a phone that got a push open the app, or not.
func (e *Engine) pushOpens(d *device) {
	d.mu.Lock()
	n := d.pushes
	d.pushes++
	away := d.openedAt < 0
	d.mu.Unlock()
	if !away {
		return
	}
	now := e.now() - e.loadStart
	opens, delay, length := e.sched.PushOpenAt(d.key.User, n, now)
	if !opens {
		return
	}
	if next, ok := e.sched.NextOpen(d.key.User, d.key.Device, now); ok && next < now+delay+length {
		return // the session that comes anyway sees it
	}
	at := e.loadStart + now + delay
	e.timers.at(at, func() {
		if !e.closing.Load() {
			e.openSession(d, at+length, conv{})
		}
	})
}

// pushGrace is how long after the push delay a push may still be on its way:
// the least time between two pushes of a device, and the provider's retries.
const pushGrace = 20 * time.Second

// checkPush audits the push of a message that came out of an inbox: one that
// lay there unacknowledged for longer than the push delay must have caused a
// push, or been covered by a later one. While a part of the infrastructure is
// away, it may have been on its way to the inbox. The caller holds d.mu.
func (e *Engine) checkPush(d *device, m *wire.Deliver, now time.Duration) {
	accepted := time.UnixMilli(m.AcceptedMs).Sub(e.start)
	if !e.offers.Pushes || d.key.Device != 0 || e.outages.whole(accepted, now) < seconds(e.spec.PushDelayS)+pushGrace {
		return
	}
	e.pushes.checked.Add(1)
	if d.lastPush < accepted {
		e.pushes.missing.Add(1)
	}
}

func (e *Engine) pushAudit() history.PushAudit {
	return history.PushAudit{Checked: e.pushes.checked.Load(), Missing: e.pushes.missing.Load()}
}
