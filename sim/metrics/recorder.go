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

// buckets are the counters of one kind, in the layout of an HDR histogram. touched
// has a bit for each block of counters that may not be zero: most of them are, and
// Swap does not look at those.
type buckets struct {
	name    string
	counts  []atomic.Uint64
	touched [(history.HistBuckets/block + 63) / 64]atomic.Uint64
	clamped atomic.Uint64
}

const block = 64 // counters

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
	grown := slices.Concat(old, []*buckets{{name: name, counts: make([]atomic.Uint64, history.HistBuckets)}})
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
	i := history.BucketOf(us)
	b.counts[i].Add(1)
	// After the count: who takes the bit away before it is looked at sees the count.
	if word, bit := &b.touched[i/block/64], uint64(1)<<(i/block%64); word.Load()&bit == 0 {
		word.Or(bit)
	}
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
func (b *buckets) take() (h *hdrhistogram.Histogram) {
	for w := range b.touched {
		for bitmap := b.touched[w].Swap(0); bitmap != 0; bitmap &= bitmap - 1 {
			first := (w*64 + bits.TrailingZeros64(bitmap)) * block
			for i := range block {
				n := b.counts[first+i].Load()
				if n == 0 {
					continue
				}
				if h == nil {
					h = history.NewHist()
				}
				b.counts[first+i].Add(-n)
				_ = h.RecordValues(min(history.HighestOf(first+i), history.HistMax), int64(n)) // within its range
			}
		}
	}
	return h
}
