package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"throng/sim/capacity"
	"throng/sim/history"
)

// Zones is what distance cost in a run whose target imposed latency between
// zones. Latencies are of the gated phase; reads, lags and what the links
// carried are of all load, since a group is read when it is first used.
type Zones struct {
	Zones    []Zone        `json:"zones"`
	Links    []ZoneLink    `json:"links"`
	Reads    []GroupReads  `json:"group_reads"`
	Replicas []ReplicaSeen `json:"replicas"`
	Answers  []string      `json:"answers"` // in sentences
}

// Zone is a place, and how long those waited who are connected there.
type Zone struct {
	Name   string   `json:"name"`
	Region string   `json:"region"`
	Has    []string `json:"has"`
	// By history.ZoneSentDirect and so on, what has samples.
	LatencyMs map[string]Latency `json:"latency_ms"`
}

// ZoneLink is a distance and what was carried over it, in both directions.
type ZoneLink struct {
	Between   string `json:"between"`
	And       string `json:"and"`
	LatencyMs Number `json:"latency_ms"` // one way
	JitterMs  Number `json:"jitter_ms"`
	Bytes     Number `json:"bytes"`
	// MeanLateMs is how much longer than imposed it was on average, because the
	// machine was busy, and LateShare the share that was over 10 ms late.
	MeanLateMs Number `json:"mean_late_ms"`
	LateShare  Number `json:"late_share"`
}

// GroupReads are the reads of the group store by the group instances of one zone
// that one source answered.
type GroupReads struct {
	Zone   string `json:"zone"`   // of the instances
	Source string `json:"source"` // mysql/0 is the primary
	At     string `json:"at"`     // zone of the source
	Reads  int64  `json:"reads"`
	MeanMs Number `json:"mean_ms"`
}

// ReplicaSeen is a replica as the group instances of one zone saw it.
type ReplicaSeen struct {
	Zone    string `json:"zone"` // of the instances
	Replica string `json:"replica"`
	At      string `json:"at"`
	LagS    Number `json:"lag_mean_s"` // to the second, as the heartbeat says
	MaxLagS Number `json:"lag_max_s"`
	// Fallbacks of the instances, all replicas together: reads that were asked of
	// a replica and answered by somebody else.
	Behind int64 `json:"behind"`
	Failed int64 `json:"failed"`
}

// zoneKinds are what is measured in a zone, and how it is called.
func zoneKinds() []kindName {
	return []kindName{{kind: history.ZoneSentDirect, name: "send to sent, direct"}, {kind: history.ZoneSentGroup, name: "send to sent, group"},
		{kind: history.ZoneChange, name: "group changed"}, {kind: history.ZoneDrain, name: "inbox drain"}}
}

// zones fills in what distance cost; nothing without zones.
func (r *Result) zones(e *evaluator) {
	m := &e.run.Manifest
	if len(m.Zones) == 0 {
		return
	}
	z := &Zones{Links: []ZoneLink{}, Reads: []GroupReads{}, Replicas: []ReplicaSeen{}}
	from, to := e.load()
	for _, place := range m.Zones {
		one := Zone{Name: place.Name, Region: place.Region, Has: append([]string{}, place.Has...), LatencyMs: map[string]Latency{}}
		for _, k := range zoneKinds() {
			if l := e.latencyIn(history.KindZone+place.Name+"."+k.kind, e.phase); e.gated && l.Count > 0 {
				one.LatencyMs[k.kind] = l
			}
		}
		z.Zones = append(z.Zones, one)
		z.Reads = append(z.Reads, e.groupReads(place, from, to)...)
		z.Replicas = append(z.Replicas, e.replicas(place, from, to)...)
	}
	for _, l := range m.Links {
		z.Links = append(z.Links, e.link(l, from, to))
	}
	z.Answers = z.answers()
	r.Zones = z
}

// load is the time in which there was load.
func (e *evaluator) load() (from, to float64) {
	from, to = math.Inf(1), math.Inf(-1)
	for _, p := range e.run.Manifest.Phases {
		if p.Load {
			from, to = min(from, p.Start), max(to, p.End)
		}
	}
	return from, to
}

