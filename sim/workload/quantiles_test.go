package workload

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"throng/sim/population"
	"throng/sim/scenario"
)

// Text lengths have the quantiles of the published fit, and those that were
// measured as far as the fit has them (WORKLOAD.md section 2a). Below 30
// characters the harness's own header hides them.
func TestTextLengthsHaveThePublishedQuantiles(t *testing.T) {
	computes(t)
	s := population.NewStream(2, purposeBody, 0, 0)
	const n = 400_000
	lengths := make([]float64, n)
	for i := range lengths {
		lengths[i] = float64(textLength(&s)) / scenario.TextExpansion
	}
	slices.Sort(lengths)
	for _, q := range []struct{ q, published, distance float64 }{{.75, 38, .05}, {.80, 45, .06}, {.90, 67, .12}, {.95, 93, .17}, {.99, 176, .27}, {.999, 406, .27}} {
		got := lengths[int(q.q*n)]
		fit := math.Exp(scenario.TextMu + scenario.TextSigma*population.NormQuantile((q.q-scenario.TextEmpty)/(1-scenario.TextEmpty)))
		within(t, fmt.Sprintf("fitted p%g of text", 100*q.q), got, fit, 0.04)
		within(t, fmt.Sprintf("measured p%g of text", 100*q.q), got, q.published, q.distance)
	}
	if share := float64(len(lengths)-slices.IndexFunc(lengths, func(l float64) bool { return l > MinBody/scenario.TextExpansion })) / n; share < 0.30 || share > 0.40 {
		t.Errorf("%.3f of the texts are longer than the header, published p50 is 20 and p75 38 characters", share)
	}
}

// Pointers to media have the mean sizes of the measured overhead.
func TestPointersHaveThePublishedMeans(t *testing.T) {
	computes(t)
	b := &builder{spec: &scenario.Spec{Seed: 3}}
	var n, sum [5]float64
	for i := range int32(300_000) {
		kind, length := b.body(i)
		n[kind]++
		sum[kind] += float64(length)
	}
	for kind, mean := range scenario.PointerBytes() {
		if kind > 0 {
			within(t, fmt.Sprint("mean body of kind ", kind), sum[kind]/n[kind], float64(mean), 0.02)
		}
	}
}

// Sessions that no message asks for are lognormal with the mean of 35.15
// minutes in 23 opens a day, cut at ten means.
func TestSessionLengthsHaveTheirQuantiles(t *testing.T) {
	computes(t)
	const mean, n = 35.15 * 60 / 23, 200_000
	b := &builder{warmup: micros(runIn * mean)}
	s := population.NewStream(4, purposeLength, 0, 0)
	lengths := make([]float64, n)
	sum := 0.0
	for i := range lengths {
		lengths[i] = float64(b.length(s.LogNormalMean(scenario.SessionSigma), mean*second)) / second
		sum += lengths[i]
	}
	slices.Sort(lengths)
	for _, q := range []float64{.25, .50, .75, .90, .99} {
		want := mean * math.Exp(scenario.SessionSigma*population.NormQuantile(q)-scenario.SessionSigma*scenario.SessionSigma/2)
		within(t, fmt.Sprintf("p%g of the session length", 100*q), lengths[int(q*n)], want, 0.04)
	}
	within(t, "mean session length", sum/n, mean, 0.03)
}

// Opens that a push causes come after a median of 6 s, reads by those who do not
// have the chat on the screen within 60 s in half of the cases (Reed 2014).
func TestDelaysHaveTheirQuantiles(t *testing.T) {
	computes(t)
	s := &Schedule{spec: &scenario.Spec{Seed: 6}, scale: 60 * second, longest: 900 * second}
	var reads, opens []float64
	for i := range uint64(100_000) {
		if read, d := s.ReadDelay(i+1, int32(i), Conv{Peer: 1}, 0); read {
			reads = append(reads, d.Seconds())
		}
		_, delay, _ := s.pushOpen(i+1, 0, 1)
		opens = append(opens, delay.Seconds())
	}
	slices.Sort(reads)
	slices.Sort(opens)
	within(t, "share read", float64(len(reads))/100_000, scenario.ReadShare, 0.01)
	within(t, "median of reads", reads[len(reads)/2], 60, 0.03)
	within(t, "p90 of reads", reads[len(reads)*9/10], 60*math.Exp(1.2*1.2816), 0.05)
	within(t, "median of opens for a push", opens[len(opens)/2], 6, 0.03)
	if last := opens[len(opens)-1]; last > pushOpenMax {
		t.Errorf("an open %.1f s after its push", last)
	}
}
