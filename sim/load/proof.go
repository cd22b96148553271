package load

import (
	"context"
	"fmt"
	"sync"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/scenario"
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
	u := e.crew.Unanswered(ctx)
	switch {
	case u.Sends > 0:
		return fmt.Sprintf("%d sends unanswered", u.Sends)
	case u.Asked > 0:
		return fmt.Sprintf("%d group requests unanswered", u.Asked)
	case u.Media > 0:
		return fmt.Sprintf("%d uploads and fetches of media", u.Media)
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
	var partitions, topics, records float64
	for _, s := range samples {
		if s.Role == "fanout" {
			partitions += s.Values["throng_fanout_partitions"]
			topics = max(topics, s.Values["throng_kafka_topics"])
			records += s.Values["throng_fanout_lag"] + s.Values["throng_fanout_inflight"]
		}
	}
	want := float64(e.offers.Partitions)
	if want == 0 {
		want = float64(e.spec.Topology.Partitions)
	}
	if e.spec.Topology.TopicLayout == scenario.TopicPerGroup {
		want = topics // of one partition each
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
func (e *Engine) prove(ctx context.Context, phases []history.Phase) (history.Audit, *fanouts) {
	deadline := e.now() + max(seconds(e.spec.Phases.ProofS)*2, time.Minute)
	lastProgress, best := e.now(), -1
	quiet := quietFor
	if !e.offers.Log {
		quiet = quietBlind
	}
	for {
		began := e.now()
		last := newFanouts(phases, began.Seconds())
		out := e.judge(ctx, last.add)
		todo := e.unproved(ctx, out)
		e.pending.Store(int64(len(todo)))
		if len(todo) == 0 || ctx.Err() != nil {
			return out.Audit, last
		}
		now := e.now()
		if best < 0 || len(todo) < best {
			best, lastProgress = len(todo), now
		}
		if now > deadline {
			for _, k := range todo {
				e.audit.Unprovable(k)
			}
			last = newFanouts(phases, now.Seconds())
			return e.judge(ctx, last.add).Audit, last
		}
		if now-lastProgress > quiet && e.moving(ctx) == "" {
			return out.Audit, last // drained, quiet, and still not there: the audit calls it lost
		}
		e.crew.Drain(ctx, todo, deadline)
		// What comes late should come while nobody judges.
		e.sleepUntil(ctx, e.now()+max(200*time.Millisecond, now-began))
	}
}

// unproved lists the devices that lack something or have unanswered sends or
// group requests.
func (e *Engine) unproved(ctx context.Context, out *audit.Outcome) []audit.Device {
	todo := out.Pending
	have := make(map[audit.Device]bool, len(todo))
	for _, k := range todo {
		have[k] = true
	}
	for _, k := range e.crew.Open(ctx) {
		if !have[k] {
			have[k] = true
			todo = append(todo, k)
		}
	}
	return todo
}

// Drain drains devices of this engine's users, proofInFlight at a time, as long
// as the run time is below deadline.
func (e *Engine) Drain(ctx context.Context, todo []audit.Device, deadline time.Duration) {
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
		n := len(d.unacked) + len(d.asks)
		d.mu.Unlock()
		if n == 0 {
			return
		}
		e.sleepUntil(ctx, e.now()+20*time.Millisecond)
	}
}
