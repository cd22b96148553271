package gateway

import (
	"testing"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// TestEphemeralsGoFirst: while messages wait, nobody hears who types or comes;
// when they have gone, everybody does again.
func TestEphemeralsGoFirst(t *testing.T) {
	b := newBus()
	r := newRig(t, func(c *Config) { c.Sessions = b.port() })
	viewer, _ := r.login(1, 0, wire.Proto)
	other, _ := r.login(2, 0, wire.Proto)
	viewer.send(viewOf(2, 0))
	if viewer.recv().GetPresenceEvent() == nil {
		t.Fatal("no presence of who is viewed")
	}
	shed := func(what string) float64 { return r.metric("throng_ephemeral_total", "outcome=shed", "what="+what) }

	l := r.gw.messages[0]
	wait := func(n int) { // n sends that nobody takes away
		l.mu.Lock()
		l.queue = make([]*rpc.Submission, n)
		l.mu.Unlock()
	}
	wait(r.gw.limits.SubmitQueue/pressedShare + 1)
	other.send(typingOf(1, 0))
	other.send(presenceOf(true))
	other.pingPong()
	if shed("typing") != 1 || shed("presence") != 1 {
		t.Fatalf("%v typing and %v presence events given up, want one of each", shed("typing"), shed("presence"))
	}
	wait(0)
	other.send(typingOf(1, 0))
	if e := viewer.recv().GetTypingEvent(); e.GetFrom() != 2 {
		t.Fatalf("the first event after the pressure is %v, want the typing", e)
	}

	in := r.gw.inboxes[0]
	in.mu.Lock()
	old := in.batches
	in.batches = make(chan *rpc.OwnerBatch) // full as it is
	in.mu.Unlock()
	other.send(typingOf(1, 0))
	other.pingPong()
	if shed("typing") != 2 {
		t.Fatal("typing went out while batches of an inbox wait to be written")
	}
	in.mu.Lock()
	in.batches = old
	in.mu.Unlock()
}

// TestReceiptsRequest goes to the shard of who asks; without a stream to it the
// client is told to try again.
func TestReceiptsRequest(t *testing.T) {
	r := newRig(t, nil)
	c, open := r.login(1, 0, wire.Proto)
	ask := &wire.Frame{Kind: &wire.Frame_ReceiptsRequest{ReceiptsRequest: &wire.ReceiptsRequest{RequestId: 3, Group: 7}}}
	c.send(ask)
	q := next[*rpc.ReceiptsQuery](t, r.inbox.events)
	if q.Conn != open.Conn || q.User != 1 || q.Request.GetRequestId() != 3 || q.Request.GetGroup() != 7 {
		t.Fatalf("the shard was asked %v", q)
	}
	list, err := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_ReceiptList{ReceiptList: &wire.ReceiptList{RequestId: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	r.inbox.send(t, &rpc.OwnerBatch{Out: []*rpc.Outbound{{Frame: list, Conns: []uint64{open.Conn}}}})
	if got := c.recv().GetReceiptList(); got.GetRequestId() != 3 {
		t.Fatalf("the list is %v", got)
	}
	if n := r.metric("throng_ws_tx_frames_total", "kind=receipt_list"); n != 1 {
		t.Errorf("%v lists counted", n)
	}
	r.inbox.srv.Stop()
	r.until("the stream is lost", func() bool { return !r.gw.inboxes[0].isUp() })
	c.send(ask)
	if e := c.recv().GetError(); e.GetCode() != wire.Code_CODE_RETRY {
		t.Fatalf("without the shard the answer is %v", e)
	}
}
