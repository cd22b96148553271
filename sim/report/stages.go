package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"throng/sim/capacity"
	"throng/sim/history"
	"throng/sim/metrics"
	"throng/sim/report/figure"
)

// Breakdown is where the time of one kind of delivery went in the gated phase,
// among the deliveries that the system has stamped on their way.
type Breakdown struct {
	Count int64 `json:"count"` // stamped deliveries
	// Partial deliveries lack a stamp and are left out; Negative ones have a
	// stage below zero, which counts as zero: two clocks disagree.
	Partial  int64 `json:"partial"`
	Negative int64 `json:"negative"`
	// Clocks: "one" where generator and roles read the same clock, "several"
	// where the stages are as good as the clocks of the machines agree.
	Clocks  string `json:"clocks"`
	LeftOut string `json:"left_out"` // why there are no figures, empty when there are
	Answer  string `json:"answer"`   // where the p99 went, in a sentence
	// Stages in order of the way; the last is what they do not add up to.
	Stages []Stage `json:"stages"`
	Total  Stage   `json:"total"`
}

// Stage is a piece of the way, in milliseconds. MedianMs and P99Ms are not
// quantiles of the stage but its mean among the deliveries whose whole latency
// lies around the median (p45 to p55) and around p99 (p98.5 to p99.5): so the
// stages of one column add up to its total.
type Stage struct {
	Name     string  `json:"name"`
	MeanMs   Number  `json:"mean_ms"`
	MedianMs Number  `json:"median_ms"`
	P99Ms    Number  `json:"p99_ms"`
	Alone    Latency `json:"alone"` // the stage by itself; empty for total and residual
}

// Names of the rows that are no stage.
const (
	stageTotal    = "total"
	stageResidual = "residual"
)

// maxDisagree is the share of deliveries with a stage below zero from which on
// stages are not shown.
const maxDisagree = 0.01

// stageKinds are the kinds of delivery that have stages.
func stageKinds() []kindName {
	return []kindName{{kind: history.KindDeliverDirect, name: "direct"}, {kind: history.KindDeliverGroup, name: "group"}}
}

// stageName is a stage for people, with the colour of its role.
func stageName(name string) (string, figure.Ink) {
	switch name {
	case history.StageClient:
		return "client, before it writes", figure.Pale
	case history.StageUplink:
		return "client to gateway", figure.Sky
	case history.StageGatewayIn:
		return "gateway to message service", figure.Blue
	case history.StageMessage:
		return "message service", figure.Orange
	case history.StageLog:
		return "Kafka", figure.Grey
	case history.StageFanout:
		return "fan-out", figure.Green
	case history.StageInbox:
		return "inbox", figure.Vermilion
	case history.StageGatewayOut:
		return "inbox to gateway", figure.Blue
	case history.StageDownlink:
		return "gateway to client", figure.Sky
	case stageResidual:
		return "not accounted for", figure.Muted
	}
	return "in all", figure.Text
}

// stages fills in the breakdown of each kind that has one.
func (r *Result) stages(e *evaluator) {
	r.Stages = map[string]Breakdown{}
	for _, k := range stageKinds() {
		if !e.gated {
			continue
		}
		s := e.run.Stages(k.kind, e.phase.Start, e.phase.End)
		if s.Count()+s.Partial > 0 {
			r.Stages[k.kind] = e.breakdown(k, s)
		}
	}
}

