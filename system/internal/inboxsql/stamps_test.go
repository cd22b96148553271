package inboxsql_test

import (
	"path/filepath"
	"testing"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// TestStamps: a sampled message leaves for a live device with the times of its
// coming and going; another one, or one for a device that was away, without.
func TestStamps(t *testing.T) {
	o := startOwner(t, filepath.Join(t.TempDir(), "inbox.db"))
	o.provision(&wire.ProvisionUser{User: 1}, &wire.ProvisionUser{User: 2})
	g, a := o.gateway("g1"), o.appender()
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: 1, Conn: 10}}})
	o.eventually("user 1 live", func() bool { _, n := g.got(10); return n == 1 })

	sampled := func(ref, group uint64) {
		id := wire.IDOf(5, 0, ref)
		if err := a.stream.Send(&rpc.AppendBatch{Items: []*rpc.AppendItem{{Ref: ref, Users: []uint64{1, 2}, Message: &rpc.Envelope{
			MessageId: id[:], Group: group, From: 5, Seq: ref, Body: []byte("sampled"), Stamps: &wire.Stamps{GatewayInUs: 3}}}}}); err != nil {
			t.Fatal(err)
		}
	}
	sampled(1, 0)
	a.result()
	sampled(2, 77)
	a.send(3, 77, 6, 1, "plain", 1, 2)
	o.eventually("three live deliveries", func() bool { bodies, _ := g.got(10); return len(bodies) == 3 })
	g.send(&rpc.GatewayBatch{Acks: []*rpc.SessionAck{{Conn: 10, User: 1, Upto: 3}}, Opens: []*rpc.SessionOpen{{User: 2, Conn: 20}}})
	o.eventually("three drained", func() bool { bodies, _ := g.got(20); return len(bodies) == 3 })

	g.mu.Lock()
	defer g.mu.Unlock()
	for conn, frames := range g.frames {
		for _, f := range frames {
			d := f.GetDeliver()
			s := d.GetStamps()
			switch {
			case d == nil:
			case (conn == 20 || string(d.Body) == "plain") && s != nil:
				t.Errorf("conn %d: %q has stamps: %v", conn, d.Body, s)
			case conn == 10 && string(d.Body) == "sampled" && (s.GetGatewayInUs() != 3 || s.GetInboxInUs() <= 3 || s.GetInboxOutUs() < s.GetInboxInUs()):
				t.Errorf("conn %d: a sampled message has %v", conn, s)
			}
		}
	}
	if got := g.stamped[10]; len(got) != 2 || got[0] != "sampled" || got[1] != "sampled" || len(g.stamped[20]) > 0 {
		t.Errorf("the gateway is told to stamp %v, want the sampled two of conn 10", g.stamped)
	}
}
