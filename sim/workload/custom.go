package workload

import (
	"cmp"
	"slices"
	"time"

	"throng/sim/population"
	"throng/sim/scenario"
)

// Custom returns the schedule of exactly these actions, in order of time, for
// tests and benchmarks that need certain moments rather than a law. It numbers
// the sends (Index; ReplyTo of every action must be -1) and spreads the phases
// of the spec as Build does. Pushes cause no opens.
func Custom(spec *scenario.Spec, pop *population.Population, actions []Action) *Schedule {
	s := &Schedule{Actions: actions, spec: spec, pop: pop}
	at := time.Duration(0)
	for _, p := range []struct {
		name string
		s    float64
	}{{"ramp", spec.Phases.RampS}, {"backlog", spec.Phases.BacklogS}, {"warmup", spec.Phases.WarmupS},
		{"steady", spec.Phases.SteadyS}, {"spike", spec.Phases.SpikeS}, {"settle", spec.Phases.SettleS}} {
		end := at + time.Duration(p.s*float64(time.Second))
		s.Phases = append(s.Phases, PhaseSpan{Name: p.name, Start: at, End: end, Load: p.name != "settle", Gated: p.name == "steady"})
		at = end
	}
	slices.SortStableFunc(s.Actions, func(a, b Action) int { return cmp.Compare(a.At, b.At) })
	for i := range s.Actions {
		a := &s.Actions[i]
		if a.Kind != Send || a.MsgKind < kindAnswer {
			a.About = -1
		}
		for n, p := range s.Phases {
			if p.Start <= a.At && a.At < p.End {
				a.Phase = uint8(n)
			}
		}
		if a.Kind == Send {
			a.Index = int32(len(s.Sends))
			s.Sends = append(s.Sends, int32(i))
		}
	}
	s.about = map[int32]Sender{}
	for i := range s.Actions {
		if a := &s.Actions[i]; a.About >= 0 {
			to := s.Send(a.About)
			s.about[a.About] = Sender{to.User, to.Device}
		}
	}
	s.touch(pop.GroupMembers)
	s.Stats.TouchedUsers, s.Stats.TouchedGroups = len(s.users), len(s.groups)
	s.Stats.Sends = len(s.Sends)
	return s
}
