package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"throng/sim/report/figure"
)

// busyCores is from when on the page says that others used the machine.
const busyCores = 0.15

// comparison is the machine-readable form of the page.
type comparison struct {
	Date       string       `json:"date"`
	Machine    string       `json:"machine"`
	Versions   []string     `json:"versions"`
	NotRun     []string     `json:"not_run"`
	Users      int          `json:"users"`
	SteadyS    int          `json:"steady_s"`
	Quantiles  []float64    `json:"quantiles"`
	Generators []generation `json:"generators,omitempty"`
	Backends   []backend    `json:"backends,omitempty"`
}

// write writes README.md, peers.json and the plots.
func (c *comparison) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	c.Quantiles = quantiles()
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	files := map[string][]byte{"peers.json": append(data, '\n'), "README.md": []byte(c.text())}
	for _, f := range c.figures() {
		if files[f.Name+".svg"], err = f.SVG(figure.Light(), figure.Wide()); err != nil {
			return err
		}
		if files[f.Name+".png"], err = f.PNG(figure.Light(), figure.Wide()); err != nil {
			return err
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// spread is the median of what the runs of one name had, and their range.
type spread struct{ mid, low, high float64 }

func spreadOf[T any](runs []T, of func(T) (float64, bool)) spread {
	var v []float64
	for _, r := range runs {
		if x, ok := of(r); ok {
			v = append(v, x)
		}
	}
	if len(v) == 0 {
		return spread{}
	}
	slices.Sort(v)
	return spread{(v[(len(v)-1)/2] + v[len(v)/2]) / 2, v[0], v[len(v)-1]}
}

func (c *comparison) generator(name string, of func(generation) float64) spread {
	return spreadOf(c.Generators, func(g generation) (float64, bool) { return of(g), g.Name == name })
}

func (c *comparison) backend(name string, of func(backend) float64) spread {
	return spreadOf(c.Backends, func(b backend) (float64, bool) { return of(b), b.Name == name })
}

// show prints a spread with so many digits after the point.
func (s spread) show(digits int) string {
	if s.low == s.high {
		return fmt.Sprintf("%.*f", digits, s.mid)
	}
	return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, s.mid, digits, s.low, digits, s.high)
}

func (c *comparison) text() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Peers on the same work\n\nMade by `make bench-peers` on %s, %s; medians, and the range of the runs, which took turns.\n", c.Date, c.Machine)
	fmt.Fprintf(&b, "CPU is that of whole process trees, from /proc. Versions: %s.\n", strings.Join(c.Versions, "; "))
	others := 0.0
	for _, g := range c.Generators {
		others = max(others, g.OtherCores)
	}
	for _, x := range c.Backends {
		others = max(others, x.OtherCores)
	}
	if others > busyCores {
		fmt.Fprintf(&b, "\n**The machine was busy**: other processes used up to %.1f cores beside these runs, so the latencies are worse than they need to be, and CPU figures are not for quoting.\n", others)
	} else {
		fmt.Fprintf(&b, "Other processes used at most %.2f cores.\n", others)
	}
	for _, name := range c.NotRun {
		fmt.Fprintf(&b, "\n**NOT RUN**: %s, which is not installed here.\n", name)
	}
	b.WriteString("\nTo make it again:\n\n```sh\n")
	for _, p := range peers() {
		for _, line := range p.install {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString("make bench-peers\n```\n")
	c.generatorText(&b)
	c.backendText(&b)
	b.WriteString("\n[peers.json](peers.json) has every run with its percentiles.\n")
	return b.String()
}

func (c *comparison) generatorText(b *bytes.Buffer) {
	if len(c.Generators) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## Generators of load\n\n%d users, each with one message a second at fixed times, for %d s after a warm-up, against the same gateway with nothing behind it (`sim/load/roundtrip`;\n"+
		"k6: [testdata/peers/k6.js](../../testdata/peers/k6.js)). The truth is what a probe beside it sees: %d sockets of another process at the same gateway in the same seconds. throng decodes and checks every frame,\n"+
		"keeps the audit's log and a histogram a second, and looks up once a millisecond (resolution: 1ms), by which what it reports may be too late; k6 sends the same bytes each time and decodes nothing.\n\n", c.Users, c.SteadyS, probes)
	type row struct {
		name   string
		digits int
		of     func(generation) float64
	}
	rows := []row{
		{"CPU-seconds for 1,000 round trips", 3, func(g generation) float64 { return g.CPUPer1000 }},
		{"round trips a second", 0, func(g generation) float64 { return g.PerS }},
		{"KB of memory a user (whole process)", 1, func(g generation) float64 { return g.RSSPerUser / 1000 }},
		{"p50 as it reports it, from the intended time, ms", 2, func(g generation) float64 { return at(g.Reported, 50) }},
		{"p50 by the probe, ms", 2, func(g generation) float64 { return at(g.Truth, 50) }},
		{"**p99 as it reports it**, from the intended time, ms", 2, func(g generation) float64 { return at(g.Reported, 99) }},
		{"**p99 by the probe**, ms", 2, func(g generation) float64 { return at(g.Truth, 99) }},
		{"p99 within the gateway, read to written, ms", 3, func(g generation) float64 { return g.ServeP99 }},
	}
	b.WriteString("| | throng | k6 |\n|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(b, "| %s | %s | %s |\n", r.name, c.generator("throng", r.of).show(r.digits), c.generator("k6", r.of).show(r.digits))
	}
	send := func(of func(generation) []float64) string {
		return c.generator("k6", func(g generation) float64 { return at(of(g), 99) }).show(1)
	}
	fmt.Fprintf(b, "| p99 from the send, steady phase, ms | | %s |\n", send(func(g generation) []float64 { return g.FromSend }))
	fmt.Fprintf(b, "| p99 from the send, whole run, ms | | %s |\n", send(func(g generation) []float64 { return g.Whole }))
	fmt.Fprintf(b, "| p99 of its own lateness, ms | %s | not told |\n", c.generator("throng", func(g generation) float64 { return g.LateP99 }).show(2))
	b.WriteString("\nA run of throng whose lateness is above 10 ms at p99 is inconclusive and gives no capacity; k6 counts iterations that it dropped, and does not tell how late it was.\n")
	b.WriteString("\n![Latency by percentile: what each generator reports, and what the probe saw](spectrum.png)\n")
}

func (c *comparison) backendText(b *bytes.Buffer) {
	if len(c.Backends) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## Backends: groups of %d\n\n%d groups, everybody online, %d messages a second in all (`BenchmarkBackendGroup100`; memory: `BenchmarkIdleUsers`, the gateway's). The work for a delivery is not the same:\n"+
		"Centrifugo, with its memory engine, hands a message to who is there at that moment and forgets it; throng stores it, in order, in the log of the group and in the inbox of each device until the device\n"+
		"has acknowledged it, and some of its members have two devices. The gateway's line is the part that is like Centrifugo's.\n\n", members, groups, rate)
	b.WriteString("| | throng | Centrifugo |\n|---|---|---|\n")
	for _, r := range []struct {
		name   string
		digits int
		of     func(backend) float64
	}{
		{"deliveries for each CPU-second, everything included", 0, func(x backend) float64 { return x.PerCPUS }},
		{"deliveries a second", 0, func(x backend) float64 { return x.PerS }},
		{"KB of memory a connection", 1, func(x backend) float64 { return x.RSSPerConn / 1000 }},
	} {
		fmt.Fprintf(b, "| %s | %s | %s |\n", r.name, c.backend("throng", r.of).show(r.digits), c.backend("centrifugo", r.of).show(r.digits))
	}
	fmt.Fprintf(b, "| deliveries for each CPU-second of the gateway | %s | |\n", c.backend("throng", func(x backend) float64 { return x.Gateway }).show(0))
	fmt.Fprintf(b, "| p99 of a delivery, ms | | %s |\n", c.backend("centrifugo", func(x backend) float64 { return at(x.Latency, 99) }).show(1))
	fmt.Fprintf(b, "\nCentrifugo was asked for %d deliveries a second, publishers included.\n", rate*members)
}

