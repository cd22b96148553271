package load

import (
	"fmt"
	"sync"
	"time"

	"throng/sim/audit"
	"throng/sim/workload"
	"throng/system/wire"
)

// askAgain is how long a client waits before it repeats a group request that
// was answered with "try again".
const askAgain = time.Second

// asking is a group request under way. Its fields belong to its device's lock.
type asking struct {
	dev      *device
	ask      *workload.Ask
	frame    *wire.Frame
	intended time.Duration
	begun    time.Duration // when it was made
	done     bool
}

// asks lists the group requests of the run, and holds what is sent to a group
// until its creation is answered, or a member has been told of it.
type asks struct {
	mu   sync.Mutex
	all  []*asking
	made map[uint64]bool
	held map[uint64][]*workload.Action
}

// startOf tells the audit how groups that will change begin.
func (e *Engine) startOf(s *workload.Schedule) {
	for i := range s.Actions {
		switch a := &s.Actions[i]; a.Kind {
		case workload.MemberAdd, workload.MemberRemove, workload.GroupAsk:
			members := s.Members(a.Conv.Group)
			if _, created := s.Created[a.Conv.Group]; created {
				for _, u := range members[1:] {
					e.audit.Outside(a.Conv.Group, u)
				}
				members = members[:1]
			}
			e.audit.Start(a.Conv.Group, members)
		}
	}
	for g, users := range e.joiners {
		for _, u := range users {
			e.audit.Outside(g, u)
		}
	}
}

// concerned are the users whose membership a request changes.
func (e *Engine) concerned(x *asking) []uint64 {
	switch x.ask.Kind {
	case workload.Create:
		return e.sched.Members(x.ask.Group)[1:]
	case workload.Join:
		return []uint64{x.ask.Member}
	case workload.Leave:
		return []uint64{x.dev.key.User}
	}
	return nil
}

// askGroup makes a group request, as soon as its device has a connection.
func (e *Engine) askGroup(a *workload.Action) {
	d := e.device(a.User, a.Device)
	x := &asking{dev: d, ask: &e.sched.Asks[a.Index], intended: e.loadStart + a.At, begun: e.now()}
	req := &wire.GroupRequest{RequestId: x.ask.Request, Group: x.ask.Group}
	name := fmt.Sprintf("group %d", x.ask.Request)
	switch x.ask.Kind {
	case workload.Create:
		req.Action, req.Group, req.Users, req.Name = wire.GroupRequest_ACTION_CREATE, 0, e.concerned(x), &name
	case workload.Join:
		req.Action, req.Users = wire.GroupRequest_ACTION_ADD, e.concerned(x)
	case workload.Leave:
		req.Action = wire.GroupRequest_ACTION_LEAVE
	case workload.Rename:
		req.Action, req.Name = wire.GroupRequest_ACTION_UPDATE, &name
	}
	x.frame = &wire.Frame{Kind: &wire.Frame_GroupRequest{GroupRequest: req}}
	for _, u := range e.concerned(x) {
		e.audit.Changing(x.ask.Group, u, x.begun)
	}
	e.asks.mu.Lock()
	e.asks.all = append(e.asks.all, x)
	e.asks.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asks == nil {
		d.asks = map[uint64]*asking{}
	}
	d.asks[x.ask.Request] = x
	if d.state == open {
		_ = d.conn.Write(x.frame) // after an error it is written on the next connection
	}
}

// answered handles the answer to a group request.
func (e *Engine) answered(d *device, res *wire.GroupResult) {
	now := e.now()
	again := false
	switch res.Code {
	case wire.Code_CODE_RETRY, wire.Code_CODE_RATE_LIMITED, wire.Code_CODE_INTERNAL:
		again = true
		e.stats.errors.Add(1)
	}
	d.mu.Lock()
	x := d.asks[res.RequestId]
	if x != nil && !again {
		delete(d.asks, res.RequestId)
		x.done = true
	}
	gate := d.gate
	d.mu.Unlock()
	switch {
	case x == nil: // answered before
	case again:
		e.timers.at(now+askAgain, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if !x.done && d.state == open {
				_ = d.conn.Write(x.frame)
			}
		})
	case res.Code != 0:
		e.stats.errors.Add(1)
		e.event("warning", fmt.Sprintf("a request to group %d was refused: %s %s", x.ask.Group, res.Code, res.Detail))
		for _, u := range e.concerned(x) {
			e.audit.Unchanged(x.ask.Group, u, x.begun)
		}
	default:
		e.rec.Record(e.kinds.change, (now - x.intended).Microseconds())
		e.inZone(gate, changeOf, now-x.intended)
		e.audit.Reached(x.ask.Group, res.GetGroup().GetVersion())
		if x.ask.Kind == workload.Create {
			e.release(x.ask.Group)
		}
	}
}

// hold keeps a send to a group that is not known to exist, and says whether it
// did.
func (e *Engine) hold(a *workload.Action) bool {
	if _, created := e.sched.Created[a.Conv.Group]; !created {
		return false
	}
	e.asks.mu.Lock()
	defer e.asks.mu.Unlock()
	if e.asks.made[a.Conv.Group] {
		return false
	}
	e.asks.held[a.Conv.Group] = append(e.asks.held[a.Conv.Group], a)
	return true
}

// release lets go what waited for a group.
func (e *Engine) release(group uint64) {
	e.asks.mu.Lock()
	held := e.asks.held[group]
	delete(e.asks.held, group)
	e.asks.made[group] = true
	e.asks.mu.Unlock()
	for _, a := range held {
		e.enqueue(job{action: a, released: true})
	}
}

// abandon counts the sends whose group was never made.
func (e *Engine) abandon() {
	e.asks.mu.Lock()
	defer e.asks.mu.Unlock()
	for _, held := range e.asks.held {
		e.stats.unstarted.Add(int64(len(held)))
	}
	clear(e.asks.held)
}

// unanswered returns the devices whose requests have no answer, and how many
// of them are connected.
func (q *asks) unanswered() (devices []audit.Device, connected int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	kept := q.all[:0]
	for _, x := range q.all {
		x.dev.mu.Lock()
		if !x.done {
			kept = append(kept, x)
			devices = append(devices, x.dev.key)
			if x.dev.state == open {
				connected++
			}
		}
		x.dev.mu.Unlock()
	}
	clear(q.all[len(kept):])
	q.all = kept
	return devices, connected
}
