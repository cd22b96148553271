package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"throng/sim/capacity"
	"throng/sim/history"
	"throng/sim/metrics"
)

// evaluate makes the result of a run without its plots' file names.
func evaluate(run *history.Run, t *terms) *Result {
	m := &run.Manifest
	r := &Result{SchemaVersion: SchemaVersion, Scenario: m.Scenario, Question: m.Question, RunID: m.RunID, Target: m.Target, TargetReason: m.TargetReason,
		Start: m.Start.UTC().Format(time.RFC3339), Seed: m.Seed, SpecHash: m.SpecHash, Replay: m.Replay, Versions: m.Versions,
		Machine:    Machine{m.Machine.OS, m.Machine.Kernel, m.Machine.CPU, m.Machine.Cores, m.Machine.MemBytes},
		Population: Population{Users: m.Users}, LatencyMs: map[string]Latency{}, FanoutMs: map[string]Fanout{}, Roles: map[string]Role{},
		Reasons: []string{}, Capacity: []capacity.Row{}, Notes: append(append([]string{}, m.Notes...), run.Problems...), Files: map[string]FileOfPlot{}, spec: t, stampEvery: m.StampEvery}
	for _, e := range run.Events {
		if e.Kind == "warning" || e.Kind == "fault" {
			r.Notes = append(r.Notes, fmt.Sprintf("%s at %.1f s: %s", e.Kind, e.T, e.Detail))
		}
	}
	if ms := t.spec.ResolutionS * 1000; ms > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("The generator looked up every %v ms (resolution): actions started up to that late, which is part of its lateness, and answers are timed up to that late. Latencies include both.", ms))
	}
	r.DurationS = capacity.Unknown()
	if !m.End.IsZero() {
		r.DurationS = Number(m.End.Sub(m.Start).Seconds())
	}
	phase, gated := gatedPhase(run)
	e := &evaluator{run: run, t: t, phase: phase, gated: gated}
	r.rates(e)
	r.latencies(e)
	r.stages(e)
	r.zones(e)
	r.audit(run.Audit)
	r.Processes = e.processes()
	f := e.facts()
	f.processes = r.Processes
	r.Generator.Agents, r.Generator.Rig = agentsOf(m), e.rigs()
	f.agents, f.rigs, f.shared = r.Generator.Agents, r.Generator.Rig, m.Target != "external"
	j := judge(f)
	r.Verdict, r.Gates = j.verdict, j.gates
	r.Reasons = append(r.Reasons, j.reasons...)
	r.Estimate = capacity.FromRun(run, t.full, planProblem(t, f, j))
	r.Capacity = append(r.Capacity, r.Estimate.Rows...)
	r.OfflineRate = r.Estimate.OfflineShare
	r.roles(e)
	r.Phases = e.phases(j)
	r.Summary = r.summarise()
	return r
}

// planProblem is why a run may not be used for a plan.
func planProblem(t *terms, f facts, j judgement) string {
	if t.problem != "" {
		return t.problem
	}
	if j.generatorLimit != "" {
		return "the generator was the limit: " + j.generatorLimit
	}
	for _, m := range f.missing {
		if m.Needs == history.NeedsCapacity {
			return m.Text
		}
	}
	if f.offered > 0 && float64(f.accepted) < 0.95*float64(f.offered) {
		return fmt.Sprintf("only %s of the offered sends were accepted in the gated phase: what a failing system uses is not what the work costs", percent(float64(f.accepted)/float64(f.offered)))
	}
	return ""
}

// gatedPhase is the phase that decides; if it never came, an empty one.
func gatedPhase(run *history.Run) (history.Phase, bool) {
	for _, p := range run.Manifest.Phases {
		if p.Gated && p.End > p.Start {
			return p, true
		}
	}
	return history.Phase{}, false
}

type evaluator struct {
	run   *history.Run
	t     *terms
	phase history.Phase
	gated bool
}

// complete says whether the gated phase ran to its planned end.
func (e *evaluator) complete() bool {
	return e.gated && e.phase.End-e.phase.Start >= e.t.spec.Phases.SteadyS*0.99-0.5
}

