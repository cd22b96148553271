package load

import (
	"sync/atomic"

	"throng/sim/workload"
)

// replies holds sends back until the message they answer has arrived: the
// partly open part of the model. Whatever comes first, the arrival or the
// intended time, is noted in an atomic word for each send; the second one sends.
type replies struct {
	sched *workload.Schedule
	first []int32 // first reply to a send, -1 none
	next  []int32 // next reply to the same send, -1 none
	state []atomic.Uint32
	held  atomic.Int64
}

const (
	replyArrived  = 1 << iota // the message it answers is there
	replyDue                  // its intended time has come
	replyReleased             // sent or given up
)

func newReplies(s *workload.Schedule) *replies {
	n := len(s.Sends)
	r := &replies{sched: s, first: make([]int32, n), next: make([]int32, n), state: make([]atomic.Uint32, n)}
	for i := range r.first {
		r.first[i], r.next[i] = -1, -1
	}
	for i := range s.Sends {
		if a := s.Send(int32(i)); a != nil && a.ReplyTo >= 0 {
			r.next[i], r.first[a.ReplyTo] = r.first[a.ReplyTo], int32(i)
		}
	}
	return r
}

// due notes that the intended time of a reply has come and says whether it may
// go now. If not, it is held.
func (r *replies) due(index int32) bool {
	if r.state[index].Or(replyDue)&replyArrived != 0 {
		return r.release(index)
	}
	r.held.Add(1)
	return false
}

// arrived notes that user has message index, and returns the held replies that
// may go now.
func (r *replies) arrived(index int32, user uint64) (ready []*workload.Action) {
	for i := r.first[index]; i >= 0; i = r.next[i] {
		reply := r.sched.Send(i)
		if reply.User != user {
			continue
		}
		old := r.state[i].Or(replyArrived)
		if old&replyDue != 0 && old&replyReleased == 0 && r.release(i) {
			r.held.Add(-1)
			ready = append(ready, reply)
		}
	}
	return ready
}

// giveUp releases a reply that was held for too long, and says whether it was
// still held.
func (r *replies) giveUp(index int32) bool {
	if r.release(index) {
		r.held.Add(-1)
		return true
	}
	return false
}

// release says whether the caller is the one who gets to send.
func (r *replies) release(index int32) bool {
	return r.state[index].Or(replyReleased)&replyReleased == 0
}
