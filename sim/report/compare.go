package report

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"

	"throng/sim/capacity"
	"throng/sim/history"
	"throng/sim/metrics"
)

// CompareVersion is the version of the JSON form of a Comparison.
//
//	1  first version
const CompareVersion = 1

// Comparison is two runs side by side: the JSON of `throng compare`. Figures
// are of the gated phase but memory and audit, which are of the whole run.
type Comparison struct {
	SchemaVersion int            `json:"schema_version"`
	A             ComparedRun    `json:"a"`
	B             ComparedRun    `json:"b"`
	Differs       []Differs      `json:"differs"`
	Warnings      []string       `json:"warnings"` // what makes the figures hard to compare
	Tables        []CompareTable `json:"tables"`
}

// ComparedRun names one side.
type ComparedRun struct {
	RunID    string  `json:"run_id"`
	Scenario string  `json:"scenario"`
	Target   string  `json:"target"`
	Scale    string  `json:"scale"` // "~" when the scenario cannot be read back
	Seed     uint64  `json:"seed"`
	SpecHash string  `json:"spec_hash"`
	Verdict  Verdict `json:"verdict"`
	Summary  string  `json:"summary"`
}

// Differs is a setting that the runs do not share.
type Differs struct {
	What string `json:"what"`
	A    string `json:"a"`
	B    string `json:"b"`
}

// CompareTable is figures of one kind.
type CompareTable struct {
	Name string       `json:"name"`
	Rows []CompareRow `json:"rows"`
}

// CompareRow is one figure of both runs.
type CompareRow struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	A    Number `json:"a"`
	B    Number `json:"b"`
	// Difference is B - A with its 95 % interval, null where there is none: too
	// few samples, or one figure a run.
	Difference Number `json:"difference"`
	Low        Number `json:"low"`
	High       Number `json:"high"`
	// Shown: the interval excludes zero.
	Shown bool `json:"shown"`
}

const compareLevel = 0.95

// Compare reads two run folders and puts them side by side. An error means that
// one of them is no run folder, or never came to its gated phase.
func Compare(dirA, dirB string) (*Comparison, error) {
	a, err := openCompared(dirA)
	if err != nil {
		return nil, err
	}
	b, err := openCompared(dirB)
	if err != nil {
		return nil, err
	}
	c := &Comparison{SchemaVersion: CompareVersion, A: a.head(), B: b.head(), Differs: []Differs{}, Warnings: []string{}}
	c.differences(a, b)
	p := &pair{a: a, b: b, rng: rand.New(rand.NewPCG(a.run.Manifest.Seed, b.run.Manifest.Seed))}
	c.Tables = []CompareTable{{"rates", p.rates()}, {"latency", p.latencies()}, {"CPU", p.cpu()}, {"memory", p.memory()}, {"audit", p.audits()}}
	c.Tables = slices.Insert(c.Tables, 2, CompareTable{"stages", p.stages()}) // drawn after the others, whose intervals it does not change so
	return c, nil
}

// compared is one run with its figures.
type compared struct {
	run    *history.Run
	terms  *terms
	phase  history.Phase
	result *Result
}

func openCompared(dir string) (*compared, error) {
	run, err := history.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	c := &compared{run: run, terms: readTerms(&run.Manifest)}
	var ok bool
	if c.phase, ok = gatedPhase(run); !ok {
		return nil, fmt.Errorf("compare: the run in %s never came to its gated phase: there is nothing to compare", dir)
	}
	c.result = evaluate(run, c.terms)
	return c, nil
}

func (c *compared) head() ComparedRun {
	m := &c.run.Manifest
	scale := unknown
	if c.terms.problem == "" {
		scale = settings(c.terms.spec.YAML())["scale"]
	}
	return ComparedRun{RunID: m.RunID, Scenario: m.Scenario, Target: m.Target, Scale: scale, Seed: m.Seed, SpecHash: m.SpecHash,
		Verdict: c.result.Verdict, Summary: c.result.Summary}
}

