package figure

import (
	"image/color"
	"math"
	"strconv"
	"strings"

	"golang.org/x/image/font"
	"gonum.org/v1/plot"
	plotfont "gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// sheet is the canvas of one figure while it is drawn, with its theme.
type sheet struct {
	draw.Canvas
	theme  Theme
	layout Layout
}

func (s *sheet) ink(i Ink) color.Color { return s.theme.of(i) }

func (s *sheet) fill(i Ink) {
	s.SetColor(s.ink(i))
	s.Fill(s.Rectangle.Path())
}

func (s *sheet) line(i Ink, w vg.Length) draw.LineStyle {
	return draw.LineStyle{Color: s.ink(i), Width: w}
}

func (s *sheet) dashed(i Ink, w vg.Length) draw.LineStyle {
	return draw.LineStyle{Color: s.ink(i), Width: w, Dashes: []vg.Length{4, 2.5}}
}

// Type sizes in points, the same in both layouts: a narrow figure is shown
// narrower, not smaller.
const (
	sizeTitle  = 13.5
	sizeLabel  = 10.5
	sizeLegend = 11
	sizeNote   = 9.5
)

func (s *sheet) style(i Ink, size float64, bold bool) text.Style {
	f := plotfont.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Length(size)}
	if bold {
		f.Weight = font.WeightBold
	}
	return text.Style{Color: s.ink(i), Font: f, Handler: plot.DefaultTextHandler}
}

// wrap breaks txt at spaces so that no line is wider than w.
func wrap(st text.Style, txt string, w vg.Length) []string {
	var lines []string
	cur := ""
	for word := range strings.FieldsSeq(txt) {
		next := strings.TrimSpace(cur + " " + word)
		if cur != "" && st.Width(next) > w {
			lines, next = append(lines, cur), word
		}
		cur = next
	}
	if cur != "" {
		lines = append(lines, cur)
	}
	return lines
}

// header draws title, subtitle and legend and crops them off the sheet.
func (s *sheet) header(title, subtitle string, keys []key) {
	w := s.Max.X - s.Min.X
	y := s.Max.Y
	put := func(st text.Style, txt string, lead vg.Length) {
		for _, l := range wrap(st, txt, w) {
			y -= st.Font.Size
			s.FillText(st, vg.Point{X: s.Min.X, Y: y}, l)
			y -= lead
		}
	}
	put(s.style(Text, sizeTitle, true), title, 3)
	y--
	put(s.style(Muted, sizeLabel, false), subtitle, 3)
	y = s.legend(keys, y-2)
	s.Max.Y = y - 3
}

// nothing says that there is no data, in place of a plot.
func (s *sheet) nothing() {
	st := s.style(Muted, sizeLegend, false)
	txt := "nothing was measured"
	s.FillText(st, vg.Point{X: (s.Min.X+s.Max.X)/2 - st.Width(txt)/2, Y: (s.Min.Y + s.Max.Y) / 2}, txt)
}

// legend draws the keys in rows from y down and returns where it ended.
func (s *sheet) legend(keys []key, y vg.Length) vg.Length {
	if len(keys) == 0 {
		return y
	}
	const swatch, gap, between, row = 16, 5, 14, 15
	st := s.style(Text, sizeLegend, false)
	x := s.Min.X
	y -= st.Font.Size
	for _, k := range keys {
		w := swatch + gap + st.Width(k.label)
		if x > s.Min.X && x+w > s.Max.X {
			x, y = s.Min.X, y-row
		}
		s.mark(k, vg.Point{X: x, Y: y + st.Font.Size*0.33}, swatch)
		s.FillText(st, vg.Point{X: x + swatch + gap, Y: y}, k.label)
		x += w + between
	}
	return y - 4
}

// mark draws the sample of a legend entry, w wide, centred on the height of at.
func (s *sheet) mark(k key, at vg.Point, w vg.Length) {
	end := vg.Point{X: at.X + w, Y: at.Y}
	mid := vg.Point{X: at.X + w/2, Y: at.Y}
	switch k.mark {
	case markBox:
		s.rect(k.ink, vg.Rectangle{Min: vg.Point{X: at.X + 2, Y: at.Y - 4.5}, Max: vg.Point{X: at.X + w - 2, Y: at.Y + 4.5}})
	case markDot:
		s.dot(k.ink, mid, 3.6)
	case markRing:
		s.ring(k.ink, mid, 3.4)
	case markThick:
		s.StrokeLines(s.line(k.ink, 4.5), []vg.Point{at, end})
	case markDash:
		s.StrokeLines(s.dashed(k.ink, 1.4), []vg.Point{at, end})
	default:
		s.StrokeLines(s.line(k.ink, 2), []vg.Point{at, end})
	}
}

func (s *sheet) rect(i Ink, r vg.Rectangle) {
	s.SetColor(s.ink(i))
	s.Fill(r.Path())
}

func (s *sheet) dot(i Ink, at vg.Point, r vg.Length) {
	s.DrawGlyphNoClip(draw.GlyphStyle{Color: s.ink(i), Radius: r, Shape: draw.CircleGlyph{}}, at)
}