func (e *evaluator) mean(f func(history.Second) int64) float64 {
	sum, n := 0.0, 0
	for _, s := range e.run.Seconds {
		if e.gated && s.T > e.phase.Start && s.T <= e.phase.End {
			sum, n = sum+float64(f(s)), n+1
		}
	}
	if n == 0 {
		return math.NaN()
	}
	return sum / float64(n)
}

// p99 is the p99 of some kinds together in the gated phase.
func (e *evaluator) p99(kinds ...string) quantile {
	h := history.NewHist()
	for _, k := range kinds {
		if e.gated {
			h.Merge(e.run.Merged(k, e.phase.Start, e.phase.End))
		}
	}
	return quantile{value: float64(h.ValueAtQuantile(99)) / 1000, n: h.TotalCount(), enough: h.TotalCount() >= minP99}
}

func (e *evaluator) facts() facts {
	s := e.t.spec
	f := facts{specProblem: e.t.problem, interrupted: e.run.Manifest.Interrupted || e.run.Manifest.End.IsZero(), gates: s.Gates, sample: s.ProofSample,
		faults: len(s.Faults) > 0, missing: e.run.Manifest.Missing, audit: e.run.Audit, gated: e.gated, complete: e.complete(), phase: e.phase.Name, seconds: e.phase.End - e.phase.Start,
		plannedSends: e.t.rates.SendsPerS, plannedLogin: e.t.rates.LoginsPerS, plannedSockets: e.t.rates.Connections, plannedFanOut: e.t.rates.FanOut,
		fanOut: fanOut(e.run.Audit), media: s.Media.Share > 0, mediaLimits: s.Media}
	for _, x := range s.Extra { // declared strata are offered on top of the profile
		if x.Phase == e.phase.Name && f.seconds > 0 {
			f.plannedSends += float64(x.Sends) / f.seconds
		}
	}
	if !e.gated {
		return f
	}
	sum, _ := e.run.Sum(e.phase.Start, e.phase.End)
	f.offered, f.accepted, f.written, f.logins, f.unstarted, f.held = sum.Offered, sum.Accepted, sum.Written, sum.Logins, sum.Unstarted, sum.Held
	f.connected = e.mean(func(s history.Second) int64 { return s.Connected })
	all, _ := e.run.Sum(math.Inf(-1), math.Inf(1))
	f.deliveries = all.Live + all.Drained + all.Transition + all.Proof
	f.sent, f.direct, f.group = e.p99(history.KindSent), e.p99(history.KindDeliverDirect), e.p99(history.KindDeliverGroup)
	f.own = e.p99(history.KindDeliverOwn)
	f.upload, f.firstByte, f.fetch = e.p99(history.KindMediaUpload), e.p99(history.KindMediaFirstByte), e.p99(history.KindMediaFetch)
	f.deliver = e.p99(history.KindDeliverDirect, history.KindDeliverGroup)
	f.drain, f.login, f.late = e.p99(history.KindDrain), e.p99(history.KindLogin), e.p99(history.KindLate)
	return f
}

func fanOut(a *history.Audit) float64 {
	if a == nil || a.FanoutSends == 0 {
		return math.NaN()
	}
	return float64(a.FanoutRecipients) / float64(a.FanoutSends)
}

func deliveries(s history.Second) int64 { return s.Live + s.Drained + s.Transition + s.Proof }

func (r *Result) rates(e *evaluator) {
	mean := func(f func(history.Second) int64) Number { return Number(e.mean(f)) }
	for _, s := range e.run.Seconds {
		r.Sockets.Peak = max(r.Sockets.Peak, s.Connected)
	}
	r.Sockets.SteadyMean = mean(func(s history.Second) int64 { return s.Connected })
	r.Rates = Rates{Offered: mean(func(s history.Second) int64 { return s.Offered }), Sends: mean(func(s history.Second) int64 { return s.Accepted }),
		Deliveries: mean(deliveries), Logins: mean(func(s history.Second) int64 { return s.Logins }),
		Pushes: mean(func(s history.Second) int64 { return s.Pushes }), FanOut: Number(fanOut(e.run.Audit))}
	r.Rates.Recipients = r.Rates.Sends * r.Rates.FanOut
}

