package load

import (
	"context"
	"fmt"
	"sync"
	"time"

	"throng/sim/scenario"
)

// faults carries out the scenario's fault timeline. One fault does not wait for
// the end of another.
func (e *Engine) faults(ctx context.Context) {
	var steady time.Duration
	for _, p := range e.sched.Phases {
		if p.Gated {
			steady = p.Start
		}
	}
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range e.spec.Faults {
		all.Go(func() {
			if e.sleepUntil(ctx, e.loadStart+steady+f.At) {
				e.fault(ctx, f)
			}
		})
	}
}

// fault carries out one fault. Its event says what it interrupted.
func (e *Engine) fault(ctx context.Context, f scenario.Fault) {
	role, instance := f.Target()
	what := f.What()
	sends, _ := e.InFlight()
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
	if f.Flush != "" || f.RestartAfter == scenario.Never || !e.sleepUntil(ctx, e.now()+f.RestartAfter) {
		return
	}
	if err := e.target.Restart(role, instance); err != nil {
		e.event("warning", fmt.Sprintf("fault: restart %s: %v", f.Kill, err))
		return
	}
	e.event("restart", f.Kill)
}

func (e *Engine) sleepUntil(ctx context.Context, at time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(at - e.now()):
		return true
	}
}
