package fanout

import (
	"testing"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// TestStamp: the fan-out says when it read a sampled message.
func TestStamp(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2})
	r.log.append(0, encoded(&rpc.GroupRecord{Kind: &rpc.GroupRecord_Message{Message: &rpc.Envelope{
		MessageId: []byte("0123456789abcdef"), Group: 9, From: 1, FromDevice: 1, Seq: 1, Stamps: &wire.Stamps{LoggedUs: 3}}}}))
	r.log.message(0, 9, 1, 2)
	r.start(r.log.consumer(), nil)
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 2 })
	got := r.inboxes[0].items()
	if len(got) != 2 {
		t.Fatalf("%d deliveries, want 2", len(got))
	}
	if s := got[0].stamps; s.GetLoggedUs() != 3 || s.GetFanoutInUs() <= 3 {
		t.Errorf("a sampled message was handed on with %v", s)
	}
	if got[1].stamps != nil {
		t.Errorf("an unsampled message was handed on with %v", got[1].stamps)
	}
}