// latency reads a histogram in microseconds. blocks is how many of ten time
// blocks have samples.
func latency(h *hdrhistogram.Histogram, blocks int) Latency {
	n := h.TotalCount()
	q := func(p float64, least int64) Number {
		if n < least {
			return capacity.Unknown()
		}
		return Number(float64(h.ValueAtQuantile(p)) / 1000)
	}
	l := Latency{Count: n, P50: q(50, minP50), P90: q(90, minP90), P99: q(99, minP99), P999: capacity.Unknown(), Max: capacity.Unknown(),
		P99Low: capacity.Unknown(), P99High: capacity.Unknown()}
	if blocks >= minBlocks {
		l.P999 = q(99.9, minP999)
	}
	if n > 0 {
		l.Max = Number(float64(h.Max()) / 1000)
	}
	return l
}

// latencyIn is the distribution of a kind in a phase.
func (e *evaluator) latencyIn(kind string, p history.Phase) Latency {
	blocks := 0
	h := e.run.Merged(kind, p.Start, p.End)
	if h.TotalCount() >= minP999 {
		for _, b := range e.run.Blocks(kind, p.Name, minBlocks) {
			if b.Hist.TotalCount() > 0 {
				blocks++
			}
		}
	}
	return latency(h, blocks)
}

// bound adds the interval of p99 in the gated phase. The resampling is seeded by
// the run, so that the report of a run is always the same.
func (e *evaluator) bound(kind string, l *Latency) {
	if !l.P99.Known() {
		return
	}
	var hs []*hdrhistogram.Histogram
	for _, b := range e.run.Blocks(kind, e.phase.Name, minBlocks) {
		if b.Hist.TotalCount() > 0 {
			hs = append(hs, b.Hist)
		}
	}
	if len(hs) < metrics.MinBlocks {
		return
	}
	ci := metrics.QuantileByBlocks(hs, 0.99, 0.95, metrics.Resamples, rand.New(rand.NewPCG(e.run.Manifest.Seed, 99)))
	l.P99Low, l.P99High = Number(ci.Low/1000), Number(ci.High/1000)
}

func (r *Result) latencies(e *evaluator) {
	if !e.gated {
		r.Generator = Generator{LateMs: latency(history.NewHist(), 0), SpikeLateMs: latency(history.NewHist(), 0)}
		return
	}
	for _, k := range e.run.Kinds() {
		class, isLast := strings.CutPrefix(k, history.KindFanoutLast)
		firstClass, isFirst := strings.CutPrefix(k, history.KindFanoutFirst)
		switch {
		case strings.HasPrefix(k, history.KindStage), strings.HasPrefix(k, history.KindZone):
			// see stages and zones
		case k == history.KindLate:
			r.Generator.LateMs = e.latencyIn(k, e.phase)
		case isFirst:
			f := r.FanoutMs[firstClass]
			f.First = e.latencyIn(k, e.phase)
			f.N = f.First.Count
			r.FanoutMs[firstClass] = f
		case isLast:
			f := r.FanoutMs[class]
			f.Last = e.latencyIn(k, e.phase)
			r.FanoutMs[class] = f
		default:
			l := e.latencyIn(k, e.phase)
			e.bound(k, &l)
			r.LatencyMs[k] = l
		}
	}
	for c, f := range r.FanoutMs {
		if f.First.Count == 0 && f.Last.Count == 0 {
			delete(r.FanoutMs, c)
		}
	}
	r.Generator.SpikeLateMs = latency(history.NewHist(), 0)
	if p, ok := e.run.Phase("spike"); ok {
		r.Generator.SpikeLateMs = e.latencyIn(history.KindLate, p)
	}
}

