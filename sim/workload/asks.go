package workload

import (
	"slices"
	"sort"

	"throng/sim/population"
	"throng/system/wire"
)

// AskKind says what a client asks of a group.
type AskKind uint8

// The kinds of Ask.
const (
	Create AskKind = iota + 1
	Join           // an administrator adds Member
	Leave
	Rename
)

// Ask is a group request of a client, carried out by an Action of kind GroupAsk.
type Ask struct {
	Kind    AskKind
	Request uint64 // its number, unique in the schedule
	Group   uint64
	Member  uint64 // of Join
}

const (
	// createdSends go to each group that is created, every createdEvery.
	createdSends = 3
	createdEvery = 2 * second
	// createdOthers are drawn beside the founder: 2 to 8.
	createdOthersMin, createdOthersSpan = 2, 7
)

// ask is an Ask before it becomes an Action.
type ask struct {
	Ask
	at      int64
	session int32
}

// membership names a user in a group.
type membership struct{ group, user uint64 }

// planAsks schedules what clients ask of groups over steady, each while its
// user is online, in groups that have messages before and after it. Nobody
// comes or goes twice in a group, and who leaves has written there for the last
// time.
func (b *builder) planAsks() {
	moved := map[membership]bool{}
	for _, c := range b.changes {
		moved[membership{c.group, c.user}] = true
	}
	s := population.NewStream(b.spec.Seed, purposeAsks, 0, 0)
	var groups []int32
	for i := range b.chats {
		if c := &b.chats[i]; c.group != 0 && c.stratum < 0 && c.load >= 2 {
			groups = append(groups, int32(i))
		}
	}
	m := b.spec.Membership
	for _, p := range []struct {
		perS float64
		plan func() bool
	}{
		{m.JoinsPerS, func() bool { return b.planAsk(&s, groups, moved, Join) }},
		{m.LeavesPerS, func() bool { return b.planAsk(&s, groups, moved, Leave) }},
		{m.RenamesPerS, func() bool { return b.planAsk(&s, groups, moved, Rename) }},
		{m.CreatesPerS, func() bool { return b.planCreate(&s) }},
	} {
		n, missed := int(float64(p.perS*float64(b.spike-b.steady))/second+0.5), 0
		for range n {
			if !p.plan() {
				missed++
			}
		}
		if missed > 0 {
			b.warn("%d of %d group requests found nobody online to make them", missed, n)
		}
	}
	b.stats.Asks = len(b.asks)
}

// planAsk draws a group, a user and a time for one Join, Leave or Rename.
func (b *builder) planAsk(s *population.Stream, groups []int32, moved map[membership]bool, kind AskKind) bool {
	for try := 0; try < changeTries && len(groups) > 0; try++ {
		c := &b.chats[groups[s.IntN(len(groups))]]
		members := b.pop.Members(c.number)
		from, to := b.busy(c)
		x := ask{Ask: Ask{Kind: kind, Group: c.group}}
		user := members[0]
		whose := membership{c.group, 0}
		switch kind {
		case Join:
			x.Member = b.pop.Sample(s)
			if slices.Contains(members, x.Member) || len(members) >= population.MaxMembers {
				continue
			}
			whose.user = x.Member
		case Leave:
			user = members[1+s.IntN(len(members)-1)]
			from = max(from, b.lastWritten(c, user)+margin)
			whose.user = user
		}
		var ok bool
		if x.session, x.at, ok = b.whileOnline(s, user, margin, from, to); !ok || moved[whose] {
			continue
		}
		moved[whose] = kind != Rename
		b.addAsk(x)
		return true
	}
	return false
}

// busy is the part of steady that has messages of the chat before and after it.
func (b *builder) busy(c *chat) (from, to int64) {
	from, to = b.spike, b.steady
	for _, e := range b.events[c.first:c.last] {
		if e.at >= b.warmup && e.at < b.end {
			from, to = min(from, e.at+1), max(to, e.at)
		}
	}
	return max(from, b.steady), min(to, b.spike)
}

// lastWritten is when a user writes in a chat for the last time in the run.
func (b *builder) lastWritten(c *chat, user uint64) int64 {
	last := b.warmup
	for _, e := range b.events[c.first:c.last] {
		if e.user == user && e.at < b.end {
			last = max(last, e.at)
		}
	}
	return last
}

// planCreate draws a founder, the other members and a time for one Create, and
// schedules what the founder writes in the group.
func (b *builder) planCreate(s *population.Stream) bool {
	for range changeTries {
		founder := b.sessions[s.IntN(len(b.sessions))].user
		session, at, ok := b.whileOnline(s, founder, margin+createdSends*createdEvery, b.steady+createdSends*createdEvery, b.spike)
		if !ok {
			continue
		}
		at -= createdSends * createdEvery
		members := []uint64{founder}
		contacts := b.pop.Contacts(founder)
		for range createdOthersMin + s.IntN(createdOthersSpan) {
			if u := b.pop.Contact(founder, s.IntN(contacts)); !slices.Contains(members, u) {
				members = append(members, u)
			}
		}
		if len(members) < 2 {
			continue
		}
		x := b.addAsk(ask{Ask: Ask{Kind: Create}, at: at, session: session})
		b.created[x.Group] = members
		chatIndex := int32(len(b.chats))
		b.chats = append(b.chats, chat{group: x.Group, size: int32(len(members)), stratum: -1, members: members})
		for i := range createdSends {
			b.sends = append(b.sends, send{at: at + int64(i+1)*createdEvery, user: founder, chat: chatIndex, event: -1, session: session})
		}
		return true
	}
	return false
}

// addAsk numbers an ask; a Create gets the id of its group by that.
func (b *builder) addAsk(x ask) *ask {
	x.Request = uint64(len(b.asks)) + 1
	if x.Kind == Create {
		s := &b.sessions[x.session]
		x.Group = wire.GroupIDOf(s.user, s.device, x.Request)
	}
	b.asks = append(b.asks, x)
	return &b.asks[len(b.asks)-1]
}

// whileOnline draws a time in [from, to) at which a user has been online for
// before and stays for margin.
func (b *builder) whileOnline(s *population.Stream, user uint64, before, from, to int64) (session int32, at int64, ok bool) {
	i := sort.Search(len(b.sessions), func(i int) bool { return b.sessions[i].user >= user })
	seen := 0
	for ; i < len(b.sessions) && b.sessions[i].user == user; i++ {
		x := &b.sessions[i]
		lo, hi := max(x.open+before, from), min(x.until-margin, to)
		if lo >= hi {
			continue
		}
		if seen++; s.IntN(seen) == 0 { // each with the same probability
			session, at, ok = int32(i), lo+int64(float64(hi-lo)*s.Float64()), true
		}
	}
	return session, at, ok
}

// Members of a group at its creation, the founder or owner first: of those
// that the schedule creates, or the population's.
func (s *Schedule) Members(group uint64) []uint64 {
	if m, ok := s.Created[group]; ok {
		return m
	}
	return s.pop.GroupMembers(group)
}
