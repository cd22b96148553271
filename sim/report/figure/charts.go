package figure

import (
	"fmt"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Curve is a named line of a spectrum or a series.
type Curve struct {
	Label  string
	Ink    Ink
	Points []Point
	// Sure is how far (in X) enough samples stand behind it; beyond, it is thin.
	Sure float64
}

// Nines is the place of quantile q on a nines axis: 0.9 is 1, 0.99 is 2.
func Nines(q float64) float64 { return -math.Log10(1 - q) }

// Spectrum draws latency in milliseconds against quantile on a nines axis.
// The X of each curve's points is Nines(quantile).
func Spectrum(curves []Curve, alt string) *Figure {
	f := &Figure{Name: "spectrum", Title: "Latency by percentile", Alt: alt,
		Subtitle: "Milliseconds from the intended send time (log scale), steady phase. Thin: too few samples."}
	for _, c := range curves {
		f.keys = append(f.keys, key{label: c.Label, ink: c.Ink})
	}
	f.draw = func(s *sheet) error {
		if len(curves) == 0 {
			s.nothing()
			return nil
		}
		p := s.plot()
		xmax, lo, hi := 2.0, math.Inf(1), math.Inf(-1)
		for _, c := range curves {
			for _, q := range c.Points {
				xmax = math.Max(xmax, q.X)
				if q.Y > 0 {
					hi = math.Max(hi, q.Y)
				}
				if q.Y > 0 && q.X > Nines(0.05) { // the very fastest are of no interest
					lo = math.Min(lo, q.Y)
				}
			}
		}
		logAxis(p, lo, hi)
		p.X.Min, p.X.Max = 0, math.Min(math.Ceil(xmax*2)/2, 6)
		p.X.Tick.Marker = ninesTicks{narrow: s.layout.narrow}
		p.X.Label.Text = "percentile"
		s.grid(p)
		for _, c := range curves {
			sure, thin := split(c.Points, c.Sure)
			s.curve(p, thin, s.line(c.Ink, 0.9))
			s.curve(p, sure, s.line(c.Ink, 2))
		}
		p.Draw(s.Canvas)
		return nil
	}
	return f
}

// split cuts a curve at x; the two parts share the last sure point.
func split(pts []Point, x float64) (sure, rest []Point) {
	i := 0
	for i < len(pts) && pts[i].X <= x {
		i++
	}
	return pts[:i], pts[max(i-1, 0):]
}

type ninesTicks struct{ narrow bool }

func (t ninesTicks) Ticks(lo, hi float64) []plot.Tick {
	out := []plot.Tick{{Value: Nines(0.5), Label: "50%"}}
	if !t.narrow {
		out = append(out, plot.Tick{Value: 0, Label: "0%"})
	}
	for i, l := range []string{"90%", "99%", "99.9%", "99.99%", "99.999%", "99.9999%"} {
		if v := float64(i + 1); v <= hi {
			out = append(out, plot.Tick{Value: v, Label: l})
		}
	}
	return out
}

// logAxis gives p a logarithmic y axis from lo to hi with some room.
func logAxis(p *plot.Plot, lo, hi float64) {
	if math.IsInf(lo, 0) || lo <= 0 {
		lo, hi = 0.1, 10
	}
	if hi < lo*10 {
		hi = lo * 10
	}
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, decades{}
	p.Y.Min, p.Y.Max = lo*0.8, hi*1.25
}

// Span is a phase of the run on a time axis.
type Span struct {
	Name       string
	Start, End float64
	Gated      bool
}

// bands shades the phases and names those that are wide enough.
func (s *sheet) bands(p *plot.Plot, spans []Span, names bool) {
	s.add(p, func(s *sheet, p *plot.Plot) {
		tx, _ := p.Transforms(&s.Canvas)
		st := s.style(Muted, sizeNote, false)
		for i, sp := range spans {
			x0, x1 := max(tx(sp.Start), s.Min.X), min(tx(sp.End), s.Max.X)
			if x1 <= x0 {
				continue
			}
			if sp.Gated {
				s.rect(BandGated, vg.Rectangle{Min: vg.Point{X: x0, Y: s.Min.Y}, Max: vg.Point{X: x1, Y: s.Max.Y}})
			} else if i%2 == 0 {
				s.rect(Band, vg.Rectangle{Min: vg.Point{X: x0, Y: s.Min.Y}, Max: vg.Point{X: x1, Y: s.Max.Y}})
			}
			short, _, _ := strings.Cut(sp.Name, " ")
			for _, name := range []string{sp.Name, short} {
				if w := st.Width(name); names && w+2 < x1-x0 {
					s.FillText(st, vg.Point{X: (x0+x1)/2 - w/2, Y: s.Max.Y - st.Font.Size - 1}, name)
					break
				}
			}
		}
	})
}

func (s *sheet) timeAxis(p *plot.Plot, spans []Span) {
	p.X.Min, p.X.Max = spans[0].Start, spans[len(spans)-1].End
	p.X.Tick.Marker = steps{n: 8}
	if s.layout.narrow {
		p.X.Tick.Marker = steps{n: 4}
	}
	p.X.Label.Text = "seconds since the start of the run"
}

// Panel is one of the small plots of a latency-over-time figure.
type Panel struct {
	Label         string
	P50, P99, Max []Point
	// Gate is the limit of p99 in the gated phases, 0 without.
	Gate float64
}

// OverTime draws percentiles of each second, one panel a kind.
func OverTime(spans []Span, panels []Panel, alt string) *Figure {
	f := &Figure{Name: "latency_over_time", Title: "Latency over time", height: 1.3, Alt: alt,
		Subtitle: "Milliseconds from the intended send time (log scale), every second, or five where samples are few.",
		keys:     []key{{"p50", Blue, markLine}, {"p99", Orange, markLine}, {"max", Grey, markDot}}}
	for _, p := range panels {
		if p.Gate > 0 {
			f.keys = append(f.keys, key{"gate on p99", Vermilion, markDash})
			break
		}
	}
	f.draw = func(s *sheet) error {
		plots := make([][]*plot.Plot, len(panels))
		for i, pn := range panels {
			p := s.plot()
			plots[i] = []*plot.Plot{p}
			lo, hi := extent(pn.P50, pn.P99, pn.Max)
			if pn.Gate > 0 {
				hi = math.Max(hi, pn.Gate)
			}
			logAxis(p, lo, hi*2.2)
			s.timeAxis(p, spans)
			if i < len(panels)-1 {
				p.X.Label.Text = ""
			}
			s.bands(p, spans, i == 0)
			s.grid(p)
			s.scatter(p, pn.Max, Grey)
			s.curve(p, pn.P99, s.line(Orange, 1.5))
			s.curve(p, pn.P50, s.line(Blue, 1.5))
			for _, sp := range spans {
				if pn.Gate > 0 && sp.Gated {
					s.curve(p, []Point{{sp.Start, pn.Gate}, {sp.End, pn.Gate}}, s.dashed(Vermilion, 1.4))
				}
			}
		}
		tiles := draw.Tiles{Rows: len(panels), Cols: 1, PadY: 20, PadTop: 14}
		cs := plot.Align(plots, tiles, s.Canvas)
		for i, row := range plots {
			row[0].Draw(cs[i][0])
			st := s.style(Text, sizeLabel, true)
			s.FillText(st, vg.Point{X: cs[i][0].Min.X, Y: cs[i][0].Max.Y + 4}, panels[i].Label)
		}
		return nil
	}
	return f
}

func extent(series ...[]Point) (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, pts := range series {
		for _, q := range pts {
			if q.Y > 0 {
				lo, hi = math.Min(lo, q.Y), math.Max(hi, q.Y)
			}
		}
	}
	return lo, hi
}

func (s *sheet) scatter(p *plot.Plot, pts []Point, i Ink) {
	s.add(p, func(s *sheet, p *plot.Plot) {
		tx, ty := p.Transforms(&s.Canvas)
		for _, q := range pts {
			at := vg.Point{X: tx(q.X), Y: ty(q.Y)}
			if q.Y > 0 && s.Contains(at) {
				s.dot(i, at, 1.5)
			}
		}
	})
}

// Rates draws messages a second: what the schedule offered, what the system
// accepted and what reached devices.
func Rates(spans []Span, offered, accepted, delivered []Point, alt string) *Figure {
	f := &Figure{Name: "rates", Title: "Offered, accepted and delivered", Alt: alt,
		Subtitle: "Per second. One send is delivered to several devices; deliveries out of inboxes are included.",
		keys:     []key{{"sends offered", Pale, markThick}, {"sends accepted", Blue, markLine}, {"deliveries", Green, markLine}}}
	f.draw = func(s *sheet) error {
		p := s.plot()
		_, hi := extent(offered, accepted, delivered)
		p.Y.Min, p.Y.Max = 0, math.Max(hi*1.14, 1)
		p.Y.Tick.Marker = steps{n: 6}
		s.timeAxis(p, spans)
		s.bands(p, spans, true)
		s.grid(p)
		s.curve(p, delivered, s.line(Green, 1.6))
		s.curve(p, offered, s.line(Pale, 4.5))
		s.curve(p, accepted, s.line(Blue, 1.6))
		p.Draw(s.Canvas)
		return nil
	}
	return f
}

// Class is the fan-out of one group size class, in milliseconds; NaN is not known.
type Class struct {
	Name                                 string
	N                                    int64
	FirstP50, FirstP99, LastP50, LastP99 float64
}

// FanOut draws when the first and the last online member of a group had a message.
func FanOut(classes []Class, alt string) *Figure {
	f := &Figure{Name: "fanout", Title: "First and last member by group size", Alt: alt,
		Subtitle: "Milliseconds from the intended send time until the first and last online member had it (log scale).",
		keys:     []key{{"first, p50", Blue, markDot}, {"first, p99", Blue, markRing}, {"last, p50", Vermilion, markDot}, {"last, p99", Vermilion, markRing}}}
	f.draw = func(s *sheet) error {
		if len(classes) == 0 {
			s.nothing()
			return nil
		}
		p := s.plot()
		lo, hi := math.Inf(1), math.Inf(-1)
		for _, c := range classes {
			for _, v := range []float64{c.FirstP50, c.FirstP99, c.LastP50, c.LastP99} {
				if v > 0 {
					lo, hi = math.Min(lo, v), math.Max(hi, v)
				}
			}
		}
		logAxis(p, lo, hi)
		p.X.Min, p.X.Max = -0.6, float64(len(classes))-0.4
		p.X.Tick.Marker = classTicks{classes: classes, narrow: s.layout.narrow}
		p.X.Tick.LineStyle.Width = 0
		p.X.Tick.Length = 1
		p.X.Label.Text = "members of the group; n is the number of messages"
		if s.layout.narrow {
			p.X.Label.Text = "members of the group"
		}
		s.grid(p)
		s.add(p, func(s *sheet, p *plot.Plot) {
			tx, ty := p.Transforms(&s.Canvas)
			off := vg.Length(7)
			if s.layout.narrow {
				off = 5
			}
			for i, c := range classes {
				x := tx(float64(i))
				s.dumbbell(Blue, x-off, c.FirstP50, c.FirstP99, ty)
				s.dumbbell(Vermilion, x+off, c.LastP50, c.LastP99, ty)
			}
		})
		p.Draw(s.Canvas)
		return nil
	}
	return f
}

func (s *sheet) dumbbell(i Ink, x vg.Length, p50, p99 float64, ty func(float64) vg.Length) {
	if !(p50 > 0) {
		return
	}
	a := vg.Point{X: x, Y: ty(p50)}
	if p99 > 0 {
		b := vg.Point{X: x, Y: ty(p99)}
		s.StrokeLines(s.line(i, 1.6), []vg.Point{a, b})
		s.ring(i, b, 3.4)
	}
	s.dot(i, a, 3.6)
}

type classTicks struct {
	classes []Class
	narrow  bool
}

func (t classTicks) Ticks(lo, hi float64) []plot.Tick {
	var out []plot.Tick
	for i, c := range t.classes {
		l := c.Name
		if !t.narrow {
			l += fmt.Sprintf("\nn = %s", number(float64(c.N)))
		} else if i%2 == 1 {
			l = "\n" + l
		}
		out = append(out, plot.Tick{Value: float64(i), Label: l})
	}
	return out
}

// Layer is one band of a stacked area.
type Layer struct {
	Label  string
	Ink    Ink
	Points []Point // same X in all layers
}

// CPU draws cores in use, stacked by role, with the machine's cores as a line.
func CPU(spans []Span, layers []Layer, cores float64, alt string) *Figure {
	f := &Figure{Name: "cpu", Title: "CPU by role", Alt: alt,
		Subtitle: fmt.Sprintf("Cores in use (CPU-seconds per second), stacked. The machine has %s.", number(cores))}
	for i := range layers { // the legend reads like the stack, top first
		l := layers[len(layers)-1-i]
		f.keys = append(f.keys, key{l.Label, l.Ink, markBox})
	}
	f.draw = func(s *sheet) error {
		p := s.plot()
		top := cores
		if len(layers) > 0 {
			for i := range layers[0].Points {
				sum := 0.0
				for _, l := range layers {
					sum += l.Points[i].Y
				}
				top = math.Max(top, sum)
			}
		}
		p.Y.Min, p.Y.Max = 0, top*1.12
		p.Y.Tick.Marker = steps{n: 6}
		s.timeAxis(p, spans)
		s.bands(p, spans, true)
		s.grid(p)
		s.stack(p, layers)
		s.curve(p, []Point{{p.X.Min, cores}, {p.X.Max, cores}}, s.dashed(Muted, 1))
		p.Draw(s.Canvas)
		return nil
	}
	return f
}

func (s *sheet) stack(p *plot.Plot, layers []Layer) {
	s.add(p, func(s *sheet, p *plot.Plot) {
		if len(layers) == 0 {
			return
		}
		tx, ty := p.Transforms(&s.Canvas)
		base := make([]float64, len(layers[0].Points))
		for _, l := range layers {
			var lower, upper []vg.Point
			for i, q := range l.Points {
				lower = append(lower, vg.Point{X: tx(q.X), Y: ty(base[i])})
				base[i] += q.Y
				upper = append(upper, vg.Point{X: tx(q.X), Y: ty(base[i])})
			}
			poly := upper
			for i := range lower {
				poly = append(poly, lower[len(lower)-1-i])
			}
			s.FillPolygon(s.ink(l.Ink), s.ClipPolygonXY(poly))
		}
	})
}

// Bar is one tier of the fleet.
type Bar struct {
	Label            string
	Ink              Ink
	Value, Low, High float64
	Note             string // beside the bar
}

// Tiers draws horizontal bars with their intervals and a note beside each.
func Tiers(title, subtitle, axis string, bars []Bar, alt string) *Figure {
	f := &Figure{Name: "capacity", Title: title, Subtitle: subtitle, Alt: alt, height: 0.45 + 0.09*float64(len(bars))}
	f.draw = func(s *sheet) error {
		if len(bars) == 0 {
			s.nothing()
			return nil
		}
		p := s.plot()
		hi := 0.0
		for _, b := range bars {
			hi = math.Max(hi, math.Max(b.Value, b.High))
		}
		p.X.Min, p.X.Max = 0, math.Max(hi, 1e-9)
		p.X.Tick.Marker = steps{n: 6}
		p.X.Label.Text = axis
		p.Y.Min, p.Y.Max = -0.5, float64(len(bars))-0.5
		p.Y.Tick.Marker = barTicks(bars)
		p.Y.Tick.Label.Color = s.ink(Text)
		right := vg.Length(0)
		if s.layout.narrow {
			p.X.Tick.Marker = steps{n: 3}
			p.Y.Tick.Marker = plot.ConstantTicks{}
			right = 12
		} else {
			for _, b := range bars {
				right = max(right, s.style(Text, sizeLabel, false).Width(b.Note)+10)
			}
		}
		s.add(p, func(s *sheet, p *plot.Plot) { s.bars(p, bars) })
		p.Draw(draw.Crop(s.Canvas, 0, -right, 0, 0))
		return nil
	}
	return f
}

// columns draws the grid lines of the values of horizontal bars.
func (s *sheet) columns(p *plot.Plot) {
	tx, _ := p.Transforms(&s.Canvas)
	for _, t := range p.X.Tick.Marker.Ticks(p.X.Min, p.X.Max) {
		s.StrokeLines(s.line(Grid, 0.7), []vg.Point{{X: tx(t.Value), Y: s.Min.Y}, {X: tx(t.Value), Y: s.Max.Y}})
	}
}

// behind writes a note behind the end of a bar, over whatever is there.
func (s *sheet) behind(end, y vg.Length, text string) {
	note := s.style(Text, sizeLabel, false)
	at := vg.Point{X: end + 6, Y: y - note.Font.Size*0.35}
	s.rect(Back, vg.Rectangle{Min: vg.Point{X: at.X - 2, Y: at.Y - 3}, Max: vg.Point{X: at.X + note.Width(text) + 2, Y: at.Y + note.Font.Size}})
	s.FillText(note, at, text)
}

func (s *sheet) bars(p *plot.Plot, bars []Bar) {
	tx, ty := p.Transforms(&s.Canvas)
	s.columns(p)
	slot := (s.Max.Y - s.Min.Y) / vg.Length(len(bars))
	half := min(slot*0.3, 7)
	if s.layout.narrow {
		half = min(slot*0.2, 5)
	}
	note := s.style(Text, sizeLabel, false)
	for i, b := range bars {
		y := ty(float64(len(bars) - 1 - i))
		if s.layout.narrow { // the label and the note in a line above the bar
			y -= slot * 0.22
			s.FillText(note, vg.Point{X: s.Min.X, Y: y + half + 2.5}, b.Label+": "+b.Note)
		}
		s.rect(b.Ink, vg.Rectangle{Min: vg.Point{X: s.Min.X, Y: y - half}, Max: vg.Point{X: tx(b.Value), Y: y + half}})
		end := tx(b.Value)
		if b.High > b.Low {
			lo, hi := tx(b.Low), tx(b.High)
			s.StrokeLines(s.line(Text, 1.2), []vg.Point{{X: lo, Y: y}, {X: hi, Y: y}},
				[]vg.Point{{X: lo, Y: y - 3}, {X: lo, Y: y + 3}}, []vg.Point{{X: hi, Y: y - 3}, {X: hi, Y: y + 3}})
			end = max(end, hi)
		}
		if !s.layout.narrow {
			s.behind(end, y, b.Note)
		}
	}
}

type barTicks []Bar

func (t barTicks) Ticks(lo, hi float64) []plot.Tick {
	var out []plot.Tick
	for i, b := range t {
		out = append(out, plot.Tick{Value: float64(len(t) - 1 - i), Label: b.Label})
	}
	return out
}
