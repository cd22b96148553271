package metrics

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"

	"throng/sim/history"
)

// computes marks a test that only computes, in one goroutine: it has nothing for
// the race detector, under which it takes ten times as long (make test-race is
// -short).
func computes(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("short")
	}
}

func near(a, b, tolerance float64) bool { return math.Abs(a-b) <= tolerance }

func TestMeanOfBlocks(t *testing.T) {
	// s = √2.5, t(4, 0.975) = 2.776445: 3 ± 1.963243.
	ci := MeanOfBlocks([]float64{4, 1, 3, 5, 2}, 0.95)
	if !ci.OK || ci.Value != 3 || !near(ci.Low, 1.036757, 1e-5) || !near(ci.High, 4.963243, 1e-5) || ci.Warning != "" || ci.N != 5 {
		t.Errorf("%+v", ci)
	}
	if ci := MeanOfBlocks([]float64{1, 2, 3, 4}, 0.95); ci.OK || ci.Warning == "" || ci.Value != 2.5 {
		t.Errorf("four blocks: %+v", ci)
	}
	if ci := MeanOfBlocks([]float64{7}, 0.95); ci.OK || !math.IsInf(ci.High, 1) {
		t.Errorf("one block: %+v", ci)
	}
	if ci := MeanOfBlocks(nil, 0.95); ci.OK || ci.N != 0 {
		t.Errorf("no block: %+v", ci)
	}
	trend := make([]float64, 20)
	for i := range trend {
		trend[i] = float64(i)
	}
	if ci := MeanOfBlocks(trend, 0.95); !strings.Contains(ci.Warning, "correlated") {
		t.Errorf("a trend: %+v", ci)
	}
}

func TestRatioOfBlocks(t *testing.T) {
	// Equal denominators: the same as the mean of num/den.
	r := RatioOfBlocks([]float64{8, 2, 6, 10, 4}, []float64{2, 2, 2, 2, 2}, 0.95)
	m := MeanOfBlocks([]float64{4, 1, 3, 5, 2}, 0.95)
	if !r.OK || !near(r.Value, m.Value, 1e-12) || !near(r.Low, m.Low, 1e-9) || !near(r.High, m.High, 1e-9) {
		t.Errorf("%+v, want %+v", r, m)
	}
	// Proportional: no spread whatever the sizes.
	r = RatioOfBlocks([]float64{2, 4, 6, 200, 2}, []float64{1, 2, 3, 100, 1}, 0.95)
	if r.Value != 2 || r.Low != 2 || r.High != 2 {
		t.Errorf("proportional: %+v", r)
	}
	if r := RatioOfBlocks([]float64{1, 1, 1, 1, 1}, make([]float64, 5), 0.95); r.OK || !math.IsNaN(r.Value) {
		t.Errorf("nothing in the denominator: %+v", r)
	}
}

// Ranks of the 95 % interval of the median, Le Boudec's table A.1.
func TestOrderRanks(t *testing.T) {
	for _, c := range []struct {
		n    int64
		q    float64
		j, k int64
	}{
		{6, 0.5, 1, 6}, {10, 0.5, 2, 9}, {20, 0.5, 6, 15}, {31, 0.5, 10, 22}, {70, 0.5, 27, 44}, {100, 0.5, 40, 61},
		{5, 0.5, 0, 6},       // too few for any
		{100, 0.99, 97, 101}, // too few for an upper bound
	} {
		if j, k := orderRanks(c.n, c.q, 0.95); j != c.j || k != c.k {
			t.Errorf("n %d, q %v: ranks %d and %d, want %d and %d", c.n, c.q, j, k, c.j, c.k)
		}
	}
	// Large n: the normal approximation, nq ± 1.96√(nq(1-q)).
	j, k := orderRanks(1_000_000, 0.999, 0.95)
	if half := 1.96 * math.Sqrt(999); !near(float64(j), 999_000-half, 3) || !near(float64(k), 999_000+half+1, 3) {
		t.Errorf("n 1e6: ranks %d and %d", j, k)
	}
}

func uniform(n int, from int64) *hdrhistogram.Histogram {
	h := history.NewHist()
	for i := range n {
		if err := h.RecordValue(from + int64(i)); err != nil {
			panic(err)
		}
	}
	return h
}

func TestQuantileByOrder(t *testing.T) {
	ci := QuantileByOrder(uniform(1000, 1), 0.5, 0.95, 5) // values 1 to 1000, exact in HDR
	// Ranks 469 and 532 by the normal approximation with continuity.
	if !ci.OK || ci.Value != 500 || !near(ci.Low, 469, 1) || !near(ci.High, 532, 1) || ci.N != 1000 {
		t.Errorf("%+v", ci)
	}
	if h := uniform(1000, 1); ci.Value != float64(h.ValueAtQuantile(50)) {
		t.Errorf("the estimate %v is not HDR's %d", ci.Value, h.ValueAtQuantile(50))
	}
	if ci := QuantileByOrder(uniform(100, 1), 0.99, 0.95, 10); ci.OK || ci.Warning == "" {
		t.Errorf("too few samples: %+v", ci)
	}
	if ci := QuantileByOrder(history.NewHist(), 0.5, 0.95, 10); ci.OK {
		t.Errorf("no samples: %+v", ci)
	}
}

