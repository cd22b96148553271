package history

import (
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Phase returns the phase of that name.
func (r *Run) Phase(name string) (Phase, bool) {
	for _, p := range r.Manifest.Phases {
		if p.Name == name {
			return p, true
		}
	}
	return Phase{}, false
}

// Kinds returns the kinds of latency that have values, in order of first
// appearance.
func (r *Run) Kinds() []string { return slices.Clone(r.kinds) }

// Intervals returns how many intervals a kind has.
func (r *Run) Intervals(kind string) int { return len(r.intervals[kind]) }

// Merged returns the values of a kind of the intervals whose middle is in
// [from, to), seconds since the start of the run. It is empty, not nil, when
// there are none.
func (r *Run) Merged(kind string, from, to float64) *hdrhistogram.Histogram {
	h := NewHist()
	for i := range r.intervals[kind] {
		iv := &r.intervals[kind][i]
		if mid := (iv.start + iv.end) / 2; mid >= from && mid < to {
			iv.addTo(h)
		}
	}
	return h
}

// MergedPhase returns the values of a kind in a phase. ok is false, and the
// histogram empty, when the run has no such phase.
func (r *Run) MergedPhase(kind, phase string) (h *hdrhistogram.Histogram, ok bool) {
	p, ok := r.Phase(phase)
	if !ok {
		return NewHist(), false
	}
	return r.Merged(kind, p.Start, p.End), true
}

// MergedAll returns all values of a kind.
func (r *Run) MergedAll(kind string) *hdrhistogram.Histogram {
	return r.Merged(kind, math.Inf(-1), math.Inf(1))
}

// Block is one of equal parts of a phase.
type Block struct {
	Start, End float64
	Hist       *hdrhistogram.Histogram
}

// Blocks cuts a phase into n parts of equal length, for intervals of
// confidence. It is nil when the run has no such phase or n < 1. Parts without
// values have empty histograms.
func (r *Run) Blocks(kind, phase string, n int) []Block {
	p, ok := r.Phase(phase)
	if !ok || n < 1 {
		return nil
	}
	blocks := make([]Block, n)
	for i := range blocks {
		b := &blocks[i]
		b.Start = p.Start + (p.End-p.Start)*float64(i)/float64(n)
		b.End = p.Start + (p.End-p.Start)*float64(i+1)/float64(n)
		b.Hist = r.Merged(kind, b.Start, b.End)
	}
	return blocks
}

// Point is one interval of the time series of a kind.
type Point struct {
	Start, End float64
	Hist       *hdrhistogram.Histogram
}

// Series calls f for each interval of a kind in order of start. The histogram
// is reused from call to call.
func (r *Run) Series(kind string, f func(Point)) {
	ivs := slices.Clone(r.intervals[kind])
	sort.SliceStable(ivs, func(i, j int) bool { return ivs[i].start < ivs[j].start })
	h := NewHist()
	for i := range ivs {
		h.Reset()
		ivs[i].addTo(h)
		f(Point{Start: ivs[i].start, End: ivs[i].end, Hist: h})
	}
}

// Sum returns the counts of the rows of series.csv with T in (from, to] added
// up; of the levels (Connected, InFlight, Held) it has the highest. T is the
// last row's, Phase is empty when the rows are of several. n is the number of rows.
func (r *Run) Sum(from, to float64) (sum Second, n int) {
	for i := range r.Seconds {
		s := &r.Seconds[i]
		if s.T <= from || s.T > to {
			continue
		}
		if n == 0 {
			sum.Phase = s.Phase
		} else if sum.Phase != s.Phase {
			sum.Phase = ""
		}
		n++
		levels := sum
		sum = sum.Plus(*s)
		sum.T, sum.Phase = s.T, levels.Phase
		sum.Connected = max(levels.Connected, s.Connected)
		sum.InFlight = max(levels.InFlight, s.InFlight)
		sum.Held = max(levels.Held, s.Held)
	}
	return sum, n
}

// Plus adds up the counts of two rows. T, Phase and the levels (Connected,
// InFlight, Held) are those of s.
func (s Second) Plus(o Second) Second {
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&s.Offered, o.Offered}, {&s.Written, o.Written}, {&s.Accepted, o.Accepted}, {&s.Refused, o.Refused},
		{&s.Live, o.Live}, {&s.Drained, o.Drained}, {&s.Transition, o.Transition}, {&s.Proof, o.Proof},
		{&s.Duplicates, o.Duplicates}, {&s.Logins, o.Logins}, {&s.Closed, o.Closed}, {&s.Dropped, o.Dropped},
		{&s.Pushes, o.Pushes}, {&s.FramesIn, o.FramesIn}, {&s.FramesOut, o.FramesOut},
		{&s.Unstarted, o.Unstarted}, {&s.Errors, o.Errors},
	} {
		*f.to += f.from
	}
	return s
}

// RoleNames returns the roles that have samples, in order of first appearance.
func (r *Run) RoleNames() []string {
	var names []string
	for _, s := range r.Roles {
		if !slices.Contains(names, s.Role) {
			names = append(names, s.Role)
		}
	}
	return names
}