func (s *sheet) ring(i Ink, at vg.Point, r vg.Length) {
	s.dot(i, at, r)
	s.dot(Back, at, r-1.5)
}

// plot is an empty plot in the house style: no frame, a quiet horizontal grid.
func (s *sheet) plot() *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.LineStyle = s.line(Muted, 0.7)
		a.Tick.LineStyle = s.line(Muted, 0.7)
		a.Tick.Length = 3.5
		x, y := a.Tick.Label.XAlign, a.Tick.Label.YAlign
		a.Tick.Label = s.style(Muted, sizeLabel, false)
		a.Tick.Label.XAlign, a.Tick.Label.YAlign = x, y
		a.Label.TextStyle = s.style(Muted, sizeLabel, false)
		a.Label.TextStyle.XAlign, a.Label.TextStyle.YAlign = draw.XCenter, draw.YBottom
		a.Padding = 3
	}
	p.Y.LineStyle.Width = 0
	p.Y.Tick.Length = 0
	return p
}

// painter lets a function be a plotter.
type painter func(s *sheet, p *plot.Plot)

type painted struct {
	s *sheet
	f painter
}

func (p painted) Plot(c draw.Canvas, pl *plot.Plot) {
	s := &sheet{Canvas: c, theme: p.s.theme, layout: p.s.layout}
	p.f(s, pl)
}

func (s *sheet) add(p *plot.Plot, f painter) { p.Add(painted{s: s, f: f}) }

// grid draws a line at each labelled tick of y.
func (s *sheet) grid(p *plot.Plot) {
	s.add(p, func(s *sheet, p *plot.Plot) {
		_, ty := p.Transforms(&s.Canvas)
		for _, t := range p.Y.Tick.Marker.Ticks(p.Y.Min, p.Y.Max) {
			if t.Label == "" {
				continue
			}
			y := ty(t.Value)
			if y > s.Max.Y-13 {
				continue // the names of the phases are there
			}
			s.StrokeLines(s.line(Grid, 0.7), []vg.Point{{X: s.Min.X, Y: y}, {X: s.Max.X, Y: y}})
		}
	})
}

// curve draws one line; NaN breaks it. With a log axis, pass only positive values or NaN.
func (s *sheet) curve(p *plot.Plot, pts []Point, st draw.LineStyle) {
	s.add(p, func(s *sheet, p *plot.Plot) {
		tx, ty := p.Transforms(&s.Canvas)
		var run []vg.Point
		flush := func() {
			if len(run) > 1 {
				s.StrokeLines(st, s.ClipLinesXY(run)...)
			} else if len(run) == 1 && s.Contains(run[0]) {
				s.DrawGlyph(draw.GlyphStyle{Color: st.Color, Radius: st.Width, Shape: draw.CircleGlyph{}}, run[0])
			}
			run = nil
		}
		for _, q := range pts {
			if math.IsNaN(q.X) || math.IsNaN(q.Y) || (p.Y.Min > 0 && q.Y <= 0) {
				flush()
				continue
			}
			run = append(run, vg.Point{X: tx(q.X), Y: ty(q.Y)})
		}
		flush()
	})
}

// Point is a place in data units.
type Point struct{ X, Y float64 }

// number writes v with thousands separators and three significant digits
// or, above 100, none after the point.
func number(v float64) string {
	a := math.Abs(v)
	t := "0"
	switch {
	case a >= 100:
		t = strconv.FormatFloat(v, 'f', 0, 64)
	case a > 0:
		k := math.Pow(10, 2-math.Floor(math.Log10(a)))
		t = strconv.FormatFloat(math.Round(v*k)/k, 'f', -1, 64)
	}
	whole, frac, found := strings.Cut(t, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if found {
		return whole + "." + frac
	}
	return whole
}

// decades labels the powers of ten of a log axis and marks 2 and 5 between them
// when there are few.
type decades struct{}

func (decades) Ticks(lo, hi float64) []plot.Tick {
	var out []plot.Tick
	few := math.Log10(hi/lo) < 3.1
	for e := math.Floor(math.Log10(lo)); e <= math.Ceil(math.Log10(hi)); e++ {
		for _, m := range []float64{1, 2, 5} {
			v := m * math.Pow(10, e)
			if v < lo*0.999 || v > hi*1.001 || (m != 1 && !few) {
				continue
			}
			out = append(out, plot.Tick{Value: v, Label: number(v)})
		}
	}
	return out
}

// steps labels about n round values of a linear axis.
type steps struct{ n int }

func (t steps) Ticks(lo, hi float64) []plot.Tick {
	raw := (hi - lo) / float64(t.n)
	if raw <= 0 || math.IsInf(raw, 0) || math.IsNaN(raw) {
		return []plot.Tick{{Value: lo, Label: number(lo)}}
	}
	mag := math.Pow(10, math.Floor(math.Log10(raw)))
	step := mag
	for _, m := range []float64{1, 2, 2.5, 5, 10} {
		if step = m * mag; step >= raw {
			break
		}
	}
	var out []plot.Tick
	for i := math.Ceil(lo/step - 1e-9); i*step <= hi+step*1e-9; i++ {
		out = append(out, plot.Tick{Value: i * step, Label: number(i * step)})
	}
	return out
}
