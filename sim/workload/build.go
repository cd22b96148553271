package workload

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"throng/sim/population"
	"throng/sim/scenario"
)

// builder holds what Build works on. Times are microseconds of the load clock.
type builder struct {
	spec  *scenario.Spec
	pop   *population.Population
	rates scenario.Rates
	shard Shard

	// The load clock: ramp, warmup, steady, spike are where the phase of that
	// name starts but for ramp, which is where it ends and the backlog starts;
	// end is where load ends and settle starts, over is where settle ends.
	ramp, warmup, steady, spike, end, over int64
	// from, to bound what is simulated of chats and sessions: the run-in makes
	// sessions that are open when warm-up starts, the run-out those that open
	// for a message after the load.
	from, to int64

	chats    []chat
	events   []event
	needs    []need
	sessions []session
	sends    []send
	extra    []send // of strata, until the sessions are known
	changes  []change
	asks     []ask
	created  map[uint64][]uint64
	index    []int32 // of each event's send, -1 none

	peak float64 // of spec.World
	mean float64 // activity over the load, relative to the peak

	scale, meanLength        float64 // of session lengths, microseconds
	backgroundRate, pushRate float64
	pushProbability          float64
	stats                    Stats
}

const (
	// runIn is in mean sessions; it also bounds the length of a session that
	// no message asks for, 900 s in the foreground model.
	runIn  = 10
	runOut = 60 * second
	// maxActive bounds the chats that Build enumerates: scale 1/20.
	maxActive = 200_000_000
)

// Build makes the schedule of a scenario. Targets that cannot be met are in
// Stats.Warnings; an error means that the scenario is too large, or does not
// fit the population.
func Build(spec *scenario.Spec, pop *population.Population) (*Schedule, error) {
	return BuildShard(spec, pop, Shard{})
}

// BuildShard makes the part of Build's schedule that the users of a shard carry
// out: all shards of a run together have the actions of the whole, with the
// same numbers of the sends. Changes of members are in every shard: whoever
// sends to a group has to know who will be in it. The draws are made for everybody, because sessions
// and sizes are calibrated together; what is kept, ordered and looked up is the
// shard's.
func BuildShard(spec *scenario.Spec, pop *population.Population, shard Shard) (*Schedule, error) {
	b := &builder{spec: spec, pop: pop, rates: spec.Resolved(), shard: shard, created: map[uint64][]uint64{}}
	if pop.Users() != max(2, b.rates.Users) {
		return nil, fmt.Errorf("build schedule of %s: the population has %d users, the scenario %d", spec.Name, pop.Users(), b.rates.Users)
	}
	if b.rates.ActiveChats > maxActive {
		return nil, fmt.Errorf("build schedule of %s: %d active chats, the limit is %d", spec.Name, b.rates.ActiveChats, maxActive)
	}
	if len(spec.Extra) > math.MaxInt8 {
		return nil, fmt.Errorf("build schedule of %s: more than %d strata", spec.Name, math.MaxInt8)
	}
	b.clock()
	b.days()
	b.drawChats()
	b.chooseConversations()
	b.planStrata()
	b.addNeeds()
	b.calibrate()
	b.openSessions()
	b.chatSends()
	b.spikeSends()
	b.strataSends()
	b.backlogSends()
	b.planChanges()
	b.planAsks()
	if len(b.sends) == 0 {
		return nil, errors.New("build schedule of " + spec.Name + ": nothing is sent")
	}
	return b.schedule(), nil
}

// clock lays out the phases.
func (b *builder) clock() {
	p := b.spec.Phases
	b.ramp = micros(p.RampS)
	b.warmup = b.ramp + int64(math.Round(p.BacklogS*second))
	b.steady = b.warmup + int64(math.Round(p.WarmupS*second))
	b.spike = b.steady + micros(p.SteadyS)
	b.end = b.spike + int64(math.Round(p.SpikeS*second))
	b.over = b.end + int64(math.Round(p.SettleS*second))
	b.from = b.warmup - micros(runIn*b.rates.MeanSessionS)
	b.to = b.end + runOut
}

