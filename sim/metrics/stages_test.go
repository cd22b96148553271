package metrics

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"throng/sim/history"
)

// TestCells: every value is in one cell, whose top is at most 3.2 % above it.
func TestCells(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for us := int64(0); us < 5000; us++ {
		checkCell(t, us)
	}
	for range 10_000 {
		checkCell(t, int64(math.Exp(rng.Float64()*math.Log(history.HistMax))))
	}
	checkCell(t, history.HistMax)
	if n := cellOf(history.HistMax); n > 900 {
		t.Errorf("%d cells, meant to be about 850", n)
	}
}

func checkCell(t *testing.T, us int64) {
	t.Helper()
	i := cellOf(us)
	top := cellTop(i)
	if us > top || i > 0 && us <= cellTop(i-1) || float64(top-us) > 0.032*float64(us) {
		t.Fatalf("%d us is in cell %d, up to %d us", us, i, top)
	}
}

// TestBandFindsTheStage: most deliveries spend 1 ms in each stage; two in a
// hundred 50 ms more in the inbox. The median shows nothing of it, p99 all.
func TestBandFindsTheStage(t *testing.T) {
	names := history.StagesOf(history.KindDeliverGroup)
	inbox := slices.Index(names, history.StageInbox)
	s, other := NewStages(history.KindDeliverGroup), NewStages(history.KindDeliverGroup)
	for i := range 10_000 {
		at := []int64{1_000_000}
		for k := range names {
			d := int64(1000 + i%7)
			if k == inbox && i%50 == 0 {
				d += 50_000
			}
			at = append(at, at[k]+d)
		}
		[]*Stages{s, other}[i%2].Record(at) // two intervals, or two generators
	}
	sum := s.Swap(0, 1)
	sum.Add(other.Swap(1, 2))
	if sum.Count() != 10_000 || sum.Negative != 0 {
		t.Fatalf("%d deliveries, %d with a negative stage", sum.Count(), sum.Negative)
	}
	median, p99 := BandOf(sum, 0.45, 0.55), BandOf(sum, 0.985, 0.995)
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 0.01*want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	near("deliveries around the median", median.N, 1000)
	near("deliveries around p99", p99.N, 100)
	near("inbox at the median", median.Stages[inbox], 1003)
	near("inbox at p99", p99.Stages[inbox], 51_003)
	near("fan-out at p99", p99.Stages[inbox-1], 1003)
	for _, b := range []Band{median, p99} {
		total := 0.0
		for _, v := range b.Stages {
			total += v
		}
		near("sum of the stages", total, b.Latency)
	}
}

// TestStagesOfClocksThatDisagree: a stage below zero counts as none, is
// counted, and shows as what is missing between the stages and the latency.
func TestStagesOfClocksThatDisagree(t *testing.T) {
	s := NewStages(history.KindDeliverDirect)
	s.Record([]int64{0, 10, 20, 500, 40, 50, 60, 70})
	s.Partial()
	got := s.Swap(0, 1)
	if got.Negative != 1 || got.Partial != 1 || got.Count() != 1 {
		t.Fatalf("%+v", got)
	}
	b := BandOf(got, 0, 1)
	total := 0.0
	for _, v := range b.Stages {
		total += v
	}
	if b.Latency != 70 || total != 70+460 {
		t.Errorf("latency %v, stages add up to %v", b.Latency, total)
	}
	if again := s.Swap(1, 2); again.Count()+again.Negative+again.Partial != 0 {
		t.Errorf("the next interval has %+v", again)
	}
}

func TestBandOfNothing(t *testing.T) {
	b := BandOf(&history.Stages{Kind: history.KindDeliverDirect}, 0, 1)
	if b.N != 0 || !math.IsNaN(b.Latency) || len(b.Stages) != 7 || !math.IsNaN(b.Stages[0]) {
		t.Errorf("%+v", b)
	}
}
