package figure

import (
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Held draws the resident memory (MiB) and the goroutines of each process over
// time, a line a process, in two panels. Curves of one label share a colour and
// an entry in the legend.
func Held(spans []Span, memory, goroutines []Curve, alt string) *Figure {
	f := &Figure{Name: "held", Title: "Memory and goroutines of each process", height: 1.3, Alt: alt,
		Subtitle: "A line for each process, log scale. Level lines are what a system looks like that keeps nothing of who has left."}
	seen := map[string]bool{}
	for _, c := range memory {
		if !seen[c.Label] {
			seen[c.Label] = true
			f.keys = append(f.keys, key{label: c.Label, ink: c.Ink})
		}
	}
	panels := []struct {
		label  string
		curves []Curve
	}{{"Resident memory, MiB", memory}, {"Goroutines", goroutines}}
	f.draw = func(s *sheet) error {
		plots := make([][]*plot.Plot, len(panels))
		for i, pn := range panels {
			p := s.plot()
			plots[i] = []*plot.Plot{p}
			var series [][]Point
			for _, c := range pn.curves {
				series = append(series, c.Points)
			}
			lo, hi := extent(series...)
			logAxis(p, lo, hi*1.6)
			s.timeAxis(p, spans)
			if i < len(panels)-1 {
				p.X.Label.Text = ""
			}
			s.bands(p, spans, i == 0)
			s.grid(p)
			for _, c := range pn.curves {
				s.curve(p, c.Points, s.line(c.Ink, 1.5))
			}
		}
		cs := plot.Align(plots, draw.Tiles{Rows: len(panels), Cols: 1, PadY: 20, PadTop: 14}, s.Canvas)
		for i, row := range plots {
			row[0].Draw(cs[i][0])
			s.FillText(s.style(Text, sizeLabel, true), vg.Point{X: cs[i][0].Min.X, Y: cs[i][0].Max.Y + 4}, panels[i].label)
		}
		return nil
	}
	return f
}
