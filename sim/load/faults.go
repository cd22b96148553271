package load

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// faults carries out the scenario's fault timeline.
func (e *Engine) faults(ctx context.Context) {
	var steady time.Duration
	for _, p := range e.sched.Phases {
		if p.Gated {
			steady = p.Start
		}
	}
	for _, f := range e.spec.Faults {
		if !e.sleepUntil(ctx, e.loadStart+steady+f.At) {
			return
		}
		role, instance, err := roleInstance(f.Kill)
		if err == nil {
			err = e.target.Kill(role, instance)
		}
		if err != nil {
			e.event("warning", fmt.Sprintf("fault: kill %s: %v", f.Kill, err))
			continue
		}
		e.event("fault", "kill "+f.Kill)
		if !e.sleepUntil(ctx, e.now()+f.RestartAfter) {
			return
		}
		if err := e.target.Restart(role, instance); err != nil {
			e.event("warning", fmt.Sprintf("fault: restart %s: %v", f.Kill, err))
			continue
		}
		e.event("restart", f.Kill)
	}
}

func (e *Engine) sleepUntil(ctx context.Context, at time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(at - e.now()):
		return true
	}
}

func roleInstance(s string) (string, int, error) {
	role, n, ok := strings.Cut(s, "/")
	if !ok {
		return s, 0, nil
	}
	i, err := strconv.Atoi(n)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not role/instance", s)
	}
	return role, i, nil
}
