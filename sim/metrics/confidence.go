package metrics

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"
	"gonum.org/v1/gonum/stat/distuv"
)

// CI is an estimate with its two-sided interval of confidence.
type CI struct {
	Value, Low, High float64
	Level            float64 // of confidence, as 0.95
	N                int64   // samples; blocks for a mean or a ratio
	OK               bool    // enough samples: when false, printers show "~"
	Warning          string  // for people, empty when there is none
}

// MinBlocks is the fewest time blocks that an interval is made of.
const MinBlocks = 5

// Enough says whether a quantile q in (0, 1) may be printed from so many
// samples in so many time blocks. About a hundred samples must lie beyond it:
// 1e5 for p99.9, 1e4 for p99, 200 for the median; and the time blocks must be
// enough to see that it varies: 10 from p99.9 on, else 5.
func Enough(q float64, samples int64, blocks int) bool {
	need := math.Round(100 / (1 - q)) // rounded: 1-0.999 is a little less than 0.001
	if q >= 0.999 {
		return float64(samples) >= need && blocks >= 10
	}
	return float64(samples) >= need && blocks >= MinBlocks
}

// MeanOfBlocks returns the mean of the means of equal time blocks with its t
// interval, the method of batch means (Law and Kelton's textbook on
// simulation, section 9.5.3: mean ± t(n-1, 1-α/2)·s/√n). The blocks must be
// nearly independent: it warns when their lag-1 autocorrelation is above
// 1.96/√n, for then the interval is too narrow and the blocks are too short.
// OK needs MinBlocks.
func MeanOfBlocks(means []float64, level float64) CI {
	n := len(means)
	ci := CI{Level: level, N: int64(n)}
	if n == 0 {
		return ci
	}
	ci.Value = mean(means)
	ci.Low, ci.High = math.Inf(-1), math.Inf(1)
	if n < 2 {
		return ci
	}
	var ss float64
	for _, x := range means {
		ss += (x - ci.Value) * (x - ci.Value)
	}
	ci.spread(math.Sqrt(ss/float64(n-1)/float64(n)), n)
	ci.warnCorrelated(means)
	return ci
}

// RatioOfBlocks returns Σnum/Σden over time blocks, such as CPU seconds for
// each message, with the interval of the ratio estimator: from the residuals
// e = num - r·den, the variance of r is n/(n-1)·Σe²/(Σden)² (Cochran, Sampling
// Techniques, 3rd edition, section 6.3, without the finite population). OK
// needs MinBlocks and something in the denominator. The slices are of equal length.
func RatioOfBlocks(num, den []float64, level float64) CI {
	n := min(len(num), len(den))
	ci := CI{Level: level, N: int64(n)}
	var sn, sd float64
	for i := range n {
		sn += num[i]
		sd += den[i]
	}
	if sd == 0 {
		ci.Value, ci.Low, ci.High = math.NaN(), math.Inf(-1), math.Inf(1)
		return ci
	}
	ci.Value = sn / sd
	ci.Low, ci.High = math.Inf(-1), math.Inf(1)
	if n < 2 {
		return ci
	}
	residuals := make([]float64, n)
	var ss float64
	for i := range n {
		residuals[i] = num[i] - ci.Value*den[i]
		ss += residuals[i] * residuals[i]
	}
	ci.spread(math.Sqrt(ss*float64(n)/float64(n-1))/math.Abs(sd), n)
	ci.warnCorrelated(residuals)
	return ci
}

// spread sets the t interval of n blocks from a standard error.
func (ci *CI) spread(stderr float64, n int) {
	t := distuv.StudentsT{Mu: 0, Sigma: 1, Nu: float64(n - 1)}.Quantile(1 - (1-ci.Level)/2)
	ci.Low, ci.High = ci.Value-t*stderr, ci.Value+t*stderr
	ci.OK = n >= MinBlocks
	if !ci.OK {
		ci.Warning = fmt.Sprintf("%d blocks, at least %d are needed", n, MinBlocks)
	}
}

