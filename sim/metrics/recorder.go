// Package metrics records latencies on the hot path of the load engine and
// says how sure the figures made of them are: intervals of confidence for means
// and quantiles, whether there are enough samples, where the warm-up ends. It
// has no network, no clock and no goroutines, and knows nothing of what it
// measures.
package metrics

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/HdrHistogram/hdrhistogram-go"

	"throng/sim/history"
)

// Kind is a registered kind of latency.
type Kind int

// Recorder counts latencies of several kinds. Record may be called from any
// number of goroutines: it is one atomic addition to the counter of the value's
// bucket, so that there is no lock to meet at, and goroutines touch the same
// cache line only when their values are alike. A value is in exactly one
// interval.
type Recorder struct {
	mu    sync.Mutex // guards names and the growth of kinds
	names map[string]Kind
	kinds atomic.Pointer[[]*buckets]

	swapMu sync.Mutex // one Swap at a time
	last   float64
}

// buckets are the counters of one kind, in the layout of an HDR histogram.
type buckets struct {
	name    string
	counts  []atomic.Uint64
	clamped atomic.Uint64
}

// NewRecorder returns a recorder whose first interval starts at start, in
// seconds since the start of the run, and which knows the given kinds.
func NewRecorder(start float64, kinds ...string) *Recorder {
	r := &Recorder{names: map[string]Kind{}, last: start}
	r.kinds.Store(&[]*buckets{})
	for _, k := range kinds {
		r.Kind(k)
	}
	return r
}

// Kind returns the number under which values of a kind are recorded,
// registering it on first use.
func (r *Recorder) Kind(name string) Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k, ok := r.names[name]; ok {
		return k
	}
	old := *r.kinds.Load()
	grown := slices.Concat(old, []*buckets{{name: name, counts: make([]atomic.Uint64, countsLen)}})
	r.kinds.Store(&grown)
	k := Kind(len(old))
	r.names[name] = k
	return k
}

// Record counts one value of a kind, in microseconds. Values outside
// [0, history.HistMax] are counted as the nearest bound, and by Clamped.
func (r *Recorder) Record(k Kind, us int64) {
	b := (*r.kinds.Load())[k]
	if uint64(us) > history.HistMax {
		b.clamped.Add(1)
		us = min(max(us, 0), history.HistMax)
	}
	b.counts[indexOf(us)].Add(1)
}

// Clamped returns how many values of a kind were out of range so far.
func (r *Recorder) Clamped(k Kind) uint64 { return (*r.kinds.Load())[k].clamped.Load() }

// Swap ends the current interval at now, seconds since the start of the run,
// and returns the histograms of the kinds that have values in it.
func (r *Recorder) Swap(now float64) []history.Interval {
	r.swapMu.Lock()
	defer r.swapMu.Unlock()
	from := r.last
	r.last = now
	var out []history.Interval
	for _, b := range *r.kinds.Load() {
		if h := b.take(); h != nil {
			out = append(out, history.Interval{Kind: b.name, Start: from, End: now, Hist: h})
		}
	}
	return out
}

// take moves the counts into a histogram; nil when there are none.
func (b *buckets) take() *hdrhistogram.Histogram {
	var counts []int64
	for i := range b.counts {
		if b.counts[i].Load() == 0 {
			continue
		}
		if counts == nil {
			counts = make([]int64, countsLen)
		}
		counts[i] = int64(b.counts[i].Swap(0))
	}
	if counts == nil {
		return nil
	}
	return hdrhistogram.Import(&hdrhistogram.Snapshot{
		LowestTrackableValue: history.HistMin, HighestTrackableValue: history.HistMax,
		SignificantFigures: history.HistDigits, Counts: counts,
	})
}

// The layout of counts for history.NewHist's geometry: 2^11 sub-buckets of one
// microsecond, then 2^10 for each doubling.
const (
	subMagnitude = 11 // smallest m with 2^m >= 2 * 10^HistDigits
	subHalf      = 1 << (subMagnitude - 1)
	countsLen    = (20 + 1) * subHalf // 20 doublings reach HistMax
)

func indexOf(us int64) int {
	bucket := 64 - subMagnitude - bits.LeadingZeros64(uint64(us)|(1<<subMagnitude-1))
	return bucket*subHalf + int(us>>uint(bucket))
}