// figures are the plots of the page.
func (c *comparison) figures() []*figure.Figure {
	if len(c.Generators) == 0 {
		return nil
	}
	var curves []figure.Curve
	for _, x := range []struct {
		label, name string
		ink         figure.Ink
		of          func(generation) []float64
	}{
		{"k6 reports", "k6", figure.Vermilion, func(g generation) []float64 { return g.Reported }},
		{"probe beside k6", "k6", figure.Orange, func(g generation) []float64 { return g.Truth }},
		{"throng reports", "throng", figure.Blue, func(g generation) []float64 { return g.Reported }},
		{"probe beside throng", "throng", figure.Sky, func(g generation) []float64 { return g.Truth }},
	} {
		curve := figure.Curve{Label: x.label, Ink: x.ink, Sure: figure.Nines(0.99)}
		for i, q := range quantiles() {
			mid := c.generator(x.name, func(g generation) float64 { return x.of(g)[i] }).mid
			curve.Points = append(curve.Points, figure.Point{X: figure.Nines(q / 100), Y: max(mid, 0.05)})
		}
		curves = append(curves, curve)
	}
	p99 := func(name string, of func(generation) []float64) float64 {
		return c.generator(name, func(g generation) float64 { return at(of(g), 99) }).mid
	}
	told, truth := func(g generation) []float64 { return g.Reported }, func(g generation) []float64 { return g.Truth }
	return []*figure.Figure{figure.Spectrum(curves, fmt.Sprintf("p99: k6 reports %.1f ms where the probe sees %.1f ms, throng %.1f ms where it sees %.1f ms",
		p99("k6", told), p99("k6", truth), p99("throng", told), p99("throng", truth)))}
}