func (ci *CI) warnCorrelated(x []float64) {
	if r := Lag1(x); ci.OK && r > 1.96/math.Sqrt(float64(len(x))) {
		ci.Warning = fmt.Sprintf("blocks are correlated (lag 1: %.2f): the interval is too narrow", r)
	}
}

// Lag1 returns the lag-1 autocorrelation of a series, Σ(x[i]-m)(x[i+1]-m) /
// Σ(x[i]-m)² (Box and Jenkins, Time Series Analysis, section 2.1.5); 0 for a
// constant series.
func Lag1(x []float64) float64 {
	m := mean(x)
	var c0, c1 float64
	for i, v := range x {
		c0 += (v - m) * (v - m)
		if i > 0 {
			c1 += (v - m) * (x[i-1] - m)
		}
	}
	if c0 == 0 {
		return 0
	}
	return c1 / c0
}

func mean(x []float64) float64 {
	var s float64
	for _, v := range x {
		s += v
	}
	return s / float64(len(x))
}

// QuantileByOrder returns the quantile q in (0, 1) of a merged histogram with
// the interval between two order statistics (Le Boudec, Performance Evaluation
// of Computer and Communication Systems, theorem 2.1: [X(j), X(k)] with
// B(k-1) - B(j-1) >= level, B the binomial distribution of n and q). It takes
// the samples as independent; those of a loaded system are not, so the
// interval is the narrowest that can be claimed and QuantileByBlocks the one
// to print. blocks is the number of time blocks the samples came from, for OK.
func QuantileByOrder(h *hdrhistogram.Histogram, q, level float64, blocks int) CI {
	c := newCumulative([]*hdrhistogram.Histogram{h})
	n := h.TotalCount()
	ci := CI{Level: level, N: n, OK: Enough(q, n, blocks)}
	if n == 0 {
		return ci
	}
	ci.Value = c.at([]int64{1}, rank(q, n))
	j, k := orderRanks(n, q, level)
	if j < 1 || k > n {
		ci.OK = false
		ci.Warning = fmt.Sprintf("%d samples cannot bound this quantile", n)
	}
	ci.Low = c.at([]int64{1}, max(j, 1))
	ci.High = c.at([]int64{1}, min(k, n))
	return ci
}

// orderRanks returns the ranks of the bounds: the largest j with B(j-1) <= α/2
// and the smallest k with B(k-1) >= 1-α/2. j is 0 and k is n+1 when there is none.
func orderRanks(n int64, q, level float64) (j, k int64) {
	b := distuv.Binomial{N: float64(n), P: q}
	tail := (1 - level) / 2
	// first returns the smallest x in [0, n] for which the distribution function
	// satisfies past; it is monotone.
	first := func(past func(cdf float64) bool) int64 {
		lo, hi := int64(0), n
		for lo < hi {
			mid := (lo + hi) / 2
			if past(b.CDF(float64(mid))) {
				hi = mid
			} else {
				lo = mid + 1
			}
		}
		return lo
	}
	// B(j-1) <= tail for all j-1 below the first x with B(x) > tail.
	j = first(func(cdf float64) bool { return cdf > tail })
	k = first(func(cdf float64) bool { return cdf >= 1-tail }) + 1
	return j, k
}

// Resamples is the usual number of bootstrap resamples for an interval (Efron
// and Tibshirani, An Introduction to the Bootstrap, section 13.3 and 14.2).
const Resamples = 1000

