package workload

import (
	"slices"

	"throng/sim/population"
)

// change is a membership change of a group.
type change struct {
	at    int64
	group uint64
	user  uint64
	add   bool
}

// changeTries bounds the draws for one change.
const changeTries = 400

// planChanges schedules removals and additions evenly over steady. Each takes
// a group of its own that has messages before and after it in the load window,
// so that the boundary is exercised. Writers of the group, and its first
// member, stay.
func (b *builder) planChanges() {
	s := population.NewStream(b.spec.Seed, purposeMembership, 0, 0)
	var groups []int32
	for i := range b.chats {
		if c := &b.chats[i]; c.group != 0 && c.stratum < 0 && c.load >= 2 {
			groups = append(groups, int32(i))
		}
	}
	used := map[uint64]bool{}
	plan := func(perS float64, add bool) int {
		n := int(float64(perS*float64(b.spike-b.steady))/second + 0.5)
		done := 0
		for i := range n {
			at := b.steady + int64(float64(b.spike-b.steady)*(float64(i)+s.Float64())/float64(n))
			if c, ok := b.planChange(&s, groups, used, at, add); ok {
				b.changes = append(b.changes, c)
				done++
			}
		}
		if done < n {
			b.warn("%d of %d membership changes found no group with messages before and after them", n-done, n)
		}
		return done
	}
	b.stats.Removals = plan(b.spec.Membership.RemovalsPerS, false)
	b.stats.Additions = plan(b.spec.Membership.AdditionsPerS, true)
}

func (b *builder) planChange(s *population.Stream, groups []int32, used map[uint64]bool, at int64, add bool) (change, bool) {
	for try := 0; try < changeTries && len(groups) > 0; try++ {
		c := &b.chats[groups[s.IntN(len(groups))]]
		if used[c.group] || !b.surrounded(c, at) {
			continue
		}
		members := b.pop.Members(c.number)
		user, ok := uint64(0), false
		if add {
			user = b.pop.Sample(s)
			ok = !slices.Contains(members, user) && len(members) < population.MaxMembers
		} else {
			user = members[1+s.IntN(len(members)-1)]
			ok = !b.writes(c, user)
		}
		if ok {
			used[c.group] = true
			return change{at: at, group: c.group, user: user, add: add}, true
		}
	}
	return change{}, false
}

// surrounded reports whether the chat has messages of the run on both sides of
// a time. Which side a message falls on that is sent at almost that time, the
// group's log decides.
func (b *builder) surrounded(c *chat, at int64) bool {
	before, after := false, false
	for _, e := range b.events[c.first:c.last] {
		before = before || e.at >= b.warmup && e.at < at
		after = after || e.at > at && e.at < b.end
	}
	return before && after
}

// writes reports whether a user writes in a chat in the run.
func (b *builder) writes(c *chat, user uint64) bool {
	return slices.ContainsFunc(b.events[c.first:c.last], func(e event) bool {
		return e.user == user && e.at >= b.warmup && e.at < b.end
	})
}
