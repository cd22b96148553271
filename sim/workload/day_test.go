package workload

import (
	"math"
	"testing"
	"time"

	"throng/sim/scenario"
)

const worldYAML = `
regions:
  - {name: asia, share: 0.48, utc: 7h}
  - {name: europe and africa, share: 0.30, utc: 1h30m}
  - {name: americas, share: 0.22, utc: -5h}
`

func parse(t *testing.T, yaml string) *scenario.Spec {
	t.Helper()
	spec, err := scenario.Parse("test", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// The curve of one region has the published peak over mean (1.8 to 2.0), and the
// regions together that of the world (1.55).
func TestDayHasThePublishedPeaks(t *testing.T) {
	spec := parse(t, "name: day\nquestion: what does a day look like?\nday: 5m\n"+worldYAML)
	mean := func(activity func(time.Duration) float64) float64 {
		sum := 0.0
		for minute := range 24 * 60 {
			sum += activity(time.Duration(minute) * time.Minute)
		}
		return sum / (24 * 60)
	}
	if r := 1 / mean(spec.Regions[0].Activity); r < 1.8 || r > 2 {
		t.Errorf("peak over mean of a region is %.3f, published 1.8 to 2.0", r)
	}
	within(t, "peak over mean of the world", spec.Peak()/mean(spec.World), 1.55, 0.03)
	for hour, want := range map[time.Duration]float64{4 * time.Hour: 0.03, 13 * time.Hour: 1, 21 * time.Hour: 1} {
		if got := spec.Regions[0].Activity(hour - 7*time.Hour); math.Abs(got-want) > 0.01 {
			t.Errorf("activity at %v local time is %.2f, want %.2f", hour, got, want)
		}
	}
}

// A day in minutes: sends and sockets follow the hours, its peak has the rates
// of the profile, and bursts are not torn apart.
func TestDayIsFollowed(t *testing.T) {
	computes(t)
	spec := parse(t, "name: day\nquestion: does the load follow the day?\nscale: 1/20000\nseed: 5\nday: 600s\nphases: {ramp: 5s, backlog: 0s, warmup: 5s, steady: 600s}\n"+worldYAML)
	s := build(t, spec)
	steady := s.Phases[3]
	var sends, opens [24]float64
	for i := range s.Actions {
		a := &s.Actions[i]
		if a.At < steady.Start || a.At >= steady.End {
			continue
		}
		hour := int((a.At - steady.Start) * 24 / (steady.End - steady.Start))
		switch a.Kind {
		case Send:
			sends[hour]++
		case Open:
			opens[hour]++
		}
	}
	r, perHour := spec.Resolved(), 600.0/24
	most, least := 0.0, math.Inf(1)
	var all, allOpens float64
	for h := range sends {
		world := spec.World(time.Duration(h)*time.Hour+30*time.Minute) / spec.Peak()
		if world > 0.9 {
			within(t, "sends in a busy hour", sends[h]/perHour, r.SendsPerS*world, 0.2)
		}
		most, least = max(most, sends[h]), min(least, sends[h])
		all, allOpens = all+sends[h], allOpens+opens[h]
	}
	if most/least < 2 {
		t.Errorf("the busiest hour has %.0f sends, the quietest %.0f", most, least)
	}
	within(t, "peak over mean of the sends", r.SendsPerS/(all/600), 1.55, 0.12)
	within(t, "logins of the day", allOpens/600+s.Stats.PushLoginsPerS, r.LoginsPerS/1.55, 0.12)
}

// A spike in one region has senders of that region alone, and as many sends as
// that makes.
func TestSpikeInOneRegion(t *testing.T) {
	computes(t)
	spec := parse(t, "name: nye\nquestion: is the spike where it should be?\nscale: 1/50000\nseed: 5\nphases: {ramp: 5s, backlog: 0s, warmup: 5s, steady: 10s, spike: 60s, spike_region: americas}\n"+worldYAML)
	s := build(t, spec)
	within(t, "sends in the spike", s.Stats.SpikeSendsPerS, spec.Resolved().SendsPerS*(1+4*0.22), 0.08)
	spike := s.Phases[4]
	var inside, all float64
	for i := range s.Actions {
		if a := &s.Actions[i]; a.Kind == Send && a.At >= spike.Start && a.At < spike.End {
			all++
			if regionOf(spec, a.User) == 2 {
				inside++
			}
		}
	}
	within(t, "share of the spike's sends from the region", inside/all, (0.22*5)/(1+4*0.22), 0.15)
}