// span is the time of a phase that a stratum can name.
func (b *builder) span(phase string) (start, end int64) {
	switch phase {
	case "warmup":
		return b.warmup, b.steady
	case "spike":
		return b.spike, b.end
	}
	return b.steady, b.spike
}

// spans are the phases of the schedule, in order; phaseAt is an index into it.
func (b *builder) spans() []PhaseSpan {
	span := func(name string, start, end int64) PhaseSpan {
		load := name == "warmup" || name == "steady" || name == "spike"
		return PhaseSpan{Name: name, Start: clock(start), End: clock(end), Load: load, Gated: name == "steady"}
	}
	return []PhaseSpan{
		span("ramp", 0, b.ramp), span("backlog", b.ramp, b.warmup), span("warmup", b.warmup, b.steady),
		span("steady", b.steady, b.spike), span("spike", b.spike, b.end), span("settle", b.end, b.over),
	}
}

func clock(us int64) time.Duration { return time.Duration(us) * time.Microsecond }

func (b *builder) phaseAt(at int64) uint8 {
	for i, start := range [...]int64{b.ramp, b.warmup, b.steady, b.spike, b.end} {
		if at < start {
			return uint8(i)
		}
	}
	return 5
}

// schedule turns what was drawn into Actions.
func (b *builder) schedule() *Schedule {
	slices.SortStableFunc(b.sends, func(x, y send) int { return cmp.Compare(x.at, y.at) })
	b.index = make([]int32, len(b.events))
	for i := range b.index {
		b.index[i] = -1
	}
	for i := range b.sends {
		if e := b.sends[i].event; e >= 0 {
			b.index[e] = int32(i)
		}
	}
	actions := make([]Action, 0, (len(b.sends)*5/2+len(b.sessions)*2)/max(1, b.shard.Of)*21/20+len(b.changes))
	actions = b.sessionActions(actions)
	actions, about := b.sendActions(actions)
	actions, asks := b.groupActions(actions)
	s := &Schedule{Actions: sorted(actions), Asks: asks, Created: b.created, Phases: b.spans(), spec: b.spec, pop: b.pop, about: about}
	s.Sends = make([]int32, len(b.sends))
	for i := range s.Sends {
		s.Sends[i] = -1
	}
	for i := range s.Actions {
		if a := &s.Actions[i]; a.Kind == Send {
			s.Sends[a.Index] = int32(i)
		}
	}
	members := make(map[uint64][]uint64)
	for i := range b.chats {
		if c := &b.chats[i]; c.group != 0 {
			members[c.group] = c.members
		}
	}
	s.touch(func(g uint64) []uint64 { return members[g] })
	b.measure(s)
	s.keepSessions(b)
	s.pushProbability, s.scale, s.longest = b.pushProbability, b.scale, b.warmup-b.from
	s.Stats = b.stats
	return s
}

// groupActions are what is done to groups: by the provisioning API, and by
// clients, whose requests are numbered alike in every shard.
func (b *builder) groupActions(actions []Action) ([]Action, []Ask) {
	for _, c := range b.changes {
		kind := MemberRemove
		if c.add {
			kind = MemberAdd
		}
		actions = append(actions, b.action(kind, c.at, Action{User: c.user, Conv: Conv{Group: c.group}}))
	}
	var asks []Ask
	for i := range b.asks {
		x := &b.asks[i]
		asks = append(asks, x.Ask)
		by := &b.sessions[x.session]
		if !b.shard.Has(by.user) {
			continue
		}
		act := b.action(GroupAsk, x.at, Action{User: by.user, Device: by.device, Conv: Conv{Group: x.Group}})
		act.Index = int32(i)
		actions = append(actions, act)
	}
	return actions, asks
}

// action completes an Action of a kind at a time.
func (b *builder) action(kind ActionKind, at int64, a Action) Action {
	a.At, a.Kind, a.Phase = clock(at), kind, b.phaseAt(at)
	if kind != Send {
		a.ReplyTo, a.About, a.Index, a.Stratum = -1, -1, -1, -1
	}
	return a
}

