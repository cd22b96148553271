package message

import (
	"testing"

	"throng/system/internal/rpc"
	"throng/system/placement"
)

// TestStamps: a sampled send takes its times along, to an inbox and into the
// log; another one takes none.
func TestStamps(t *testing.T) {
	r := newRig(t, nil)
	g := r.start()
	sampled := func(ref uint64, it *rpc.Submission) {
		it.Ref, it.User, it.Device, it.ReceivedUs = ref, 2, 1, 5
		if err := g.stream.Send(&rpc.SubmitBatch{Items: []*rpc.Submission{it}}); err != nil {
			t.Fatal(err)
		}
		g.awaitSent(ref)
	}
	sampled(1001, &rpc.Submission{Send: to(4, 1)})
	sampled(1002, &rpc.Submission{Send: toGroup(10, 1)})
	g.awaitSent(g.send(6, to(4, 1)))
	g.awaitSent(g.send(6, toGroup(10, 1)))

	for _, item := range r.inbox.items() {
		s := item.Message.Stamps
		switch {
		case item.Message.From == 6 && s != nil:
			t.Errorf("an unsampled message has stamps: %v", s)
		case item.Message.From == 2 && (s.GetGatewayInUs() != 5 || s.GetMessageInUs() == 0 || s.GetLoggedUs() != 0):
			t.Errorf("a direct message went to the inbox with %v", s)
		}
	}
	for _, m := range r.log.records(placement.GroupPartition(10, 4)) {
		s := m.Stamps
		switch {
		case m.From == 6 && s != nil:
			t.Errorf("an unsampled message has stamps: %v", s)
		case m.From == 2 && (s.GetGatewayInUs() != 5 || s.GetMessageInUs() == 0 || s.GetLoggedUs() < s.GetMessageInUs()):
			t.Errorf("a group message went into the log with %v", s)
		}
	}
}
