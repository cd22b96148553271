package main

import (
	"fmt"
	"strings"

	"throng/sim/history"
	"throng/sim/scenario"
	"throng/sim/target"
)

// zones are those of the scenario, as a target takes them.
func zones(spec *scenario.Spec) target.Zones {
	var out target.Zones
	for _, z := range spec.Zones {
		out.Zones = append(out.Zones, target.Zone{Name: z.Name, Region: z.Region, Has: spec.Placed(z.Name)})
	}
	for _, l := range spec.Links {
		out.Links = append(out.Links, target.ZoneLink{A: l.Between, B: l.And, Delay: l.Latency, Jitter: l.Jitter})
	}
	return out
}

// imposedZones are the zones for the manifest of a run whose target imposes them.
func imposedZones(spec *scenario.Spec) (places []history.Zone, links []history.ZoneLink) {
	for _, z := range spec.Zones {
		places = append(places, history.Zone{Name: z.Name, Region: z.Region, Has: spec.Placed(z.Name)})
	}
	for _, l := range spec.Links {
		links = append(links, history.ZoneLink{Between: l.Between, And: l.And, LatencyMs: l.Latency.Seconds() * 1000, JitterMs: l.Jitter.Seconds() * 1000})
	}
	return places, links
}

// checkZones says which distances of the scenario the target cannot impose: the
// run is played, and inconclusive.
func (r *runner) checkZones(stack string) {
	if len(r.spec.Zones) == 0 || stack == "containers" {
		return
	}
	missing := func(needs, text string) {
		r.missing = append(r.missing, history.Missing{Needs: needs, Text: text})
	}
	if stack == "external" {
		missing("zones", "the scenario wants latency between zones, which only a target that the harness starts imposes; this run had none but the deployment's own")
		return
	}
	// SQL is files on the embedded target, and a file is as near to everybody.
	primary := r.spec.ZoneOf("mysql", 0)
	var far []string
	for i := range r.spec.Topology.Groups {
		if z := r.spec.ZoneOf("group", i); z != primary {
			far = append(far, fmt.Sprintf("group/%d", i))
		}
	}
	const other = "make images, then --stack containers"
	if len(far) > 0 {
		missing("latency to SQL", fmt.Sprintf("%s should be far from the database of groups, which is a file on the embedded target and next to everybody: the latencies between roles, Kafka and Redis were imposed, this one was not; %s",
			strings.Join(far, " and "), other))
	}
	for i := 1; i <= r.spec.Infrastructure.Replicas; i++ {
		if z := r.spec.ZoneOf("mysql", i); z != primary {
			missing("replicas", fmt.Sprintf("the scenario has a replica of MySQL in zone %s; the embedded target keeps groups in one SQLite file, which has no replica; %s", z, other))
			return
		}
	}
}
