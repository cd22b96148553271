package workload

import (
	"math"
	"time"

	"throng/sim/population"
	"throng/sim/scenario"
)

// days works out how active the world is at its peak and over the load. Without
// a day both are 1.
func (b *builder) days() {
	b.peak, b.mean = b.spec.Peak(), 1
	if b.spec.DayS == 0 {
		return
	}
	const parts = 1000
	sum := 0.0
	for i := range int64(parts) {
		sum += b.spec.World(b.hour(b.warmup + (b.end-b.warmup)*i/parts))
	}
	b.mean = sum / parts / b.peak
}

// hour is the time of the day, in UTC, at a time of the load clock.
func (b *builder) hour(at int64) time.Duration {
	day := float64(at-b.steady) / second / b.spec.DayS
	return time.Duration(float64(24*time.Hour) * (day - math.Floor(day)))
}

// region of a user, or of anything else that has a number: an index into the
// scenario's regions, 0 where there are none.
func (b *builder) region(number uint64) int { return regionOf(b.spec, number) }

func regionOf(spec *scenario.Spec, number uint64) int {
	s := population.NewStream(spec.Seed, purposeRegion, number, 0)
	u := s.Float64()
	for i := range spec.Regions {
		if u < spec.Regions[i].Share {
			return i
		}
		u -= spec.Regions[i].Share
	}
	return max(0, len(spec.Regions)-1)
}

// awake says whether a session that a user would open on the plateau is opened
// at this time of their day.
func (b *builder) awake(s *population.Stream, user uint64, at int64) bool {
	return b.spec.DayS == 0 || s.Float64() < b.spec.Regions[b.region(user)].Activity(b.hour(at))
}

// thinning leaves out bursts of a chat by the time of the day in its region. A
// burst stays whole: who talks at night talks as fast as by day. A chat's region
// is its own; its members are drawn from everybody.
type thinning struct {
	b      *builder
	stream population.Stream
	region int
	drawn  bool
	kept   bool // the burst that goes on
}

func (b *builder) thinning(chat uint64) thinning {
	if b.spec.DayS == 0 {
		return thinning{}
	}
	return thinning{b: b, stream: population.NewStream(b.spec.Seed, purposeThinning, chat, 0), region: b.region(chat)}
}

// keeps says whether the message at a time, after a gap of a branch, is sent.
func (t *thinning) keeps(at int64, branch int) bool {
	if t.b == nil {
		return true
	}
	if branch != burst || !t.drawn {
		t.drawn = true
		t.kept = t.stream.Float64() < t.b.spec.Regions[t.region].Activity(t.b.hour(at))
	}
	return t.kept
}