func TestEnough(t *testing.T) {
	for _, c := range []struct {
		q       float64
		samples int64
		blocks  int
		want    bool
	}{
		{0.999, 100_000, 10, true}, {0.999, 99_999, 10, false}, {0.999, 100_000, 9, false},
		{0.9999, 1_000_000, 10, true}, {0.9999, 999_999, 10, false},
		{0.99, 10_000, 5, true}, {0.99, 9_999, 5, false}, {0.99, 10_000, 4, false},
		{0.9, 1_000, 5, true}, {0.5, 200, 5, true}, {0.5, 199, 5, false},
	} {
		if got := Enough(c.q, c.samples, c.blocks); got != c.want {
			t.Errorf("Enough(%v, %d, %d) = %v", c.q, c.samples, c.blocks, got)
		}
	}
}

func TestQuantileByBlocks(t *testing.T) {
	computes(t)
	// Blocks alike: no spread.
	same := []*hdrhistogram.Histogram{}
	for range 10 {
		same = append(same, uniform(1000, 1))
	}
	rng := func() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }
	if ci := QuantileByBlocks(same, 0.5, 0.95, Resamples, rng()); !ci.OK || ci.Value != 500 || ci.Low != 500 || ci.High != 500 || ci.N != 10_000 {
		t.Errorf("%+v", ci)
	}
	// One block of ten is slow: p95 is slow when it is drawn once or more, else
	// fast; that is likely enough both ways for both ends of the interval.
	mixed := append([]*hdrhistogram.Histogram{uniform(1000, 1_000_000)}, same[1:]...)
	ci := QuantileByBlocks(mixed, 0.95, 0.95, Resamples, rng())
	if ci.Low > 1000 || ci.High < 1_000_000 {
		t.Errorf("the slow block: %+v", ci)
	}
	if order := QuantileByOrder(mixed[0], 0.95, 0.95, 10); order.High-order.Low > 1100 {
		t.Errorf("order statistics: %+v", order)
	}
	if again := QuantileByBlocks(mixed, 0.95, 0.95, Resamples, rng()); again != ci {
		t.Errorf("another result from the same seed: %+v, %+v", again, ci)
	}
	// The estimate is the merged histogram's.
	merged := history.NewHist()
	for _, h := range mixed {
		merged.Merge(h)
	}
	if ci.Value != float64(merged.ValueAtQuantile(95)) {
		t.Errorf("estimate %v, merged %d", ci.Value, merged.ValueAtQuantile(95))
	}
	if ci := QuantileByBlocks(nil, 0.5, 0.95, Resamples, rng()); ci.OK || ci.N != 0 {
		t.Errorf("no blocks: %+v", ci)
	}
	if ci := QuantileByBlocks(append(same[:2:2], history.NewHist()), 0.5, 0.95, Resamples, rng()); ci.OK || ci.Warning == "" {
		t.Errorf("two blocks and an empty one: %+v", ci)
	}
}

// The interval must cover the true quantile about as often as it says.
func TestQuantileCoverage(t *testing.T) {
	computes(t)
	rng := rand.New(rand.NewPCG(5, 6))
	const trials = 60
	order, blocks := 0, 0
	truth := 1e4 * math.Log(10) // p90 of an exponential with mean 10 ms
	for range trials {
		hs := make([]*hdrhistogram.Histogram, 12)
		merged := history.NewHist()
		for i := range hs {
			hs[i] = history.NewHist()
			for range 100 {
				if err := hs[i].RecordValue(int64(rng.ExpFloat64() * 1e4)); err != nil {
					t.Fatal(err)
				}
			}
			merged.Merge(hs[i])
		}
		if ci := QuantileByOrder(merged, 0.9, 0.95, 12); ci.Low <= truth && truth <= ci.High {
			order++
		}
		if ci := QuantileByBlocks(hs, 0.9, 0.95, 300, rng); ci.Low <= truth && truth <= ci.High {
			blocks++
		}
	}
	// 95 % of 60 is 57; less than 51 happens about once in 2,000 for a correct one.
	if order < 51 || blocks < 48 { // the percentile bootstrap is known to be a little narrow
		t.Errorf("covered %d by order statistics, %d by blocks, of %d", order, blocks, trials)
	}
}

func TestMSER5(t *testing.T) {
	x := make([]float64, 0, 100)
	for range 15 {
		x = append(x, 100)
	}
	for i := range 85 {
		x = append(x, float64(i%2))
	}
	if cut, ok := MSER5(x); cut != 15 || !ok {
		t.Errorf("a transient of 15: cut %d, %v", cut, ok)
	}
	flat := make([]float64, 100)
	if cut, ok := MSER5(flat); cut != 0 || !ok {
		t.Errorf("flat: cut %d, %v", cut, ok)
	}
	rising := make([]float64, 100)
	for i := range rising {
		rising[i] = float64(i)
	}
	if cut, ok := MSER5(rising); ok {
		t.Errorf("rising for ever: cut %d and settled", cut)
	}
	if _, ok := MSER5(flat[:49]); ok {
		t.Error("49 observations are settled")
	}
}
