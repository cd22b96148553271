package metrics

import (
	"math"
	"math/rand/v2"
	"testing"
)

// series returns n samples, one a second, of a line with noise.
func series(n int, start, slope, noise float64, rng *rand.Rand) (t, x []float64) {
	for i := range n {
		t = append(t, float64(i))
		x = append(x, start+slope*float64(i)+noise*rng.NormFloat64())
	}
	return t, x
}

func TestTrend(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	ts, xs := series(600, 100, 0.25, 0, rng)
	if tr := TrendOf(ts, xs, 0, 600, 10, 0.95); !tr.OK || math.Abs(tr.Value-0.25) > 1e-9 || math.Abs(tr.Mean-174.875) > 0.5 || tr.High-tr.Low > 1e-9 {
		t.Errorf("a line: %+v", tr)
	}
	// What lies outside is left out.
	for i := range 100 {
		ts, xs = append(ts, 700+float64(i)), append(xs, 1e6)
	}
	if tr := TrendOf(ts, xs, 0, 600, 10, 0.95); math.Abs(tr.Value-0.25) > 1e-9 {
		t.Errorf("with samples outside: %+v", tr)
	}
	// The interval covers the truth about as often as it says.
	const runs = 400
	covered := 0
	for range runs {
		ts, xs := series(300, 100, 0.01, 5, rng)
		if tr := TrendOf(ts, xs, 0, 300, 10, 0.95); tr.Low <= 0.01 && 0.01 <= tr.High {
			covered++
		}
	}
	if covered < runs*92/100 || covered > runs*98/100 {
		t.Errorf("%d of %d intervals of 95%% cover the slope", covered, runs)
	}
}

func TestTrendOfTooLittle(t *testing.T) {
	for name, c := range map[string]struct{ t, x []float64 }{
		"nothing":       {},
		"one":           {[]float64{3}, []float64{7}},
		"four blocks":   {[]float64{0, 10, 20, 30}, []float64{1, 2, 3, 4}},
		"all in one":    {[]float64{1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6}, []float64{1, 2, 3, 4, 5, 6, 7}},
		"all elsewhere": {[]float64{200, 300, 400, 500, 600}, []float64{1, 2, 3, 4, 5}},
	} {
		if tr := TrendOf(c.t, c.x, 0, 100, 10, 0.95); tr.OK || tr.Warning == "" || !math.IsInf(tr.High, 1) {
			t.Errorf("%s: %+v", name, tr)
		}
	}
	if tr := TrendOf([]float64{1}, []float64{1}, 5, 5, 10, 0.95); tr.OK {
		t.Errorf("no time: %+v", tr)
	}
}
