package report

import (
	"fmt"
	"math"
	"strings"

	"throng/sim/capacity"
	"throng/sim/history"
	"throng/sim/metrics"
	"throng/sim/report/figure"
)

// Process is what one process held in the gated phase, and whether it grew.
type Process struct {
	Role     string `json:"role"`
	Instance int    `json:"instance"`
	// Gated: the growth gates are about it. Infrastructure is only shown.
	Gated      bool   `json:"gated"`
	Restarted  bool   `json:"restarted"` // in the gated phase: then it has no growth
	RSS        Growth `json:"rss_bytes"`
	LiveHeap   Growth `json:"live_heap_bytes"` // what garbage collections left
	Goroutines Growth `json:"goroutines"`
}

// Growth is the line that fits a level best over the gated phase: its rise from
// the phase's beginning to its end as a share of Mean, with the 95 % interval.
type Growth struct {
	Blocks int64  `json:"blocks"` // time blocks that have samples
	Mean   Number `json:"mean"`
	Growth Number `json:"growth"`
	Low    Number `json:"growth_low"`
	High   Number `json:"growth_high"`
}

// growthBlocks are the time blocks that a line is laid through.
const growthBlocks = 10

// A process that holds less than this is judged as if it held so much: the heap
// of a Go process of 10 MiB that is a megabyte more or less is no leak, nor is
// another pooled connection.
const (
	leastMemory     = 32 << 20 // bytes
	leastGoroutines = 100
)

func (p Process) name() string { return fmt.Sprintf("%s/%d", p.Role, p.Instance) }

// processes fits a line to what each process held in the gated phase.
func (e *evaluator) processes() []Process {
	infra := map[string]bool{}
	for _, i := range e.run.Manifest.Roles {
		infra[i.Role] = i.Infra && i.Role != history.RoleGenerator
	}
	out := []Process{}
	for _, p := range e.run.Processes() {
		x := Process{Role: p.Role, Instance: p.Instance, Gated: !infra[p.Role]}
		for _, t := range p.Restarted {
			x.Restarted = x.Restarted || e.gated && t > e.phase.Start && t <= e.phase.End
		}
		x.RSS, x.LiveHeap, x.Goroutines = e.growth(p.RSS, x.Restarted), e.growth(p.LiveHeap, x.Restarted), e.growth(p.Goroutines, x.Restarted)
		out = append(out, x)
	}
	return out
}

func (e *evaluator) growth(levels []history.Level, restarted bool) Growth {
	t, v := make([]float64, len(levels)), make([]float64, len(levels))
	for i, l := range levels {
		t[i], v[i] = l.T, l.V
	}
	tr := metrics.TrendOf(t, v, e.phase.Start, e.phase.End, growthBlocks, 0.95)
	g := Growth{Blocks: tr.N, Mean: Number(tr.Mean), Growth: capacity.Unknown(), Low: capacity.Unknown(), High: capacity.Unknown()}
	if !tr.OK || restarted || tr.Mean <= 0 {
		return g
	}
	share := (e.phase.End - e.phase.Start) / tr.Mean
	g.Growth, g.Low, g.High = Number(tr.Value*share), Number(tr.Low*share), Number(tr.High*share)
	return g
}

// words is the growth for people.
func (g Growth) words() string {
	if !g.Growth.Known() {
		return unknown
	}
	return growthText(g.Growth) + " (" + growthText(g.Low) + " to " + growthText(g.High) + ")"
}

func growthText(n Number) string {
	s := percent(float64(n))
	if n > 0 {
		s = "+" + s
	}
	return s
}

// growthGates judges whether any process grew in the gated phase. It fails for
// one that surely grew by more than the limit, passes when each surely did not,
// and is inconclusive when the run is too short to tell or has no samples.
func (j *judgement) growthGates(f facts) {
	if !f.gated {
		return
	}
	for _, k := range []struct {
		name, what string
		limit      float64
		of         func(Process) Growth
	}{
		{"growth of memory", "resident memory", f.gates.RSSGrowthMax, func(p Process) Growth { return p.RSS.atLeast(leastMemory) }},
		{"growth of goroutines", "number of goroutines", f.gates.GoroutineGrowthMax, func(p Process) Growth { return p.Goroutines.atLeast(leastGoroutines) }},
	} {
		if k.limit <= 0 {
			continue
		}
		j.growth(f, k.name, k.what, k.limit, k.of)
	}
}