// settings are the fields of a resolved scenario by their paths.
func settings(yaml []byte) map[string]string {
	out := map[string]string{}
	section, item := "", -1
	for line := range strings.Lines(string(yaml)) {
		line = strings.TrimRight(line, "\n")
		key, value, scalar := strings.Cut(strings.TrimLeft(line, " -"), ": ")
		switch {
		case !scalar:
			section, item = strings.TrimSuffix(key, ":"), -1
		case line[0] != ' ':
			out[key] = value
		default:
			if strings.HasPrefix(line, "  - ") {
				item++
			}
			path := section
			if item >= 0 {
				path += "[" + strconv.Itoa(item) + "]"
			}
			out[path+"."+key] = value
		}
	}
	return out
}

// differences lists what the runs do not share, and warns of what makes their
// figures hard to compare.
func (c *Comparison) differences(a, b *compared) {
	m, n := &a.run.Manifest, &b.run.Manifest
	if c.differ("target", m.Target, n.Target) {
		c.warn("the targets differ, %s and %s: a difference may be that of their components or of how their CPU is counted, not of the backend", m.Target, n.Target)
	}
	if c.differ("scenario", m.Scenario, n.Scenario) {
		c.warn("the scenarios differ, %s and %s", m.Scenario, n.Scenario)
	}
	scenario := c.specs(a, b)
	if c.differ("seed", fmt.Sprint(m.Seed), fmt.Sprint(n.Seed)) {
		c.warn("the seeds differ: other users do other things at other times")
	}
	if c.differ("spec hash", m.SpecHash, n.SpecHash) && !scenario && m.Seed == n.Seed {
		c.warn("the scenarios differ in their hash alone: one of them was resolved by another version, or cannot be read back")
	}
	before := len(c.Differs)
	c.differ("machine: CPU", m.Machine.CPU, n.Machine.CPU)
	c.differ("machine: cores", fmt.Sprint(m.Machine.Cores), fmt.Sprint(n.Machine.Cores))
	c.differ("machine: memory", bytesOf(m.Machine.MemBytes), bytesOf(n.Machine.MemBytes))
	c.differ("machine: system", m.Machine.OS+" "+m.Machine.Kernel, n.Machine.OS+" "+n.Machine.Kernel)
	if len(c.Differs) > before {
		c.warn("the machines differ")
	}
	names := maps.Clone(m.Versions)
	if names == nil {
		names = map[string]string{}
	}
	maps.Copy(names, n.Versions)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		c.differ("version: "+name, m.Versions[name], n.Versions[name])
	}
	c.verdict("A", a.result)
	c.verdict("B", b.result)
}

func (c *Comparison) verdict(label string, r *Result) {
	if r.Verdict != Pass {
		c.warn("run %s did not pass. %s", label, strings.TrimSuffix(r.Summary, "."))
	}
}

// specs lists the fields of the scenarios that differ, seed and name excepted,
// and returns whether there are any.
func (c *Comparison) specs(a, b *compared) bool {
	if a.terms.problem != "" || b.terms.problem != "" {
		c.warn("the scenario of a run cannot be read back: only the hashes are compared")
		return false
	}
	x, y := settings(a.terms.spec.YAML()), settings(b.terms.spec.YAML())
	keys := maps.Clone(x)
	maps.Copy(keys, y)
	var other []string
	scale := c.differ("scale", x["scale"], y["scale"])
	if scale {
		c.warn("the scales differ, %s and %s: whatever grows with the load differs for that alone", x["scale"], y["scale"])
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if !slices.Contains([]string{"scale", "seed", "name", "question"}, k) && c.differ("scenario: "+k, x[k], y[k]) {
			other = append(other, k)
		}
	}
	if len(other) > 0 {
		c.warn("the scenarios differ in %s: the runs were not asked the same", strings.Join(other, ", "))
	}
	return scale || len(other) > 0
}

func (c *Comparison) differ(what, a, b string) bool {
	if a == b {
		return false
	}
	c.Differs = append(c.Differs, Differs{what, firstOf(a, "none"), firstOf(b, "none")})
	return true
}

func (c *Comparison) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// pair computes rows of two runs. The resampling is seeded by them, so that the
// comparison of two runs is always the same.
type pair struct {
	a, b *compared
	rng  *rand.Rand
}

