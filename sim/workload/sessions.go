package workload

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"throng/sim/population"
	"throng/sim/scenario"
)

// need is a time that a user must be online because of what it sends.
type need struct {
	user       uint64
	start, end int64
	chat       int32
	length     float64 // of a session that starts with it: lognormal with mean 1
}

// session is one connection of a device.
type session struct {
	user         uint64
	open, until  int64
	first, needs int32 // needs[first : first+needs]
	device       uint32
	cause        Cause
}

const (
	leadMin, leadMax = 2 * second, 5 * second  // before the first send
	tailMin, tailMax = 3 * second, 10 * second // after the last one
	mergeGap         = 60 * second             // of sessions of 91.7 s; scaled with the mean session
	apart            = 2 * second              // between two sessions of a device
	shortest         = 3 * second
	// pushShare is how much of the logins is left for opens caused by pushes
	// (assumption), at most half of what conversations leave.
	pushShare = 0.08
)

// addNeeds collects, burst by burst, from when to when each writer of a burst
// must be online.
func (b *builder) addNeeds() {
	var open []need // of the current burst, one a writer
	flush := func() {
		for _, n := range open {
			b.addNeed(n)
		}
		open = open[:0]
	}
	for i := range b.chats {
		c := &b.chats[i]
		for e := c.first; e < c.last; e++ {
			ev := &b.events[e]
			if ev.branch != burst {
				flush()
			}
			at := slices.IndexFunc(open, func(n need) bool { return n.user == ev.user })
			if at < 0 {
				open = append(open, need{user: ev.user, start: ev.at, chat: int32(i)})
				at = len(open) - 1
			}
			open[at].end = ev.at
		}
		flush()
	}
	slices.SortFunc(b.needs, func(x, y need) int {
		return cmp.Or(cmp.Compare(x.user, y.user), cmp.Compare(x.start, y.start), cmp.Compare(x.chat, y.chat))
	})
}

// addNeed adds lead and tail to [first send, last send].
func (b *builder) addNeed(n need) {
	s := population.NewStream(b.spec.Seed, purposeLead, n.user, uint64(n.start))
	n.start -= leadMin + int64(s.Float64()*(leadMax-leadMin))
	n.end += tailMin + int64(s.Float64()*(tailMax-tailMin))
	n.length = s.LogNormalMean(scenario.SessionSigma)
	b.needs = append(b.needs, n)
}

// length is a session length at a scale, bounded by the run-in: what is longer
// could have begun before the schedule does.
func (b *builder) length(unit, scale float64) int64 {
	return max(shortest, min(int64(float64(unit*scale)), b.warmup-b.from))
}

// conversationSessions merges the needs of each user into sessions, when the
// lognormal lengths have the mean scale (microseconds).
func (b *builder) conversationSessions(scale float64, visit func(session)) {
	gap := b.mergeGap()
	for i := 0; i < len(b.needs); {
		n := &b.needs[i]
		s := session{user: n.user, open: n.start, first: int32(i), cause: Conversation}
		s.until = max(n.end, n.start+b.length(n.length, scale))
		for i++; i < len(b.needs) && b.needs[i].user == s.user && b.needs[i].start < s.until+gap; i++ {
			s.until = max(s.until, b.needs[i].end)
		}
		s.needs = int32(i) - s.first
		visit(s)
	}
}

func (b *builder) mergeGap() int64 {
	return max(apart, int64(mergeGap*min(1, b.rates.MeanSessionS/91.7)))
}

// calibrate finds the mean of the lognormal session lengths at which the mean
// number of connected devices meets its target, by bisection: conversation
// sessions are counted, background and push sessions fill logins up to theirs
// and are computed. It also divides what is left between those two.
func (b *builder) calibrate() {
	span := float64(b.end - b.warmup)
	target := b.rates.Connections * b.mean
	mean := func(scale float64) float64 { // of background lengths
		s := population.NewStream(b.spec.Seed, purposeLength, 0, 0)
		sum := 0.0
		for range 2000 {
			sum += float64(b.length(s.LogNormalMean(scenario.SessionSigma), scale))
		}
		return sum / 2000
	}
	measure := func(scale float64) (opens, rest, connected float64) {
		var held int64
		b.conversationSessions(scale, func(s session) {
			if s.open >= b.warmup && s.open < b.end {
				opens++
			}
			held += max(0, min(s.until, b.end)-max(s.open, b.warmup))
		})
		rest = max(0, b.rates.LoginsPerS*b.mean-opens/span*second)
		return opens / span * second, rest, float64(held)/span + rest*mean(scale)/second
	}
	lo, hi := 0.0, 20*b.rates.MeanSessionS*second
	for range 24 {
		b.scale = (lo + hi) / 2
		if _, _, connected := measure(b.scale); connected < target {
			lo = b.scale
		} else {
			hi = b.scale
		}
	}
	opens, rest, connected := measure(b.scale)
	b.meanLength = mean(b.scale)
	b.pushRate = min(pushShare*b.rates.LoginsPerS*b.mean, rest/2)
	b.backgroundRate = rest - b.pushRate
	if logins := b.rates.LoginsPerS * b.mean; opens > logins*1.05 {
		b.warn("the writers alone open %.0f sessions a second, the target is %.0f", opens, logins)
	}
	if connected > target*1.05 || connected < target*0.95 {
		b.warn("%.0f devices are connected on average, the target is %.0f", connected, target)
	}
}

