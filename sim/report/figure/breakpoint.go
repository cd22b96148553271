package figure

import (
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Try is one run of a breakpoint test. NaN is not known.
type Try struct {
	SendsPerS  float64 // offered
	P99Deliver float64 // milliseconds
	Late       float64 // p99 of the generator, milliseconds
	Cores      float64 // busy, of everything on the machine
	Carried    bool
}

// Breakpoint draws latency and CPU of runs against the load that they were
// offered. Gate is the limit of the p99, 0 without; cores are those of the machine.
func Breakpoint(tries []Try, gate, cores float64, alt string) *Figure {
	f := &Figure{Name: "breakpoint", Title: "Latency and CPU against offered load", height: 1.2, Alt: alt,
		Subtitle: "Each point is a run. Rings: not a pass.",
		keys:     []key{{"send to deliver, p99", Blue, markDot}, {"generator late, p99", Orange, markDot}, {"CPU", Green, markDot}}}
	if gate > 0 {
		f.keys = append(f.keys, key{"gate, cores of the machine", Vermilion, markDash})
	}
	f.draw = func(s *sheet) error {
		if len(tries) == 0 {
			s.nothing()
			return nil
		}
		most := 0.0
		for _, t := range tries {
			most = math.Max(most, t.SendsPerS)
		}
		latency := s.tried(tries, most, gate, func(t Try) float64 { return t.P99Deliver }, func(t Try) float64 { return t.Late })
		busy := s.busy(tries, most, cores)
		cs := plot.Align([][]*plot.Plot{{latency}, {busy}}, draw.Tiles{Rows: 2, Cols: 1, PadY: 20, PadTop: 14}, s.Canvas)
		for i, p := range []*plot.Plot{latency, busy} {
			p.Draw(cs[i][0])
			s.FillText(s.style(Text, sizeLabel, true), vg.Point{X: cs[i][0].Min.X, Y: cs[i][0].Max.Y + 4}, []string{"milliseconds (log scale)", "cores busy"}[i])
		}
		return nil
	}
	return f
}

// tried is the panel of latencies.
func (s *sheet) tried(tries []Try, most, gate float64, deliver, late func(Try) float64) *plot.Plot {
	p := s.plot()
	lo, hi := math.Inf(1), math.Max(gate, 1)
	for _, t := range tries {
		for _, v := range []float64{deliver(t), late(t)} {
			if v > 0 {
				lo, hi = math.Min(lo, v), math.Max(hi, v)
			}
		}
	}
	logAxis(p, lo, hi)
	s.loadAxis(p, most)
	p.X.Label.Text = ""
	s.grid(p)
	if gate > 0 {
		s.curve(p, []Point{{0, gate}, {p.X.Max, gate}}, s.dashed(Vermilion, 1.4))
	}
	s.marks(p, tries, Orange, late)
	s.marks(p, tries, Blue, deliver)
	return p
}

// busy is the panel of CPU.
func (s *sheet) busy(tries []Try, most, cores float64) *plot.Plot {
	p := s.plot()
	p.Y.Min, p.Y.Max, p.Y.Tick.Marker = 0, math.Max(cores, 1)*1.15, steps{n: 4}
	s.loadAxis(p, most)
	s.grid(p)
	s.curve(p, []Point{{0, cores}, {p.X.Max, cores}}, s.dashed(Vermilion, 1.4))
	s.marks(p, tries, Green, func(t Try) float64 { return t.Cores })
	return p
}

func (s *sheet) loadAxis(p *plot.Plot, most float64) {
	p.X.Min, p.X.Max, p.X.Tick.Marker = 0, math.Max(most*1.08, 1), steps{n: 8}
	if s.layout.narrow {
		p.X.Tick.Marker = steps{n: 4}
	}
	p.X.Label.Text = "sends offered a second"
}

// marks draws a dot for each run that was carried and a ring for the others.
func (s *sheet) marks(p *plot.Plot, tries []Try, i Ink, of func(Try) float64) {
	s.add(p, func(s *sheet, p *plot.Plot) {
		tx, ty := p.Transforms(&s.Canvas)
		for _, t := range tries {
			v := of(t)
			if math.IsNaN(v) || p.Y.Min > 0 && v <= 0 {
				continue
			}
			at := vg.Point{X: tx(t.SendsPerS), Y: ty(v)}
			if t.Carried {
				s.dot(i, at, 3)
			} else {
				s.ring(i, at, 3.5)
			}
		}
	})
}
