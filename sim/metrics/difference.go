package metrics

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Difference is B - A of two runs with the interval of what varies within them.
// How much a run differs from its own repetition it cannot know.
type Difference struct {
	A, B  float64 // NaN without data
	Value float64 // B - A
	Low   float64
	High  float64
	// Shown: both have enough samples and the interval excludes zero. When
	// false, printers show "~".
	Shown bool
}

// unknown is the difference of what is not known.
func unknownDifference(a, b float64) Difference {
	return Difference{A: a, B: b, Value: math.NaN(), Low: math.NaN(), High: math.NaN()}
}

// QuantileDifference is the difference of the quantile q in (0, 1) of two runs
// by a bootstrap over whole time blocks of each, drawn independently: the
// percentile interval of the resampled differences (Efron and Tibshirani,
// section 8.3 for two samples, 13.3 for the interval). Blocks without samples
// are left out.
func QuantileDifference(a, b []*hdrhistogram.Histogram, q, level float64, resamples int, rng *rand.Rand) Difference {
	x, y := newBlocks(a), newBlocks(b)
	d := unknownDifference(x.quantile(q), y.quantile(q))
	if !Enough(q, x.total, len(x.counts)) || !Enough(q, y.total, len(y.counts)) {
		return d
	}
	d.bootstrap(level, resamples, func() float64 { return y.drawn(q, rng) - x.drawn(q, rng) })
	return d
}

// blocks are histograms ready to be drawn from.
type blocks struct {
	c      *cumulative
	counts []int64
	total  int64
}

func newBlocks(hs []*hdrhistogram.Histogram) blocks {
	hs = slices.DeleteFunc(slices.Clone(hs), func(h *hdrhistogram.Histogram) bool { return h.TotalCount() == 0 })
	b := blocks{c: newCumulative(hs)}
	for _, h := range hs {
		b.counts = append(b.counts, h.TotalCount())
		b.total += h.TotalCount()
	}
	return b
}

// quantile is that of all blocks merged, NaN without samples.
func (b *blocks) quantile(q float64) float64 {
	if b.total == 0 {
		return math.NaN()
	}
	return b.c.at(slices.Repeat([]int64{1}, len(b.counts)), rank(q, b.total))
}

// drawn is the quantile of as many blocks, drawn with replacement.
func (b *blocks) drawn(q float64, rng *rand.Rand) float64 {
	times := make([]int64, len(b.counts))
	var total int64
	for range b.counts {
		i := rng.IntN(len(b.counts))
		times[i]++
		total += b.counts[i]
	}
	return b.c.at(times, rank(q, total))
}

// Ratios is something counted for each of something else over time blocks: CPU
// seconds for each send, sends for each second. The slices are of equal length.
type Ratios struct{ Num, Den []float64 }

// ratio is Σnum/Σden of the blocks that pick names, NaN without a denominator.
func (r Ratios) ratio(pick func(i int) int) float64 {
	var n, d float64
	for i := range r.Num {
		k := pick(i)
		n += r.Num[k]
		d += r.Den[k]
	}
	if d == 0 {
		return math.NaN()
	}
	return n / d
}

// RatioDifference is the difference of the ratios of two runs, by the same
// bootstrap. Each needs MinBlocks.
func RatioDifference(a, b Ratios, level float64, resamples int, rng *rand.Rand) Difference {
	itself := func(i int) int { return i }
	d := unknownDifference(a.ratio(itself), b.ratio(itself))
	if len(a.Num) < MinBlocks || len(b.Num) < MinBlocks || math.IsNaN(d.A) || math.IsNaN(d.B) {
		return d
	}
	d.bootstrap(level, resamples, func() float64 {
		return b.ratio(func(int) int { return rng.IntN(len(b.Num)) }) - a.ratio(func(int) int { return rng.IntN(len(a.Num)) })
	})
	return d
}

// bootstrap sets value and interval from resampled differences. Fewer than half
// of them may be undefined (all blocks drawn empty).
func (d *Difference) bootstrap(level float64, resamples int, draw func() float64) {
	found := make([]float64, 0, resamples)
	for range resamples {
		if v := draw(); !math.IsNaN(v) {
			found = append(found, v)
		}
	}
	if len(found) < max(resamples/2, 1) {
		return
	}
	slices.Sort(found)
	cut := int((1 - level) / 2 * float64(len(found)))
	d.Value, d.Low, d.High = d.B-d.A, found[cut], found[len(found)-1-cut]
	d.Shown = d.Low > 0 || d.High < 0
}
