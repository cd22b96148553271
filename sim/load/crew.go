package load

import (
	"context"
	"sync"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/workload"
	"throng/system/wire"
)

// Crew plays the users of a run: the engine itself, or agents that have a shard
// each. An agent that has died is left out of everything; who leads the crew
// ends the run and says so. Times are times of the run.
type Crew interface {
	// Begins says how long before the start of the load the crew has to be told.
	Begins() time.Duration
	// Begin makes the crew play the schedule from the given time on.
	Begin(ctx context.Context, at time.Duration)
	// Stop ends the load early. What was sent is still to be proved.
	Stop()
	// InFlight returns how many sends are written and not answered, at once and
	// therefore not exactly.
	InFlight() int64
	// Unanswered counts the sends and group requests of connected devices that
	// have no answer, and the uploads and fetches of media under way.
	Unanswered(ctx context.Context) Unanswered
	// EndLoad says that the load is over: nobody reconnects on their own.
	EndLoad(ctx context.Context)
	// Open lists the devices with unanswered sends or group requests.
	Open(ctx context.Context) []audit.Device
	// Drain connects devices, each until it is up to date.
	Drain(ctx context.Context, todo []audit.Device, deadline time.Duration)
	// Spools returns what the players have told the audit: all of it, up to a mark
	// for each, or why there is none. The engine that leads adds its own.
	Spools(ctx context.Context) []audit.Source
	// ClockError is by how much the clocks of two engines may differ.
	ClockError() time.Duration
	// Pushed and Outages hand on what the players of devices have to know.
	Pushed(p Pushed)
	Outages(all []Outage)
	// PushAudit returns the sums of the players' push audits.
	PushAudit(ctx context.Context) history.PushAudit
	// ProveMedia has the players fetch what they could not have before, and returns
	// the sums of their audits.
	ProveMedia(ctx context.Context) history.MediaAudit
}

// Unanswered is what a crew still waits for.
type Unanswered struct {
	Sends int   `json:"sends,omitempty"`
	Asked int   `json:"asked,omitempty"` // group requests
	Media int64 `json:"media,omitempty"` // uploads and fetches
}

// Plus adds up two parts of a crew.
func (u Unanswered) Plus(v Unanswered) Unanswered {
	return Unanswered{Sends: u.Sends + v.Sends, Asked: u.Asked + v.Asked, Media: u.Media + v.Media}
}

// solo is the crew of an engine that plays everybody itself.
type solo struct{ e *Engine }

func (s solo) Begins() time.Duration                 { return 0 }
func (s solo) Begin(context.Context, time.Duration)  {}
func (s solo) Stop()                                 {}
func (s solo) Outages([]Outage)                      {}
func (s solo) Spools(context.Context) []audit.Source { return nil }
func (s solo) ClockError() time.Duration             { return 0 }
func (s solo) Pushed(p Pushed)                       { s.e.Pushed(p) }

func (s solo) InFlight() int64 {
	sends, _ := s.e.InFlight()
	return sends
}

func (s solo) Unanswered(context.Context) Unanswered                      { return s.e.Unanswered() }
func (s solo) EndLoad(context.Context)                                    { s.e.EndLoad() }
func (s solo) Open(context.Context) []audit.Device                        { return s.e.Open() }
func (s solo) PushAudit(context.Context) history.PushAudit                { return s.e.PushAudit() }
func (s solo) ProveMedia(ctx context.Context) history.MediaAudit          { return s.e.ProveMedia(ctx) }
func (s solo) Drain(c context.Context, t []audit.Device, d time.Duration) { s.e.Drain(c, t, d) }

// mine says whether this engine carries an action out. Who has the target
// changes members by its interface for provisioning.
func (e *Engine) mine(a *workload.Action) bool {
	if a.Kind == workload.MemberAdd || a.Kind == workload.MemberRemove {
		return e.target != nil
	}
	return e.cfg.Crew == nil && e.cfg.Shard.Has(a.User)
}

// indexAll knows the ids of all sends beforehand, for an engine that hears of
// their pushes and does not play their senders.
func (e *Engine) indexAll() {
	for i := range e.sched.Sends {
		if a := e.sched.Send(int32(i)); a != nil {
			e.setIndex(wire.IDOf(a.User, a.Device, uint64(a.Index)+1), a.Index)
		}
	}
}

// Follow plays the engine's shard as the leader of a crew says by Begin and the
// other methods, and records each second, until ctx is done. Cancelling soft
// ends the load.
func (e *Engine) Follow(ctx, soft context.Context, begin <-chan time.Duration) {
	run, stop := context.WithCancel(ctx)
	var bg sync.WaitGroup
	defer e.finish(stop, &bg)
	bg.Go(func() { e.sampleLoop(run) })
	select {
	case e.loadStart = <-begin:
	case <-ctx.Done():
		return
	}
	e.work(run, &bg)
	e.playPhases(soft)
	e.setPhase("settle")
	<-ctx.Done()
}

// Unanswered counts what of this engine's connected devices has no answer, and
// its media under way.
func (e *Engine) Unanswered() Unanswered {
	u := Unanswered{Media: e.media.moving()}
	for _, m := range e.flying.unanswered() {
		m.dev.mu.Lock()
		if m.dev.state == open {
			u.Sends++
		}
		m.dev.mu.Unlock()
	}
	_, u.Asked = e.asks.unanswered()
	return u
}

// Open lists this engine's devices with unanswered sends or group requests; a
// device may be named more than once.
func (e *Engine) Open() []audit.Device {
	devices, _ := e.asks.unanswered()
	for _, m := range e.flying.unanswered() {
		devices = append(devices, m.dev.key)
	}
	return devices
}

// EndLoad says that the load is over: nobody reconnects on their own, and what
// still waits for its group is given up.
func (e *Engine) EndLoad() {
	e.abandon()
	e.closing.Store(true)
	e.setPhase("proof")
}
