package workload

import (
	"cmp"
	"math"
	"slices"
	"sort"

	"throng/sim/population"
	"throng/sim/scenario"
)

// send is a message before it becomes an Action.
type send struct {
	at      int64
	user    uint64
	peer    uint64 // of a backlog send, which has no chat
	chat    int32  // -1: backlog
	event   int32  // of the chat's own process, -1: spike, stratum, backlog
	session int32  // of the sender
}

const (
	// A sender of a spike or backlog send has been online for margin and stays
	// for it, so that the login is over and the answer can still come.
	margin = 1500_000
	// near is how far in time a spike send looks for a message to repeat.
	near = 5 * second
	// backlogToSpike: a backlog sent faster than so many times the fastest
	// phase is warned of.
	backlogToSpike = 4
	// senderTries bounds the draws for the sender of one spike or backlog send.
	senderTries = 64
)

// chatSends are the messages of the chats' own processes in the load window.
func (b *builder) chatSends() {
	for i := range b.events {
		e := &b.events[i]
		if e.at < b.warmup || e.at >= b.end {
			continue
		}
		s := covering(b.sessions, e.user, e.at, 0)
		if s < 0 {
			panic("workload: a writer is not online when it writes")
		}
		b.sends = append(b.sends, send{at: e.at, user: e.user, chat: e.chat, event: int32(i), session: int32(s)})
	}
	slices.SortFunc(b.sends, func(x, y send) int { return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.event, y.event)) })
}

// planStrata makes the groups of the declared strata, decides who writes when
// in them, and asks for the writers to be online from before warm-up. Each
// group has two writers at most.
func (b *builder) planStrata() {
	number := 0
	for x, stratum := range b.spec.Extra {
		start, end := b.span(stratum.Phase)
		first := len(b.chats)
		for range stratum.Groups {
			id, members := b.pop.BigGroup(number, stratum.GroupSize)
			number++
			b.chats = append(b.chats, chat{group: id, size: int32(len(members)), stratum: int8(x), pair: [2]uint64{members[0], members[1]}, members: members})
		}
		last := map[need]int64{}
		for i := range stratum.Sends {
			at := start + int64(float64(end-start)*(float64(i)+0.5)/float64(stratum.Sends))
			chat := first + i%stratum.Groups
			writer := b.chats[chat].pair[i/stratum.Groups%2]
			b.extra = append(b.extra, send{at: at, user: writer, chat: int32(chat), event: -1})
			last[need{user: writer, chat: int32(chat)}] = at
		}
		for n, at := range last { // in any order: addNeeds sorts
			n.start, n.end = b.warmup, at
			b.addNeed(n)
		}
	}
}

// strataSends puts the planned sends of the strata beside the others.
func (b *builder) strataSends() {
	for _, x := range b.extra {
		x.session = int32(covering(b.sessions, x.user, x.at, 0))
		if x.session < 0 {
			panic("workload: a writer of a stratum is not online when it writes")
		}
		b.sends = append(b.sends, x)
	}
}

// spikeSends are a Poisson process of additional messages. Each repeats the
// sender and conversation of a random message near in time, of a sender who is
// online then, so that fan-out, mix and sessions stay as they are. chat sends
// must be sorted, and alone in b.sends.
func (b *builder) spikeSends() {
	s := population.NewStream(b.spec.Seed, purposeSpike, 0, 0)
	base, missed := b.sends, 0
	region := b.spec.RegionIndex(b.spec.Phases.SpikeRegion)
	rate := b.rates.SendsPerS * (b.spec.Phases.SpikeFactor - 1) * b.spec.SpikeShare()
	for at := b.spike; rate > 0; {
		if at += micros(s.Exp() / rate); at >= b.end {
			break
		}
		picked := -1
		for try := 0; try < senderTries && picked < 0; try++ {
			around := int64(near * (1 + try/16))
			lo := sort.Search(len(base), func(i int) bool { return base[i].at >= at-around })
			hi := sort.Search(len(base), func(i int) bool { return base[i].at > at+around })
			if lo == hi {
				continue
			}
			i := lo + s.IntN(hi-lo)
			if o := &b.sessions[base[i].session]; o.open+margin <= at && at < o.until-margin && (region < 0 || b.region(o.user) == region) {
				picked = i
			}
		}
		if picked < 0 {
			missed++
			continue
		}
		x := base[picked]
		x.at, x.event = at, -1
		b.sends = append(b.sends, x)
	}
	if missed > 0 {
		b.warn("%d sends of the spike found no writer who is online", missed)
	}
}

// backlogSends build the inboxes of the users who open later: direct messages
// from users who are online before warm-up, spread evenly over the backlog
// phase. Users whose first session is an Initial one have none: they would get
// them live.
func (b *builder) backlogSends() {
	mean := b.spec.BacklogRowsPerLogin
	if mean <= 0 || b.warmup <= b.ramp {
		return
	}
	s := population.NewStream(b.spec.Seed, purposeBacklog, 0, 0)
	stop := population.Ln(mean / (1 + mean)) // geometric: P(k) = (1-p)^k p, p = 1/(1+mean)
	var online []int32
	var peers []uint64
	users := 0
	for i := 0; i < len(b.sessions); {
		user, first := b.sessions[i].user, i
		initial := false
		for ; i < len(b.sessions) && b.sessions[i].user == user; i++ {
			initial = initial || b.sessions[i].cause == Initial
		}
		if initial {
			for j := first; j < i; j++ {
				if o := &b.sessions[j]; o.cause == Initial && o.device == 0 && o.until > b.warmup+margin {
					online = append(online, int32(j))
				}
			}
			continue
		}
		users++
		for range int(math.Floor(population.Ln(s.Float64()) / stop)) {
			peers = append(peers, user)
		}
	}
	if len(online) == 0 && len(peers) > 0 {
		b.warn("nobody is online to send the backlog")
		return
	}
	for i := len(peers) - 1; i > 0; i-- {
		j := s.IntN(i + 1)
		peers[i], peers[j] = peers[j], peers[i]
	}
	for i, peer := range peers {
		at := b.ramp + int64(float64(b.warmup-b.ramp)*(float64(i)+0.5)/float64(len(peers)))
		session := online[s.IntN(len(online))]
		for try := 0; try < senderTries && b.sessions[session].open+margin > at; try++ { // opened late in the ramp
			session = online[s.IntN(len(online))]
		}
		b.sends = append(b.sends, send{at: at, user: b.sessions[session].user, peer: peer, chat: -1, event: -1, session: session})
	}
	b.stats.BacklogUsers = users
	if rate := float64(len(peers)) / float64(b.warmup-b.ramp) * second; rate > backlogToSpike*max(b.rates.SendsPerS, b.rates.SpikeSendsPerS) {
		b.warn("the backlog is sent at %.0f/s, far above any other phase: a longer phases.backlog or fewer backlog_rows_per_login would load the system less", rate)
	}
}

// body draws kind and length of the body of the send with an index.
func (b *builder) body(index int32) (kind int32, length int) {
	s := population.NewStream(b.spec.Seed, purposeBody, uint64(index), 0)
	u := s.Float64()
	for _, share := range scenario.KindShares() {
		if u < share {
			break
		}
		u -= share
		kind++
	}
	kind = min(kind, 4)
	if kind > 0 {
		mean := float64(scenario.PointerBytes()[kind])
		return kind, int(mean * (0.7 + float64(0.6*s.Float64())))
	}
	return kind, textLength(&s)
}
