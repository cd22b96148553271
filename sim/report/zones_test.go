package report

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report/runtest"
)

// apart writes a run of 10 seconds of a deployment in two zones, 40 ms apart,
// whose figures are known.
func apart(t *testing.T, target string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "apart")
	m := &history.Manifest{FormatVersion: history.FormatVersion, RunID: "20260304T050607Z-5e5e5e", Scenario: "apart", Question: "What does distance cost?", Target: target,
		SpecYAML: "name: apart\nquestion: What does distance cost?\n", Start: runtest.Start(), End: runtest.Start().Add(10e9), Users: 100,
		Phases: []history.Phase{{Name: "warmup", Start: 0, End: 2, Load: true}, {Name: "steady", Start: 2, End: 10, Load: true, Gated: true}},
		Zones: []history.Zone{{Name: "near", Region: "eu", Has: []string{"gateway/0", "group/0", "mysql/0", "mysql/1"}},
			{Name: "far", Region: "us", Has: []string{"gateway/1", "group/1", "mysql/2"}}},
		Links: []history.ZoneLink{{Between: "near", And: "far", LatencyMs: 40, JitterMs: 4}}}
	if target == "containers" {
		m.Roles = []history.RoleInstance{{Role: "mysql"}, {Role: "mysql", Instance: 1}, {Role: "mysql", Instance: 2}}
	}
	begun := *m
	w, err := history.Create(dir, &begun)
	if err != nil {
		t.Fatal(err)
	}
	put := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for s := 1.0; s <= 10; s++ {
		for zone, ms := range map[string]int64{"near": 3, "far": 84} {
			for _, what := range []string{history.ZoneSentDirect, history.ZoneSentGroup} {
				h := history.NewHist()
				put(h.RecordValues(ms*1000, 20))
				put(w.Interval(history.Interval{Kind: history.KindZone + zone + "." + what, Start: s - 1, End: s, Hist: h}))
			}
		}
	}
	const reads, seconds, falls, lag = `throng_group_reads_total{source=%`, `throng_group_read_seconds_total{source=%`, `throng_group_read_fallbacks_total{reason=%`, `throng_group_replica_lag_seconds{replica=%`
	name := func(metric, label string) string { return strings.Replace(metric, "%", `"`+label+`"}`, 1) }
	for i, s := range []float64{0, 10} {
		n := float64(i)
		put(w.Counters(history.CounterSample{T: s, Role: "group", Values: map[string]float64{
			name(reads, "primary"): 100 * n, name(seconds, "primary"): 0.2 * n, name(reads, "0"): 50 * n, name(seconds, "0"): 0.05 * n}}))
		put(w.Counters(history.CounterSample{T: s, Role: "group", Instance: 1, Values: map[string]float64{
			name(reads, "primary"): 10 * n, name(seconds, "primary"): 0.9 * n, name(reads, "0"): 0, name(seconds, "0"): 0, name(reads, "1"): 40 * n, name(seconds, "1"): 0.08 * n,
			name(falls, "behind"): 3 * n, name(falls, "failed"): 0, name(lag, "0"): 1 + n, name(lag, "1"): 0}}))
		put(w.Counters(history.CounterSample{T: s, Role: "wan", Values: map[string]float64{
			`throng_wan_bytes_total{from="far",to="near"}`: 5e6 * n, `throng_wan_bytes_total{from="near",to="far"}`: 1e6 * n,
			`throng_wan_chunks_total{from="far",to="near"}`: 1000 * n, `throng_wan_late_chunks_total{from="far",to="near"}`: 20 * n, `throng_wan_late_seconds_total{from="far",to="near"}`: 0.5 * n}}))
	}
	put(w.Finish(m))
	return dir
}

func TestZones(t *testing.T) {
	dir := apart(t, "containers")
	r, err := Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	validate(t, dir)
	z := r.Zones
	if z == nil || len(z.Zones) != 2 {
		t.Fatalf("zones %+v", z)
	}
	if l := z.Zones[1].LatencyMs[history.ZoneSentDirect]; l.Count != 160 || l.P50 < 83 || l.P50 > 85 { // of the gated phase
		t.Errorf("far: %+v", l)
	}
	if _, ok := z.Zones[0].LatencyMs[history.ZoneDrain]; ok {
		t.Error("a latency of nothing")
	}
	if l := z.Links[0]; l.Bytes != 6e6 || l.MeanLateMs != 0.5 || l.LateShare != 0.02 || l.LatencyMs != 40 {
		t.Errorf("link %+v", l)
	}
	if got, want := z.Reads, []GroupReads{{"near", "mysql/0", "near", 100, 2}, {"near", "mysql/1", "near", 50, 1}, {"far", "mysql/0", "near", 10, 90}, {"far", "mysql/2", "far", 40, 2}}; !equalReads(got, want) {
		t.Errorf("reads %+v, want %+v", got, want)
	}
	if len(z.Replicas) != 2 || z.Replicas[0] != (ReplicaSeen{"far", "mysql/1", "near", 1.5, 2, 3, 0}) || z.Replicas[1].Replica != "mysql/2" {
		t.Errorf("replicas %+v", z.Replicas)
	}
	var terminal bytes.Buffer
	if err := r.Terminal(&terminal, false); err != nil {
		t.Fatal(err)
	}
	page, err := r.html(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"terminal": terminal.String(), "markdown": r.markdown(), "page": string(page)} {
		for _, want := range []string{
			"Send to sent, direct, median by the zone of the gateway: 3 ms in zone near, 84 ms in zone far.",
			"A read of a group in zone far took 2 ms at the replica there and 90 ms at the primary in zone near (means of 40 and 10 reads).",
			"near and far", "40 ms to 44 ms", "mysql/2 in far",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %q:\n%s", name, want, text)
			}
		}
	}
	if len(r.LatencyMs) != 0 {
		t.Errorf("latencies by zone are among the others: %v", r.LatencyMs)
	}
}

func equalReads(a, b []GroupReads) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if d := float64(x.MeanMs - y.MeanMs); d > 1e-6 || d < -1e-6 {
			return false
		}
		if x.MeanMs, y.MeanMs = 0, 0; x != y {
			return false
		}
	}
	return true
}

// Where groups are in a file, nobody is far from it.
func TestZonesOfFiles(t *testing.T) {
	r := judged(t, apart(t, "embedded"))
	if len(r.Zones.Reads) != 2 || r.Zones.Reads[1].Source != aFile || r.Zones.Reads[1].At != "far" || len(r.Zones.Replicas) != 0 {
		t.Errorf("%+v", r.Zones)
	}
	for _, a := range r.Zones.Answers {
		if strings.Contains(a, "replica") {
			t.Error(a)
		}
	}
}
