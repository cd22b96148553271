package fanout

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// FuzzRecord gives the reader of a group's log any bytes: a record is a message or
// a change of a group, or it is counted and skipped.
func FuzzRecord(f *testing.F) {
	for _, r := range []*rpc.GroupRecord{
		{Kind: &rpc.GroupRecord_Message{Message: &rpc.Envelope{Group: 9, From: 1, Seq: 1, Body: []byte("hello")}}},
		{Kind: &rpc.GroupRecord_Message{Message: &rpc.Envelope{From: 1, Seq: 1, Stamps: &wire.Stamps{GatewayInUs: 1}}}},
		{Kind: &rpc.GroupRecord_Membership{Membership: &rpc.Membership{Group: 9, Version: 2, Change: &wire.GroupChange{Version: 2, Add: []uint64{3}}}}},
		{},
	} {
		b, err := r.MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, value []byte) {
		w := &worker{f: &Fanout{cfg: Config{Log: slog.New(slog.DiscardHandler)}}, part: noPartition{}}
		w.f.m.poison = prometheus.NewCounter(prometheus.CounterOpts{Name: "skipped"})
		r := w.decode(7, value)
		skipped := testutil.ToFloat64(w.f.m.poison) == 1
		switch {
		case r.message != nil && r.membership != nil, skipped == (r.message != nil || r.membership != nil):
			t.Fatalf("skipped: %v, message %v, membership %v", skipped, r.message, r.membership)
		case r.message != nil && (r.message.Group == 0 || r.message.Offset != 7):
			t.Fatalf("message %v", r.message)
		case r.membership != nil:
			if m := systemMessage(7, r.membership); m != nil && (m.Group != r.membership.Group || m.Offset != 7 || len(m.MessageId) != len(wire.MessageID{})) {
				t.Fatalf("system message %v", m)
			}
		}
	})
}

// noPartition has a name alone.
type noPartition struct{ Partition }

func (noPartition) Name() string { return "fuzz-0" }