func (r *Result) audit(a *history.Audit) {
	if a == nil {
		return
	}
	r.Audit = &Audit{Sends: a.Sends, Acknowledged: a.Acknowledged, Unanswered: a.Unanswered, Expected: a.Expected, Proved: a.Proved, Lost: a.Lost,
		Duplicated: a.Duplicated, Reordered: a.Reordered, Foreign: a.Foreign, Unproved: a.Unproved, Redelivered: a.Redelivered, Sampled: Number(a.Sampled),
		Live: a.Live, Drain: a.Drain, Transition: a.Transition, Proof: a.Proof,
		System: a.System, SystemExpected: a.SystemExpected, SystemProved: a.SystemProved, SystemWrong: a.SystemWrong, Boundaries: a.Boundaries, PushChecked: a.Push.Checked, PushMissing: a.Push.Missing,
		PushDead: a.Push.Dead, PushFailed: a.Push.Failed, PushThrottled: a.Push.Throttled, PushDeadAgain: a.Push.DeadAgain,
		Examples: append([]string{}, a.Examples...)}
	if m := a.Media; m.Uploads+m.UploadsFailed > 0 {
		m.Examples = nil
		r.Audit.Media = &m
	}
	if c := a.Cost; c.Events > 0 {
		r.Audit.Cost = &AuditCost{Events: c.Events, Bytes: c.Bytes, Partitions: c.Partitions, Replays: c.Replays, WallS: Number(c.WallS), CPUSeconds: Number(c.CPUSeconds)}
	}
}

func (r *Result) roles(e *evaluator) {
	for _, name := range e.run.RoleNames() {
		role := Role{CPUSeconds: capacity.Unknown(), SteadyCores: capacity.Unknown(), DemandUs: map[string]Number{}}
		for _, i := range e.run.Manifest.Roles {
			if i.Role == name {
				role.Instances++
				role.Infra = role.Infra || i.Infra
			}
		}
		if cpu, ok := e.run.RoleCPU(name, math.Inf(-1), math.Inf(1)); ok {
			role.CPUSeconds = Number(cpu)
		}
		if cpu, ok := e.run.RoleCPU(name, e.phase.Start, e.phase.End); ok && e.gated {
			role.SteadyCores = Number(cpu / (e.phase.End - e.phase.Start))
		}
		role.RSSPeakBytes, _ = e.run.RSSPeak(name, math.Inf(-1), math.Inf(1))
		for _, d := range r.Estimate.Demands {
			if d.Role == name {
				role.DemandUs[d.Per] = d.Value
			}
		}
		r.Roles[name] = role
	}
}

// summarise is the verdict in one sentence.
func (r *Result) summarise() string {
	switch r.Verdict {
	case Pass:
		s := fmt.Sprintf("Pass: every one of %s accepted messages reached all its devices exactly once and in order (%s deliveries proved)", count(r.Audit.Acknowledged), count(r.Audit.Proved))
		if r.spec.spec.ProofSample > 0 && r.spec.spec.ProofSample < 1 {
			s = fmt.Sprintf("Pass: in a declared sample of %s, every accepted message reached all its devices exactly once and in order (%s deliveries proved)", percent(r.spec.spec.ProofSample), count(r.Audit.Proved))
		}
		if l, ok := r.LatencyMs[history.KindDeliverGroup]; ok && l.P99.Known() {
			s += fmt.Sprintf("; online group members had it within %s (p50) and %s (p99)", ms(l.P50), ms(l.P99))
		}
		return s + "."
	case Fail:
		return "Fail: " + listed(r.failures()) + "."
	default:
		return "Inconclusive: " + listed(r.Reasons) + "."
	}
}

// failures are the reasons that fail the run, without those that only make it
// inconclusive.
func (r *Result) failures() []string {
	var out []string
	for _, g := range r.Gates {
		if g.Verdict == Fail {
			out = append(out, g.Text)
		}
	}
	return out
}

func listed(s []string) string {
	if len(s) > 3 {
		s = append(slices.Clone(s[:3]), fmt.Sprintf("and %d more", len(s)-3))
	}
	return strings.Join(s, "; ")
}
