package gateway

import (
	"testing"
	"time"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// TestSendsAreSampled: one in StampEvery sends says when it was read.
func TestSendsAreSampled(t *testing.T) {
	for _, tc := range []struct{ every, want int }{{1, 48}, {4, 12}, {0, 3}, {-1, 0}} {
		r := newRig(t, func(c *Config) { c.StampEvery = tc.every })
		c, _ := r.login(1, 0, wire.Proto)
		before, stamped := time.Now().UnixMicro(), 0
		for i := range 48 {
			c.send(sendOf(uint64(i+1), 5, uint64(i+1), "hi"))
			switch it := <-r.message.got; {
			case it.ReceivedUs == 0:
			case it.ReceivedUs < before || it.ReceivedUs > time.Now().UnixMicro():
				t.Errorf("read at %d us, which is not now", it.ReceivedUs)
			default:
				stamped++
			}
		}
		if stamped != tc.want {
			t.Errorf("StampEvery %d: %d of 48 sends are stamped, want %d", tc.every, stamped, tc.want)
		}
	}
}

// TestLastStamp: the gateway adds the last stamp to the frames that have the
// others, in both formats, and to no other frame.
func TestLastStamp(t *testing.T) {
	r := newRig(t, nil)
	a, oa := r.login(1, 0, wire.Proto)
	b, ob := r.login(2, 0, wire.JSON)
	stamped := deliverTo(t, 1, "stamped", oa.Conn, ob.Conn)
	stamped.Frame = wire.WithStamps(stamped.Frame, &wire.Stamps{InboxOutUs: 11})
	stamped.Stamped = true
	before := time.Now().UnixMicro()
	r.inbox.send(t, &rpc.OwnerBatch{Out: []*rpc.Outbound{stamped, deliverTo(t, 2, "plain", oa.Conn, ob.Conn)}})
	for _, c := range []*client{a, b} {
		d := c.recv().GetDeliver()
		if s := d.GetStamps(); string(d.GetBody()) != "stamped" || s.GetInboxOutUs() != 11 || s.GetGatewayOutUs() < before || s.GetGatewayOutUs() > time.Now().UnixMicro() {
			t.Errorf("stamped message came as %v", d)
		}
		if d := c.recv().GetDeliver(); string(d.GetBody()) != "plain" || d.GetStamps() != nil {
			t.Errorf("plain message came as %v", d)
		}
	}
	// They count as one delivery each.
	a.send(ackOf(2))
	if k := next[*rpc.SessionAck](t, r.inbox.events); k.Upto != 2 {
		t.Fatalf("ack %v", k)
	}
}
