package report

import (
	"fmt"
	"math"
	"strings"

	"throng/sim/history"
)

// Agent is one of the processes that played the users.
type Agent struct {
	Number    int    `json:"number"`
	Host      string `json:"host"`
	SameClock bool   `json:"same_clock"` // as the leader's: one machine
	// ClockErrorMs is by how much its clock may have differed from the leader's
	// after the estimated offset, ClockAheadMs, was taken out.
	ClockAheadMs Number `json:"clock_ahead_ms"`
	ClockErrorMs Number `json:"clock_error_ms"`
	LateP99Ms    Number `json:"late_p99_ms"` // whole load
	Actions      int64  `json:"actions"`
	Died         string `json:"died"` // "" while it lived to the end
}

// Rig is what one process that made the load had of its machine in the gated phase.
type Rig struct {
	Instance    int    `json:"instance"` // 0: the harness itself, from 1 its agents
	Seconds     int64  `json:"seconds"`  // that were watched
	OwnCores    Number `json:"own_cores"`
	Cores       int64  `json:"cores"`
	Busy        Number `json:"busy"`  // share of the machine's CPU time
	Steal       Number `json:"steal"` // of it, given to others by the hypervisor
	GCPauseMs   Number `json:"gc_pause_max_ms"`
	GCPauses    int64  `json:"gc_pauses"` // seconds with one longer than the lateness that is allowed
	ClockStepMs Number `json:"clock_step_max_ms"`
	Segments    int64  `json:"segments"`
	Retransmits int64  `json:"retransmits"`
	Drops       int64  `json:"drops"`
	NoFiles     int64  `json:"no_files"` // whole run
	NoPorts     int64  `json:"no_ports"` // whole run
}

// Limits beyond which the rig, and not the system, made the figures.
const (
	ownLimit    = 0.90 // of the cores that a process may use
	busyLimit   = 0.95 // of a machine that carries nothing but the load
	stealLimit  = 0.10
	pauseShare  = 0.01 // of the seconds: then a p99 shows them
	stepLimit   = 0.05 // s, by which a clock may jump; the fastest slewing is 0.0005 a second
	resendLimit = 0.01 // of the segments
	dropLimit   = 1e-4 // of the segments
	clockLimit  = 10.0 // ms of error between two agents' clocks

	// defaultPauseMs is what a pause may last where the scenario does not limit
	// the generator's lateness.
	defaultPauseMs = 50.0
)

func agentsOf(m *history.Manifest) []Agent {
	out := []Agent{}
	for _, a := range m.Agents {
		out = append(out, Agent{Number: a.Number, Host: a.Host, SameClock: a.SameClock, ClockAheadMs: Number(a.ClockAheadMs), ClockErrorMs: Number(a.ClockErrorMs),
			LateP99Ms: Number(a.LateP99Ms), Actions: a.Actions, Died: a.Died})
	}
	return out
}

// rigs adds up what was watched in the gated phase, by process.
func (e *evaluator) rigs() []Rig {
	pause := e.t.spec.Gates.GeneratorLateP99Ms
	if pause <= 0 {
		pause = defaultPauseMs
	}
	out := []Rig{}
	at := map[int]int{}
	for _, s := range e.run.Rig {
		i, ok := at[s.Instance]
		if !ok {
			i = len(out)
			at[s.Instance] = i
			out = append(out, Rig{Instance: s.Instance, Cores: int64(s.Cores)})
		}
		r := &out[i]
		r.NoFiles += s.NoFiles
		r.NoPorts += s.NoPorts
		if !e.gated || s.T <= e.phase.Start || s.T > e.phase.End {
			continue
		}
		r.Seconds++
		r.OwnCores += Number(s.OwnCPU)
		r.Busy += Number(s.Busy)
		r.Steal += Number(s.Steal)
		r.GCPauseMs = max(r.GCPauseMs, Number(s.GCPauseUs)/1000)
		if float64(s.GCPauseUs)/1000 > pause {
			r.GCPauses++
		}
		if step := Number(s.ClockStepUs) / 1000; math.Abs(float64(step)) > math.Abs(float64(r.ClockStepMs)) {
			r.ClockStepMs = step
		}
		r.Segments += s.Segments
		r.Retransmits += s.Retransmits
		r.Drops += s.Drops
	}
	for i := range out {
		if r := &out[i]; r.Seconds > 0 {
			r.OwnCores, r.Busy, r.Steal = r.OwnCores/Number(r.Seconds), r.Busy/Number(r.Seconds), r.Steal/Number(r.Seconds)
		}
	}
	return out
}

// name is what people call the process.
func (r Rig) name() string {
	if r.Instance == 0 {
		return "the generator"
	}
	return fmt.Sprintf("agent %d", r.Instance)
}

// died judges the agents. It returns whether one died: then nothing that it
// played is known, and there is nothing else to judge.
func (j *judgement) died(agents []Agent) (died bool) {
	for _, a := range agents {
		if a.Died == "" {
			continue
		}
		died = true
		j.gate(Gate{Name: "agents", Kind: "validity", Phase: "run", Value: Number(a.Number), Limit: 0, Unit: "agent"}, Inconclusive, false,
			"agent %d (%s) died: %s", a.Number, a.Host, a.Died)
		j.limit("agent %d died", a.Number)
	}
	return died
}