// link is what the proxies of a pair of zones say.
func (e *evaluator) link(l history.ZoneLink, from, to float64) ZoneLink {
	out := ZoneLink{Between: l.Between, And: l.And, LatencyMs: Number(l.LatencyMs), JitterMs: Number(l.JitterMs),
		Bytes: capacity.Unknown(), MeanLateMs: capacity.Unknown(), LateShare: capacity.Unknown()}
	count := func(metric string) float64 {
		sum := 0.0
		for _, way := range [][2]string{{l.Between, l.And}, {l.And, l.Between}} {
			v, _ := e.run.CounterDelta("wan", fmt.Sprintf("throng_wan_%s{from=%q,to=%q}", metric, way[0], way[1]), from, to)
			sum += v
		}
		return sum
	}
	if chunks := count("chunks_total"); chunks > 0 {
		out.Bytes = Number(count("bytes_total"))
		out.MeanLateMs, out.LateShare = Number(1000*count("late_seconds_total")/chunks), Number(count("late_chunks_total")/chunks)
	}
	return out
}

// at are the counters of the group instances of a zone.
func (e *evaluator) at(place history.Zone) *history.Run {
	out := &history.Run{}
	for _, c := range e.run.Counters {
		if c.Role == "group" && slices.Contains(place.Has, fmt.Sprintf("group/%d", c.Instance)) {
			out.Counters = append(out.Counters, c)
		}
	}
	return out
}

// zoneOf names the zone of an instance, as seen from place, where everything is
// that is nowhere.
func (e *evaluator) zoneOf(instance string, place history.Zone) string {
	for _, z := range e.run.Manifest.Zones {
		if slices.Contains(z.Has, instance) {
			return z.Name
		}
	}
	return place.Name
}

// aFile is where groups are kept where there is no MySQL: next to everybody.
const aFile = "a file"

// sources are the databases that groups are read at by their label in metrics.
func (e *evaluator) sources() (labels, names []string) {
	for _, r := range e.run.Manifest.Roles {
		switch {
		case r.Role == "mysql" && r.Instance == 0:
			labels, names = slices.Insert(labels, 0, "primary"), slices.Insert(names, 0, "mysql/0")
		case r.Role == "mysql":
			labels, names = append(labels, fmt.Sprint(r.Instance-1)), append(names, fmt.Sprintf("mysql/%d", r.Instance))
		}
	}
	if len(labels) == 0 {
		return []string{"primary"}, []string{aFile}
	}
	return labels, names
}

func (e *evaluator) groupReads(place history.Zone, from, to float64) []GroupReads {
	var out []GroupReads
	run := e.at(place)
	labels, names := e.sources()
	for i, label := range labels {
		reads, _ := run.CounterDelta("group", fmt.Sprintf("throng_group_reads_total{source=%q}", label), from, to)
		if reads < 1 {
			continue
		}
		seconds, _ := run.CounterDelta("group", fmt.Sprintf("throng_group_read_seconds_total{source=%q}", label), from, to)
		out = append(out, GroupReads{Zone: place.Name, Source: names[i], At: e.zoneOf(names[i], place), Reads: int64(math.Round(reads)), MeanMs: Number(1000 * seconds / reads)})
	}
	return out
}

func (e *evaluator) replicas(place history.Zone, from, to float64) []ReplicaSeen {
	var out []ReplicaSeen
	run := e.at(place)
	labels, names := e.sources()
	for i, label := range labels[1:] {
		gauge := fmt.Sprintf("throng_group_replica_lag_seconds{replica=%q}", label)
		sum, most, n := 0.0, 0.0, 0
		for _, c := range run.Counters {
			if v, ok := c.Values[gauge]; ok && c.T >= from && c.T <= to {
				sum, most, n = sum+v, max(most, v), n+1
			}
		}
		if n == 0 {
			continue
		}
		fell := func(reason string) int64 {
			v, _ := run.CounterDelta("group", fmt.Sprintf("throng_group_read_fallbacks_total{reason=%q}", reason), from, to)
			return int64(math.Round(v))
		}
		out = append(out, ReplicaSeen{Zone: place.Name, Replica: names[i+1], At: e.zoneOf(names[i+1], place), LagS: Number(sum / float64(n)), MaxLagS: Number(most),
			Behind: fell("behind"), Failed: fell("failed")})
	}
	return out
}

