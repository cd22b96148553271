package workload

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"throng/sim/population"
	"throng/sim/scenario"
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

// within fails the test when got is not within the relative tolerance of want.
func within(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance*math.Abs(want)) {
		t.Errorf("%s: got %.5g, want %.5g within %.2g %%", what, got, want, 100*tolerance)
	}
}

// The published summary of the mixture (WORKLOAD.md section 2a).
func TestGapsHaveThePublishedQuantiles(t *testing.T) {
	computes(t)
	law := newGapLaw((&scenario.Spec{}).GapBranches())
	s := population.NewStream(1, 1, 0, 0)
	gaps := make([]float64, 1_000_000)
	sum, squares := 0.0, 0.0
	for i := range gaps {
		us, _ := law.next(&s)
		gaps[i] = float64(us) / second
		sum += gaps[i]
		squares += gaps[i] * gaps[i]
	}
	slices.Sort(gaps)
	for q, published := range map[float64]float64{.50: 22.6, .75: 105, .90: 1172, .95: 3849, .99: 45216} {
		if at, _ := slices.BinarySearch(gaps, published); math.Abs(float64(at)/1e6-q) > 0.003 {
			t.Errorf("P(gap <= %g s) is %.4f, published %g", published, float64(at)/1e6, q)
		}
	}
	mean := sum / 1e6
	within(t, "mean", mean, 2217, 0.02)
	within(t, "squared coefficient of variation", squares/1e6/mean/mean-1, 67, 0.10)
}

// The time to the first message is the equilibrium law: P(T <= t) is the
// integral of P(gap > x) up to t over the mean, here by the trapezium rule.
func TestResidualIsTheEquilibriumLaw(t *testing.T) {
	computes(t)
	branches := (&scenario.Spec{}).GapBranches()
	law := newGapLaw(branches)
	over := func(x float64) float64 { // P(gap > x)
		p := 0.0
		for _, b := range branches {
			switch {
			case x < b.MinS:
				p += b.Weight
			case x < b.MaxS:
				tail := math.Exp(-b.Rate * (b.MaxS - b.MinS))
				p += b.Weight * (math.Exp(-b.Rate*(x-b.MinS)) - tail) / (1 - tail)
			}
		}
		return p
	}
	mean := 0.0
	for _, b := range branches {
		mean += b.Weight * b.MeanS()
	}
	const n = 1_000_000
	var got []float64
	s := population.NewStream(2, 1, 0, 0)
	for range n {
		us, _ := law.residual(&s)
		got = append(got, float64(us)/second)
	}
	slices.Sort(got)
	for _, limit := range []float64{60, 1000, 3600, 20_000, 86_400, 3 * 86_400} {
		const steps = 100_000
		h, integral := limit/steps, 0.0
		for i := range steps {
			integral += h * (over(float64(i)*h) + over(float64(i+1)*h)) / 2
		}
		at, _ := slices.BinarySearch(got, limit)
		within(t, fmt.Sprintf("P(first message within %.0f s)", limit), float64(at)/n, integral/mean, 0.003+4/math.Sqrt(float64(at)))
	}
}

func TestRankShares(t *testing.T) {
	computes(t)
	const n = 200_000
	for _, c := range []struct {
		size   int
		shares []float64 // ranks 1 to 3, all others
	}{
		{2, []float64{.550, .450, 0, 0}},
		{3, []float64{.499, .313, .188, 0}},
		{4, []float64{.4325, .288, .190, .0895}},
		{5, []float64{.366, .263, .192, .179}},
		{10, []float64{.273, .197, .149, .381}},
		{20, []float64{.226, .151, .115, .508}},
		{100, []float64{.131, .081, .064, .724}},
	} {
		s := population.NewStream(3, 1, uint64(c.size), 0)
		counts := make([]float64, c.size)
		for range n {
			counts[drawRank(&s, c.size)] += 1.0 / n
		}
		others := 0.0
		for r, share := range counts {
			if r >= 3 {
				others += share
				continue
			}
			within(t, fmt.Sprintf("size %d rank %d", c.size, r+1), share, c.shares[r], 0.02)
		}
		within(t, fmt.Sprintf("size %d others", c.size), others, c.shares[3], 0.02)
		if c.size == 100 { // Zipf 0.6: twice the rank, 2^-0.6 of the share
			within(t, "share of ranks 40..49 over 20..24", (counts[44]+counts[45])/(counts[21]+counts[22]), math.Pow(44.5/21.5, -0.6), 0.1)
		}
	}
}
