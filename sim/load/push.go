package load

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"throng/sim/history"
	"throng/system/wire"
)

// PushOutcome is what the provider made of a push.
type PushOutcome string

// The outcomes of a push.
const (
	PushAccepted  PushOutcome = ""
	PushDead      PushOutcome = "dead"      // the device is gone
	PushFailed    PushOutcome = "failed"    // a fault; it will be tried again
	PushThrottled PushOutcome = "throttled" // over the quota; it will be tried again
)

// Push is a notification that the provider answered.
type Push struct {
	User    uint64
	Device  uint32
	ID      wire.MessageID
	At      time.Time
	Outcome PushOutcome
}

// watchPushes takes note of the pushes that the provider answered: latency
// here, proof and the opens they cause where their device is played.
func (e *Engine) watchPushes(ctx context.Context) {
	err := e.target.Pushes(ctx, func(p Push) {
		if p.Outcome == PushAccepted {
			e.stats.pushes.Add(1)
			if index, ok := e.indexOf(p.ID); ok {
				if a := e.sched.Send(index); !a.Backlog {
					e.rec.Record(e.kinds.push, (p.At.Sub(e.start) - e.loadStart - a.At).Microseconds())
				}
			}
		}
		e.crew.Pushed(Pushed{User: p.User, Device: p.Device, At: p.At.Sub(e.start), Outcome: p.Outcome})
	})
	if err != nil && ctx.Err() == nil {
		e.event("warning", fmt.Sprintf("the feed of pushes ended: %v", err))
		e.feedEnded.Store(&err)
	}
}

// Pushed is what the player of a device has to know of a push; At is a time of
// the run.
type Pushed struct {
	User    uint64
	Device  uint32
	At      time.Duration
	Outcome PushOutcome
}

// Pushed takes note of a push to a device of this engine's users.
func (e *Engine) Pushed(p Pushed) {
	d := e.device(p.User, p.Device)
	d.mu.Lock()
	d.pushed.answered(&e.pushes, p.Outcome, p.At)
	d.mu.Unlock()
	if p.Outcome == PushAccepted && !e.backlog.Load() && !e.closing.Load() {
		e.pushOpens(d)
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

// pushGrace is how long after the push delay and the least time between two
// pushes of a device a push may still be on its way: the provider's retries.
const pushGrace = 10 * time.Second

// pushed is what the harness knows of the pushes of a device.
type pushed struct {
	last   time.Duration // when the provider accepted the last one, -1 never
	failed time.Duration // when it last answered with a fault, -1 never
	dead   bool          // it has said that the device is gone
}

// answered takes note of an answer of the provider. The caller holds the
// device's lock.
func (p *pushed) answered(all *pushCounts, outcome PushOutcome, at time.Duration) {
	switch outcome {
	case PushAccepted:
		p.last = max(p.last, at)
	case PushFailed:
		p.failed = max(p.failed, at)
	case PushThrottled:
		all.throttledAt.Store(int64(at)) // one goroutine does so
	case PushDead:
		if p.dead {
			all.deadAgain.Add(1)
		}
		p.dead = true
	}
}

// checkPush audits the push of a message that came out of an inbox: one that
// lay there unacknowledged for longer than the push delay must have caused a
// push, or been covered by a later one, unless the provider does not know the
// device, or failed every attempt, or made everybody wait. While a part of the
// infrastructure is away, it may have been on its way to the inbox. The caller
// holds d.mu.
func (e *Engine) checkPush(d *device, m *wire.Deliver, now time.Duration) {
	accepted := time.UnixMilli(m.AcceptedMs).Sub(e.start)
	own := m.From == d.key.User // copies of what the user sent from another device cause none
	if !e.offers.Pushes || d.key.Device != 0 || own || e.outages.whole(accepted, now) < seconds(e.spec.PushDelayS+e.spec.PushEveryS)+pushGrace {
		return
	}
	e.pushes.checked.Add(1)
	switch p := &d.pushed; {
	case p.last >= accepted:
	case p.dead:
		e.pushes.dead.Add(1)
	case p.failed >= accepted:
		e.pushes.failed.Add(1)
	case time.Duration(e.pushes.throttledAt.Load()) >= accepted:
		e.pushes.throttled.Add(1)
	default:
		e.pushes.missing.Add(1)
	}
}

// pushCounts are the counts of the push audit.
type pushCounts struct {
	checked, missing, dead, failed, throttled, deadAgain atomic.Int64
	throttledAt                                          atomic.Int64 // when the provider last made somebody wait
}

// PushAudit is what this engine knows of the pushes to its users.
func (e *Engine) PushAudit() history.PushAudit {
	p := &e.pushes
	return history.PushAudit{Checked: p.checked.Load(), Missing: p.missing.Load(), Dead: p.dead.Load(),
		Failed: p.failed.Load(), Throttled: p.throttled.Load(), DeadAgain: p.deadAgain.Load()}
}
