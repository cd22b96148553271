package population

import (
	"slices"
	"sort"
)

// ConversationSpace is the number of possible conversations: Conversation
// takes numbers below it. They are in order of size: c / ConversationSpace is
// the quantile of the size law, weighted by messages, so that a sample of
// conversations that is spread evenly over the space has the law's mean.
const ConversationSpace = 1 << 40

// MaxMembers is the service's limit of members of a group.
const MaxMembers = 1024

// Group ids: the kind in the high bits, below 2^53; the generation in bits that
// are free, see Population.mark.
const (
	groupBit    = 1 << 48 // groupBit | c
	bigGroupBit = 1 << 49 // bigGroupBit | size<<32 | i
	bigGroups   = 1 << 24 // bound of i
)

// Conversation is a chat of two people or of a group.
type Conversation struct {
	ID    uint64
	Group GroupID // 0: direct
	Size  int     // members, 2 for direct
}

// sizeLaw is the law of the size of the chat that a message goes to.
type sizeLaw struct {
	groupShare float64
	// atMost[n] is the probability that a group has at most n members.
	atMost []float64
}

// newSizeLaw tabulates the group size law of a preset (WORKLOAD.md section 5).
func newSizeLaw(preset string) sizeLaw {
	l := sizeLaw{groupShare: 0.43, atMost: make([]float64, MaxMembers+1)}
	weight := make([]float64, MaxMembers+1)
	// fit is A: P(N > n) = exp(-0.508 (n-2)) for n >= 2.
	fit := func(share float64) {
		addShare(weight, share, 3, MaxMembers, func(n int) float64 {
			return Exp(-0.508*float64(n-3)) - Exp(-0.508*float64(n-2))
		})
	}
	lognormal := func(x float64) float64 { return NormCDF((Ln(x) - 2.17) / 1.12) }
	switch preset {
	case "A":
		fit(1)
	case "C":
		l.groupShare = 0.60
		// Recipients are n-1: the lognormal truncated to [2,1023], rounded.
		addShare(weight, 1, 3, MaxMembers, func(n int) float64 {
			return lognormal(min(float64(n)-0.5, 1023)) - lognormal(max(float64(n)-1.5, 2))
		})
	case "direct":
		l.groupShare = 0
		fit(1)
	default:
		fit(0.9705)
		addShare(weight, 0.0295, 27, MaxMembers, func(n int) float64 {
			return lognormal(float64(n)+0.5) - lognormal(float64(n)-0.5)
		})
	}
	sum := 0.0
	for n, w := range weight {
		sum += w
		l.atMost[n] = sum
	}
	return l
}

// addShare adds a law on [lo,hi], conditioned on that range, with a total
// weight of share.
func addShare(weight []float64, share float64, lo, hi int, p func(n int) float64) {
	total := 0.0
	for n := lo; n <= hi; n++ {
		total += p(n)
	}
	for n := lo; n <= hi; n++ {
		weight[n] += float64(share*p(n)) / total
	}
}

// size is the size at a quantile of the law.
func (l *sizeLaw) size(u float64) int {
	direct := 1 - l.groupShare
	if u < direct {
		return 2
	}
	v := (u - direct) / l.groupShare
	return min(sort.Search(MaxMembers, func(n int) bool { return l.atMost[n] > v }), MaxMembers)
}

// FanOut is the mean number of recipients of a message under the size law:
// 2.08 (A), 2.73 (B), 11.2 (C), 1 (direct). A population of fewer than 1,024
// users has less.
func (p *Population) FanOut() float64 {
	mean := 0.0
	for n := 1; n <= MaxMembers; n++ {
		share := p.sizes.atMost[n] - p.sizes.atMost[n-1]
		mean += share * float64(min(int64(n), p.users)-1)
	}
	return 1 - p.sizes.groupShare + float64(p.sizes.groupShare*mean)
}

// GroupShare is the share of messages that go to groups.
func (p *Population) GroupShare() float64 { return p.sizes.groupShare }

// Conversation with number c, in [0, ConversationSpace): see there.
func (p *Population) Conversation(c uint64) Conversation {
	c %= ConversationSpace
	size := int(min(int64(p.sizes.size((float64(c)+0.5)/ConversationSpace)), p.users))
	if size <= 2 {
		return Conversation{ID: c, Size: 2}
	}
	return Conversation{ID: c, Group: groupBit | p.mark(40) | c, Size: size}
}

// Members of a conversation, distinct, by rank of who writes most. The first
// is drawn by activity, the others are contacts of the first.
func (p *Population) Members(c uint64) []UserID {
	conv := p.Conversation(c)
	s := NewStream(p.seed, purposeMembers, conv.ID, 0)
	first := p.Sample(&s)
	contacts := p.Contacts(first)
	return p.distinct(first, conv.Size, func() UserID { return p.Contact(first, s.IntN(contacts)) }, &s)
}

// BigGroup is the i-th group with size members of a declared stratum. Its id
// differs from those of Conversation; its members are drawn by activity.
func (p *Population) BigGroup(i int, size int) (GroupID, []UserID) {
	size = int(min(int64(min(size, MaxMembers)), p.users))
	s := NewStream(p.seed, purposeBigGroup, uint64(size), uint64(i))
	first := p.Sample(&s)
	id := bigGroupBit | p.mark(24) | uint64(size)<<32 | uint64(i%bigGroups)
	return id, p.distinct(first, size, func() UserID { return p.Sample(&s) }, &s)
}

// GroupMembers are the members of a group of Conversation or BigGroup, the
// first writes most; nil for any other id.
func (p *Population) GroupMembers(g GroupID) []UserID {
	switch {
	case g&bigGroupBit != 0:
		if id, members := p.BigGroup(int(g%bigGroups), int(g>>32&0xffff)); id == g {
			return members
		}
	case g&groupBit != 0:
		if c := g % ConversationSpace; p.Conversation(c).Group == g {
			return p.Members(c)
		}
	}
	return nil
}

// distinct draws until there are size different users; where draws repeat too
// often (few contacts, a small population) it draws by activity, and then
// takes the next free number.
func (p *Population) distinct(first UserID, size int, draw func() UserID, s *Stream) []UserID {
	members := append(make([]UserID, 0, size), first)
	var seen map[UserID]struct{}
	if size > 16 {
		seen = map[UserID]struct{}{first: {}}
	}
	has := func(u UserID) bool {
		if seen != nil {
			_, ok := seen[u]
			return ok
		}
		return slices.Contains(members, u)
	}
	for len(members) < size {
		u := draw()
		for try := 0; has(u) && try < 24; try++ {
			if u = draw(); try >= 8 {
				u = p.Sample(s)
			}
		}
		for has(u) {
			u = p.after(u)
		}
		members = append(members, u)
		if seen != nil {
			seen[u] = struct{}{}
		}
	}
	return members
}
