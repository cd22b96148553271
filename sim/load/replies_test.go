package load

import (
	"testing"

	"throng/sim/workload"
)

func send(index, replyTo int32, user uint64) workload.Action {
	return workload.Action{Kind: workload.Send, Index: index, ReplyTo: replyTo, User: user}
}

// A reply goes when both its time and the message it answers have come, and
// once only.
func TestReplyWaitsForBoth(t *testing.T) {
	schedule := &workload.Schedule{Actions: []workload.Action{send(0, -1, 1), send(1, 0, 2), send(2, 0, 3)}, Sends: []int32{0, 1, 2}}

	r := newReplies(schedule)
	if r.due(1) {
		t.Error("a reply went before the message it answers arrived")
	}
	if got := r.held.Load(); got != 1 {
		t.Errorf("%d held, want 1", got)
	}
	if ready := r.arrived(0, 3); len(ready) != 0 {
		t.Error("arrival at another user released a reply that is not due or not theirs")
	}
	ready := r.arrived(0, 2)
	if len(ready) != 1 || ready[0].Index != 1 {
		t.Fatalf("arrival released %v, want send 1", ready)
	}
	if again := r.arrived(0, 2); len(again) != 0 {
		t.Error("a second copy released the reply again")
	}
	if got := r.held.Load(); got != 0 {
		t.Errorf("%d held after the release, want 0", got)
	}
	if !r.due(2) {
		t.Error("the message had arrived before the reply was due, and it was held")
	}
}

func TestReplyGivenUpDoesNotGo(t *testing.T) {
	r := newReplies(&workload.Schedule{Actions: []workload.Action{send(0, -1, 1), send(1, 0, 2)}, Sends: []int32{0, 1}})
	if r.due(1) {
		t.Fatal("not held")
	}
	if !r.giveUp(1) {
		t.Fatal("a held reply could not be given up")
	}
	if ready := r.arrived(0, 2); len(ready) != 0 {
		t.Error("a reply that was given up went all the same")
	}
	if r.giveUp(1) {
		t.Error("given up twice")
	}
	if got := r.held.Load(); got != 0 {
		t.Errorf("%d held, want 0", got)
	}
}