// atLeast is the growth as a share of the mean or of least, whichever is more.
func (g Growth) atLeast(least float64) Growth {
	f := Number(math.Min(1, float64(g.Mean)/least))
	g.Growth, g.Low, g.High = g.Growth*f, g.Low*f, g.High*f
	return g
}

func (j *judgement) growth(f facts, name, what string, limit float64, of func(Process) Growth) {
	g := Gate{Name: name, Kind: "slo", Phase: f.phase, Value: Number(math.NaN()), Limit: Number(limit), Unit: "of the mean"}
	var grew, unclear []string
	for _, p := range f.processes {
		if !p.Gated {
			continue
		}
		x := of(p)
		g.Count++
		says := p.name() + " " + x.words()
		switch {
		case p.Restarted:
			unclear = append(unclear, p.name()+" was restarted")
		case !x.Growth.Known():
			unclear = append(unclear, p.name()+" has too few samples")
		case float64(x.Low) > limit:
			grew = append(grew, says)
		case float64(x.High) > limit:
			unclear = append(unclear, says)
		}
		if x.Growth.Known() && !(float64(g.Value) >= float64(x.Growth)) { // the first is beside NaN
			g.Value = x.Growth
		}
	}
	within := fmt.Sprintf("limit %s over %s", percent(limit), f.phase)
	switch {
	case len(grew) > 0:
		j.gate(g, Fail, false, "the %s grew: %s, %s", what, listed(grew), within)
	case g.Count == 0:
		j.gate(g, Inconclusive, false, "the %s of no process is known", what)
	case len(unclear) > 0:
		j.gate(g, Inconclusive, false, "whether the %s grew cannot be told: %s, %s", what, listed(unclear), within)
	default:
		j.gate(g, Fail, true, "the %s of %s processes grew by %s at most, %s", what, count(g.Count), percent(float64(g.Value)), within)
	}
}

// processTable is what each process held and how it grew.
func (r *Result) processTable() table {
	t := table{Head: []string{"process", "memory", "growth (95% interval)", "live heap", "growth (95% interval)", "goroutines", "growth (95% interval)"}, Left: 1}
	size := func(g Growth) string {
		if !g.Mean.Known() {
			return unknown
		}
		return bytesOf(int64(g.Mean))
	}
	for _, p := range r.Processes {
		name := p.name()
		if p.Restarted {
			name += ", restarted"
		}
		t.Rows = append(t.Rows, []string{name, size(p.RSS), p.RSS.words(), size(p.LiveHeap), p.LiveHeap.words(), num(p.Goroutines.Mean), p.Goroutines.words()})
	}
	return t
}

// held draws memory and goroutines of each process over time.
func (p *plotter) held() *figure.Figure {
	var memory, goroutines []figure.Curve
	for _, x := range p.run.Processes() {
		label, ink := roleInk(x.Role)
		points := func(levels []history.Level, unit float64) []figure.Point {
			var out []figure.Point
			for _, l := range levels {
				if p.inside(l.T) {
					out = append(out, figure.Point{X: l.T, Y: l.V / unit})
				}
			}
			return out
		}
		if m := points(x.RSS, 1<<20); len(m) > 0 {
			memory = append(memory, figure.Curve{Label: label, Ink: ink, Points: m})
		}
		if g := points(x.Goroutines, 1); len(g) > 0 {
			goroutines = append(goroutines, figure.Curve{Label: label, Ink: ink, Points: g})
		}
	}
	var alt strings.Builder
	alt.WriteString("Growth of memory over the gated phase:")
	for _, x := range p.r.Processes {
		fmt.Fprintf(&alt, " %s %s;", x.name(), x.RSS.words())
	}
	return figure.Held(p.spans, memory, goroutines, alt.String())
}