func (p *pair) ratio(name, unit string, factor float64, of func(*compared) metrics.Ratios) CompareRow {
	return row(name, unit, factor, metrics.RatioDifference(of(p.a), of(p.b), compareLevel, metrics.Resamples, p.rng))
}

func row(name, unit string, factor float64, d metrics.Difference) CompareRow {
	return CompareRow{Name: name, Unit: unit, A: Number(d.A * factor), B: Number(d.B * factor), Difference: Number(d.Value * factor),
		Low: Number(d.Low * factor), High: Number(d.High * factor), Shown: d.Shown}
}

// single is a figure that a run has one of: no interval, so no difference.
func single(name, unit string, a, b float64) CompareRow {
	return row(name, unit, 1, metrics.Difference{A: a, B: b, Value: math.NaN(), Low: math.NaN(), High: math.NaN()})
}

// amountIn is something counted between two times; false when it is not known.
type amountIn func(c *compared, from, to float64) (float64, bool)

// over is num for each den over equal blocks of the gated phase.
func over(num, den amountIn) func(*compared) metrics.Ratios {
	return func(c *compared) (r metrics.Ratios) {
		length := (c.phase.End - c.phase.Start) / minBlocks
		for i := range minBlocks {
			from := c.phase.Start + float64(i)*length
			n, ok1 := num(c, from, from+length)
			d, ok2 := den(c, from, from+length)
			if ok1 && ok2 {
				r.Num, r.Den = append(r.Num, n), append(r.Den, d)
			}
		}
		return r
	}
}

func seconds(_ *compared, from, to float64) (float64, bool) { return to - from, true }

// counted adds up something of series.csv. A row that a border cuts counts by
// the part inside.
func counted(f func(history.Second) int64) amountIn {
	return func(c *compared, from, to float64) (sum float64, any bool) {
		for _, s := range c.run.Seconds {
			if in := math.Min(s.T, to) - math.Max(s.T-1, from); in > 0 {
				sum += float64(f(s)) * math.Min(in, 1)
				any = true
			}
		}
		return sum, any
	}
}

func sends(s history.Second) int64 { return s.Accepted }

func (p *pair) rates() []CompareRow {
	var rows []CompareRow
	for _, r := range []struct {
		name, unit string
		f          func(history.Second) int64
	}{
		{"sends offered", "/s", func(s history.Second) int64 { return s.Offered }}, {"sends accepted", "/s", sends}, {"deliveries", "/s", deliveries},
		{"logins", "/s", func(s history.Second) int64 { return s.Logins }}, {"pushes", "/s", func(s history.Second) int64 { return s.Pushes }},
	} {
		rows = append(rows, p.ratio(r.name, r.unit, 1, over(counted(r.f), seconds)))
	}
	// A level that drifts is one figure, however often it is read.
	return append(rows, single("sockets, mean", "", float64(p.a.result.Sockets.SteadyMean), float64(p.b.result.Sockets.SteadyMean)))
}

// latencies compares merged histograms; quantiles are never averaged.
func (p *pair) latencies() []CompareRow {
	var rows []CompareRow
	add := func(name, kind string, quantiles ...float64) {
		x, y := p.a.blocks(kind), p.b.blocks(kind)
		if x == nil && y == nil {
			return
		}
		for _, q := range quantiles {
			d := metrics.QuantileDifference(x, y, q/100, compareLevel, metrics.Resamples, p.rng)
			if !enough(q, x) {
				d.A = math.NaN()
			}
			if !enough(q, y) {
				d.B = math.NaN()
			}
			rows = append(rows, row(fmt.Sprintf("%s, p%g", name, q), "ms", 1e-3, d))
		}
	}
	for _, k := range kindNames() {
		if k.kind != history.KindHeld {
			add(k.name, k.kind, 50, 99, 99.9)
		}
	}
	for _, k := range mediaClassNames() {
		add(k.name, k.kind, 50, 99)
	}
	for _, class := range history.SizeClasses {
		add("last of "+class.Name+" members", history.KindFanoutLast+class.Name, 50, 99)
	}
	add("generator lateness", history.KindLate, 50, 99)
	return rows
}