// sorted orders actions by time; those of the same microsecond stay in the
// order in which they were made, which is fixed.
func sorted(actions []Action) []Action {
	type key struct {
		at    time.Duration
		index int32
	}
	keys := make([]key, len(actions))
	for i := range actions {
		keys[i] = key{actions[i].At, int32(i)}
	}
	slices.SortFunc(keys, func(x, y key) int { return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.index, y.index)) })
	out := make([]Action, len(actions))
	for i, k := range keys {
		out[i] = actions[k.index]
	}
	return out
}

// sessionActions are Open, Close, and View where a session goes on to another
// conversation. The first on the screen of an Initial session is the one that
// its user was in when warm-up starts.
func (b *builder) sessionActions(actions []Action) []Action {
	for i := range b.sessions {
		s := &b.sessions[i]
		if !b.shard.Has(s.user) {
			continue
		}
		var shown Conv
		needs := b.needs[s.first : s.first+s.needs]
		next := 0
		for ; next < len(needs) && (next == 0 || needs[next].start <= b.warmup); next++ {
			shown = b.chats[needs[next].chat].conv(s.user)
		}
		actions = append(actions, b.action(Open, s.open, Action{User: s.user, Device: s.device, Until: clock(s.until), Cause: s.cause, Conv: shown}))
		for _, n := range needs[next:] {
			conv := b.chats[n.chat].conv(s.user)
			if conv != shown && n.start > s.open && n.start < b.end {
				shown = conv
				actions = append(actions, b.action(View, n.start, Action{User: s.user, Device: s.device, Conv: conv}))
			}
		}
		if s.until <= b.over {
			actions = append(actions, b.action(Close, s.until, Action{User: s.user, Device: s.device}))
		}
	}
	return actions
}

// sendActions are the sends, in order, and the typing frames before them, and
// who sent what they are about.
func (b *builder) sendActions(actions []Action) ([]Action, map[int32]Sender) {
	named, about := b.named(), map[int32]Sender{}
	for i := range b.sends {
		x := &b.sends[i]
		if !b.shard.Has(x.user) {
			continue
		}
		index := int32(i)
		a := Action{User: x.user, Device: b.sessions[x.session].device, Index: index, ReplyTo: b.replyTo(x.event), Stratum: -1}
		a.MsgKind, a.BodyLen, a.About = b.kind(index, named[index])
		if x.chat < 0 {
			a.Conv, a.Backlog = Conv{Peer: x.peer}, true
			actions = append(actions, b.action(Send, x.at, a))
			continue
		}
		if a.About >= 0 {
			to := &b.sends[a.About]
			about[a.About] = Sender{to.user, b.sessions[to.session].device}
		}
		c := &b.chats[x.chat]
		a.Conv, a.Stratum = c.conv(x.user), c.stratum
		for _, at := range b.typing(x, index) {
			actions = append(actions, b.action(Typing, at, Action{User: a.User, Device: a.Device, Conv: a.Conv}))
		}
		actions = append(actions, b.action(Send, x.at, a))
	}
	return actions, about
}

// replyTo is the send that an event's message answers: the one before it in
// its chat, when another user wrote it and the gap is of the burst branch.
func (b *builder) replyTo(e int32) int32 {
	if e <= 0 || b.events[e].branch != burst {
		return -1
	}
	before, now := &b.events[e-1], &b.events[e]
	if before.chat != now.chat || before.user == now.user {
		return -1
	}
	return b.index[e-1]
}

// typing is when a send's typing frames go out: one 2 to 4 s before it, for
// half of the sends a second one 0.5 to 1.5 s before it, neither before the
// session is 0.7 s old.
func (b *builder) typing(x *send, index int32) []int64 {
	s := population.NewStream(b.spec.Seed, purposeTyping, uint64(index), 0)
	earliest := max(b.sessions[x.session].open+700_000, b.warmup)
	first := x.at - 2*second - int64(s.Float64()*2*second)
	times := []int64{min(max(first, earliest), x.at)}
	if s.Float64() < scenario.TypingPerMessage-1 {
		again := x.at - second/2 - int64(s.Float64()*second)
		times = append(times, min(max(again, earliest), x.at))
	}
	return times
}
