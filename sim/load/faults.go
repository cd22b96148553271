package load

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"throng/sim/scenario"
)

// faults carries out the scenario's fault timeline. One fault does not wait for
// the end of another.
func (e *Engine) faults(ctx context.Context) {
	steady := e.steady()
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range e.spec.Faults {
		all.Go(func() {
			if e.sleepUntil(ctx, steady+f.At) {
				e.fault(ctx, f)
			}
		})
	}
}

// steady is when the phase begins that faults count from.
func (e *Engine) steady() time.Duration {
	for _, p := range e.sched.Phases {
		if p.Gated {
			return e.loadStart + p.Start
		}
	}
	return e.loadStart
}

// faultBefore is the latest of the scenario's faults at a time, -1 before the
// first.
func (e *Engine) faultBefore(t time.Duration) int {
	latest := -1
	for i, f := range e.spec.Faults {
		if e.steady()+f.At <= t && (latest < 0 || f.At >= e.spec.Faults[latest].At) {
			latest = i
		}
	}
	return latest
}

// fault carries out one fault. Its event says what it interrupted.
func (e *Engine) fault(ctx context.Context, f scenario.Fault) {
	role, instance := f.Target()
	what := f.What()
	sends := e.crew.InFlight()
	var err error
	if f.Flush != "" {
		var keys int64
		if keys, err = e.target.Flush(role, instance); keys >= 0 {
			what += fmt.Sprintf(", %d keys", keys)
		}
	} else {
		err = e.target.Kill(role, instance)
	}
	if err != nil {
		e.event("warning", fmt.Sprintf("fault: %s: %v", f.What(), err))
		return
	}
	e.event("fault", fmt.Sprintf("%s, with %d sends unanswered", what, sends))
	restarted := func() {}
	if f.Kill != "" && (role == "kafka" || role == "mysql") {
		restarted = e.outages.begin(e.now, f.RestartAfter == scenario.Never)
		e.crew.Outages(e.outages.all())
	}
	if f.Flush != "" || f.RestartAfter == scenario.Never || !e.sleepUntil(ctx, e.now()+f.RestartAfter) {
		return
	}
	if err := e.target.Restart(role, instance); err != nil {
		e.event("warning", fmt.Sprintf("fault: restart %s: %v", f.Kill, err))
		return
	}
	restarted()
	e.crew.Outages(e.outages.all())
	e.event("restart", f.Kill)
}

// recovery is how long it takes until the system is whole again after a part
// was started again or, where that part is one of several, killed.
const recovery = 10 * time.Second

// outages are the times in which what was accepted lay in the log, or could not
// be stored, because a part of the infrastructure was away.
type outages struct {
	mu   sync.Mutex
	list []Outage // by From
}

// Outage is a part of a run, in times of the run.
type Outage struct{ From, To time.Duration }

// begin notes that a part is away. If it is so for good, others do its work
// soon; else the function that is returned says that it was started again.
func (o *outages) begin(now func() time.Duration, forGood bool) (restarted func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, to := len(o.list), now()+recovery
	if !forGood {
		to = math.MaxInt64
	}
	o.list = append(o.list, Outage{now(), to})
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.list[i].To = now() + recovery
	}
}

func (o *outages) all() []Outage {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.list)
}

// Outages tells an engine of a crew about all outages so far.
func (e *Engine) Outages(all []Outage) {
	e.outages.mu.Lock()
	defer e.outages.mu.Unlock()
	e.outages.list = slices.Clone(all)
}

// whole returns how much of a time was outside of all outages.
func (o *outages) whole(from, to time.Duration) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	length, at := to-from, from
	for _, s := range o.list {
		if lo, hi := max(s.From, at), min(s.To, to); hi > lo {
			length -= hi - lo
			at = hi
		}
	}
	return length
}

func (e *Engine) sleepUntil(ctx context.Context, at time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(at - e.now()):
		return true
	}
}
