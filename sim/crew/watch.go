package crew

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"throng/sim/history"
)

// clockEvery is how often the clocks of the run are compared.
const clockEvery = 5 * time.Second

// beat takes a sign of life.
func (l *Lead) beat(m *nats.Msg) {
	b, err := decode[beat](m.Data)
	if err != nil {
		l.log.Warn("beat", "err", err)
		return
	}
	l.mu.Lock()
	if b.Number < 1 || b.Number > len(l.agents) {
		l.mu.Unlock()
		return
	}
	a := l.agents[b.Number-1]
	a.beat = time.Now()
	l.mu.Unlock()
	a.inFlight.Store(b.InFlight)
	if b.Left != "" {
		l.die(a, b.Left)
	}
}

// exited is told of the end of a local agent's process.
func (l *Lead) exited(p *process) {
	l.mu.Lock()
	var a *agent
	for _, x := range l.agents {
		if x.hello.PID == p.cmd.Process.Pid && x.same {
			a = x
		}
	}
	expected := a != nil && a.ending // whether it did finish, its reply says
	l.mu.Unlock()
	if expected {
		return
	}
	if a == nil {
		l.fail(fmt.Errorf("crew: an agent ended before it joined: %w, see %s", p.err, l.cfg.LogDir))
		return
	}
	l.die(a, "its process ended: "+p.err.Error())
}

// die notes that an agent is dead, once.
func (l *Lead) die(a *agent, why string) {
	l.mu.Lock()
	if l.over || a.finished || a.dead != "" {
		l.mu.Unlock()
		return
	}
	a.dead, a.died = why, time.Since(l.cfg.Terms.Start)
	l.mu.Unlock()
	a.kill(errors.New(why))
	l.merger.leave(a.number)
	l.wake()
	what := fmt.Sprintf("agent %d (%s) died: %s", a.number, a.hello.Host, why)
	_ = l.cfg.Writer.Event(history.Event{T: a.died.Seconds(), Kind: "fault", Detail: what}) // its error is kept by the writer
	if l.cfg.OnDeath != nil {
		l.cfg.OnDeath(what)
	}
}

// watchAll notices who has fallen silent, compares clocks and hands pushes on,
// until Close.
func (l *Lead) watchAll() {
	push, check, compare := time.NewTicker(pushEvery), time.NewTicker(beatEvery), time.NewTicker(clockEvery)
	defer push.Stop()
	defer check.Stop()
	defer compare.Stop()
	last := time.Now()
	for {
		select {
		case <-l.closing:
			return
		case <-push.C:
			l.tellPushed()
		case now := <-check.C:
			// What kept the leader itself from running is no silence of the agents.
			late := now.Sub(last) - beatEvery
			last = now
			l.buryTheSilent(now, max(late, 0))
		case <-compare.C:
			l.watch.Go(l.measureClocks)
		}
	}
}

func (l *Lead) buryTheSilent(now time.Time, excused time.Duration) {
	for _, a := range l.living() {
		l.mu.Lock()
		a.beat = a.beat.Add(excused)
		silent := now.Sub(a.beat)
		l.mu.Unlock()
		if silent > l.cfg.DeadAfter {
			l.die(a, fmt.Sprintf("%v for %s", errSilent, silent.Round(100*time.Millisecond)))
		}
	}
}

// measureClocks compares the times of the run of all agents on other machines
// with the leader's, and keeps the most that one was off.
func (l *Lead) measureClocks() {
	for _, a := range l.living() {
		if a.same {
			continue
		}
		now := func() time.Duration { return time.Since(l.cfg.Terms.Start) }
		o, err := estimate(now, func() (time.Duration, error) {
			c, err := askClock(context.Background(), l.hub.nc, a.hello.ID)
			return c.Run, err
		})
		if err != nil {
			continue // who has died is noticed elsewhere
		}
		l.mu.Lock()
		a.drift = o
		a.most = max(a.most, o.ahead.Abs()-o.within)
		l.mu.Unlock()
	}
}
