package workload

import (
	"math"

	"throng/sim/population"
	"throng/sim/scenario"
)

// Purposes of this package's random streams.
const (
	purposeChat population.Purpose = iota + 1000
	purposeSizes
	purposeWriter
	purposeLead
	purposeLength
	purposeBackground
	purposeRamp
	purposeTyping
	purposeBody
	purposeSpike
	purposeBacklog
	purposeMembership
	purposePushOpen
	purposeRead
	purposeKind
	purposeAsks
	purposeRegion
	purposeThinning
	purposeMedia
)

const second = 1_000_000 // times inside this package are integer microseconds

// micros turns seconds into microseconds, at least 1: quantising here makes
// times independent of the last bits of a float.
func micros(s float64) int64 { return max(1, int64(math.Round(float64(s*second)))) }

// burst is the index of the conversation burst branch of the law.
const burst = 0

// gapLaw samples the law of times between messages of a chat.
type gapLaw struct {
	branches [4]scenario.GapBranch
	gap      [4]float64 // cumulative share of gaps
	time     [4]float64 // cumulative share of time: weight x mean
	keep     [4]float64 // 1 - exp(-rate (max-min))
	flat     [4]float64 // share of the equilibrium law that lies below min
}

func newGapLaw(branches [4]scenario.GapBranch) gapLaw {
	l := gapLaw{branches: branches}
	gaps, times := 0.0, 0.0
	for i, b := range branches {
		gaps += b.Weight
		times += float64(b.Weight * b.MeanS())
		l.gap[i], l.time[i] = gaps, times
		l.keep[i] = 1 - population.Exp(max(-600, -float64(b.Rate*(b.MaxS-b.MinS))))
		l.flat[i] = b.MinS / b.MeanS()
	}
	for i := range branches {
		l.gap[i] /= gaps
		l.time[i] /= times
	}
	return l
}

// pick is the branch at a quantile of a cumulative share.
func pick(cumulative [4]float64, u float64) int {
	for i := range 3 {
		if u < cumulative[i] {
			return i
		}
	}
	return 3
}

// inBranch is an exponential conditioned on the branch's range, seconds.
func (l *gapLaw) inBranch(s *population.Stream, i int) float64 {
	b := &l.branches[i]
	return b.MinS - population.Ln(1-float64(s.Float64()*l.keep[i]))/b.Rate
}

// next is the time from one message to the next, and its branch.
func (l *gapLaw) next(s *population.Stream) (int64, int) {
	i := pick(l.gap, s.Float64())
	return micros(l.inBranch(s, i)), i
}

// residual is the time from an arbitrary instant to the chat's next message:
// the forward recurrence time of the stationary renewal process. A gap covers
// an instant with probability proportional to its length, so the branch has
// weight x mean, and within a branch the density is proportional to P(gap > t):
// flat up to the branch's minimum, then falling; the latter is the branch's own
// law thinned by 1 - exp(-rate (max - t)).
func (l *gapLaw) residual(s *population.Stream) (int64, int) {
	i := pick(l.time, s.Float64())
	b := &l.branches[i]
	if u := s.Float64(); u < l.flat[i] {
		return micros(float64(u/l.flat[i]) * b.MinS), i
	}
	for {
		t := l.inBranch(s, i)
		if s.Float64() < 1-population.Exp(max(-600, -float64(b.Rate*(b.MaxS-t)))) {
			return micros(t), i
		}
	}
}
