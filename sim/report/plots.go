package report

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"throng/sim/capacity"
	"throng/sim/history"
	"throng/sim/report/figure"
)

// plotted is a figure with its inline forms, ready for the page.
type plotted struct {
	fig          *figure.Figure
	Wide, Narrow string
	Caption      string
}

// kindName is a kind of latency for people, with the colour of its curve.
type kindName struct {
	kind, name string
	ink        figure.Ink
}

// kinds are the latencies in the order of tables.
func kindNames() []kindName {
	return []kindName{{history.KindSent, "send to sent", figure.Blue}, {history.KindDeliverDirect, "send to deliver, direct", figure.Green},
		{history.KindDeliverGroup, "send to deliver, group", figure.Orange}, {history.KindDrain, "inbox drain", figure.Purple}, {history.KindLogin, "login", figure.Sky},
		{history.KindRead, "send to read, direct", figure.Grey}, {history.KindDeliveredAll, "send to received by all, group", figure.Grey},
		{history.KindReadAll, "send to read by all, group", figure.Grey}, {history.KindDeliverOwn, "send to own devices, direct", figure.Grey}, {history.KindPush, "push handed over", figure.Grey}, {history.KindGroupChange, "group changed", figure.Grey}, {history.KindMediaUpload, "media: until uploaded", figure.Grey},
		{history.KindMediaFirstByte, "media: delivered to first byte", figure.Grey}, {history.KindMediaFetch, "media: delivered to fetched", figure.Grey},
		{history.KindMediaWhole, "media: sent to fetched, online", figure.Grey}, {history.KindHeld, "replies held", figure.Grey}}
}

// roleName is a tier with its colour; infrastructure shares one.
func roleInk(role string) (string, figure.Ink) {
	switch role {
	case "gateway":
		return "gateway", figure.Blue
	case "message":
		return "message", figure.Orange
	case "fanout":
		return "fan-out", figure.Green
	case "group":
		return "group", figure.Purple
	case "inbox":
		return "inbox", figure.Vermilion
	case "push":
		return "push", figure.Sky
	case "media":
		return "media", figure.Muted
	case "generator":
		return "generator", figure.Pale
	}
	return "infrastructure", figure.Grey
}

// layerOrder are the labels of roleInk from the bottom of the stack.
func layerOrder() []string {
	return []string{"gateway", "message", "fan-out", "group", "inbox", "push", "media", "infrastructure", "generator"}
}

// figuresOf makes the figures of a run.
func figuresOf(run *history.Run, r *Result) []plotted {
	spans := timeSpans(run, r.spec)
	p := &plotter{run: run, r: r, spans: spans}
	return []plotted{
		{fig: p.spectrum(), Caption: "Read it from left to right: half of all messages were faster than the value at 50%, one in a hundred slower than the value at 99%. A straight rise is a thin tail, a step is a group of messages that met something the others did not."},
		{fig: p.overTime(), Caption: "Every second on its own. A p99 that rises steadily means a queue that grows; single high maxima are stalls."},
		{fig: p.stagesFigure(), Caption: "The two panels have scales of their own. A stage that takes a larger part of its bar around p99 than around the median is where the slow messages waited."},
		{fig: p.rates(), Caption: "The schedule is fixed beforehand and never waits for the system: where the blue line leaves the grey one, sends were not accepted in time."},
		{fig: p.fanout(), Caption: "How much later the last online member of a group has a message than the first. Rings are p99 and are left out where fewer than 1,000 messages stand behind them."},
		{fig: p.cpu(), Caption: "The harness and the embedded infrastructure run on the same machine as the backend and are stacked on top. Near the dashed line everything waits for CPU."},
		{fig: p.held(), Caption: "Lines that rise through the whole gated phase are something that is kept for good. Queues fill and empty; memory steps up with the first collections and stays."},
		{fig: p.tiers(), Caption: "What the profile's full traffic needs at its diurnal peak, if each send costs what it cost here. Instances leave 40% of each core free and have two spares."},
	}
}

// timeSpans are the phases from the first load phase to the end of settling.
func timeSpans(run *history.Run, t *terms) []figure.Span {
	var out []figure.Span
	for _, p := range run.Manifest.Phases {
		if p.End <= p.Start || !(p.Load || len(out) > 0 && p.Name == "settle") {
			continue
		}
		name, end := p.Name, p.End
		if !p.Load { // settling may take long; a little of it is enough
			end = math.Min(end, p.Start+math.Max(5, 0.12*(p.Start-out[0].Start)))
		}
		if p.Gated {
			name += " (gated)"
		}
		if p.Name == "spike" && t.spec.Phases.SpikeFactor > 0 {
			name += fmt.Sprintf(" %s×", figures(t.spec.Phases.SpikeFactor))
		}
		out = append(out, figure.Span{Name: name, Start: p.Start, End: end, Gated: p.Gated})
	}
	if len(out) == 0 {
		end := 1.0
		for _, s := range run.Seconds {
			end = math.Max(end, s.T)
		}
		out = []figure.Span{{Name: "run", Start: 0, End: end}}
	}
	return out
}