// enough says whether the reports print such a quantile.
func enough(q float64, blocks []*hdrhistogram.Histogram) bool {
	var n int64
	filled := 0
	for _, h := range blocks {
		n += h.TotalCount()
		if h.TotalCount() > 0 {
			filled++
		}
	}
	switch q {
	case 50:
		return n >= minP50
	case 99:
		return n >= minP99
	}
	return n >= minP999 && filled >= minBlocks
}

// blocks are the histograms of a kind over the gated phase, nil without samples.
func (c *compared) blocks(kind string) []*hdrhistogram.Histogram {
	var out []*hdrhistogram.Histogram
	var n int64
	for _, b := range c.run.Blocks(kind, c.phase.Name, minBlocks) {
		out = append(out, b.Hist)
		n += b.Hist.TotalCount()
	}
	if n == 0 {
		return nil
	}
	return out
}

// roleCPU is the CPU of some roles together. It is not known where none is.
func roleCPU(roles func(*compared) []string) amountIn {
	return func(c *compared, from, to float64) (sum float64, ok bool) {
		for _, role := range roles(c) {
			cpu, has := c.run.RoleCPU(role, from, to)
			sum, ok = sum+cpu, ok || has
		}
		return sum, ok
	}
}

func (p *pair) roles() []string {
	both := &Result{Roles: maps.Clone(p.a.result.Roles)}
	maps.Copy(both.Roles, p.b.result.Roles)
	return both.sortedRoles()
}

func (p *pair) cpu() []CompareRow {
	var rows []CompareRow
	perSend := func(name string, roles func(*compared) []string) {
		rows = append(rows, p.ratio(name+", for a send", "us", 1e6, over(roleCPU(roles), counted(sends))))
	}
	perSend("all roles", func(*compared) []string {
		return []string{"gateway", "message", "fanout", "group", "inbox", "push", "media"}
	})
	perSend("roles and infrastructure", func(c *compared) []string {
		return slices.DeleteFunc(c.run.RoleNames(), func(r string) bool { return r == "generator" })
	})
	for _, role := range p.roles() {
		one := func(*compared) []string { return []string{role} }
		perSend(role, one)
		rows = append(rows, p.ratio(role+", for a delivery", "us", 1e6, over(roleCPU(one), counted(deliveries))))
	}
	return rows
}

func (p *pair) memory() []CompareRow {
	var rows []CompareRow
	peak := func(c *compared, role string) float64 {
		if r, ok := c.result.Roles[role]; ok && r.RSSPeakBytes > 0 {
			return float64(r.RSSPeakBytes)
		}
		return math.NaN()
	}
	for _, role := range p.roles() {
		rows = append(rows, single(role+", peak RSS", "B", peak(p.a, role), peak(p.b, role)))
	}
	return rows
}

func (p *pair) audits() []CompareRow {
	var rows []CompareRow
	for _, x := range []struct {
		name string
		of   func(*Audit) int64
	}{
		{"messages acknowledged", func(a *Audit) int64 { return a.Acknowledged }}, {"pairs expected", func(a *Audit) int64 { return a.Expected }},
		{"proved", func(a *Audit) int64 { return a.Proved }}, {"lost", func(a *Audit) int64 { return a.Lost }},
		{"duplicated", func(a *Audit) int64 { return a.Duplicated }}, {"reordered", func(a *Audit) int64 { return a.Reordered }},
		{"foreign", func(a *Audit) int64 { return a.Foreign }}, {"unproved", func(a *Audit) int64 { return a.Unproved }},
		{"push missing", func(a *Audit) int64 { return a.PushMissing }}, {"redelivered, dropped by the client", func(a *Audit) int64 { return a.Redelivered }},
	} {
		figure := func(c *compared) float64 {
			if c.result.Audit == nil {
				return math.NaN()
			}
			return float64(x.of(c.result.Audit))
		}
		rows = append(rows, single(x.name, "", figure(p.a), figure(p.b)))
	}
	return append(rows, p.mediaAudits()...)
}

// times is B/A, unknown where the difference is not shown.
func (r CompareRow) times() Number {
	if !r.Shown || r.A == 0 {
		return capacity.Unknown()
	}
	return r.B / r.A
}
