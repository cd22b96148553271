package load

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"throng/sim/audit"
	"throng/sim/workload"
	"throng/system/wire"
)

// Sizes of a Provision message: large enough to be cheap, small enough to be
// one transaction.
const (
	provisionUsers   = 2000
	provisionMembers = 8000
)

// provision creates the users and groups that the schedule touches.
func (e *Engine) provision(ctx context.Context) error {
	users, groups := e.sched.Touched()
	next, stop := iter.Pull2(e.provisionBatches(users, groups))
	defer stop()
	res, err := e.target.Provision(ctx, func() (*wire.Provision, error) {
		p, err, ok := next()
		if !ok {
			return nil, io.EOF
		}
		return p, err
	})
	if err != nil {
		return err
	}
	if want := uint64(e.sched.Stats.TouchedUsers); res.Users < want {
		return fmt.Errorf("the target has %d users of the %d that the schedule touches", res.Users, want)
	}
	return nil
}

func (e *Engine) provisionBatches(users iter.Seq[uint64], groups iter.Seq2[uint64, []uint64]) iter.Seq2[*wire.Provision, error] {
	return func(yield func(*wire.Provision, error) bool) {
		p := &wire.Provision{}
		for u := range users {
			pu := &wire.ProvisionUser{User: u}
			for d := range e.cfg.Population.Devices(u) {
				pu.Devices = append(pu.Devices, &wire.ProvisionDevice{Device: uint32(d), PushToken: pushToken(u, uint32(d))})
			}
			p.Users = append(p.Users, pu)
			if len(p.Users) == provisionUsers {
				if !yield(p, nil) {
					return
				}
				p = &wire.Provision{}
			}
		}
		members := 0
		for g, m := range groups {
			p.Groups = append(p.Groups, &wire.ProvisionGroup{Group: g, Members: m})
			if members += len(m); members >= provisionMembers {
				if !yield(p, nil) {
					return
				}
				p, members = &wire.Provision{}, 0
			}
		}
		if len(p.Users)+len(p.Groups) > 0 {
			yield(p, nil)
		}
	}
}

// pushToken is what a device's push service gave it. Linked devices are
// browsers and desktops, which take no pushes.
func pushToken(user uint64, device uint32) string {
	if device != 0 {
		return ""
	}
	return fmt.Sprintf("tok-%d", user)
}

// groupDevices returns the devices of everybody who is ever a member of the
// group in this run, sorted, and the number of members at its start.
func (e *Engine) groupDevices(group uint64) ([]audit.Device, int) {
	if g, ok := e.members.Load(group); ok {
		g := g.(*groupEntry)
		return g.devices, g.size
	}
	members := e.sched.Members(group)
	g := &groupEntry{size: len(members)}
	for _, u := range members {
		g.devices = append(g.devices, e.devicesOf(u)...)
	}
	for _, u := range e.joiners[group] {
		g.devices = append(g.devices, e.devicesOf(u)...)
	}
	slices.SortFunc(g.devices, func(a, b audit.Device) int {
		return cmp.Or(cmp.Compare(a.User, b.User), cmp.Compare(a.Device, b.Device))
	})
	e.members.Store(group, g)
	return g.devices, g.size
}

type groupEntry struct {
	devices []audit.Device
	size    int
}

// joinersOf returns the users that the schedule adds to groups.
func joinersOf(s *workload.Schedule) map[uint64][]uint64 {
	out := make(map[uint64][]uint64)
	for i := range s.Actions {
		switch a := &s.Actions[i]; {
		case a.Kind == workload.MemberAdd:
			out[a.Conv.Group] = append(out[a.Conv.Group], a.User)
		case a.Kind == workload.GroupAsk && s.Asks[a.Index].Kind == workload.Join:
			out[a.Conv.Group] = append(out[a.Conv.Group], s.Asks[a.Index].Member)
		}
	}
	return out
}

// changeMembers carries out one membership change and tells the audit its
// exact place in the group's log.
func (e *Engine) changeMembers(ctx context.Context, a *workload.Action) {
	c := &wire.MembershipChange{Group: a.Conv.Group}
	if a.Kind == workload.MemberAdd {
		c.Add = []uint64{a.User}
	} else {
		c.Remove = []uint64{a.User}
	}
	e.audit.Changing(a.Conv.Group, a.User, e.now())
	var res *wire.MembershipResult
	for {
		var err error
		if res, err = e.target.ChangeMembers(ctx, c); err == nil {
			break
		}
		e.stats.errors.Add(1)
		e.event("warning", fmt.Sprintf("membership change of group %d, to be tried again: %v", a.Conv.Group, err))
		if !e.sleepUntil(ctx, e.now()+time.Second) {
			return
		}
	}
	e.audit.Reached(a.Conv.Group, res.Version)
	if a.Kind == workload.MemberAdd {
		e.audit.Added(a.Conv.Group, a.User, res.Offset, e.now())
	} else {
		e.audit.Removed(a.Conv.Group, a.User, res.Offset, e.now())
	}
}
