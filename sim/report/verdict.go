package report

import (
	"fmt"
	"math"
	"slices"

	"throng/sim/history"
	"throng/sim/scenario"
)

// quantile is a measured quantile with what stands behind it.
type quantile struct {
	value  float64 // ms
	n      int64
	enough bool
}

// facts is all that the verdict depends on.
type facts struct {
	specProblem string // the scenario could not be read back
	interrupted bool
	gates       scenario.Gates
	sample      float64 // declared share of the proof, 1 all
	faults      bool    // the scenario kills processes
	missing     []history.Missing
	audit       *history.Audit

	gated    bool // a gated phase was reached
	complete bool // and ended
	phase    string
	seconds  float64

	sent, deliver, direct, group, own, drain, login, late quantile // p99 of the gated phase
	// Of media, and whether the scenario has any.
	upload, firstByte, fetch quantile
	media                    bool
	mediaLimits              scenario.Media

	offered, written, accepted int64 // sends of the gated phase
	logins                     int64
	unstarted                  int64   // given up
	held                       int64   // at most, waiting for the system
	connected                  float64 // mean of the gated phase
	plannedSends, plannedLogin float64 // a second
	plannedSockets             float64
	fanOut, plannedFanOut      float64
	deliveries                 int64 // whole run

	processes []Process
	agents    []Agent
	rigs      []Rig
	shared    bool // the machine carries the target as well
}

// judgement is the verdict with what it rests on.
type judgement struct {
	verdict Verdict
	gates   []Gate
	reasons []string
	// generatorLimit says why the generator, not the system, set the limit.
	generatorLimit string
}

// judge is the verdict of a run. A violation found by the audit always fails.
// A broken latency gate fails, unless the generator was late or did not reach
// its rate: then the latency is not the system's, and the run is inconclusive.
// Everything that leaves evidence missing is inconclusive, never a pass.
func judge(f facts) judgement {
	var j judgement
	if !j.missing(f.missing) && !j.died(f.agents) {
		j.validity(f)
		j.auditGates(f)
		j.latencyGates(f)
		j.growthGates(f)
	}
	j.verdict = Pass
	slices.SortStableFunc(j.gates, func(a, b Gate) int { return gateOrder(a.Kind) - gateOrder(b.Kind) })
	for _, g := range j.gates {
		if g.Verdict == Pass {
			continue
		}
		j.reasons = append(j.reasons, g.Text)
		if g.Verdict == Fail {
			j.verdict = Fail
		} else if j.verdict == Pass {
			j.verdict = Inconclusive
		}
	}
	return j
}

// gateOrder is the order in which people want to know.
func gateOrder(kind string) int { return slices.Index([]string{"audit", "slo", "validity"}, kind) }

func (j *judgement) gate(g Gate, broken Verdict, holds bool, format string, args ...any) {
	g.Verdict = Pass
	if !holds {
		g.Verdict = broken
	}
	if g.Text == "" {
		g.Text = fmt.Sprintf(format, args...)
	}
	j.gates = append(j.gates, g)
}

// missing judges what the target does not declare. It returns whether the load
// was not started for it: then there is nothing else to judge.
func (j *judgement) missing(list []history.Missing) (refused bool) {
	for _, m := range list {
		refused = refused || m.Refused
	}
	for _, m := range list {
		if m.Needs != history.NeedsCapacity && (m.Refused || !refused) {
			j.gate(Gate{Name: m.Needs, Kind: "validity", Phase: "run", Value: 0, Limit: 1, Unit: "yes"}, Inconclusive, false, "%s", m.Text)
		}
	}
	return refused
}

// validity judges whether the run is a measurement at all.
func (j *judgement) validity(f facts) {
	in := func(name string, holds bool, format string, args ...any) {
		j.gate(Gate{Name: name, Kind: "validity", Phase: "run", Value: flag(holds), Limit: 1, Unit: "yes"}, Inconclusive, holds, format, args...)
	}
	in("scenario readable", f.specProblem == "", "the scenario of the run: %s", firstOf(f.specProblem, "read back"))
	in("run complete", !f.interrupted && f.gated && f.complete, "%s", completeness(f))
	if !f.gated || f.seconds <= 0 {
		return
	}
	j.lateness(f)
	j.rig(f)
	tol := f.gates.RateTolerance
	expected := f.plannedSends * f.seconds
	j.rate("offered sends", f, float64(f.offered)/f.seconds, f.plannedSends, noise(tol, expected), true)
	j.written(f)
	j.rate("logins", f, float64(f.logins)/f.seconds, f.plannedLogin, noise(tol, f.plannedLogin*f.seconds), !f.faults)
	j.rate("connected sockets", f, f.connected, f.plannedSockets, noise(tol, f.plannedSockets), !f.faults)
	if tol := f.gates.FanoutMeanTolerance; tol > 0 {
		d := math.Abs(f.fanOut/f.plannedFanOut - 1)
		j.gate(Gate{Name: "mean fan-out", Kind: "validity", Phase: "run", Value: Number(f.fanOut), Limit: Number(f.plannedFanOut), Unit: "recipients a send"}, Inconclusive, d <= tol,
			"mean fan-out %.3g, planned %.3g within %s", f.fanOut, f.plannedFanOut, percent(tol))
	}
	if n := f.gates.MinDeliveries; n > 0 {
		j.gate(Gate{Name: "deliveries", Kind: "validity", Phase: "run", Value: Number(f.deliveries), Limit: Number(n), Unit: "deliveries"}, Inconclusive, f.deliveries >= n,
			"%s deliveries, at least %s wanted", count(f.deliveries), count(n))
	}
}

