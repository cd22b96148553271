package figure

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// samples are one of each figure, with shapes like those of a real run.
func samples() []*Figure {
	rng := rand.New(rand.NewPCG(1, 2))
	spans := []Span{{"ramp", 0, 18, false}, {"backlog", 18, 40, false}, {"warm-up", 40, 55, false}, {"steady (gated)", 55, 115, true}, {"spike 5x", 115, 135, false}, {"settle", 135, 142, false}}
	level := func(t float64) float64 {
		switch {
		case t < 18:
			return 5
		case t < 40:
			return 120
		case t > 135:
			return 0
		case t > 115:
			return 1790
		}
		return 358
	}
	var off, acc, del, p50, p99, top []Point
	layers := []Layer{{Label: "gateway", Ink: Blue}, {Label: "message", Ink: Orange}, {Label: "fan-out", Ink: Green}, {Label: "group", Ink: Purple},
		{Label: "inbox", Ink: Vermilion}, {Label: "push", Ink: Sky}, {Label: "infrastructure", Ink: Grey}, {Label: "generator", Ink: Pale}}
	for t := 1.0; t <= 142; t++ {
		l := level(t)
		o := l + math.Sqrt(l)*rng.NormFloat64()
		off = append(off, Point{t, o})
		acc = append(acc, Point{t, o * 0.995})
		del = append(del, Point{t, o*2.73 + math.Sqrt(l)*2*rng.NormFloat64()})
		if l > 0 {
			b := 2 + l/700
			p50 = append(p50, Point{t, b * math.Exp(0.1*rng.NormFloat64())})
			p99 = append(p99, Point{t, b * 6 * math.Exp(0.2*rng.NormFloat64())})
			top = append(top, Point{t, b * 20 * math.Exp(0.5*rng.NormFloat64())})
		}
		for i := range layers {
			layers[i].Points = append(layers[i].Points, Point{t, (0.02 + l/9000) * (1 + 0.2*rng.NormFloat64())})
		}
	}
	var curves []Curve
	for i, n := range []string{"send to sent", "send to deliver, direct", "send to deliver, group", "inbox drain", "login"} {
		c := Curve{Label: n, Ink: []Ink{Blue, Green, Orange, Purple, Sky}[i], Sure: 2.5 + float64(i%2)*0.5}
		for x := 0.0; x <= 4.2; x += 0.05 {
			c.Points = append(c.Points, Point{x, (0.8 + float64(i)*0.6) * math.Exp(x*(0.7+0.1*float64(i)))})
		}
		curves = append(curves, c)
	}
	classes := []Class{{"2-4", 4210, 2, 9, 2.2, 12}, {"5-10", 1840, 2.1, 8, 3, 15}, {"11-30", 420, 2, 9, 3.4, 18}, {"31-100", 210, 2.2, math.NaN(), 5, math.NaN()},
		{"101-256", 90, 2.6, math.NaN(), 7, math.NaN()}, {"257-1023", 61, 3, math.NaN(), 11, math.NaN()}, {"1024", 20, 4, math.NaN(), 19, math.NaN()}}
	bars := []Bar{{"gateway", Blue, 812, 770, 850, "812 cores, 87 instances"}, {"message", Orange, 310, 290, 330, "310 cores, 35 instances"},
		{"fan-out", Green, 215, 200, 228, "215 cores, 25 instances"}, {"group", Purple, 42, 30, 55, "42 cores, 7 instances"},
		{"inbox", Vermilion, 1120, 1040, 1190, "1,120 cores, 119 instances"}, {"push", Sky, 66, 60, 72, "66 cores, 9 instances"}}
	return []*Figure{
		Spectrum(curves, "alt"),
		OverTime(spans, []Panel{{"Direct", p50, p99, top, 200}, {"Group", p50, p99, top, 0}}, "alt"),
		Rates(spans, off, acc, del, "alt"),
		FanOut(classes, "alt"),
		CPU(spans, layers, 2, "alt"),
		Held(spans, []Curve{{Label: "gateway", Ink: Blue, Points: p99}, {Label: "inbox", Ink: Vermilion, Points: p50}}, []Curve{{Label: "gateway", Ink: Blue, Points: top}}, "alt"),
		Stacks([]Breakdown{
			{"Around the median", []Stack{stack("direct", "3.4 ms", 0.1, 0.3, 0.6, 0.7, 0, 0, 1.1, 0.3, 0.3), stack("group", "5.8 ms", 0.1, 0.3, 0.6, 0.9, 1.7, 0.6, 0.9, 0.4, 0.3)}},
			{"Around p99", []Stack{stack("direct", "121 ms", 1, 12, 3, 22, 0, 0, 81, 1, 1), stack("group", "248 ms", 1, 52, 3, 5, 9, 4, 171, 1, 2)}}}, "alt"),
		Tiers("Cores by tier for 100 B messages a day", "At the diurnal peak, before headroom. Whiskers: 95% interval over time blocks.", "cores of the machine of the run", bars, "alt"),
	}
}

