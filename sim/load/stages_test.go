package load

import (
	"testing"
	"time"

	"throng/sim/history"
	"throng/sim/metrics"
	"throng/system/wire"
)

// TestStagesAddUpToTheLatency: the stages of a delivery are those between its
// stamps and the run's own times, and nothing is between them.
func TestStagesAddUpToTheLatency(t *testing.T) {
	for _, group := range []uint64{0, 9} {
		e := &Engine{start: time.Now().Add(-time.Minute), rec: metrics.NewRecorder(0)}
		e.stages = newStages(e.rec)
		body := makeBody(40, 1, header{intended: 10 * time.Second})
		setWritten(body, 2*time.Millisecond)
		sent := e.start.Add(10 * time.Second).UnixMicro()
		m := &wire.Deliver{Group: group, Body: body, Stamps: &wire.Stamps{GatewayInUs: sent + 3000, MessageInUs: sent + 6000,
			InboxInUs: sent + 15_000, InboxOutUs: sent + 21_000, GatewayOutUs: sent + 28_000}}
		want := []int64{2000, 1000, 3000, 9000, 6000, 7000, 8000}
		if group != 0 {
			m.Stamps.LoggedUs, m.Stamps.FanoutInUs = sent+7000, sent+11_000
			want = []int64{2000, 1000, 3000, 1000, 4000, 4000, 6000, 7000, 8000}
		}
		e.recordStages(m, 10*time.Second, 10*time.Second+36*time.Millisecond)
		m.Stamps.InboxInUs = 0
		e.recordStages(m, 10*time.Second, 10*time.Second+36*time.Millisecond)

		of := &e.stages.direct
		if group != 0 {
			of = &e.stages.group
		}
		sum := of.sums.Swap(0, 1)
		if sum.Count() != 1 || sum.Partial != 1 || sum.Negative != 0 {
			t.Fatalf("group %d: %+v", group, sum)
		}
		// The wall clock is read anew for each of the run's own times.
		near := func(what string, got, want int64) {
			if got < want-200 || got > want+200 {
				t.Errorf("group %d: %s took %d us, want %d", group, what, got, want)
			}
		}
		for i, name := range history.StagesOf(sum.Kind) {
			near(name, sum.Cells[0].Stages[i], want[i])
		}
		near("all of it", sum.Cells[0].Total, 36_000)
		alone := map[string]int64{}
		for _, iv := range e.rec.Swap(1) {
			alone[iv.Kind] = iv.Hist.Max()
		}
		if len(alone) != len(want) {
			t.Errorf("group %d: histograms %v, want one for each stage", group, alone)
		}
		near("the inbox alone", alone[history.KindStage+sum.Kind+"."+history.StageInbox], 6000)
	}
}

// TestWrittenOutlastsTheWay: what the header says of the writing does not touch
// the rest of it, and is bounded.
func TestWrittenOutlastsTheWay(t *testing.T) {
	b := makeBody(bodyHeader, 7, header{index: 42, intended: 5 * time.Second})
	for _, c := range []struct{ after, want time.Duration }{{0, 0}, {1500 * time.Microsecond, 1500 * time.Microsecond}, {-time.Second, 0}, {30 * time.Hour, 4294967295 * time.Microsecond}} {
		setWritten(b, c.after)
		h, ok := readBody(b, 7)
		if got := writtenAfter(b); got != c.want || h.index != 42 || h.intended != 5*time.Second || !ok {
			t.Errorf("after %v: %v, index %d, intended %v, %v", c.after, got, h.index, h.intended, ok)
		}
	}
}
