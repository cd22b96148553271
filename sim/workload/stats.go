package workload

import (
	"cmp"
	"math"
	"slices"
	"sort"

	"throng/sim/population"
)

// measure fills the builder's stats from what was scheduled, and chooses the
// probability that a push causes an open.
func (b *builder) measure(s *Schedule) {
	st := &b.stats
	b.measureSends(st)
	b.measureSessions(st)
	b.measurePushes(st)
	st.PushLoginsPerS = b.pushRate
	if st.PushesPerS > 0 {
		b.pushProbability = min(1, b.pushRate/st.PushesPerS)
	}
	st.PushOpenProbability = b.pushProbability
	st.MeanConnected = st.MeanConnectedSched + float64(b.pushRate*b.meanLength)/second*b.pushPresent()
	st.SessionScaleS = b.scale / second
	st.TouchedUsers, st.TouchedGroups = len(s.users), len(s.groups)
	st.ProofDevices = b.proofDevices()
	for i := range b.chats {
		if c := &b.chats[i]; c.load > 0 || c.stratum >= 0 {
			st.ActiveChats++
		}
	}
}

// pushPresent is the share of the push-caused sessions' stationary number that
// is not scheduled in steady: before warm-up their place is taken by scheduled
// sessions, which end as theirs begin.
func (b *builder) pushPresent() float64 {
	mid := float64(b.steady+b.spike)/2 - float64(b.warmup)
	return 1 - population.Exp(-max(0, min(600, mid/max(1, b.meanLength))))
}

func (b *builder) measureSends(st *Stats) {
	recipients, groups, spike := 0, 0, 0
	for i := range b.sends {
		x := &b.sends[i]
		st.Sends++
		if x.chat < 0 {
			st.BacklogSends++
			continue
		}
		c := &b.chats[x.chat]
		if c.stratum >= 0 {
			st.StratumSends++
			continue
		}
		if x.at >= b.spike {
			spike++
		}
		if x.at >= b.steady && x.at < b.spike {
			st.SteadySends++
			recipients += int(c.size) - 1
			if c.group != 0 {
				groups++
			}
		}
	}
	st.SteadySendsPerS = float64(st.SteadySends) / float64(b.spike-b.steady) * second
	if b.end > b.spike {
		st.SpikeSendsPerS = float64(spike) / float64(b.end-b.spike) * second
	}
	if n := float64(st.SteadySends); n > 0 {
		st.SteadyFanOut, st.SteadyGroup = float64(recipients)/n, float64(groups)/n
	}
	if n := st.BacklogSends; n > 0 {
		st.BacklogRowsPerUser = float64(n) / float64(b.stats.BacklogUsers)
		st.BacklogSendsPerS = float64(n) / float64(b.warmup-b.ramp) * second
	}
}

func (b *builder) measureSessions(st *Stats) {
	var held, lengths int64
	conversation, background := 0, 0
	var changes []int64 // open at 2t, close at 2t+1
	for i := range b.sessions {
		s := &b.sessions[i]
		held += max(0, min(s.until, b.spike)-max(s.open, b.steady))
		changes = append(changes, 2*s.open, 2*s.until+1)
		switch {
		case s.cause == Initial:
			st.InitialOpens++
			continue
		case s.open < b.steady || s.open >= b.spike:
			continue
		case s.cause == Conversation:
			conversation++
		default:
			background++
		}
		lengths += s.until - s.open
	}
	span := float64(b.spike-b.steady) / second
	st.ConversationLogins, st.BackgroundLogins = float64(conversation)/span, float64(background)/span
	st.LoginsPerS = float64(conversation+background) / span
	st.MeanConnectedSched = float64(held) / second / span
	st.MeanSessionS = float64(lengths) / second / max(1, float64(conversation+background))
	st.RampLoginsPerS = float64(st.InitialOpens) / float64(b.ramp) * second
	slices.Sort(changes)
	now := 0
	for _, c := range changes {
		now += 1 - 2*int(c&1)
		st.PeakConnected = max(st.PeakConnected, now)
	}
}

