package workload

import (
	"iter"
	"maps"
	"slices"
	"sort"
	"time"

	"throng/sim/population"
	"throng/sim/scenario"
)

// Schedule is everything a run does, fixed before it starts. It is read-only
// and safe for concurrent use.
type Schedule struct {
	Actions []Action // by At, ties in a fixed order
	Phases  []PhaseSpan
	Stats   Stats
	// Sends[i] is the position in Actions of the send with Index i; -1: another
	// shard has it.
	Sends []int32
	// Asks are what clients ask of groups, see Action.Index.
	Asks []Ask
	// Created are the groups that clients create, with their members: the
	// founder is the first.
	Created map[uint64][]uint64

	spec     *scenario.Spec
	pop      *population.Population
	about    map[int32]Sender // of the sends that others are about
	sessions []session        // by user, then time
	focuses  []focus          // session.first and needs refer to them
	users    []uint64
	groups   []uint64

	pushProbability float64
	scale           float64 // of session lengths, microseconds
	longest         int64
}

// focus is a conversation that a user writes in during a session.
type focus struct {
	start, end int64
	conv       Conv
}

// Send returns the send with an index; nil: another shard has it.
func (s *Schedule) Send(index int32) *Action {
	if at := s.Sends[index]; at >= 0 {
		return &s.Actions[at]
	}
	return nil
}

// Sender is the device that a send comes from.
type Sender struct {
	User   uint64
	Device uint32
}

// SenderOf says who sends what another send is about (Action.About), which may
// be another shard's.
func (s *Schedule) SenderOf(about int32) Sender { return s.about[about] }

// keepSessions keeps the shard's sessions, and of the builder's needs those of
// them.
func (s *Schedule) keepSessions(b *builder) {
	sessions, needs := 0, 0
	for i := range b.sessions {
		if x := &b.sessions[i]; b.shard.Has(x.user) {
			sessions, needs = sessions+1, needs+int(x.needs)
		}
	}
	s.sessions, s.focuses = make([]session, 0, sessions), make([]focus, 0, needs)
	for _, x := range b.sessions {
		if !b.shard.Has(x.user) {
			continue
		}
		first := int32(len(s.focuses))
		for _, n := range b.needs[x.first : x.first+x.needs] {
			s.focuses = append(s.focuses, focus{n.start, n.end, b.chats[n.chat].conv(n.user)})
		}
		x.first = first
		s.sessions = append(s.sessions, x)
	}
}

// touch collects the users and groups of all actions, and the members of the
// groups.
func (s *Schedule) touch(membersOf func(group uint64) []uint64) {
	users, groups := map[uint64]struct{}{}, map[uint64]struct{}{}
	for i := range s.Actions {
		a := &s.Actions[i]
		users[a.User], users[a.Conv.Peer] = struct{}{}, struct{}{}
		if _, created := s.Created[a.Conv.Group]; !created {
			groups[a.Conv.Group] = struct{}{}
		}
		if a.Kind != GroupAsk {
			continue
		}
		x := &s.Asks[a.Index]
		users[x.Member] = struct{}{}
		for _, u := range s.Created[x.Group] {
			users[u] = struct{}{}
		}
	}
	delete(groups, 0)
	for g := range groups {
		for _, u := range membersOf(g) {
			users[u] = struct{}{}
		}
	}
	delete(users, 0)
	s.users, s.groups = slices.Sorted(maps.Keys(users)), slices.Sorted(maps.Keys(groups))
}

// Touched lists what must exist before the run: every user that opens, writes
// or is addressed, in ascending order, and every group with its members at the
// start (the first is the owner).
func (s *Schedule) Touched() (users iter.Seq[uint64], groups iter.Seq2[uint64, []uint64]) {
	return slices.Values(s.users), func(yield func(uint64, []uint64) bool) {
		for _, g := range s.groups {
			if !yield(g, s.pop.GroupMembers(g)) {
				return
			}
		}
	}
}

// Opens caused by pushes follow the push soon: what is opened minutes later
// cannot be told from a background open. Median 6 s, at most 30 s (assumption).
const (
	pushOpenMu    = 1.791759469 // ln 6
	pushOpenSigma = 0.7
	pushOpenMax   = 30.0
)