type plotter struct {
	run   *history.Run
	r     *Result
	spans []figure.Span
}

func (p *plotter) inside(t float64) bool {
	return t > p.spans[0].Start && t <= p.spans[len(p.spans)-1].End
}

func (p *plotter) spectrum() *figure.Figure {
	var curves []figure.Curve
	alt := "p50 and p99 in milliseconds:"
	phase, ok := gatedPhase(p.run)
	for _, k := range kindNames()[:5] {
		if !ok {
			break
		}
		h := p.run.Merged(k.kind, phase.Start, phase.End)
		n := h.TotalCount()
		if n < minP50 {
			continue
		}
		c := figure.Curve{Label: k.name, Ink: k.ink, Sure: figure.Nines(sureTo(n))}
		last := figure.Nines(1 - 1/float64(n))
		for i := range 241 {
			x := last * float64(i) / 240
			q := 1 - math.Pow(10, -x)
			c.Points = append(c.Points, figure.Point{X: x, Y: float64(h.ValueAtQuantile(q*100)) / 1000})
		}
		curves = append(curves, c)
		l := p.r.LatencyMs[k.kind]
		alt += fmt.Sprintf(" %s %s, %s;", k.name, ms(l.P50), ms(l.P99))
	}
	return figure.Spectrum(curves, alt)
}

// sureTo is the highest quantile that n samples support by this report's rule.
func sureTo(n int64) float64 {
	if n >= minP999 {
		return 1 - 100/float64(n)
	}
	return math.Min(1-10/float64(n), 0.999)
}

func (p *plotter) overTime() *figure.Figure {
	gates := p.r.spec.spec.Gates
	var panels []figure.Panel
	for _, k := range []struct {
		kind, name string
		gate       float64
	}{{history.KindDeliverDirect, "Direct messages", gates.P99DeliverDirectMs}, {history.KindDeliverGroup, "Group messages", gates.P99DeliverGroupMs}} {
		pn := figure.Panel{Label: k.name, Gate: k.gate}
		if pn.Gate == 0 {
			pn.Gate = gates.P99DeliverMs
		}
		p.seconds(k.kind, &pn)
		panels = append(panels, pn)
	}
	return figure.OverTime(p.spans, panels, "See the table of phases for the figures.")
}

// seconds fills a panel: maxima of each second, percentiles of each second or,
// where a usual second has fewer than 200 samples, of five.
func (p *plotter) seconds(kind string, pn *figure.Panel) {
	var counts []int64
	p.run.Series(kind, func(q history.Point) {
		if n := q.Hist.TotalCount(); n > 0 && p.inside(q.End) {
			counts = append(counts, n)
			pn.Max = append(pn.Max, figure.Point{X: q.End, Y: float64(q.Hist.Max()) / 1000})
		}
	})
	if len(counts) == 0 {
		return
	}
	slices.Sort(counts)
	width := 1.0
	if counts[len(counts)/2] < 200 {
		width = 5
	}
	for _, s := range p.spans {
		for from := s.Start; from < s.End-width/2; from += width {
			to := math.Min(from+width, s.End)
			h := p.run.Merged(kind, from, to)
			if h.TotalCount() == 0 {
				continue
			}
			at := func(q float64) figure.Point {
				return figure.Point{X: (from + to) / 2, Y: float64(h.ValueAtQuantile(q)) / 1000}
			}
			pn.P50 = append(pn.P50, at(50))
			if h.TotalCount() >= minP90 { // with fewer, p99 is the maximum
				pn.P99 = append(pn.P99, at(99))
			}
		}
	}
}

func (p *plotter) rates() *figure.Figure {
	var offered, accepted, delivered []figure.Point
	for _, s := range p.run.Seconds {
		if p.inside(s.T) {
			offered = append(offered, figure.Point{X: s.T, Y: float64(s.Offered)})
			accepted = append(accepted, figure.Point{X: s.T, Y: float64(s.Accepted)})
			delivered = append(delivered, figure.Point{X: s.T, Y: float64(deliveries(s))})
		}
	}
	return figure.Rates(p.spans, offered, accepted, delivered,
		fmt.Sprintf("Gated phase: %s sends/s offered, %s accepted, %s deliveries/s.", num(p.r.Rates.Offered), num(p.r.Rates.Sends), num(p.r.Rates.Deliveries)))
}

func (p *plotter) fanout() *figure.Figure {
	var classes []figure.Class
	alt := "Median of the last member:"
	for _, c := range history.SizeClasses {
		f, ok := p.r.FanoutMs[c.Name]
		if !ok {
			continue
		}
		classes = append(classes, figure.Class{Name: c.Name, N: f.N, FirstP50: float64(f.First.P50), FirstP99: float64(f.First.P99),
			LastP50: float64(f.Last.P50), LastP99: float64(f.Last.P99)})
		alt += fmt.Sprintf(" %s members %s;", c.Name, ms(f.Last.P50))
	}
	return figure.FanOut(classes, alt)
}