// answers says what distance cost and what a replica nearby is worth.
func (z *Zones) answers() []string {
	out := []string{}
	for _, k := range zoneKinds() {
		var parts []string
		for _, one := range z.Zones {
			if l, ok := one.LatencyMs[k.kind]; ok && l.P50.Known() {
				parts = append(parts, fmt.Sprintf("%s in zone %s", ms(l.P50), one.Name))
			}
		}
		if len(parts) > 1 {
			out = append(out, fmt.Sprintf("%s%s, median by the zone of the gateway: %s.", strings.ToUpper(k.name[:1]), k.name[1:], strings.Join(parts, ", ")))
		}
	}
	for _, one := range z.Zones {
		var near, far *GroupReads
		for i, g := range z.Reads {
			switch {
			case g.Zone == one.Name && g.At == one.Name && g.Source != "mysql/0":
				near = &z.Reads[i]
			case g.Zone == one.Name && g.At != one.Name && g.Source == "mysql/0":
				far = &z.Reads[i]
			}
		}
		if near != nil && far != nil {
			out = append(out, fmt.Sprintf("A read of a group in zone %s took %s at the replica there and %s at the primary in zone %s (means of %s and %s reads).",
				one.Name, ms(near.MeanMs), ms(far.MeanMs), far.At, count(near.Reads), count(far.Reads)))
		}
	}
	return out
}

// zoneTables are for all forms of output: links, latency by zone, reads, replicas.
func (r *Result) zoneTables() []table {
	z := r.Zones
	if z == nil {
		return nil
	}
	links := table{Head: []string{"between zones", "imposed, one way", "carried", "longer than imposed, mean", "over 10 ms longer"}, Left: 1}
	for _, l := range z.Links {
		imposed := ms(l.LatencyMs)
		if l.JitterMs > 0 {
			imposed += " to " + ms(l.LatencyMs+l.JitterMs)
		}
		late := unknown
		if l.LateShare.Known() {
			late = percent(float64(l.LateShare))
		}
		links.Rows = append(links.Rows, []string{l.Between + " and " + l.And, imposed, amount(l.Bytes, "B"), ms(l.MeanLateMs), late})
	}
	waits := table{Head: []string{"zone of the gateway", "latency", "n", "p50", "p90", "p99", "max"}, Left: 2}
	for _, k := range zoneKinds() {
		for _, one := range z.Zones {
			if l, ok := one.LatencyMs[k.kind]; ok {
				waits.Rows = append(waits.Rows, []string{one.Name, k.name, count(l.Count), ms(l.P50), ms(l.P90), ms(l.P99), ms(l.Max)})
			}
		}
	}
	reads := table{Head: []string{"groups read in zone", "at", "reads", "mean"}, Left: 2}
	for _, g := range z.Reads {
		reads.Rows = append(reads.Rows, []string{g.Zone, g.Source + " in " + g.At, count(g.Reads), ms(g.MeanMs)})
	}
	replicas := table{Head: []string{"seen from zone", "replica", "lag, mean", "lag, max", "reads it was behind for", "failed reads"}, Left: 2}
	for _, s := range z.Replicas {
		replicas.Rows = append(replicas.Rows, []string{s.Zone, s.Replica + " in " + s.At, figures(float64(s.LagS)) + " s", figures(float64(s.MaxLagS)) + " s", count(s.Behind), count(s.Failed)})
	}
	return []table{links, waits, reads, replicas}
}

// ZonePlaces says what was where.
func (r *Result) ZonePlaces() string {
	var parts []string
	for _, z := range r.Zones.Zones {
		parts = append(parts, fmt.Sprintf("%s (region %s): %s", z.Name, z.Region, strings.Join(z.Has, ", ")))
	}
	return strings.Join(parts, "; ")
}