func (e *evaluator) breakdown(k kindName, s *history.Stages) Breakdown {
	b := Breakdown{Count: s.Count(), Partial: s.Partial, Negative: s.Negative, Clocks: "one", Stages: []Stage{},
		Total: Stage{Name: stageTotal, MeanMs: nan(), MedianMs: nan(), P99Ms: nan(), Alone: latency(history.NewHist(), 0)}}
	if e.run.Manifest.Target == "external" {
		b.Clocks = "several"
	}
	switch {
	case b.Count == 0:
		b.LeftOut = fmt.Sprintf("none of %s stamped deliveries has all stamps", count(b.Partial))
	case float64(b.Negative) > maxDisagree*float64(b.Count):
		b.LeftOut = fmt.Sprintf("%s of %s deliveries passed a stage in less than no time: the clocks of the processes disagree", count(b.Negative), count(b.Count))
	}
	if b.LeftOut != "" {
		b.Answer = fmt.Sprintf("Where the p99 of %s messages went is not known: %s.", k.name, b.LeftOut)
		return b
	}
	band := func(from, to float64, least int64) metrics.Band {
		if b.Count < least { // then nothing is known of it
			return metrics.BandOf(&history.Stages{Kind: k.kind}, from, to)
		}
		return metrics.BandOf(s, from, to)
	}
	mean, median, p99 := band(0, 1, minP50), band(0.45, 0.55, minP90), band(0.985, 0.995, minP99)
	rest := [3]float64{mean.Latency, median.Latency, p99.Latency}
	b.Total.MeanMs, b.Total.MedianMs, b.Total.P99Ms = Number(rest[0]/1000), Number(rest[1]/1000), Number(rest[2]/1000)
	for i, name := range history.StagesOf(k.kind) {
		at := [3]float64{mean.Stages[i], median.Stages[i], p99.Stages[i]}
		b.Stages = append(b.Stages, Stage{Name: name, MeanMs: Number(at[0] / 1000), MedianMs: Number(at[1] / 1000), P99Ms: Number(at[2] / 1000),
			Alone: e.latencyIn(history.KindStage+k.kind+"."+name, e.phase)})
		for j := range rest {
			rest[j] -= at[j]
		}
	}
	for j, v := range rest { // sums of floats leave a trace where there is nothing
		if math.Abs(v) < 0.01 {
			rest[j] = 0
		}
	}
	b.Stages = append(b.Stages, Stage{Name: stageResidual, MeanMs: Number(rest[0] / 1000), MedianMs: Number(rest[1] / 1000), P99Ms: Number(rest[2] / 1000),
		Alone: latency(history.NewHist(), 0)})
	b.Answer = b.answer(k.name)
	return b
}

// answer names the stages that make the difference between median and p99.
func (b *Breakdown) answer(kind string) string {
	if !b.Total.P99Ms.Known() {
		return fmt.Sprintf("Where the p99 of %s messages went cannot be told from %s stamped deliveries; it takes %s.", kind, count(b.Count), count(minP99))
	}
	more := b.Total.P99Ms - b.Total.MedianMs
	byRise := slices.Clone(b.Stages)
	slices.SortStableFunc(byRise, func(x, y Stage) int {
		if d := (y.P99Ms - y.MedianMs) - (x.P99Ms - x.MedianMs); d != 0 {
			return int(math.Copysign(1, float64(d)))
		}
		return 0
	})
	var parts []string
	told := Number(0)
	for _, s := range byRise {
		rise := s.P99Ms - s.MedianMs
		if rise <= 0 || len(parts) == 3 || told > 0.85*more {
			break
		}
		told += rise
		name, _ := stageName(s.Name)
		parts = append(parts, fmt.Sprintf("%s %s (%s)", name, ms(rise), percent(math.Round(float64(rise/more)*100)/100)))
	}
	return fmt.Sprintf("%s messages around p99 took %s in the mean, %s more than those around the median: %s.", strings.ToUpper(kind[:1])+kind[1:],
		ms(b.Total.P99Ms), ms(more), strings.Join(parts, ", "))
}

// StageAnswers are the answers of all kinds.
func (r *Result) StageAnswers() []string {
	var out []string
	for _, k := range stageKinds() {
		if b, ok := r.Stages[k.kind]; ok {
			out = append(out, b.Answer)
		}
	}
	return out
}