// cpu draws cores over time, in steps of the sampling.
func (p *plotter) cpu() *figure.Figure {
	alt := "Mean cores in the gated phase:"
	for _, role := range p.run.RoleNames() {
		alt += fmt.Sprintf(" %s %s;", role, num(p.r.Roles[role].SteadyCores))
	}
	return figure.CPU(p.spans, p.layers(), float64(max(1, p.r.Machine.Cores)), alt)
}

// layers are the cores of each second, roles of one label together.
func (p *plotter) layers() []figure.Layer {
	byLabel := map[string]*figure.Layer{}
	var times []float64
	for t := math.Ceil(p.spans[0].Start) + 1; t <= p.spans[len(p.spans)-1].End; t++ {
		times = append(times, t)
	}
	for _, role := range p.run.RoleNames() {
		label, ink := roleInk(role)
		l := byLabel[label]
		if l == nil {
			l = &figure.Layer{Label: label, Ink: ink, Points: make([]figure.Point, len(times))}
			byLabel[label] = l
		}
		for i, t := range times {
			cpu, _ := p.run.RoleCPU(role, t-1, t)
			l.Points[i] = figure.Point{X: t - 0.5, Y: l.Points[i].Y + math.Max(0, cpu)}
		}
	}
	var layers []figure.Layer
	for _, label := range layerOrder() {
		if l := byLabel[label]; l != nil {
			layers = append(layers, *l)
		}
	}
	return layers
}

func (p *plotter) tiers() *figure.Figure {
	var bars []figure.Bar
	alt := "Cores:"
	e := p.r.Estimate
	for _, role := range []string{"gateway", "message", "fanout", "group", "inbox", "push"} {
		row, ok := e.Find(role, "cores")
		if !ok {
			continue
		}
		label, ink := roleInk(role)
		note := amount(row.Value, "") + " cores"
		if in, ok := e.Find(role, "instances"); ok {
			note += ", " + amount(in.Value, "") + " instances"
		}
		bars = append(bars, figure.Bar{Label: label, Ink: ink, Value: float64(row.Value), Low: float64(row.Low), High: float64(row.High), Note: note})
		alt += fmt.Sprintf(" %s %s;", label, note)
	}
	sub := "Cores at the diurnal peak, before headroom. Whiskers: 95% interval over time blocks of the run."
	if len(bars) == 0 {
		sub = "Not given: " + firstOf(e.NotUsable, "no CPU samples")
	}
	return figure.Tiers("Capacity for "+perDay(e.Profile)+" messages a day", sub, "cores of this machine", bars, alt)
}

func perDay(p capacity.Profile) string {
	if p.MessagesPerDay <= 0 {
		return "the profile's"
	}
	return figures(p.MessagesPerDay/1e9) + " billion"
}

// inline draws the figures for the page.
func inline(figs []plotted) error {
	for i := range figs {
		f := &figs[i]
		var err error
		if f.Wide, err = f.fig.Inline(figure.Wide()); err != nil {
			return err
		}
		if f.Narrow, err = f.fig.Inline(figure.Narrow()); err != nil {
			return err
		}
	}
	return nil
}

// writePlots writes the figures as files.
func writePlots(dir string, r *Result, figs []plotted) error {
	if err := os.MkdirAll(filepath.Join(dir, DirPlots), 0o777); err != nil {
		return err
	}
	for _, f := range figs {
		files := FileOfPlot{Title: f.fig.Title}
		for _, th := range []figure.Theme{figure.Light(), figure.Dark()} {
			suffix := ""
			if th.Name == "dark" {
				suffix = "-dark"
			}
			svg, err := f.fig.SVG(th, figure.Wide())
			if err != nil {
				return err
			}
			png, err := f.fig.PNG(th, figure.Wide())
			if err != nil {
				return err
			}
			names := []string{DirPlots + "/" + f.fig.Name + suffix + ".svg", DirPlots + "/" + f.fig.Name + suffix + ".png"}
			for k, data := range [][]byte{svg, png} {
				if err := replace(filepath.Join(dir, filepath.FromSlash(names[k])), data); err != nil {
					return err
				}
			}
			if suffix == "" {
				files.SVG, files.PNG = names[0], names[1]
			} else {
				files.Dark, files.PNGD = names[0], names[1]
			}
		}
		r.Files[f.fig.Name] = files
	}
	return nil
}

// sortedClasses are the size classes that have figures, small groups first.
func (r *Result) sortedClasses() []string {
	var out []string
	for _, c := range history.SizeClasses {
		if _, ok := r.FanoutMs[c.Name]; ok {
			out = append(out, c.Name)
		}
	}
	return out
}

// sortedRoles are the roles in the order of the tiers, then the rest.
func (r *Result) sortedRoles() []string {
	order := []string{"gateway", "message", "fanout", "group", "inbox", "push", "media", "kafka", "redis", "provider", "generator"}
	var out []string
	for _, n := range order {
		if _, ok := r.Roles[n]; ok {
			out = append(out, n)
		}
	}
	var rest []string
	for n := range r.Roles {
		if !slices.Contains(order, n) {
			rest = append(rest, n)
		}
	}
	slices.Sort(rest)
	return append(out, rest...)
}
