package inboxsql_test

import (
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/inbox"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// TestGroupReceiptsAcrossRestart: what some members have is kept for a sender
// who is away, over a restart of the owner; the last member makes the receipt.
func TestGroupReceiptsAcrossRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inbox")
	reg := prometheus.NewRegistry()
	o := start(t, setup{path: path, cfg: inbox.Config{Metrics: reg}})
	o.provision(&wire.ProvisionUser{User: 5}, &wire.ProvisionUser{User: 7}, &wire.ProvisionUser{User: 8})
	g := o.gateway("g1")
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: 7, Conn: 1}}})
	o.eventually("7 is live", func() bool { _, n := g.got(1); return n == 1 })
	a := o.appender()
	id := wire.IDOf(5, 0, 1)
	if err := a.stream.Send(&rpc.AppendBatch{Items: []*rpc.AppendItem{{Ref: 1, Users: []uint64{5, 7, 8}, Recipients: 2,
		Message: &rpc.Envelope{MessageId: id[:], Group: 9, From: 5, Seq: 1, Body: []byte("hello")}}}}); err != nil {
		t.Fatal(err)
	}
	o.eventually("7 has it", func() bool { b, _ := g.got(1); return len(b) == 1 })
	g.send(&rpc.GatewayBatch{Acks: []*rpc.SessionAck{{Conn: 1, User: 7, Upto: 1}}})
	want(t, "stored", a.result().Stored, uint32(1))
	// The receipt goes on its own, from the loop of 7 to that of 5.
	o.eventually("the receipt is with its sender's shard", func() bool { return counted(t, reg, "throng_inbox_receipts_total") == 1 })
	o.stop()

	o = startOwner(t, path)
	g = o.gateway("g1")
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: 5, Conn: 2}}})
	ask := func(conn uint64, request uint64) map[uint64]uint64 {
		t.Helper()
		g.send(&rpc.GatewayBatch{Queries: []*rpc.ReceiptsQuery{{Conn: conn, User: 5,
			Request: &wire.ReceiptsRequest{RequestId: request, Group: 9}}}})
		var list map[uint64]uint64
		o.eventually("a list of receipts", func() bool {
			list = g.list(conn, request)
			return list != nil
		})
		return list
	}
	if l := ask(2, 1); len(l) != 1 || l[7] != 1 {
		t.Fatalf("after the restart the list is %v, want that 7 has it", l)
	}
	g.send(&rpc.GatewayBatch{Closes: []*rpc.SessionClose{{Conn: 2, User: 5}}, Opens: []*rpc.SessionOpen{{User: 8, Conn: 3}}})
	o.eventually("8 has it", func() bool { b, _ := g.got(3); return len(b) == 1 })
	g.send(&rpc.GatewayBatch{Acks: []*rpc.SessionAck{{Conn: 3, User: 8, Upto: 1}}})
	o.eventually("8 is live", func() bool { _, n := g.got(3); return n == 1 })
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: 5, Conn: 4}}})
	o.eventually("the receipt of all", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, f := range g.frames[4] {
			for _, r := range f.GetReceipts().GetReceipts() {
				if r.Group == 9 && r.Peer == 0 && r.DeliveredSeq == 1 {
					return true
				}
			}
		}
		return false
	})
	if l := ask(4, 2); len(l) != 2 || l[7] != 1 || l[8] != 1 {
		t.Fatalf("at the end the list is %v, want both", l)
	}
}

// counted returns the value of a counter without labels.
func counted(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].Counter.GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// list returns who has received what, by the list with a request id; nil when
// it has not come.
func (g *gateway) list(conn, request uint64) map[uint64]uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.frames[conn] {
		if l := f.GetReceiptList(); l.GetRequestId() == request {
			out := map[uint64]uint64{}
			for _, r := range l.Receipts {
				out[r.Peer] = r.DeliveredSeq
			}
			return out
		}
	}
	return nil
}
