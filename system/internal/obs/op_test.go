package obs

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// TestOps: two parts of a process count the same work together, by outcome; what
// has no registry counts nothing.
func TestOps(t *testing.T) {
	reg := prometheus.NewRegistry()
	for range 2 {
		ops, err := NewOps(reg)
		if err != nil {
			t.Fatal(err)
		}
		ops.Op("x").Done(20*time.Millisecond, false)
		ops.Op("x").Done(time.Second, true)
	}
	var none *Ops
	none.Op("x").Done(time.Second, false)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*dto.Histogram{}
	for _, m := range families[0].Metric {
		got[m.Label[1].GetValue()] = m.Histogram
	}
	for outcome, sum := range map[string]float64{"ok": 0.04, "error": 2} {
		if h := got[outcome]; h.GetSampleCount() != 2 || h.GetSampleSum() != sum {
			t.Errorf("%s: %v, want two of %v s in all", outcome, h, sum)
		}
	}
}

// BenchmarkOp is what one piece of work costs to count, with both readings of the clock.
func BenchmarkOp(b *testing.B) {
	ops, err := NewOps(prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	op := ops.Op("x")
	b.ReportAllocs()
	for b.Loop() {
		began := time.Now()
		op.Done(time.Since(began), false)
	}
}