// written gates what was sent of what the schedule had. Work that waits for a
// message of the system (a reply, a send behind an unanswered one) is the
// system's doing: it does not excuse a broken latency gate.
func (j *judgement) written(f facts) {
	tol := f.gates.RateTolerance
	if tol <= 0 || f.offered == 0 {
		return
	}
	share := float64(f.written) / float64(f.offered)
	ok := share >= 1-tol && f.unstarted == 0
	text := fmt.Sprintf("%s of the sends offered in %s were written", percent(share), f.phase)
	if f.held > 0 && !ok {
		text += fmt.Sprintf(", up to %s at a time waited for the system", count(f.held))
	}
	if f.unstarted > 0 {
		text += fmt.Sprintf(", %s scheduled actions were given up", count(f.unstarted))
	}
	j.gate(Gate{Name: "sends written", Kind: "validity", Phase: f.phase, Value: Number(share), Limit: Number(1 - tol), Unit: "of offered"}, Inconclusive, ok, "%s", text)
	if unexplained := f.offered - f.written - f.held; float64(unexplained) > tol*float64(f.offered) {
		j.limit("%s of the offered sends were written", percent(share))
	}
}

func completeness(f facts) string {
	switch {
	case !f.gated:
		return "the run never came to its gated phase"
	case !f.complete:
		return "the run was interrupted in its gated phase, " + f.phase
	case f.interrupted:
		return "the run was interrupted before its end"
	}
	return "the run went through all its phases"
}

// lateness gates the generator's own error.
func (j *judgement) lateness(f facts) {
	limit := f.gates.GeneratorLateP99Ms
	if limit <= 0 {
		return
	}
	g := Gate{Name: "generator lateness, p99", Kind: "validity", Phase: f.phase, Value: Number(f.late.value), Limit: Number(limit), Unit: "ms", Count: f.late.n}
	if !f.late.enough {
		g.Value = Number(math.NaN())
		j.gate(g, Inconclusive, false, "the generator's lateness has %s samples, too few for p99", count(f.late.n))
		j.limit("the generator's lateness is not known")
		return
	}
	ok := f.late.value < limit
	who := ""
	if !ok {
		who = f.whoWasLate()
	}
	j.gate(g, Inconclusive, ok, "the generator was %s late at p99, limit %s%s", ms(Number(f.late.value)), ms(Number(limit)), who)
	if !ok {
		j.limit("the generator was %s late at p99 (limit %s%s)", ms(Number(f.late.value)), ms(Number(limit)), who)
	}
}

func (j *judgement) limit(format string, args ...any) {
	if j.generatorLimit == "" {
		j.generatorLimit = fmt.Sprintf(format, args...)
	}
}

// rate gates a measured rate against the planned one. above says whether too
// much is wrong as well.
func (j *judgement) rate(name string, f facts, got, want, tolerance float64, above bool) {
	if f.gates.RateTolerance <= 0 || want <= 0 {
		return
	}
	off := got/want - 1
	ok := off >= -tolerance && (!above || off <= tolerance)
	unit := "/s"
	if name == "connected sockets" {
		unit = "sockets"
	}
	j.gate(Gate{Name: name, Kind: "validity", Phase: f.phase, Value: Number(got), Limit: Number(want), Unit: unit}, Inconclusive, ok,
		"%s: %s, planned %s within %s", name, amount(Number(got), unit), figures(want), percent(tolerance))
	// Logins and sockets can be missing because the system refuses them; what
	// the schedule offers cannot.
	if off < -tolerance && name == "offered sends" {
		j.limit("%s reached %s of the planned rate", name, percent(got/want))
	}
}

// noise widens a relative tolerance to three standard deviations of a count
// with that expectation: a small run may not be judged by its dice.
func noise(tolerance, expected float64) float64 {
	if expected <= 0 {
		return tolerance
	}
	return math.Max(tolerance, 3/math.Sqrt(expected))
}

