package workload

import (
	"iter"
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
	// Sends[i] is the position in Actions of the send with Index i.
	Sends []int32
	// Asks are what clients ask of groups, see Action.Index.
	Asks []Ask
	// Created are the groups that clients create, with their members: the
	// founder is the first.
	Created map[uint64][]uint64

	spec     *scenario.Spec
	pop      *population.Population
	sessions []session // by user, then time
	focuses  []focus   // session.first and needs refer to them
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

// focus keeps, of the builder's needs, those of the sessions that are kept.
func (s *Schedule) focus(b *builder) {
	for i := range s.sessions {
		x := &s.sessions[i]
		first := int32(len(s.focuses))
		for _, n := range b.needs[x.first : x.first+x.needs] {
			s.focuses = append(s.focuses, focus{n.start, n.end, b.chats[n.chat].conv(n.user)})
		}
		x.first = first
	}
}

// touch collects the users and groups of all actions.
func (s *Schedule) touch() {
	for i := range s.Actions {
		a := &s.Actions[i]
		if a.User != 0 {
			s.users = append(s.users, a.User)
		}
		if a.Conv.Peer != 0 {
			s.users = append(s.users, a.Conv.Peer)
		}
		if _, created := s.Created[a.Conv.Group]; a.Conv.Group != 0 && !created {
			s.groups = append(s.groups, a.Conv.Group)
		}
	}
	for i := range s.Asks {
		if u := s.Asks[i].Member; u != 0 {
			s.users = append(s.users, u)
		}
		s.users = append(s.users, s.Created[s.Asks[i].Group]...)
	}
	slices.Sort(s.groups)
	s.groups = slices.Clip(slices.Compact(s.groups))
	for _, g := range s.groups {
		s.users = append(s.users, s.pop.GroupMembers(g)...)
	}
	slices.Sort(s.users)
	s.users = slices.Clip(slices.Compact(s.users))
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

// ReadDelay says whether a user who has received a send reads it (0.8), and
// how long after receiving it. The session's end cuts it short: then there is
// no read in this session.
func (s *Schedule) ReadDelay(user uint64, sendIndex int32) (read bool, d time.Duration) {
	r := population.NewStream(s.spec.Seed, purposeRead, user, uint64(sendIndex))
	if r.Float64() >= scenario.ReadShare {
		return false, 0
	}
	mu, sigma := readSlowMu, readSlowSigma
	if s.onScreen(user, &s.Actions[s.Sends[sendIndex]]) {
		mu, sigma = readFastMu, readFastSigma
	}
	return true, clock(micros(min(readMax, r.LogNormal(mu, sigma))))
}

// onScreen reports whether a receiver of a send is in a session in which it
// writes in the same conversation, around that time.
func (s *Schedule) onScreen(user uint64, send *Action) bool {
	conv := send.Conv
	if conv.Group == 0 {
		conv.Peer = send.User
	}
	at := int64(send.At / time.Microsecond)
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