func (b *builder) warn(format string, args ...any) {
	b.stats.Warnings = append(b.stats.Warnings, fmt.Sprintf(format, args...))
}

// openSessions draws all sessions: those of conversations, then background
// opens. Kept are those that cover the start of warm-up, which become Initial
// and open in the ramp, and those that open later, before the load ends.
func (b *builder) openSessions() {
	b.conversationSessions(b.scale, func(s session) {
		if s.until > b.warmup && s.open < b.end {
			b.sessions = append(b.sessions, s)
		}
	})
	b.background()
	b.spreadRamp()
	slices.SortFunc(b.sessions, func(x, y session) int {
		return cmp.Or(cmp.Compare(x.user, y.user), cmp.Compare(x.open, y.open), cmp.Compare(x.device, y.device))
	})
}

// background opens are a Poisson process of users by activity. Before warm-up
// it includes opens caused by pushes, which are decided at run time later.
func (b *builder) background() {
	s := population.NewStream(b.spec.Seed, purposeBackground, 0, 0)
	conversation := len(b.sessions) // sorted by user up to here
	after := false                  // warm-up has begun
	taken := map[uint64][]int32{}   // background sessions of each user
	free := func(n *session) bool {
		overlaps := func(o *session) bool {
			return o.user == n.user && o.device == n.device && o.open < n.until+apart && n.open < o.until+apart
		}
		i := sort.Search(conversation, func(i int) bool { return b.sessions[i].user >= n.user })
		for ; i < conversation && b.sessions[i].user == n.user; i++ {
			if overlaps(&b.sessions[i]) {
				return false
			}
		}
		return !slices.ContainsFunc(taken[n.user], func(i int32) bool { return overlaps(&b.sessions[i]) })
	}
	rate := (b.backgroundRate + b.pushRate) / (b.mean * b.peak) // thinned by the day
	for at := b.from; rate > 0; {
		if at += micros(s.Exp() / rate); at >= b.warmup && b.pushRate > 0 && !after {
			at, rate, after = b.warmup, b.backgroundRate/(b.mean*b.peak), true
			continue
		}
		if at >= b.end {
			return
		}
		n := session{open: at, cause: Background}
		n.until = at + b.length(s.LogNormalMean(scenario.SessionSigma), b.scale)
		linked := s.Float64() < b.spec.Rates.LinkedShare
		if n.until <= b.warmup {
			continue
		}
		for range 40 {
			n.user, n.device = b.pop.Sample(&s), 0
			if devices := b.pop.Devices(n.user); linked && devices > 1 {
				n.device = uint32(1 + s.IntN(devices-1))
			}
			if linked == (n.device > 0) && free(&n) {
				if !b.awake(&s, n.user, at) {
					break
				}
				taken[n.user] = append(taken[n.user], int32(len(b.sessions)))
				b.sessions = append(b.sessions, n)
				break
			}
		}
	}
}

// spreadRamp lets the sessions that cover the start of warm-up open evenly
// over the ramp, in random order.
func (b *builder) spreadRamp() {
	var initial []int32
	for i := range b.sessions {
		if b.sessions[i].open < b.warmup {
			initial = append(initial, int32(i))
		}
	}
	s := population.NewStream(b.spec.Seed, purposeRamp, 0, 0)
	for i := len(initial) - 1; i > 0; i-- {
		j := s.IntN(i + 1)
		initial[i], initial[j] = initial[j], initial[i]
	}
	for i, j := range initial {
		b.sessions[j].open = int64(float64(b.ramp) * (float64(i) + 0.5) / float64(len(initial)))
		b.sessions[j].cause = Initial
	}
}

// covering is the session of the user that is open at a time and for margin
// around it, on any device, the phone first; -1 if there is none. sessions are
// sorted by user.
func covering(sessions []session, user uint64, at, margin int64) int {
	i := sort.Search(len(sessions), func(i int) bool { return sessions[i].user >= user })
	found := -1
	for ; i < len(sessions) && sessions[i].user == user; i++ {
		if s := &sessions[i]; s.open+margin <= at && at < s.until-margin && (found < 0 || s.device == 0) {
			found = i
		}
	}
	return found
}