// stageTable has the stages of all kinds side by side.
func (r *Result) stageTable() table {
	t := table{Head: []string{"stage"}, Left: 1}
	var shown []Breakdown
	for _, k := range stageKinds() {
		if b, ok := r.Stages[k.kind]; ok && b.LeftOut == "" {
			shown = append(shown, b)
			t.Head = append(t.Head, k.name+", p50", "p99", "share", "alone")
		}
	}
	if len(shown) == 0 {
		return t
	}
	names := append(history.StagesOf(history.KindDeliverGroup), stageResidual, stageTotal)
	for _, name := range names {
		text, _ := stageName(name)
		row := []string{text}
		for _, b := range shown {
			s, ok := b.find(name)
			if !ok {
				row = append(row, "", "", "", "")
				continue
			}
			share, alone := "", ""
			if b.Total.P99Ms.Known() && name != stageTotal {
				share = percent(math.Round(float64(s.P99Ms/b.Total.P99Ms)*1000) / 1000)
			}
			if s.Alone.Count > 0 {
				alone = ms(s.Alone.P99)
			}
			row = append(row, ms(s.MedianMs), ms(s.P99Ms), share, alone)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func (b *Breakdown) find(name string) (Stage, bool) {
	if name == stageTotal {
		return b.Total, true
	}
	i := slices.IndexFunc(b.Stages, func(s Stage) bool { return s.Name == name })
	if i < 0 {
		return Stage{}, false
	}
	return b.Stages[i], true
}

// StageNote says what the stages are made from, and by whose clocks.
func (r *Result) StageNote() string {
	if len(r.Stages) == 0 {
		return "None of the deliveries was stamped on its way: the target does not do it, or the run is of an older version."
	}
	which := "Some sends are stamped on their way"
	switch {
	case r.stampEvery == 1:
		which = "Every send is stamped on its way"
	case r.stampEvery > 1:
		which = fmt.Sprintf("One in %s sends is stamped on its way", count(int64(r.stampEvery)))
	}
	clocks := "All processes and the generator ran on one machine and read the same clock."
	var partial, negative, n int64
	for _, b := range r.Stages {
		partial, negative, n = partial+b.Partial, negative+b.Negative, n+b.Count
		if b.Clocks != "one" {
			clocks = "The stamps are by the clocks of the target's machines: what lies between two machines, the generator's among them, is only as good as their clocks agree, and they may be wrong by milliseconds where nothing shows it."
		}
	}
	note := which + ", which makes each of its deliveries 60 to 75 bytes longer (the plan's network figures include that), and each live delivery is cut at the stamps. " +
		"Columns are means among the deliveries whose whole latency is around the median (p45 to p55) and around p99 (p98.5 to p99.5), so that a column adds up to the latency from the intended time to the application; \"share\" is of p99, \"alone\" the p99 of the stage by itself. " + clocks
	if negative+partial > 0 {
		note += fmt.Sprintf(" Of %s deliveries %s had a stage below zero, which counts as zero; %s more lacked a stamp.", count(n), count(negative), count(partial))
	}
	return note
}

// stagesFigure draws what deliveries around the median and p99 are made of.
func (p *plotter) stagesFigure() *figure.Figure {
	var panels []figure.Breakdown
	for _, of := range []struct {
		label string
		value func(Stage) Number
	}{{"Around the median", func(s Stage) Number { return s.MedianMs }}, {"Around p99", func(s Stage) Number { return s.P99Ms }}} {
		panel := figure.Breakdown{Label: of.label}
		for _, k := range stageKinds() {
			b, ok := p.r.Stages[k.kind]
			if !ok || !of.value(b.Total).Known() {
				continue
			}
			bar := figure.Stack{Label: k.name, Note: ms(of.value(b.Total))}
			for _, s := range b.Stages {
				_, ink := stageName(s.Name)
				bar.Parts = append(bar.Parts, figure.Part{Ink: ink, Value: math.Max(0, float64(of.value(s)))})
			}
			panel.Bars = append(panel.Bars, bar)
		}
		if len(panel.Bars) > 0 {
			panels = append(panels, panel)
		}
	}
	return figure.Stacks(panels, strings.Join(p.r.StageAnswers(), " "))
}

// stages compares the mean of each stage, which has an interval, and what it
// was around p99, which a run has one of.
func (p *pair) stages() []CompareRow {
	var rows []CompareRow
	for _, k := range stageKinds() {
		a, b := p.a.result.Stages[k.kind], p.b.result.Stages[k.kind]
		x, y := p.a.stageBlocks(k.kind), p.b.stageBlocks(k.kind)
		for i, name := range history.StagesOf(k.kind) {
			text, _ := stageName(name)
			d := metrics.RatioDifference(stageRatios(x, i), stageRatios(y, i), compareLevel, metrics.Resamples, p.rng)
			rows = append(rows, row(k.name+": "+text+", mean", "ms", 1e-3, d),
				single(k.name+": "+text+", at p99", "ms", float64(p99Of(a, name)), float64(p99Of(b, name))))
		}
	}
	return rows
}

func p99Of(b Breakdown, stage string) Number {
	if s, ok := b.find(stage); ok {
		return s.P99Ms
	}
	return capacity.Unknown()
}

// stageBlocks are the stages of a kind over equal blocks of the gated phase,
// none where there are no stages to show.
func (c *compared) stageBlocks(kind string) (blocks []*history.Stages) {
	if b, ok := c.result.Stages[kind]; !ok || b.LeftOut != "" {
		return nil
	}
	length := (c.phase.End - c.phase.Start) / minBlocks
	for i := range minBlocks {
		from := c.phase.Start + float64(i)*length
		if s := c.run.Stages(kind, from, from+length); s.Count() > 0 {
			blocks = append(blocks, s)
		}
	}
	return blocks
}

// stageRatios are the microseconds in a stage for each delivery, by block.
func stageRatios(blocks []*history.Stages, stage int) (r metrics.Ratios) {
	for _, s := range blocks {
		sum := 0.0
		for _, c := range s.Cells {
			sum += float64(c.Stages[stage])
		}
		r.Num, r.Den = append(r.Num, sum), append(r.Den, float64(s.Count()))
	}
	return r
}