// auditGates judges the delivery proof.
func (j *judgement) auditGates(f facts) {
	a := f.audit
	there := a != nil && a.Expected > 0
	text := "the delivery proof is missing"
	if a != nil {
		text = "the delivery proof covers " + count(a.Expected) + " pairs of message and device"
	}
	j.gate(Gate{Name: "audit present", Kind: "audit", Phase: "run", Value: flag(there), Limit: 1, Unit: "yes"}, Inconclusive, there, "%s", text)
	if a == nil {
		return
	}
	for _, p := range a.Problems {
		j.gate(Gate{Name: "audit record", Kind: "audit", Phase: "run", Value: 0, Limit: 1, Unit: "yes"}, Inconclusive, false, "%s", p)
	}
	zero := func(name string, n int64, what string) {
		j.gate(Gate{Name: name, Kind: "audit", Phase: "run", Value: Number(n), Limit: 0, Unit: "pairs"}, Fail, n == 0, "%s %s", count(n), what)
	}
	zero("lost", a.Lost, "acknowledged deliveries were lost")
	zero("duplicated", a.Duplicated, "deliveries reached an application twice")
	zero("reordered", a.Reordered, "deliveries reached an application out of order")
	zero("foreign", a.Foreign, "deliveries reached a device they were not addressed to")
	j.gate(Gate{Name: "push missing", Kind: "audit", Phase: "run", Value: Number(a.Push.Missing), Limit: 0, Unit: "rows", Count: a.Push.Checked}, Fail, a.Push.Missing == 0,
		"%s of %s inbox rows older than the push delay have no push, dead letter or acknowledgement", count(a.Push.Missing), count(a.Push.Checked))
	j.mediaGates(f)
	declared := f.sample > 0 && f.sample < 1
	text = fmt.Sprintf("%s pairs are unproved", count(a.Unproved))
	if declared {
		text += fmt.Sprintf(", the scenario declares a sample of %s", percent(f.sample))
	}
	j.gate(Gate{Name: "unproved", Kind: "audit", Phase: "run", Value: Number(a.Unproved), Limit: 0, Unit: "pairs"}, Inconclusive, a.Unproved == 0 || declared, "%s", text)
	if balance := a.Proved + a.Lost + a.Unproved; a.Lost == 0 && a.Duplicated == 0 && a.Reordered == 0 && balance < a.Expected {
		j.gate(Gate{Name: "audit balance", Kind: "audit", Phase: "run", Value: Number(balance), Limit: Number(a.Expected), Unit: "pairs"}, Inconclusive, false,
			"%s pairs were expected and %s accounted for", count(a.Expected), count(balance))
	}
}

// latencyGates judges the SLOs of the gated phase.
func (j *judgement) latencyGates(f facts) {
	if !f.gated {
		return
	}
	for _, s := range slos(f) {
		if s.limit <= 0 {
			continue
		}
		g := Gate{Name: s.name, Kind: "slo", Phase: f.phase, Value: Number(s.q.value), Limit: Number(s.limit), Unit: "ms", Count: s.q.n}
		if !s.q.enough {
			g.Value = Number(math.NaN())
			j.gate(g, Inconclusive, false, "%s: %s samples are too few for p99", s.name, count(s.q.n))
			continue
		}
		broken := Fail
		g.Text = fmt.Sprintf("%s: %s, limit %s", s.name, ms(Number(s.q.value)), ms(Number(s.limit)))
		if j.generatorLimit != "" {
			broken = Inconclusive
		}
		if broken == Inconclusive && s.q.value > s.limit {
			g.Text += ", but " + j.generatorLimit
		}
		j.gate(g, broken, s.q.value <= s.limit, "")
	}
}

type slo struct {
	name  string
	q     quantile
	limit float64
}

func slos(f facts) []slo {
	g := f.gates
	return []slo{{"send to sent, p99", f.sent, g.P99SentMs}, {gateDeliver, f.deliver, g.P99DeliverMs},
		{"send to deliver direct, p99", f.direct, g.P99DeliverDirectMs}, {"send to deliver group, p99", f.group, g.P99DeliverGroupMs},
		{"send to own devices, p99", f.own, g.P99DeliverOwnMs},
		{"media uploaded, p99", f.upload, f.mediaLimits.P99UploadMs}, {"media, first byte, p99", f.firstByte, f.mediaLimits.P99FirstByteMs},
		{"media fetched, p99", f.fetch, f.mediaLimits.P99FetchMs},
		{"inbox drain, p99", f.drain, g.P99DrainMs}, {"login, p99", f.login, g.P99LoginMs}}
}

func flag(ok bool) Number {
	if ok {
		return 1
	}
	return 0
}

// gateDeliver is the name of the gate on deliveries of both kinds.
const gateDeliver = "send to deliver, p99"

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// Fewest samples behind a quantile. Ten samples beyond it, and for p99.9, whose
// tail comes in clumps, a hundred, and ten time blocks that have samples.
const (
	minP50, minP90, minP99, minP999 = 10, 100, 1000, 100_000
	minBlocks                       = 10
)