// measurePushes counts the phones that are offline when they are addressed,
// and those of them that still are when the push goes out.
func (b *builder) measurePushes(st *Stats) {
	pairs, offline := 0, 0
	var away []addressed
	var of int32 = -1 // whose members they are
	var members []uint64
	order := make([]int32, 0, len(b.sends))
	for i := range b.sends {
		if x := &b.sends[i]; x.chat >= 0 && x.at >= b.steady && x.at < b.spike {
			order = append(order, int32(i))
		}
	}
	slices.SortFunc(order, func(x, y int32) int { // by chat: members are looked up once
		if d := b.sends[x].chat - b.sends[y].chat; d != 0 {
			return int(d)
		}
		return int(x - y)
	})
	for _, i := range order {
		x := &b.sends[i]
		c := &b.chats[x.chat]
		if of != x.chat {
			of, members = x.chat, c.everybody()
		}
		for _, u := range members {
			if u == x.user {
				continue
			}
			off := covering(b.sessions, u, x.at, 0) < 0
			if c.stratum < 0 {
				pairs++
				if off {
					offline++
				}
			}
			if off {
				away = append(away, addressed{u, x.at})
			}
		}
	}
	st.OfflineShare = float64(offline) / float64(max(1, pairs))
	st.PushesPerS = float64(b.countPushes(away)) / float64(b.spike-b.steady) * second
}

// addressed is a user who is addressed while the phone is offline.
type addressed struct {
	user uint64
	at   int64
}

// countPushes returns how many pushes there are for those who are addressed
// while they are away: one within PushEvery, to a phone that still is. That who
// opens the app is told anew is left out.
func (b *builder) countPushes(away []addressed) (pushes int) {
	delay, every := int64(math.Round(b.spec.PushDelayS*second)), int64(math.Round(b.spec.PushEveryS*second))
	slices.SortFunc(away, func(x, y addressed) int { return cmp.Or(cmp.Compare(x.user, y.user), cmp.Compare(x.at, y.at)) })
	last := int64(0) // when the last push of the user goes out
	for i, a := range away {
		due := a.at + delay
		if i > 0 && away[i-1].user == a.user {
			if a.at < last {
				continue // it goes with that one
			}
			due = max(due, last+every)
		}
		last = due
		if covering(b.sessions, a.user, due, 0) < 0 {
			pushes++
		}
	}
	return pushes
}

// proofDevices counts the devices that are addressed after their last session
// has ended: those that the proof has to connect. Devices are looked at
// by what is scheduled; opens caused by pushes make them fewer.
func (b *builder) proofDevices() int {
	lastSend := make([]int64, len(b.chats))
	addressed := map[uint64]int64{} // when each user was last
	for i := range b.sends {
		x := &b.sends[i]
		if x.chat < 0 {
			addressed[x.peer] = max(addressed[x.peer], x.at)
			continue
		}
		lastSend[x.chat] = max(lastSend[x.chat], x.at)
	}
	for i, at := range lastSend {
		if at == 0 {
			continue
		}
		for _, u := range b.chats[i].everybody() {
			addressed[u] = max(addressed[u], at)
		}
	}
	total := 0
	for user, at := range addressed {
		for d := range uint32(b.pop.Devices(user)) {
			if !b.onlineAfter(user, d, at) {
				total++
			}
		}
	}
	return total
}

// onlineAfter reports whether a device is online at a time or opens later.
func (b *builder) onlineAfter(user uint64, device uint32, at int64) bool {
	i := sort.Search(len(b.sessions), func(i int) bool { return b.sessions[i].user >= user })
	for ; i < len(b.sessions) && b.sessions[i].user == user; i++ {
		if s := &b.sessions[i]; s.device == device && s.until > at {
			return true
		}
	}
	return false
}