// rig judges whether the harness or its machine was the limit. Each cause that
// it finds makes the run inconclusive and is why there is no plan.
func (j *judgement) rig(f facts) {
	for _, a := range f.agents {
		if !a.SameClock && float64(a.ClockErrorMs) > clockLimit {
			j.limited("agents' clocks", Number(a.ClockErrorMs), clockLimit, "ms", fmt.Sprintf("the clock of agent %d (%s) is known within %s only, so are latencies between agents", a.Number, a.Host, ms(a.ClockErrorMs)))
		}
	}
	for _, r := range f.rigs {
		j.rigOf(f, r)
	}
}

func (j *judgement) rigOf(f facts, r Rig) {
	who := r.name()
	if r.NoFiles > 0 {
		j.limited("open files", Number(r.NoFiles), 0, "connects", fmt.Sprintf("%s ran out of open files: %s connects failed for it (ulimit -n, or more agents)", who, count(r.NoFiles)))
	}
	if r.NoPorts > 0 {
		j.limited("local ports", Number(r.NoPorts), 0, "connects", fmt.Sprintf("%s ran out of local ports: %s connects failed for it", who, count(r.NoPorts)))
	}
	if r.Seconds == 0 {
		return
	}
	if own := float64(r.OwnCores) / math.Max(1, float64(r.Cores)); own > ownLimit {
		j.limited("CPU of the generator", Number(own), ownLimit, "of its cores", fmt.Sprintf("%s used %s of the %d cores that it may use", who, percent(own), r.Cores))
	}
	if !f.shared {
		for _, c := range r.machine() {
			j.limited(c.name, c.value, c.limit, c.unit, c.text)
		}
	}
	if float64(r.Steal) > stealLimit {
		j.limited("steal", r.Steal, stealLimit, "of its CPU time", fmt.Sprintf("the hypervisor gave %s of the CPU time of %s's machine to others", percent(float64(r.Steal)), who))
	}
	if share := float64(r.GCPauses) / float64(r.Seconds); share > pauseShare {
		j.limited("garbage collection", Number(share), pauseShare, "of the seconds", fmt.Sprintf("garbage collection stopped %s for up to %s, too long in %s of the seconds", who, ms(r.GCPauseMs), percent(share)))
	}
	if step := math.Abs(float64(r.ClockStepMs)); step > stepLimit*1000 {
		j.limited("clock steps", r.ClockStepMs, stepLimit*1000, "ms", fmt.Sprintf("the clock of %s's machine jumped by %s", who, ms(Number(step))))
	}
}

// cause is something that may have limited a run.
type cause struct {
	name  string
	value Number
	limit float64
	unit  string
	text  string
}

// machine is what the process's machine was short of. Where it carries the target
// too, nobody can say whose doing that is: then it only explains lateness.
func (r Rig) machine() (out []cause) {
	who, per := r.name(), func(n int64) float64 { return float64(n) / math.Max(1, float64(r.Segments)) }
	if float64(r.Busy) > busyLimit {
		out = append(out, cause{"CPU of the machine", r.Busy, busyLimit, "of its CPU time", fmt.Sprintf("the machine of %s was busy for %s of its CPU time", who, percent(float64(r.Busy)))})
	}
	if share := per(r.Retransmits); share > resendLimit {
		out = append(out, cause{"retransmits", Number(share), resendLimit, "of the segments", fmt.Sprintf("the machine of %s sent %s of its TCP segments again", who, percent(share))})
	}
	if share := per(r.Drops); share > dropLimit {
		out = append(out, cause{"socket buffers", Number(share), dropLimit, "of the segments", fmt.Sprintf("full socket buffers and queues of %s's machine dropped %s segments and connections", who, count(r.Drops))})
	}
	return out
}

// limited notes a cause.
func (j *judgement) limited(name string, value Number, limit float64, unit, text string) {
	j.gate(Gate{Name: "rig: " + name, Kind: "validity", Phase: "run", Value: value, Limit: Number(limit), Unit: unit, Text: text}, Inconclusive, false, "")
	j.limit("%s", text)
}

// whoWasLate says which agents were, and why that may be.
func (f facts) whoWasLate() string {
	var say []string
	for _, a := range f.agents {
		say = append(say, fmt.Sprintf("agent %d %s", a.Number, ms(a.LateP99Ms)))
	}
	for _, r := range f.rigs[:min(1, len(f.rigs))] { // with the target on it, it is one machine
		for _, c := range r.machine() {
			if f.shared {
				say = append(say, c.text)
			}
		}
	}
	if len(say) == 0 {
		return ""
	}
	return "; " + strings.Join(say, ", ")
}

// agentTable is who played the users.
func (r *Result) agentTable() table {
	t := table{Head: []string{"agent", "host", "actions", "late p99", "clock", "cores used", "GC pause"}, Left: 2}
	for _, a := range r.Generator.Agents {
		clock := "the leader's"
		if !a.SameClock {
			clock = fmt.Sprintf("%s ahead, known within %s", ms(a.ClockAheadMs), ms(a.ClockErrorMs))
		}
		row := []string{fmt.Sprint(a.Number), a.Host, count(a.Actions), ms(a.LateP99Ms), clock, unknown, unknown}
		for _, x := range r.Generator.Rig {
			if x.Instance == a.Number && x.Seconds > 0 {
				row[5], row[6] = num(x.OwnCores), ms(x.GCPauseMs)
			}
		}
		v := Pass
		if a.Died != "" {
			row[4], v = "died: "+a.Died, Inconclusive
		}
		t.Rows = append(t.Rows, row)
		t.Marks = append(t.Marks, v)
	}
	return t
}
