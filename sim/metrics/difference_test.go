package metrics

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// runOf returns ten blocks of a lognormal latency whose level also varies from
// block to block, as that of a real system does.
func runOf(rng *rand.Rand, median float64, n int) []*hdrhistogram.Histogram {
	var out []*hdrhistogram.Histogram
	for range 10 {
		h := hdrhistogram.New(1, 60_000_000, 3)
		level := median * math.Exp(0.03*rng.NormFloat64())
		for range n {
			if err := h.RecordValue(int64(level * math.Exp(0.5*rng.NormFloat64()))); err != nil {
				panic(err)
			}
		}
		out = append(out, h)
	}
	return out
}

func TestQuantileDifference(t *testing.T) {
	computes(t)
	rng := rand.New(rand.NewPCG(1, 2))
	const runs = 100
	falseAlarms, found, covered := 0, 0, 0
	for range runs {
		a, same, slower := runOf(rng, 2000, 300), runOf(rng, 2000, 300), runOf(rng, 2400, 300)
		if QuantileDifference(a, same, 0.5, 0.95, 400, rng).Shown {
			falseAlarms++
		}
		d := QuantileDifference(a, slower, 0.5, 0.95, 400, rng)
		if d.Shown && d.Value > 0 {
			found++
		}
		if d.Low <= 400 && d.High >= 400 {
			covered++
		}
	}
	// Ten blocks give somewhat less than the nominal level.
	if falseAlarms > 18 || found < 95 || covered < 80 {
		t.Errorf("of %d pairs: %d equal ones shown as different, %d different ones found, %d intervals with the true difference", runs, falseAlarms, found, covered)
	}
}

func TestDifferenceNeedsEnough(t *testing.T) {
	computes(t)
	rng := rand.New(rand.NewPCG(1, 2))
	a, b := runOf(rng, 2000, 300), runOf(rng, 9000, 300)
	if d := QuantileDifference(a, b, 0.999, 0.95, 100, rng); d.Shown || !math.IsNaN(d.Value) || math.IsNaN(d.A) {
		t.Errorf("p99.9 of 3,000 samples: %+v", d)
	}
	if d := QuantileDifference(a, b[:3], 0.5, 0.95, 100, rng); d.Shown {
		t.Errorf("three blocks: %+v", d)
	}
	if d := QuantileDifference(a, nil, 0.5, 0.95, 100, rng); d.Shown || !math.IsNaN(d.B) {
		t.Errorf("no blocks: %+v", d)
	}
}

func TestRatioDifference(t *testing.T) {
	computes(t)
	rng := rand.New(rand.NewPCG(3, 4))
	costs := func(us float64, n int) (r Ratios) {
		for range n {
			sends := 300 + 20*rng.NormFloat64()
			r.Den = append(r.Den, sends)
			r.Num = append(r.Num, sends*us*(1+0.02*rng.NormFloat64()))
		}
		return r
	}
	d := RatioDifference(costs(100, 10), costs(120, 10), 0.95, 500, rng)
	if !d.Shown || math.Abs(d.Value-20) > 3 || d.Low > 20 || d.High < 20 {
		t.Errorf("100 and 120 us: %+v", d)
	}
	falseAlarms := 0
	for range 100 {
		if RatioDifference(costs(100, 10), costs(100, 10), 0.95, 300, rng).Shown {
			falseAlarms++
		}
	}
	if falseAlarms > 18 {
		t.Errorf("%d of 100 equal pairs are shown as different", falseAlarms)
	}
	for _, few := range []Ratios{costs(120, 4), {}, {Num: make([]float64, 10), Den: make([]float64, 10)}} {
		if d := RatioDifference(costs(100, 10), few, 0.95, 100, rng); d.Shown || !math.IsNaN(d.Value) {
			t.Errorf("%d blocks: %+v", len(few.Num), d)
		}
	}
	// The same blocks in both: nothing to show, whatever the resampling.
	same := costs(100, 10)
	if d := RatioDifference(same, same, 0.95, 500, rng); d.Shown || d.Value != 0 {
		t.Errorf("a run and itself: %+v", d)
	}
}
