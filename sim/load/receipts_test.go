package load

import (
	"testing"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/metrics"
	"throng/system/wire"
)

// Each send counts once for each watermark that covers it: a direct one when
// its peer has read it, one to a group when all members have it and have read it.
func TestReceiptsGiveLatencies(t *testing.T) {
	e := &Engine{start: time.Now(), rec: metrics.NewRecorder(0)}
	e.kinds = registerKinds(e.rec, 0)
	d := &device{key: audit.Device{User: 1}}
	for _, c := range []conv{{peer: 2}, {group: 7}} {
		for range 5 {
			d.remember(c, d.number(c), 0)
		}
	}
	for _, r := range []*wire.Receipt{
		{Peer: 2, DeliveredSeq: 5}, {Peer: 2, ReadSeq: 2}, {Peer: 2, ReadSeq: 1}, {Peer: 2, ReadSeq: 3},
		{Group: 7, DeliveredSeq: 4}, {Group: 7, DeliveredSeq: 4, ReadSeq: 1}, {Group: 7, DeliveredSeq: 5, ReadSeq: 1},
		{Group: 7, Peer: 3, ReadSeq: 5}, // of one member, from a server that does not aggregate
		{Peer: 9, ReadSeq: 5}, {Group: 9, DeliveredSeq: 5},
	} {
		e.receipts(d, &wire.Receipts{Receipts: []*wire.Receipt{r}})
	}
	got := map[string]int64{}
	for _, iv := range e.rec.Swap(1) {
		got[iv.Kind] = iv.Hist.TotalCount()
	}
	want := map[string]int64{history.KindRead: 3, history.KindDeliveredAll: 5, history.KindReadAll: 1}
	for kind, n := range want {
		if got[kind] != n {
			t.Errorf("%s: %d values, want %d", kind, got[kind], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("values of %v", got)
	}
}
