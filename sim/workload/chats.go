package workload

import (
	"math"

	"throng/sim/population"
)

// chat is a conversation with at least one message near the load window.
type chat struct {
	number      uint64 // of the population's conversation
	group       uint64 // 0: direct
	size        int32
	stratum     int8      // -1: in the mean
	pair        [2]uint64 // the two sides of a direct chat
	members     []uint64  // of a group
	first, last int32     // range of events: [first, last)
	steady      int32     // events in steady
	load        int32     // events from the start of warm-up to the end of the spike
}

// conv is the chat as its member user names it.
func (c *chat) conv(user uint64) Conv {
	if c.group != 0 {
		return Conv{Group: c.group}
	}
	if c.pair[0] == user {
		return Conv{Peer: c.pair[1]}
	}
	return Conv{Peer: c.pair[0]}
}

// everybody is who is in the chat.
func (c *chat) everybody() []uint64 {
	if c.group != 0 {
		return c.members
	}
	return c.pair[:]
}

// event is one message of a chat's own process.
type event struct {
	at     int64
	user   uint64
	chat   int32
	branch uint8 // of the gap before it
}

// drawChats enumerates the active chats and keeps those with a message in
// [b.from, b.to): each is an independent stationary renewal process, seeded by
// its number alone.
func (b *builder) drawChats() {
	law := newGapLaw(b.spec.GapBranches())
	b.events = make([]event, 0, int(b.rates.SendsPerS*float64(b.to-b.from)/second*1.1))
	// With a day the chats are as many as for everybody on the plateau, and thinned.
	for k := range uint64(float64(b.rates.ActiveChats)/b.peak + 0.5) {
		s := population.NewStream(b.spec.Seed, purposeChat, k, 0)
		thin := b.thinning(k)
		at, branch := law.residual(&s)
		if at += b.from; at >= b.to {
			continue
		}
		c := chat{first: int32(len(b.events)), stratum: -1}
		for at < b.to {
			if thin.keeps(at, branch) {
				if at >= b.warmup && at < b.end {
					c.load++
				}
				if at >= b.steady && at < b.spike {
					c.steady++
				}
				b.events = append(b.events, event{at: at, chat: int32(len(b.chats)), branch: uint8(branch)})
			}
			var gap int64
			gap, branch = law.next(&s)
			at += gap
		}
		if c.last = int32(len(b.events)); c.last > c.first {
			b.chats = append(b.chats, c)
		}
	}
}

// Sizes are spread over the law by systematic sampling: the chats divide the
// unit interval among themselves in proportion to their messages in steady,
// and each takes the conversation at the middle of its part, from a random
// start. The mean over messages is then the law's but for the width of a part,
// where independent draws would scatter by 5 % and more, because of the rare
// large groups. Up to 32 starts are tried for a mean within half a per cent.
const (
	sizeStarts    = 32
	sizeTolerance = 0.005
)

// chooseConversations gives each chat its conversation and each event its
// writer.
func (b *builder) chooseConversations() {
	s := population.NewStream(b.spec.Seed, purposeSizes, 0, 0)
	b.spreadSizes(&s, func(c *chat) int32 { return c.steady })
	// Chats with messages only in warm-up and spike.
	b.spreadSizes(&s, func(c *chat) int32 {
		if c.steady > 0 {
			return 0
		}
		return c.load
	})
	for i := range b.chats {
		c := &b.chats[i]
		if c.load == 0 {
			c.number = uint64(s.Float64() * population.ConversationSpace)
		}
		b.writers(c)
	}
}

// spreadSizes assigns conversations to the chats of positive weight.
func (b *builder) spreadSizes(s *population.Stream, weight func(*chat) int32) {
	total := 0.0
	for i := range b.chats {
		total += float64(weight(&b.chats[i]))
	}
	if total == 0 {
		return
	}
	place := func(start float64, visit func(*chat, float64, uint64)) {
		sum := 0.0
		for i := range b.chats {
			w := float64(weight(&b.chats[i]))
			if w == 0 {
				continue
			}
			u := (sum+w/2)/total + start
			visit(&b.chats[i], w, uint64((u-math.Floor(u))*population.ConversationSpace))
			sum += w
		}
	}
	best, distance := 0.0, math.Inf(1)
	for range sizeStarts {
		start, sum := s.Float64(), 0.0
		place(start, func(_ *chat, w float64, number uint64) {
			sum += float64(w * float64(b.pop.Conversation(number).Size-1))
		})
		if d := math.Abs(sum/total/b.rates.FanOut - 1); d < distance {
			best, distance = start, d
		}
		if distance < sizeTolerance {
			break
		}
	}
	place(best, func(c *chat, _ float64, number uint64) { c.number = number })
}

// writers looks the chat's conversation up and draws who writes each message.
func (b *builder) writers(c *chat) {
	conv := b.pop.Conversation(c.number)
	members := b.pop.Members(c.number)
	c.group, c.size = conv.Group, int32(len(members))
	copy(c.pair[:], members)
	if c.group != 0 {
		c.members = members
	}
	s := population.NewStream(b.spec.Seed, purposeWriter, c.number, 0)
	for i := c.first; i < c.last; i++ {
		b.events[i].user = members[drawRank(&s, len(members))]
	}
}