// QuantileByBlocks returns the quantile q in (0, 1) of the merged blocks with
// the percentile interval of a bootstrap over whole time blocks: blocks are
// drawn with replacement and merged, so that what belongs together in time
// stays together (Carlstein, Annals of Statistics 14, 1986: non-overlapping
// blocks; Efron and Tibshirani, sections 13.3 and 8.6). Quantiles are never
// averaged. OK as Enough says, by the blocks that have samples. The result is a
// function of the blocks and of rng's state.
func QuantileByBlocks(blocks []*hdrhistogram.Histogram, q, level float64, resamples int, rng *rand.Rand) CI {
	blocks = slices.DeleteFunc(slices.Clone(blocks), func(h *hdrhistogram.Histogram) bool { return h.TotalCount() == 0 })
	c := newCumulative(blocks)
	all := make([]int64, len(blocks))
	var n int64
	for i, h := range blocks {
		all[i] = 1
		n += h.TotalCount()
	}
	ci := CI{Level: level, N: n, OK: Enough(q, n, len(blocks))}
	if n == 0 {
		return ci
	}
	ci.Value = c.at(all, rank(q, n))
	drawn := make([]int64, len(blocks))
	found := make([]float64, max(resamples, 1))
	for i := range found {
		clear(drawn)
		var total int64
		for range blocks {
			b := rng.IntN(len(blocks))
			drawn[b]++
			total += blocks[b].TotalCount()
		}
		found[i] = c.at(drawn, rank(q, total))
	}
	slices.Sort(found)
	cut := int((1 - level) / 2 * float64(len(found)))
	ci.Low, ci.High = found[cut], found[len(found)-1-cut]
	if len(blocks) < MinBlocks {
		ci.Warning = fmt.Sprintf("%d blocks, at least %d are needed", len(blocks), MinBlocks)
	}
	return ci
}

// rank returns the rank of a quantile among n samples, 1 to n, as HDR
// histograms count it.
func rank(q float64, n int64) int64 {
	return min(max(int64(q*float64(n)+0.5), 1), n)
}

// cumulative are the samples of several histograms, ready to be merged with any
// multiplicities.
type cumulative struct {
	values []int64   // that occur in any, rising
	upTo   [][]int64 // for each histogram: samples up to values[i]
}

func newCumulative(hs []*hdrhistogram.Histogram) *cumulative {
	c := &cumulative{upTo: make([][]int64, len(hs))}
	bars := make([][]hdrhistogram.Bar, len(hs))
	for i, h := range hs {
		bars[i] = slices.DeleteFunc(h.Distribution(), func(b hdrhistogram.Bar) bool { return b.Count == 0 })
		for _, b := range bars[i] {
			c.values = append(c.values, b.To)
		}
	}
	slices.Sort(c.values)
	c.values = slices.Compact(c.values)
	for i := range hs {
		up := make([]int64, len(c.values))
		var sum int64
		next := 0
		for j, v := range c.values {
			if next < len(bars[i]) && bars[i][next].To == v {
				sum += bars[i][next].Count
				next++
			}
			up[j] = sum
		}
		c.upTo[i] = up
	}
	return c
}

// at returns the value of a rank when histogram i is merged times[i] times.
func (c *cumulative) at(times []int64, rank int64) float64 {
	lo, hi := 0, len(c.values)-1
	for lo < hi {
		mid := (lo + hi) / 2
		var sum int64
		for i, t := range times {
			sum += t * c.upTo[i][mid]
		}
		if sum >= rank {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return float64(c.values[lo])
}

// MSER5 returns how many observations at the start of a series belong to the
// warm-up (White, Simulation 69, 1997; White, Cobb and Spratt, Winter Simulation
// Conference 2000): the series is averaged in batches of 5, and the cut d is
// the one with the least Σ_{j>d}(Z[j]-mean)²/(k-d)², the squared standard error
// of what remains. The last 5 batches are never cut at, where the figure is of
// too few. ok is false when the least is in the second half, which means that
// the series has not settled, or when there are fewer than 10 batches.
func MSER5(x []float64) (cut int, ok bool) {
	const batch = 5
	k := len(x) / batch
	if k < 10 {
		return 0, false
	}
	z := make([]float64, k)
	for i := range z {
		z[i] = mean(x[i*batch : (i+1)*batch])
	}
	best, at := math.Inf(1), 0
	for d := 0; d <= k-5; d++ {
		m := mean(z[d:])
		var ss float64
		for _, v := range z[d:] {
			ss += (v - m) * (v - m)
		}
		if s := ss / float64((k-d)*(k-d)); s < best {
			best, at = s, d
		}
	}
	return at * batch, at <= k/2
}
