package load

import (
	"io"
	"testing"
	"time"

	"throng/sim/audit"
	"throng/sim/client"
	"throng/sim/metrics"
	"throng/sim/workload"
	"throng/system/wire"
)

// TestSendsWaitForTheirGroup: what is sent to a group that is being created is
// held until the answer, a request that is to come again keeps it held, and one
// that is refused leaves it to be counted.
func TestSendsWaitForTheirGroup(t *testing.T) {
	sched := &workload.Schedule{
		Asks:    []workload.Ask{{Kind: workload.Create, Request: 1, Group: 7}, {Kind: workload.Create, Request: 2, Group: 8}},
		Created: map[uint64][]uint64{7: {1, 2}, 8: {1, 2}},
	}
	e := &Engine{start: time.Now(), sched: sched, rec: metrics.NewRecorder(0), audit: audit.NewSpool(io.Discard, 1), gates: []string{""}}
	e.kinds = registerKinds(e.rec, 0)
	e.timers = newTimers(e.now, client.Grid{})
	e.asks.made, e.asks.held = map[uint64]bool{}, map[uint64][]*workload.Action{}
	for i := range e.devices {
		e.devices[i].m = map[audit.Device]*device{}
	}
	for i := range e.queues {
		e.queues[i] = make(chan job, 10)
	}
	for i := range sched.Asks {
		e.askGroup(&workload.Action{Kind: workload.GroupAsk, User: 1, Index: int32(i), Conv: workload.Conv{Group: sched.Asks[i].Group}})
	}
	d := e.device(1, 0)
	to := func(group uint64) *workload.Action {
		return &workload.Action{Kind: workload.Send, User: 1, Conv: workload.Conv{Group: group}}
	}
	held := func(group uint64, want bool) {
		t.Helper()
		if got := e.hold(to(group)); got != want {
			t.Fatalf("a send to group %d held: %v, want %v", group, got, want)
		}
	}
	released := func() (n int) {
		for _, q := range e.queues {
			n += len(q)
		}
		return n
	}
	held(7, true)
	held(8, true)
	held(9, false) // one that was there before
	e.answered(d, &wire.GroupResult{RequestId: 1, Code: wire.Code_CODE_RETRY})
	held(7, true)
	if n := released(); n != 0 {
		t.Fatalf("%d released before the answer", n)
	}
	if devices, connected := e.asks.unanswered(); len(devices) != 2 || connected != 0 {
		t.Fatalf("unanswered: %v, %d connected", devices, connected)
	}
	done := &wire.GroupResult{RequestId: 1, Group: &wire.GroupInfo{Group: 7, Version: 2}}
	e.answered(d, done)
	e.answered(d, done) // by the request that was repeated
	held(7, false)
	if n := released(); n != 2 {
		t.Fatalf("%d released, want 2", n)
	}
	e.answered(d, &wire.GroupResult{RequestId: 2, Code: wire.Code_CODE_RATE_LIMITED})
	e.abandon()
	if n := e.stats.unstarted.Load(); n != 1 {
		t.Fatalf("%d counted as not started, want 1", n)
	}
	if devices, _ := e.asks.unanswered(); len(devices) != 1 {
		t.Fatalf("unanswered: %v", devices)
	}
}
