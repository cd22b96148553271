package report

import (
	"fmt"
	"math"
	"strings"

	"throng/sim/history"
)

// phases gives each phase its line and its own verdict.
func (e *evaluator) phases(j judgement) []PhaseResult {
	out := []PhaseResult{}
	for _, p := range e.run.Manifest.Phases {
		out = append(out, e.phaseResult(p, j))
	}
	return out
}

func (e *evaluator) phaseResult(p history.Phase, j judgement) PhaseResult {
	r := PhaseResult{Name: p.Name, Start: Number(p.Start), End: Number(p.End), BudgetS: Number(p.BudgetS), Gated: p.Gated, Load: p.Load, Verdict: Done, LatencyMs: map[string]Latency{}}
	seconds := p.End - p.Start
	if seconds <= 0 {
		r.Verdict, r.Line = Missing, "the run never came to it, or ended in it"
		r.OfferedPerS, r.SendsPerS, r.DeliverPerS, r.LoginsPerS = nan(), nan(), nan(), nan()
		return r
	}
	sum, _ := e.run.Sum(p.Start, p.End)
	r.OfferedPerS, r.SendsPerS = Number(float64(sum.Offered)/seconds), Number(float64(sum.Accepted)/seconds)
	r.DeliverPerS, r.LoginsPerS = Number(float64(deliveries(sum))/seconds), Number(float64(sum.Logins)/seconds)
	for _, k := range e.run.Kinds() {
		if !strings.HasPrefix(k, history.KindFanoutFirst) && !strings.HasPrefix(k, history.KindFanoutLast) &&
			!strings.HasPrefix(k, history.KindStage) && !strings.HasPrefix(k, history.KindZone) {
			if l := e.latencyIn(k, p); l.Count > 0 {
				r.LatencyMs[k] = l
			}
		}
	}
	r.Line = e.line(p, sum, &r)
	switch {
	case p.Gated:
		r.Verdict = gatedVerdict(j)
	case p.Name == "spike":
		r.Verdict, r.Line = e.spike(p, sum, r.Line)
	}
	return r
}

func nan() Number { return Number(math.NaN()) }

// gatedVerdict is the verdict of the gated phase alone: its SLOs and whether it
// is a measurement.
func gatedVerdict(j judgement) Verdict {
	v := Pass
	for _, g := range j.gates {
		if g.Kind == "audit" {
			continue
		}
		if g.Verdict == Fail {
			return Fail
		}
		if g.Verdict != Pass {
			v = Inconclusive
		}
	}
	return v
}

// line says what happened in a phase.
func (e *evaluator) line(p history.Phase, sum history.Second, r *PhaseResult) string {
	var parts []string
	seconds := p.End - p.Start
	if sum.Offered > 0 {
		parts = append(parts, fmt.Sprintf("%s sends/s offered, %s accepted", num(r.OfferedPerS), percent(float64(sum.Accepted)/float64(sum.Offered))))
	}
	if d := deliveries(sum); d > 0 {
		parts = append(parts, fmt.Sprintf("%s deliveries/s", num(r.DeliverPerS)))
	}
	if sum.Logins > 0 {
		parts = append(parts, fmt.Sprintf("%s logins/s", num(r.LoginsPerS)))
	}
	if sum.Connected > 0 {
		parts = append(parts, fmt.Sprintf("up to %s sockets", count(sum.Connected)))
	}
	if sum.Offered > 0 {
		q := quantileOf(e.run, p, history.KindDeliverDirect, history.KindDeliverGroup)
		if q.enough {
			parts = append(parts, "deliver p99 "+ms(Number(q.value)))
		}
	}
	if sum.Errors > 0 {
		parts = append(parts, count(sum.Errors)+" errors")
	}
	if p.BudgetS > 0 && seconds > p.BudgetS*1.05+0.5 {
		parts = append(parts, fmt.Sprintf("took %s s of a budget of %s s", figures(seconds), figures(p.BudgetS)))
	}
	if len(parts) == 0 {
		return fmt.Sprintf("took %s s", figures(seconds))
	}
	return strings.Join(parts, ", ")
}

func quantileOf(run *history.Run, p history.Phase, kinds ...string) quantile {
	e := &evaluator{run: run, phase: p, gated: true}
	return e.p99(kinds...)
}

// spike judges the spike on its own: it never gates the run. It is saturated when
// the system did not keep up by the steady phase's gates.
func (e *evaluator) spike(p history.Phase, sum history.Second, line string) (Verdict, string) {
	g := e.t.spec.Gates
	late := quantileOf(e.run, p, history.KindLate)
	if g.GeneratorLateP99Ms > 0 && late.enough && late.value >= g.GeneratorLateP99Ms {
		return Inconclusive, line + fmt.Sprintf("; the generator was %s late at p99, so the spike's latency is not the system's alone", ms(Number(late.value)))
	}
	var over []string
	if sum.Offered > 0 && float64(sum.Accepted) < 0.99*float64(sum.Offered) {
		over = append(over, percent(float64(sum.Accepted)/float64(sum.Offered))+" of the offered sends were accepted in time")
	}
	s := &evaluator{run: e.run, t: e.t, phase: p, gated: true}
	for _, x := range slos(s.facts()) {
		if x.limit > 0 && x.q.enough && x.q.value > x.limit {
			over = append(over, fmt.Sprintf("%s was %s (%s in the steady phase's gate)", x.name, ms(Number(x.q.value)), ms(Number(x.limit))))
		}
	}
	if len(over) > 0 {
		return Saturated, line + "; saturated: " + strings.Join(over, ", ")
	}
	return Pass, line + "; held the steady phase's gates"
}
