package history

import (
	"math"
	"testing"
)

func TestBlocks(t *testing.T) {
	r := &Run{Manifest: *manifest(), intervals: map[string][]interval{}}
	for i := range 20 {
		r.intervals["k"] = append(r.intervals["k"], interval{start: float64(i), end: float64(i + 1), values: []int64{int64(i)}, counts: []int64{2}})
	}
	blocks := r.Blocks("k", "steady", 5)
	if len(blocks) != 5 {
		t.Fatalf("%d blocks", len(blocks))
	}
	for i, b := range blocks {
		if b.Start != 10+2*float64(i) || b.End != b.Start+2 || b.Hist.TotalCount() != 4 || b.Hist.Min() != int64(10+2*i) || b.Hist.Max() != int64(11+2*i) {
			t.Errorf("block %d: %v to %v, %d values of %d to %d", i, b.Start, b.End, b.Hist.TotalCount(), b.Hist.Min(), b.Hist.Max())
		}
	}
	if r.Blocks("k", "spike", 5) != nil || r.Blocks("k", "steady", 0) != nil {
		t.Error("blocks of nothing")
	}
	var starts []float64
	r.Series("k", func(p Point) {
		if p.Hist.TotalCount() != 2 {
			t.Errorf("interval at %v has %d values", p.Start, p.Hist.TotalCount())
		}
		starts = append(starts, p.Start)
	})
	if len(starts) != 20 || starts[0] != 0 || starts[19] != 19 {
		t.Errorf("series %v", starts)
	}
}

func TestRoleCPUAndRSS(t *testing.T) {
	r := &Run{}
	for i := range 11 {
		r.Roles = append(r.Roles,
			RoleSample{T: float64(i), Role: "inbox", Instance: 0, CPUSeconds: float64(i) * 0.5, RSSBytes: int64(100 + i)},
			RoleSample{T: float64(i), Role: "inbox", Instance: 1, CPUSeconds: float64(i) * 0.25, RSSBytes: int64(50 - i)},
			RoleSample{T: float64(i), Role: "push", Instance: 0, CPUSeconds: 1},
		)
	}
	if cpu, ok := r.RoleCPU("inbox", 2.5, 6.5); !ok || math.Abs(cpu-3) > 1e-9 {
		t.Errorf("RoleCPU = %v, %v, want 3", cpu, ok)
	}
	if cpu, ok := r.RoleCPU("push", 0, 10); !ok || cpu != 0 {
		t.Errorf("an idle role: %v, %v", cpu, ok)
	}
	if _, ok := r.RoleCPU("fanout", 0, 10); ok {
		t.Error("a role without samples has CPU")
	}
	if _, ok := r.RoleCPU("inbox", 20, 30); ok {
		t.Error("a time without samples has CPU")
	}
	if rss, ok := r.RSSPeak("inbox", 3, 7); !ok || rss != 107+47 {
		t.Errorf("RSSPeak = %v, %v", rss, ok)
	}
}

func TestCounterDelta(t *testing.T) {
	r := &Run{}
	add := func(at float64, instance, restart int, values map[string]float64) {
		r.Counters = append(r.Counters, CounterSample{T: at, Role: "inbox", Instance: instance, Restart: restart, Values: values})
	}
	// Instance 0 counts 10 a second from 100, is replaced between 10 and 15, and
	// goes on from 0; a label set appears at 5.
	add(0, 0, 0, map[string]float64{`x_total{kind="direct"}`: 100, "x_total_other": 7})
	add(0, 1, 0, map[string]float64{`x_total{kind="direct"}`: 0})
	add(5, 0, 0, map[string]float64{`x_total{kind="direct"}`: 150, `x_total{kind="group",how="live"}`: 20})
	add(10, 0, 0, map[string]float64{`x_total{kind="direct"}`: 200, `x_total{kind="group",how="live"}`: 40})
	add(15, 0, 1, map[string]float64{`x_total{kind="direct"}`: 30, `x_total{kind="group",how="live"}`: 50})
	add(20, 0, 1, map[string]float64{`x_total{kind="direct"}`: 80, `x_total{kind="group",how="live"}`: 60})
	add(20, 1, 0, map[string]float64{`x_total{kind="direct"}`: 1000})
	r.Counters = append(r.Counters, CounterSample{T: 3, Role: "push", Values: map[string]float64{"x_total": 1e9}})

	for _, c := range []struct {
		metric   string
		from, to float64
		want     float64
		ok       bool
	}{
		{`x_total{kind="direct"}`, 0, 20, 100 + 80 + 1000, true},
		{`x_total{kind="direct"}`, 0, 10, 100 + 500, true}, // the second instance interpolated
		{`x_total{kind="group"}`, 0, 20, 40 + 50 + 10, true},
		{`x_total{how="live", kind="group"}`, 0, 5, 20, true},
		{`x_total`, 0, 20, 1180 + 100, true},
		{`x_total`, 15, 20, 50 + 10 + 250, true},
		{`x_total{kind="none"}`, 0, 20, 0, false},
		{`x`, 0, 20, 0, false},
		{`x_total`, 30, 40, 0, false},
	} {
		if got, ok := r.CounterDelta("inbox", c.metric, c.from, c.to); ok != c.ok || math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s from %v to %v: %v, %v, want %v, %v", c.metric, c.from, c.to, got, ok, c.want, c.ok)
		}
	}
}

func TestSum(t *testing.T) {
	r := &Run{Seconds: []Second{
		{T: 1, Phase: "warmup", Offered: 100},
		{T: 2, Phase: "steady", Offered: 1, Live: 2, Connected: 5, InFlight: 3},
		{T: 3, Phase: "steady", Offered: 10, Live: 20, Connected: 4, InFlight: 9},
	}}
	got, n := r.Sum(1, 3)
	want := Second{T: 3, Phase: "steady", Offered: 11, Live: 22, Connected: 5, InFlight: 9}
	if n != 2 || got != want {
		t.Errorf("%d rows, %+v, want %+v", n, got, want)
	}
	if got, n := r.Sum(0, 3); n != 3 || got.Phase != "" || got.Offered != 111 {
		t.Errorf("%d rows, %+v", n, got)
	}
}
