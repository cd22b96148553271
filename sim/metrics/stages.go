package metrics

import (
	"math"
	"math/bits"
	"slices"
	"sync"

	"throng/sim/history"
)

// Stages adds up where deliveries spent their time, by their latency. Its
// memory is bounded by the number of cells, about 850. Safe for concurrent use.
type Stages struct {
	kind string
	n    int // stages

	mu  sync.Mutex
	sum history.Stages
	at  map[int]*history.StageCell
}

// NewStages returns an empty sum for a kind of history.StagesOf.
func NewStages(kind string) *Stages {
	return &Stages{kind: kind, n: len(history.StagesOf(kind)), at: map[int]*history.StageCell{}}
}

// Record adds a delivery that passed its waypoints at the given times, in
// microseconds by any clock: the ends of its stages, the first one's start
// before them.
func (s *Stages) Record(waypoints []int64) {
	if len(waypoints) != s.n+1 {
		panic("metrics: waypoints of another kind")
	}
	total := min(max(waypoints[s.n]-waypoints[0], 0), history.HistMax)
	s.mu.Lock()
	defer s.mu.Unlock()
	i := cellOf(total)
	c := s.at[i]
	if c == nil {
		c = &history.StageCell{UpTo: cellTop(i), Stages: make([]int64, s.n)}
		s.at[i] = c
	}
	c.N++
	c.Total += total
	negative := false
	for k := range s.n {
		d := waypoints[k+1] - waypoints[k]
		negative = negative || d < 0
		c.Stages[k] += max(d, 0)
	}
	if negative {
		s.sum.Negative++
	}
}

// Partial counts a delivery that lacks a stamp.
func (s *Stages) Partial() {
	s.mu.Lock()
	s.sum.Partial++
	s.mu.Unlock()
}

// Swap returns what was recorded since the last call, as the interval from start
// to end, seconds since the start of the run.
func (s *Stages) Swap(start, end float64) *history.Stages {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.sum
	out.Kind, out.Start, out.End = s.kind, start, end
	for _, c := range s.at {
		out.Cells = append(out.Cells, *c)
	}
	slices.SortFunc(out.Cells, func(a, b history.StageCell) int { return int(a.UpTo - b.UpTo) })
	s.sum = history.Stages{}
	clear(s.at)
	return &out
}

// Cells are one microsecond wide up to 2^cellBits, and from there 2^(cellBits-1)
// for each doubling.
const cellBits = 6

func cellOf(us int64) int {
	shift := max(bits.Len64(uint64(us))-cellBits, 0)
	return shift<<(cellBits-1) + int(us>>shift)
}

// cellTop is the highest value of a cell.
func cellTop(i int) int64 {
	shift := max(i>>(cellBits-1)-1, 0)
	return (int64(i-shift<<(cellBits-1))+1)<<shift - 1
}

// Band is the mean of deliveries whose latencies lie between two quantiles, in
// microseconds.
type Band struct {
	N       float64 // deliveries
	Latency float64
	Stages  []float64
}

// BandOf returns the band of s from quantile from to quantile to. A cell that a
// quantile cuts counts by the part inside. Without deliveries the means are NaN.
func BandOf(s *history.Stages, from, to float64) Band {
	all := float64(s.Count())
	b := Band{Latency: math.NaN(), Stages: make([]float64, len(history.StagesOf(s.Kind)))}
	var latency, below float64
	for _, c := range s.Cells {
		n := float64(c.N)
		share := math.Max(0, math.Min(below+n, to*all)-math.Max(below, from*all)) / n
		below += n
		b.N += share * n
		latency += share * float64(c.Total)
		for k, v := range c.Stages {
			b.Stages[k] += share * float64(v)
		}
	}
	if b.N > 0 {
		b.Latency = latency / b.N
	}
	for k := range b.Stages {
		b.Stages[k] /= b.N // NaN of nothing
	}
	return b
}
