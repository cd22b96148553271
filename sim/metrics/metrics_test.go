package metrics

import (
	"math/rand/v2"
	"testing"

	"throng/sim/history"
)

func TestRecorderBucketsAreThoseOfHDR(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	r := NewRecorder(0, "a", "b")
	want := history.NewHist()
	values := []int64{0, 1, 2047, 2048, 2049, 4095, 4096, history.HistMax - 1, history.HistMax}
	for range 20000 {
		values = append(values, rng.Int64N(1<<rng.IntN(30)+1)%(history.HistMax+1))
	}
	for _, v := range values {
		r.Record(r.Kind("b"), v)
		if err := want.RecordValue(v); err != nil {
			t.Fatal(err)
		}
	}
	got := r.Swap(1)
	if len(got) != 1 || got[0].Kind != "b" || got[0].Start != 0 || got[0].End != 1 {
		t.Fatalf("Swap = %+v", got)
	}
	if !got[0].Hist.Equals(want) {
		t.Fatal("the histogram differs from one filled by hdrhistogram")
	}
	if again := r.Swap(2); len(again) != 0 {
		t.Fatalf("second Swap = %+v, want nothing", again)
	}
}

func BenchmarkRecord(b *testing.B) {
	r := NewRecorder(0, history.KindSent, history.KindDeliverGroup)
	k := r.Kind(history.KindDeliverGroup)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		v := int64(1)
		for pb.Next() {
			r.Record(k, v)
			v = (v*7 + 13) % 1_000_000
		}
	})
}

func BenchmarkSwap(b *testing.B) {
	r := NewRecorder(0)
	for _, n := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		k := r.Kind(n)
		for v := range int64(1000) {
			r.Record(k, v*v)
		}
	}
	for b.Loop() {
		r.Swap(1)
		for k := range Kind(10) {
			for v := range int64(100) {
				r.Record(k, v*v)
			}
		}
	}
}
