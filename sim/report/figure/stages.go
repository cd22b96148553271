package figure

import (
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Part is a piece of a bar.
type Part struct {
	Ink   Ink
	Value float64
}

// Stack is a bar of parts, in milliseconds, from left to right.
type Stack struct {
	Label string
	Note  string // its length in words
	Parts []Part
}

// Breakdown is bars that share a scale, and what they are of.
type Breakdown struct {
	Label string
	Bars  []Stack
}

// Stacks draws where the time of deliveries went, a panel with a scale of its
// own for each part of the latencies. Parts of one ink are of one role, and so
// have one key.
func Stacks(panels []Breakdown, alt string) *Figure {
	f := &Figure{Name: "stages", Title: "Where did the p99 go?", Alt: alt, height: 0.3,
		Subtitle: "Milliseconds in each stage, in the order of the way: means of the deliveries around the median, and around p99."}
	for _, pn := range panels {
		f.height += 0.2 + 0.1*float64(len(pn.Bars))
	}
	if len(panels) > 0 {
		f.keys = []key{{"client, before it writes", Pale, markBox}, {"between client and gateway", Sky, markBox}, {"gateway and its hop", Blue, markBox},
			{"message service", Orange, markBox}, {"Kafka", Grey, markBox}, {"fan-out", Green, markBox}, {"inbox", Vermilion, markBox}}
	}
	f.draw = func(s *sheet) error {
		if len(panels) == 0 {
			s.nothing()
			return nil
		}
		right := vg.Length(12)
		for _, pn := range panels {
			for _, b := range pn.Bars {
				if !s.layout.narrow {
					right = max(right, s.style(Text, sizeLabel, false).Width(b.Note)+10)
				}
			}
		}
		plots := make([][]*plot.Plot, len(panels))
		for i, pn := range panels {
			plots[i] = []*plot.Plot{s.stackPlot(pn.Bars)}
		}
		plots[len(panels)-1][0].X.Label.Text = "milliseconds"
		tiles := draw.Tiles{Rows: len(panels), Cols: 1, PadY: 20, PadTop: 14, PadRight: right}
		cs := plot.Align(plots, tiles, s.Canvas)
		for i, row := range plots {
			row[0].Draw(cs[i][0])
			s.FillText(s.style(Text, sizeLabel, true), vg.Point{X: cs[i][0].Min.X, Y: cs[i][0].Max.Y + 3}, panels[i].Label)
		}
		return nil
	}
	return f
}

// stackPlot is one panel.
func (s *sheet) stackPlot(bars []Stack) *plot.Plot {
	p := s.plot()
	hi := 0.0
	var labels plot.ConstantTicks
	for i, b := range bars {
		hi = math.Max(hi, b.length())
		labels = append(labels, plot.Tick{Value: float64(len(bars) - 1 - i), Label: b.Label})
	}
	p.X.Min, p.X.Max = 0, math.Max(hi, 1e-9)
	p.X.Tick.Marker = steps{n: 6}
	p.Y.Min, p.Y.Max = -0.5, float64(len(bars))-0.5
	p.Y.Tick.Marker = labels
	p.Y.Tick.Label.Color = s.ink(Text)
	if s.layout.narrow {
		p.X.Tick.Marker = steps{n: 3}
		p.Y.Tick.Marker = plot.ConstantTicks{}
	}
	s.add(p, func(s *sheet, p *plot.Plot) { s.stacks(p, bars) })
	return p
}

func (b Stack) length() (sum float64) {
	for _, p := range b.Parts {
		sum += p.Value
	}
	return sum
}

func (s *sheet) stacks(p *plot.Plot, bars []Stack) {
	tx, ty := p.Transforms(&s.Canvas)
	s.columns(p)
	slot := (s.Max.Y - s.Min.Y) / vg.Length(len(bars))
	half := min(slot*0.3, 9)
	if s.layout.narrow {
		half = min(slot*0.2, 6)
	}
	note := s.style(Text, sizeLabel, false)
	for i, b := range bars {
		y := ty(float64(len(bars) - 1 - i))
		if s.layout.narrow { // the label and the note in a line above the bar
			y -= slot * 0.22
			s.FillText(note, vg.Point{X: s.Min.X, Y: y + half + 2.5}, b.Label+": "+b.Note)
		}
		sum := 0.0
		for _, part := range b.Parts {
			from, to := tx(sum), tx(sum+part.Value)
			sum += part.Value
			if to-from > 2 { // a gap tells neighbours of one ink apart
				to -= 0.7
			}
			s.rect(part.Ink, vg.Rectangle{Min: vg.Point{X: from, Y: y - half}, Max: vg.Point{X: to, Y: y + half}})
		}
		if !s.layout.narrow {
			s.behind(tx(sum), y, b.Note)
		}
	}
}