// PushOpen says whether the n-th push (0..) that a user gets makes the owner
// open the app on device 0, how long after it, and for how long. The engine
// asks only for users who are offline, not for pushes of backlog sends; when
// the session would run into a scheduled one (NextOpen), it is cut before it, or
// left out: a device never has two sessions.
func (s *Schedule) PushOpen(user uint64, n uint64) (open bool, delay, length time.Duration) {
	return s.pushOpen(user, n, s.pushProbability)
}

// PushOpenAt is PushOpen for a push at a time of the load clock: in the spike
// pushes are as many times more as sends, and logins stay as they are; there is
// none after the load.
func (s *Schedule) PushOpenAt(user uint64, n uint64, at time.Duration) (open bool, delay, length time.Duration) {
	p := s.pushProbability
	switch spike, settle := s.Phases[4], s.Phases[5]; {
	case at >= settle.Start || at < s.Phases[2].Start:
		return false, 0, 0
	case at >= spike.Start:
		p /= s.spec.Phases.SpikeFactor
	}
	return s.pushOpen(user, n, p)
}

func (s *Schedule) pushOpen(user, n uint64, probability float64) (bool, time.Duration, time.Duration) {
	r := population.NewStream(s.spec.Seed, purposePushOpen, user, n)
	if r.Float64() >= probability {
		return false, 0, 0
	}
	delay := micros(min(pushOpenMax, r.LogNormal(pushOpenMu, pushOpenSigma)))
	length := max(shortest, min(int64(float64(r.LogNormalMean(scenario.SessionSigma)*s.scale)), s.longest))
	return true, clock(delay), clock(length)
}

// NextOpen is when a device's next scheduled session after at begins.
func (s *Schedule) NextOpen(user uint64, device uint32, at time.Duration) (time.Duration, bool) {
	us := int64(at / time.Microsecond)
	i := sort.Search(len(s.sessions), func(i int) bool { return s.sessions[i].user >= user })
	for ; i < len(s.sessions) && s.sessions[i].user == user; i++ {
		if x := &s.sessions[i]; x.device == device && x.open > us {
			return clock(x.open), true
		}
	}
	return 0, false
}

// Online reports whether the schedule alone has the device connected at a time.
func (s *Schedule) Online(user uint64, device uint32, at time.Duration) bool {
	us := int64(at / time.Microsecond)
	i := sort.Search(len(s.sessions), func(i int) bool { return s.sessions[i].user >= user })
	for ; i < len(s.sessions) && s.sessions[i].user == user; i++ {
		if x := &s.sessions[i]; x.device == device && x.open <= us && us < x.until {
			return true
		}
	}
	return false
}

// Read delays. Who has the conversation on the screen, because of writing in
// it in the same session, reads in a median of 5 s: replies within a burst come
// in a median of about 14 s and are read before they are written. All others
// take a median of 60 s ("50 % within 60 s", Reed 2014).
const (
	readFastMu, readFastSigma = 1.609437912, 0.7 // ln 5
	readSlowMu, readSlowSigma = 4.094344562, 1.2 // ln 60
	readMax                   = 86400.0
)

// ReadDelay says whether a user who has received a send in a conversation, as
// they name it, reads it (0.8), and how long after receiving it. at is the
// send's. The session's end cuts it short: then there is no read in this session.
func (s *Schedule) ReadDelay(user uint64, sendIndex int32, conv Conv, at time.Duration) (read bool, d time.Duration) {
	r := population.NewStream(s.spec.Seed, purposeRead, user, uint64(sendIndex))
	if r.Float64() >= scenario.ReadShare {
		return false, 0
	}
	mu, sigma := readSlowMu, readSlowSigma
	if s.onScreen(user, conv, at) {
		mu, sigma = readFastMu, readFastSigma
	}
	return true, clock(micros(min(readMax, r.LogNormal(mu, sigma))))
}

// onScreen reports whether a user is in a session in which they write in a
// conversation, around that time.
func (s *Schedule) onScreen(user uint64, conv Conv, t time.Duration) bool {
	at := int64(t / time.Microsecond)
	i := covering(s.sessions, user, at, 0)
	if i < 0 {
		return false
	}
	x := &s.sessions[i]
	for _, f := range s.focuses[x.first : x.first+x.needs] {
		if f.conv == conv && f.start <= at && at < f.end {
			return true
		}
	}
	return false
}