// RoleCPU returns the CPU seconds that all instances of a role used in
// [from, to], interpolated between samples. ok is false when no instance has
// two samples around or in it.
func (r *Run) RoleCPU(role string, from, to float64) (cpu float64, ok bool) {
	curves := map[int]*curve{}
	for _, s := range r.Roles {
		if s.Role == role {
			at(curves, s.Instance).add(s.T, s.CPUSeconds, 0)
		}
	}
	return delta(curves, from, to)
}

// RSSPeak returns the sum over the instances of a role of the most resident
// memory each had at a sample in [from, to], bytes: an upper bound of what they
// had together. ok is false without samples.
func (r *Run) RSSPeak(role string, from, to float64) (bytes int64, ok bool) {
	peaks := map[int]int64{}
	for _, s := range r.Roles {
		if s.Role == role && s.T >= from && s.T <= to {
			peaks[s.Instance] = max(peaks[s.Instance], s.RSSBytes)
			ok = true
		}
	}
	for _, p := range peaks {
		bytes += p
	}
	return bytes, ok
}

// CounterDelta returns by how much a counter of a role rose in [from, to],
// summed over its instances, interpolated between scrapes. metric is a name,
// which adds up all its label sets, or a name with some labels as in
// name{kind="group"}, which adds up the label sets that have them. A counter
// starts again at zero when its process is replaced; what it counted between
// the last scrape and the kill is not known and not counted. ok is false when
// no instance has two scrapes that show the metric.
func (r *Run) CounterDelta(role, metric string, from, to float64) (sum float64, ok bool) {
	type series struct {
		instance int
		name     string
	}
	curves := map[series]*curve{}
	want := parseMetric(metric)
	seen := map[int]float64{} // instance -> time of the scrape before this one
	for _, s := range r.Counters {
		if s.Role != role {
			continue
		}
		for name, v := range s.Values {
			if !want.matches(name) {
				continue
			}
			key := series{s.Instance, name}
			if curves[key] == nil {
				// A label set appears when it first counts: it was zero at the
				// scrape before.
				if before, ok := seen[s.Instance]; ok {
					at(curves, key).add(before, 0, s.Restart)
				}
			}
			at(curves, key).add(s.T, v, s.Restart)
		}
		seen[s.Instance] = s.T
	}
	return delta(curves, from, to)
}

// Metrics returns the names, without labels, of the counters that a role shows.
func (r *Run) Metrics(role string) []string {
	set := map[string]bool{}
	for _, s := range r.Counters {
		if s.Role == role {
			for name := range s.Values {
				base, _, _ := strings.Cut(name, "{")
				set[base] = true
			}
		}
	}
	names := make([]string, 0, len(set))
	for n := range set {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// metricPattern is a metric name and the labels asked for.
type metricPattern struct {
	name   string
	labels []string // as k="v"
}

func parseMetric(s string) metricPattern {
	name, rest, ok := strings.Cut(s, "{")
	p := metricPattern{name: name}
	if ok {
		for l := range strings.SplitSeq(strings.TrimSuffix(rest, "}"), ",") {
			if l = strings.TrimSpace(l); l != "" {
				p.labels = append(p.labels, l)
			}
		}
	}
	return p
}

func (p metricPattern) matches(name string) bool {
	rest, ok := strings.CutPrefix(name, p.name)
	if !ok || (rest != "" && rest[0] != '{') {
		return false
	}
	have := "," + strings.TrimSuffix(strings.TrimPrefix(rest, "{"), "}") + ","
	for _, l := range p.labels {
		if !strings.Contains(have, ","+l+",") {
			return false
		}
	}
	return true
}

// curve is a cumulative count over time, made to rise over restarts.
type curve struct {
	t, v    []float64
	raw     float64
	restart int
}

func at[K comparable](m map[K]*curve, k K) *curve {
	c := m[k]
	if c == nil {
		c = &curve{}
		m[k] = c
	}
	return c
}

func (c *curve) add(t, raw float64, restart int) {
	if len(c.t) == 0 {
		c.t, c.v, c.raw, c.restart = append(c.t, t), append(c.v, raw), raw, restart
		return
	}
	rise := raw - c.raw
	if restart != c.restart || rise < 0 {
		rise = raw // it started at zero again
	}
	c.raw, c.restart = raw, restart
	c.t, c.v = append(c.t, t), append(c.v, c.v[len(c.v)-1]+rise)
}

// at returns the value at t, flat outside the samples.
func (c *curve) at(t float64) float64 {
	i := sort.SearchFloat64s(c.t, t)
	switch {
	case i == len(c.t):
		return c.v[i-1]
	case i == 0 || c.t[i] == t:
		return c.v[i]
	}
	return c.v[i-1] + (c.v[i]-c.v[i-1])*(t-c.t[i-1])/(c.t[i]-c.t[i-1])
}

func delta[K comparable](curves map[K]*curve, from, to float64) (sum float64, ok bool) {
	var rises []float64
	for _, c := range curves {
		if len(c.t) < 2 || c.t[0] >= to || c.t[len(c.t)-1] <= from {
			continue
		}
		rises = append(rises, c.at(to)-c.at(from))
	}
	slices.Sort(rises) // maps have no order and sums of floats depend on it
	for _, d := range rises {
		sum += d
	}
	return sum, len(rises) > 0
}
