package scenario

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/goccy/go-yaml/token"
)

// Region is a part of the users that lives by one clock.
type Region struct {
	Name  string
	Share float64       // of the users; all regions together 1
	UTC   time.Duration // what its clocks are ahead of UTC
}

func (r *Region) fields() []field {
	return []field{
		{path: "name", kind: kindString, min: 1, max: 20, required: true, doc: "of the region", to: &r.Name},
		{path: "share", kind: kindNumber, min: 0.001, max: 1, required: true, doc: "of the users; together 1", to: &r.Share},
		{path: "utc", kind: kindDuration, min: -12 * 3600, max: 14 * 3600, def: "0s", doc: "what its clocks are ahead of UTC, as 5h30m", to: &r.UTC},
	}
}

// consistentRegions checks that the regions are everybody.
func (p *reader) consistentRegions(s *Spec, at func(string) *token.Position) {
	var names []string
	sum := 0.0
	for _, r := range s.Regions {
		names, sum = append(names, r.Name), sum+r.Share
	}
	if len(names) > 0 && math.Abs(sum-1) > 1e-6 {
		p.fail(at("regions"), "regions", "shares of "+num(sum)+" together", "1", "")
	}
	if where := s.Phases.SpikeRegion; where != "" && s.RegionIndex(where) < 0 {
		p.fail(at("phases.spike_region"), "phases.spike_region", where, "one of regions: "+strings.Join(names, ", "), didYouMean(where, names))
	}
	if s.DayS > 0 && len(names) == 0 {
		p.fail(at("day"), "day", seconds(s.DayS), "regions beside it, which have the hours of the day", "")
	}
}

// RegionIndex is the position of a region, -1 if there is none of the name.
func (s *Spec) RegionIndex(name string) int {
	for i := range s.Regions {
		if s.Regions[i].Name == name {
			return i
		}
	}
	return -1
}

// dayCurve is the activity of one region by its local hour, relative to its
// plateau: it starts at 6, is on the plateau from noon to 22 h
// (onlinestatusmonitor), and the peak is 1.8 times the mean of the day (WORKLOAD.md
// section 5: 1.8 to 2.0). What is between the points is linear.
func dayCurve() [][2]float64 {
	return [][2]float64{{0, .10}, {1, .06}, {2, .03}, {5, .02}, {6, .05}, {8, .17}, {10, .40}, {12, 1}, {22, 1}, {23, .35}, {24, .10}}
}

// Activity is how active a region is, relative to its plateau, at a time of the
// day in UTC.
func (r *Region) Activity(utc time.Duration) float64 {
	hour := math.Mod((utc+r.UTC).Hours()+48, 24)
	curve := dayCurve()
	for i := 1; i < len(curve); i++ {
		if a, b := curve[i-1], curve[i]; hour <= b[0] {
			return a[1] + float64((b[1]-a[1])*(hour-a[0]))/(b[0]-a[0])
		}
	}
	return curve[0][1]
}

// World is the activity of all regions at a time of the day in UTC, relative to
// everybody being on the plateau.
func (s *Spec) World(utc time.Duration) float64 {
	sum := 0.0
	for i := range s.Regions {
		sum += float64(s.Regions[i].Share * s.Regions[i].Activity(utc))
	}
	return sum
}

// Peak is the largest World of the day; the resolved rates are those of then.
// It is 1 where the scenario has no day.
func (s *Spec) Peak() float64 {
	if s.DayS == 0 {
		return 1
	}
	peak := 0.0
	for minute := range 24 * 60 {
		peak = max(peak, s.World(time.Duration(minute)*time.Minute))
	}
	return peak
}

// SpikeShare is the share of the users who take part in the spike.
func (s *Spec) SpikeShare() float64 {
	if i := s.RegionIndex(s.Phases.SpikeRegion); i >= 0 {
		return s.Regions[i].Share
	}
	return 1
}

func (s *Spec) describeRegions(w io.Writer) {
	for _, r := range s.Regions {
		fmt.Fprintf(w, "  region %q: %s of the users, %s ahead of UTC\n", r.Name, num(r.Share), r.UTC)
	}
	if s.DayS > 0 {
		mean := 0.0
		for minute := range 24 * 60 {
			mean += s.World(time.Duration(minute)*time.Minute) / (24 * 60)
		}
		fmt.Fprintf(w, "  a day passes in %s from the start of steady, 0 h UTC on; its peak is %.2f of its mean\n", seconds(s.DayS), s.Peak()/mean)
	}
}
