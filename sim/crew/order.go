package crew

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/workload"
)

var _ load.Crew = (*Lead)(nil)

// drainAtOnce bounds the devices of one order, and with it the message.
const drainAtOnce = 20_000

// shard is the part of the users that an agent plays.
func shard(number, of int) workload.Shard { return workload.Shard{Index: number - 1, Of: of} }

// living are the agents that have not died.
func (l *Lead) living() []*agent {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*agent
	for _, a := range l.agents {
		if a.dead == "" {
			out = append(out, a)
		}
	}
	return out
}

// ask gives one agent an order and returns its reply. An agent that does not
// answer in time has died.
func (l *Lead) ask(ctx context.Context, a *agent, o order, within time.Duration) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	defer context.AfterFunc(a.alive, cancel)()
	m, err := l.hub.nc.RequestWithContext(ctx, subjectOrder+a.hello.ID, encode(o))
	if err != nil {
		if a.alive.Err() != nil {
			err = context.Cause(a.alive)
		}
		return nil, fmt.Errorf("%s: %w", o.Op, err)
	}
	r, err := decode[reply](m.Data)
	if err != nil {
		return nil, err
	}
	if r.Error != "" {
		return nil, fmt.Errorf("%s: %s", o.Op, r.Error)
	}
	return &r, nil
}

// each gives every living agent an order, all at once, and calls f with each
// reply, one at a time. f nil: who does not answer has died.
func (l *Lead) each(ctx context.Context, o order, f func(*agent, *reply, error)) {
	l.eachWithin(ctx, o, orderWithin, f)
}

// eachWithin is each with another time for the replies.
func (l *Lead) eachWithin(ctx context.Context, o order, within time.Duration, f func(*agent, *reply, error)) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, a := range l.living() {
		all.Go(func() {
			r, err := l.ask(ctx, a, o, within)
			if err != nil && ctx.Err() == nil {
				l.die(a, err.Error())
			}
			if f != nil {
				mu.Lock()
				defer mu.Unlock()
				f(a, r, err)
			}
		})
	}
	all.Wait()
}

// Begins is the time that an order needs to reach all.
func (l *Lead) Begins() time.Duration { return beginAhead }

// Begin makes all agents play from run time at on.
func (l *Lead) Begin(ctx context.Context, at time.Duration) {
	l.each(ctx, order{Op: opBegin, At: at}, nil)
}

// Stop ends the load early.
func (l *Lead) Stop() { l.each(context.Background(), order{Op: opStop}, nil) }

// EndLoad says that the load is over.
func (l *Lead) EndLoad(ctx context.Context) { l.each(ctx, order{Op: opEndLoad}, nil) }

// InFlight adds up what the agents said last.
func (l *Lead) InFlight() (n int64) {
	for _, a := range l.living() {
		n += a.inFlight.Load()
	}
	return n
}

// Unanswered adds up what the agents wait for.
func (l *Lead) Unanswered(ctx context.Context) (sum load.Unanswered) {
	l.each(ctx, order{Op: opUnanswered}, func(_ *agent, r *reply, err error) {
		if err == nil {
			sum = sum.Plus(r.Waits)
		}
	})
	return sum
}

// Open lists the agents' devices with something unanswered.
func (l *Lead) Open(ctx context.Context) (devices []audit.Device) {
	l.each(ctx, order{Op: opOpen}, func(_ *agent, r *reply, err error) {
		if err == nil {
			devices = append(devices, r.Devices...)
		}
	})
	return devices
}

// PushAudit adds up the agents' push audits.
func (l *Lead) PushAudit(ctx context.Context) (sum history.PushAudit) {
	l.each(ctx, order{Op: opPushAudit}, func(_ *agent, r *reply, err error) {
		if err == nil {
			sum = sum.Plus(r.Push)
		}
	})
	return sum
}

// ProveMedia has the agents fetch what is left of media and adds up their audits.
// What has not ended in mediaWithin has died.
func (l *Lead) ProveMedia(ctx context.Context) (sum history.MediaAudit) {
	l.eachWithin(ctx, order{Op: opMedia}, mediaWithin, func(_ *agent, r *reply, err error) {
		if err == nil {
			sum = sum.Plus(r.Media)
		}
	})
	return sum
}

// Outages tells all agents.
func (l *Lead) Outages(all []load.Outage) {
	l.each(context.Background(), order{Op: opOutages, Outages: all}, nil)
}

// Drain has each agent drain its users' devices.
func (l *Lead) Drain(ctx context.Context, todo []audit.Device, deadline time.Duration) {
	var all sync.WaitGroup
	for _, a := range l.living() {
		var own []audit.Device
		for _, d := range todo {
			if shard(a.number, l.cfg.Agents).Has(d.User) {
				own = append(own, d)
			}
		}
		all.Go(func() {
			for len(own) > 0 {
				n := min(drainAtOnce, len(own))
				within := deadline - time.Since(l.cfg.Terms.Start) + orderWithin
				if _, err := l.ask(ctx, a, order{Op: opDrain, At: deadline, Devices: own[:n]}, within); err != nil {
					if ctx.Err() == nil {
						l.die(a, err.Error())
					}
					return
				}
				own = own[n:]
			}
		})
	}
	all.Wait()
}

// pushedBatches keeps what is to be told to each agent until the next pushEvery.
type pushedBatches struct {
	mu      sync.Mutex
	batches map[int][]load.Pushed // by number
}

// pushEvery is how long the news of a push may wait for others; a user takes
// seconds to react to one.
const pushEvery = 100 * time.Millisecond

// Pushed tells the agent that plays the device.
func (l *Lead) Pushed(p load.Pushed) {
	l.pushed.mu.Lock()
	defer l.pushed.mu.Unlock()
	for n := 1; n <= l.cfg.Agents; n++ {
		if shard(n, l.cfg.Agents).Has(p.User) {
			if l.pushed.batches == nil {
				l.pushed.batches = map[int][]load.Pushed{}
			}
			l.pushed.batches[n] = append(l.pushed.batches[n], p)
			return
		}
	}
}

// tellPushed sends what has been collected.
func (l *Lead) tellPushed() {
	l.pushed.mu.Lock()
	batches := l.pushed.batches
	l.pushed.batches = nil
	l.pushed.mu.Unlock()
	for _, a := range l.living() {
		if b := batches[a.number]; len(b) > 0 {
			if err := l.hub.nc.Publish(subjectPushed+a.hello.ID, encode(b)); err != nil {
				l.log.Warn("pushed", "agent", a.number, "err", err)
			}
		}
	}
}

func portOf(u string) string {
	x, err := url.Parse(u)
	if err != nil {
		return ""
	}
	return x.Port()
}

// errSilent is why an agent is dead that does not say anything any more.
var errSilent = errors.New("it has fallen silent")
