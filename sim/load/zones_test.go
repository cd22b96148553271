package load

import (
	"testing"
	"time"

	"throng/sim/history"
	"throng/sim/metrics"
	"throng/sim/scenario"
)

// What a device waits for is counted in the zone of the gateway that it is at,
// also after it has moved on; without zones nothing is.
func TestZones(t *testing.T) {
	spec, err := scenario.Parse("x", []byte(`
name: x
question: what is it like?
topology: {gateways: 3}
zones: [{name: a, region: eu}, {name: b, region: us, has: [gateway/1]}]
links: [{between: a, and: b, latency: 40ms}]
`))
	if err != nil {
		t.Fatal(err)
	}
	counts := func(spec *scenario.Spec) map[string]int64 {
		e := &Engine{rec: metrics.NewRecorder(0)}
		e.zones = zonesOf(spec, e.rec, 3)
		for gate := range 6 {
			e.inZone(gate, directOf, time.Millisecond)
		}
		e.inZone(1, groupOf, time.Millisecond)
		e.inZone(0, changeOf, time.Millisecond)
		e.inZone(4, drainOf, time.Millisecond)
		out := map[string]int64{}
		for _, i := range e.rec.Swap(1) {
			out[i.Kind] = i.Hist.TotalCount()
		}
		return out
	}
	got := counts(spec)
	for kind, want := range map[string]int64{"a." + history.ZoneSentDirect: 4, "b." + history.ZoneSentDirect: 2, "b." + history.ZoneSentGroup: 1,
		"a." + history.ZoneChange: 1, "b." + history.ZoneDrain: 1, "a." + history.ZoneDrain: 0} {
		if n := got[history.KindZone+kind]; n != want {
			t.Errorf("%d of %s, want %d", n, kind, want)
		}
	}
	if got := counts(&scenario.Spec{}); len(got) != 0 {
		t.Errorf("without zones: %v", got)
	}
}