func stack(label, note string, ms ...float64) Stack {
	s := Stack{Label: label, Note: note}
	for i, v := range ms {
		s.Parts = append(s.Parts, Part{[]Ink{Pale, Sky, Blue, Orange, Grey, Green, Vermilion, Blue, Sky}[i], v})
	}
	return s
}

func TestFiguresAreWellFormedAndRepeatable(t *testing.T) {
	if testing.Short() { // it only computes: nothing for the race detector
		t.Skip("short")
	}
	out := os.Getenv("FIGURES") // a folder to look at them
	for _, f := range samples() {
		for _, l := range []Layout{Wide(), Narrow()} {
			for _, th := range []Theme{Light(), Dark()} {
				a, err := f.SVG(th, l)
				if err != nil {
					t.Fatal(err)
				}
				b, err := f.SVG(th, l)
				if err != nil || !bytes.Equal(a, b) {
					t.Errorf("%s %s %s: two drawings differ (%v)", f.Name, l.Name, th.Name, err)
				}
				wellFormed(t, f.Name, a)
				if bytes.Contains(a, []byte("NaN")) || bytes.Contains(a, []byte("Inf")) {
					t.Errorf("%s %s: a coordinate is not finite", f.Name, l.Name)
				}
				if l.Name != Wide().Name && out == "" { // the same drawing, and a report has no such file
					continue
				}
				p, err := f.PNG(th, l)
				if err != nil {
					t.Fatal(err)
				}
				img, err := png.Decode(bytes.NewReader(p))
				if err != nil {
					t.Fatal(err)
				}
				if w := img.Bounds().Dx(); w < 600 {
					t.Errorf("%s %s: %d pixels wide", f.Name, l.Name, w)
				}
				if out != "" {
					name := filepath.Join(out, f.Name+"-"+l.Name+"-"+th.Name)
					if err := errors.Join(os.WriteFile(name+".png", p, 0o644), os.WriteFile(name+".svg", a, 0o644)); err != nil {
						t.Fatal(err)
					}
				}
			}
			in, err := f.Inline(l)
			if err != nil {
				t.Fatal(err)
			}
			wellFormed(t, f.Name, []byte(in))
			if strings.Contains(in, "#0B62A8") || !strings.Contains(in, "var(--fig-text)") {
				t.Errorf("%s: inline figure keeps its own colours", f.Name)
			}
		}
	}
}

func wellFormed(t *testing.T, name string, b []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.05: "0.05", 0.25: "0.25", 1: "1", 2.5: "2.5", 12.34: "12.3", 123.4: "123", 1234: "1,234", -1234567: "-1,234,567"} {
		if got := number(v); got != want {
			t.Errorf("number(%g) = %s, want %s", v, got, want)
		}
	}
}

func TestEmptyFiguresAreDrawn(t *testing.T) {
	spans := []Span{{"steady", 0, 10, true}}
	for _, f := range []*Figure{Spectrum(nil, ""), OverTime(spans, []Panel{{Label: "Direct"}}, ""), Rates(spans, nil, nil, nil, ""), FanOut(nil, ""), Stacks(nil, ""), CPU(spans, nil, 2, ""), Held(spans, nil, nil, ""), Tiers("", "", "", nil, "")} {
		if _, err := f.SVG(Light(), Wide()); err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}
