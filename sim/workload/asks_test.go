package workload

import (
	"slices"
	"testing"
	"time"

	"throng/system/wire"
)

// TestAsks: whoever asks something of a group is online and in a position to,
// and the schedule is consistent with what was asked.
func TestAsks(t *testing.T) {
	computes(t)
	spec := load(t, "membership_churn")
	s := build(t, spec)
	if len(s.Stats.Warnings) > 0 {
		t.Errorf("warnings: %q", s.Stats.Warnings)
	}
	left := map[membership]time.Duration{}
	made := map[uint64]time.Duration{}
	moved := map[membership]bool{}
	kinds := map[AskKind]int{}
	for i := range s.Actions {
		a := &s.Actions[i]
		switch a.Kind {
		case MemberAdd, MemberRemove:
			moved[membership{a.Conv.Group, a.User}] = true
			continue
		case GroupAsk:
		default:
			continue
		}
		x, members := &s.Asks[a.Index], s.Members(a.Conv.Group)
		kinds[x.Kind]++
		if x.Group != a.Conv.Group || x.Request != uint64(a.Index)+1 || a.Phase != 3 || len(members) < 2 {
			t.Fatalf("%+v asks %+v of %v", *a, *x, members)
		}
		if !s.Online(a.User, a.Device, a.At) || !s.Online(a.User, a.Device, a.At-time.Second) || !s.Online(a.User, a.Device, a.At+time.Second) {
			t.Errorf("%+v: not online", *a)
		}
		ok, who := a.User == members[0], membership{x.Group, x.Member}
		switch x.Kind {
		case Create:
			made[x.Group] = a.At
			ok = ok && x.Group == wire.GroupIDOf(a.User, a.Device, x.Request)
		case Join:
			ok = ok && !slices.Contains(members, x.Member)
		case Leave:
			ok, who.user = slices.Contains(members[1:], a.User), a.User
			left[who] = a.At
		}
		if !ok || who.user != 0 && moved[who] {
			t.Errorf("%+v asks %+v of %v", *a, *x, members)
		}
		moved[who] = true
	}
	for kind, want := range map[AskKind]float64{Create: spec.Membership.CreatesPerS, Join: spec.Membership.JoinsPerS,
		Leave: spec.Membership.LeavesPerS, Rename: spec.Membership.RenamesPerS} {
		if kinds[kind] != int(want*spec.Phases.SteadyS) {
			t.Errorf("%d of kind %d, want %v a second", kinds[kind], kind, want)
		}
	}
	sends := map[uint64]int{}
	for _, i := range s.Sends {
		a := &s.Actions[i]
		if at, gone := left[membership{a.Conv.Group, a.User}]; gone && a.At >= at {
			t.Errorf("user %d writes in group %d, which it has left", a.User, a.Conv.Group)
		}
		if at, created := made[a.Conv.Group]; created {
			sends[a.Conv.Group]++
			if a.At <= at || a.User != s.Members(a.Conv.Group)[0] {
				t.Errorf("%+v to a group made at %v", *a, at)
			}
		}
	}
	users, groups := s.Touched()
	known := map[uint64]bool{}
	for u := range users {
		known[u] = true
	}
	for g := range groups {
		if s.Created[g] != nil {
			t.Errorf("group %d would be provisioned", g)
		}
	}
	for g, members := range s.Created {
		if sends[g] != createdSends {
			t.Errorf("%d sends to group %d", sends[g], g)
		}
		for _, u := range members {
			if !known[u] {
				t.Errorf("user %d of group %d would not be provisioned", u, g)
			}
		}
	}
	for _, x := range s.Asks {
		if x.Member != 0 && !known[x.Member] {
			t.Errorf("user %d who joins would not be provisioned", x.Member)
		}
	}
}
