package main

import (
	"math"
	"testing"

	"throng/sim/report"
)

// checkStages: what the processes of a run stamped adds up to what its devices
// waited, with nothing left over, and every stamp is there.
func checkStages(t *testing.T, res *report.Result, clocks string) {
	t.Helper()
	if len(res.Stages) == 0 {
		t.Errorf("no stages of any kind; latencies: %v", res.LatencyMs)
	}
	known := 0
	for kind, b := range res.Stages {
		if !b.Total.MeanMs.Known() { // too few deliveries of the kind for a mean
			continue
		}
		known++
		sum := 0.0
		for _, s := range b.Stages {
			sum += float64(s.MeanMs)
			if s.Name == "residual" && s.MeanMs != 0 || s.MeanMs < 0 {
				t.Errorf("%s: stage %s takes %v ms", kind, s.Name, s.MeanMs)
			}
		}
		if b.Count == 0 || b.Partial != 0 || b.Negative != 0 || b.LeftOut != "" || b.Clocks != clocks {
			t.Errorf("%s: %d deliveries, %d partial, %d negative, left out %q, clocks %q", kind, b.Count, b.Partial, b.Negative, b.LeftOut, b.Clocks)
		}
		if total := float64(b.Total.MeanMs); b.Count >= 10 && !(math.Abs(sum-total) <= 0.001*total) {
			t.Errorf("%s: the stages add up to %v ms, the latency is %v ms", kind, sum, total)
		}
	}
	if known == 0 {
		t.Errorf("no kind has enough stamped deliveries: %v", res.Stages)
	}
}
