package fanout

import (
	"maps"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// TestDeliversToMembersInOrder: every member, at the inbox instance that owns
// them, in order, with the offset. The sender's instance is told how many
// others there are; a sender who has left gets nothing.
func TestDeliversToMembersInOrder(t *testing.T) {
	const n = 300
	r := newRig(t, 2, 3)
	r.group.set(9, []uint64{1, 2, 3, 4, 5, 6})
	r.group.set(10, []uint64{1}) // nobody else in it
	r.group.set(11, []uint64{2})
	f, _ := r.start(r.log.consumer(), nil)
	for seq := uint64(1); seq <= n; seq++ {
		r.log.message(1, 9, 1, seq)
		r.log.message(1, 10, 1, seq)
		r.log.message(1, 11, 1, seq) // the sender has left
	}
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(1) == 3*n })
	own := map[uint64]int{}
	for i, in := range r.inboxes {
		last := int64(-1)
		for _, d := range in.items() {
			if d.offset <= last {
				t.Fatalf("inbox %d: offset %d after %d", i, d.offset, last)
			}
			last = d.offset
			for _, u := range d.users {
				if placement.UserInboxInstance(u, 3) != i {
					t.Fatalf("inbox %d was given user %d", i, u)
				}
			}
			want := uint32(0)
			if slices.Contains(d.users, 1) {
				own[d.group]++
				want = map[uint64]uint32{9: 5}[d.group]
			}
			if d.recipients != want {
				t.Fatalf("inbox %d, group %d, users %v: %d recipients, want %d", i, d.group, d.users, d.recipients, want)
			}
		}
	}
	got := r.received(9)
	if want := []uint64{2, 3, 4, 5, 6}; !slices.Equal(slices.Sorted(maps.Keys(got)), want) {
		t.Fatalf("delivered to %v, want %v", slices.Sorted(maps.Keys(got)), want)
	}
	for u, seqs := range got {
		if len(seqs) != n || !slices.IsSorted(seqs) {
			t.Fatalf("user %d got %v", u, seqs)
		}
	}
	if want := (map[uint64]int{9: n, 10: n}); !maps.Equal(own, want) {
		t.Fatalf("the sender was addressed %v, want %v", own, want)
	}
	if v := testutil.ToFloat64(f.m.recipients); v != 6*n {
		t.Fatalf("%v recipients counted", v)
	}
	if r.group.lookups != 3 {
		t.Fatalf("%d look-ups for 3 groups", r.group.lookups)
	}
	waitFor(t, "the gauges", func() bool { return testutil.ToFloat64(f.m.inFlight) == 0 && testutil.ToFloat64(f.m.lag) == 0 })
}

// TestWatermark: the commit stops at the first record without all answers.
func TestWatermark(t *testing.T) {
	r := newRig(t, 1, 2)
	r.group.set(9, []uint64{1, 2, 3, 4, 5, 6})
	for _, in := range r.inboxes {
		in.decide = func(d delivered) (wire.Code, bool) { return 0, d.seq != 3 }
	}
	r.start(r.log.consumer(), nil)
	for seq := uint64(1); seq <= 10; seq++ {
		r.log.message(0, 9, 1, seq)
	}
	waitFor(t, "all deliveries", func() bool { return len(r.inboxes[0].items()) == 10 && len(r.inboxes[1].items()) == 10 })
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 2 })
	r.inboxes[0].release()
	waitFor(t, "one of two answers", func() bool { r.inboxes[0].mu.Lock(); defer r.inboxes[0].mu.Unlock(); return r.inboxes[0].held == nil })
	if c := r.log.committedAt(0); c != 2 {
		t.Fatalf("committed %d with one of two instances missing", c)
	}
	r.inboxes[1].release()
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 10 })
}

// TestMembershipBoundary: each message goes to the members at its offset, and
// the watermark does not pass a change before its position is recorded.
func TestMembershipBoundary(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2}, []uint64{1, 2, 3}, []uint64{1, 3})
	r.log.message(0, 9, 1, 1) // 0: version 1
	r.log.change(0, 9, 2)     // 1
	r.log.message(0, 9, 1, 2) // 2: version 2
	r.log.change(0, 9, 2)     // 3: said again
	r.log.message(0, 9, 1, 3) // 4: version 2
	r.log.change(0, 9, 3)     // 5
	r.log.message(0, 9, 1, 4) // 6: version 3
	r.start(r.log.consumer(), nil)
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 7 })
	got := r.received(9)
	if !slices.Equal(got[2], []uint64{1, 2, 3}) || !slices.Equal(got[3], []uint64{2, 3, 4}) || len(got) != 2 {
		t.Fatalf("delivered %v", got)
	}
	if o, _ := r.group.position(9, 2); o != 1 {
		t.Fatalf("version 2 is recorded at %d, want 1", o)
	}
	if o, _ := r.group.position(9, 3); o != 5 {
		t.Fatalf("version 3 is recorded at %d, want 5", o)
	}
}

// TestChangesSaidAgainAfterRestart: a process that knows nothing does not take
// an old change, said again by the outbox, for the newest.
func TestChangesSaidAgainAfterRestart(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2}, []uint64{1, 2, 3}, []uint64{1, 3})
	r.log.change(0, 9, 2)
	r.log.change(0, 9, 3)
	_, stop := r.start(r.log.consumer(), nil)
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 2 })
	stop()
	r.log.change(0, 9, 2)
	r.log.message(0, 9, 1, 1)
	r.start(r.log.consumer(), nil)
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 4 })
	if got := r.received(9); len(got) != 1 || len(got[3]) != 1 {
		t.Fatalf("delivered to %v, want to 3 alone", got)
	}
}

// TestGroupServiceAway: nothing is committed past a change that could not be
// recorded, and nothing is skipped.
func TestGroupServiceAway(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2}, []uint64{1, 2, 3})
	r.group.setDown(true)
	f, _ := r.start(r.log.consumer(), nil)
	r.log.change(0, 9, 2)
	waitFor(t, "a failed call", func() bool { return testutil.ToFloat64(f.m.groupErrors) > 0 })
	r.log.message(0, 9, 1, 1)
	if c := r.log.committedAt(0); c != 0 {
		t.Fatalf("committed %d", c)
	}
	r.group.setDown(false)
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 2 })
	if got := r.received(9); len(got[3]) != 1 {
		t.Fatalf("delivered %v", got)
	}
}

// TestInboxRestart: what an inbox had not answered when it died comes again,
// in order.
func TestInboxRestart(t *testing.T) {
	r := newRig(t, 1, 2)
	r.group.set(9, []uint64{1, 2, 3, 4, 5, 6})
	r.inboxes[0].decide = func(d delivered) (wire.Code, bool) { return 0, d.seq%3 == 0 }
	f, _ := r.start(r.log.consumer(), nil)
	for seq := uint64(1); seq <= 30; seq++ {
		r.log.message(0, 9, 1, seq)
	}
	waitFor(t, "all deliveries", func() bool { return len(r.inboxes[0].items()) == 30 && len(r.inboxes[1].items()) == 30 })
	waitFor(t, "some answers", func() bool { return testutil.ToFloat64(f.m.inFlight) == 30 && f.appenders[0].Unresolved() <= 30 })
	r.stopInbox[0]()
	fresh := &fakeInbox{}
	serve(t, r.inboxAddrs[0], func(s *grpc.Server) { rpc.RegisterInboxServer(s, fresh) })
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 30 })
	again := fresh.items()
	if len(again) < 20 || !slices.IsSortedFunc(again, func(a, b delivered) int { return int(a.offset - b.offset) }) {
		t.Fatalf("sent again: %v", again)
	}
	if v := testutil.ToFloat64(f.m.redelivered); int(v) != len(again) {
		t.Fatalf("%v counted as redelivered, %d came", v, len(again))
	}
}

// TestInboxSaysRetry: an item that is to come again brings all behind it along.
func TestInboxSaysRetry(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2})
	refused, taken := 0, false
	r.inboxes[0].decide = func(d delivered) (wire.Code, bool) {
		switch {
		case d.seq == 2 && refused < 2:
			refused++
			return wire.Code_CODE_RETRY, true
		case d.seq == 2:
			taken = true
		case d.seq > 2 && !taken:
			return 0, false
		case d.seq == 5:
			return wire.Code_CODE_NO_SUCH_USER, true
		}
		return 0, true
	}
	f, _ := r.start(r.log.consumer(), nil)
	for seq := uint64(1); seq <= 6; seq++ {
		r.log.message(0, 9, 1, seq)
	}
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 6 })
	items := r.inboxes[0].items()
	var tail []uint64
	for _, d := range items[len(items)-5:] {
		tail = append(tail, d.seq)
	}
	if !slices.Equal(tail, []uint64{2, 3, 4, 5, 6}) {
		t.Fatalf("the last round is %v", tail)
	}
	if v := testutil.ToFloat64(f.m.poison); v != 1 {
		t.Fatalf("%v refusals counted, want 1", v)
	}
}

// TestRevoked: a partition that is taken away stops at once; what was not
// answered is left to the next owner.
func TestRevoked(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2})
	r.inboxes[0].decide = func(d delivered) (wire.Code, bool) { return 0, d.seq <= 4 }
	c := r.log.consumer()
	f, _ := r.start(c, nil)
	for seq := uint64(1); seq <= 10; seq++ {
		r.log.message(0, 9, 1, seq)
	}
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 4 && len(r.inboxes[0].items()) == 10 })
	close(c.revoked)
	waitFor(t, "the partition to be left", func() bool { return testutil.ToFloat64(f.m.inFlight) == 0 })
	r.inboxes[0].release()
	waitFor(t, "the late answers", func() bool { return f.appenders[0].Unresolved() == 0 })
	if c := r.log.committedAt(0); c != 4 {
		t.Fatalf("committed %d after the partition was taken away", c)
	}
	r.start(r.log.consumer(), nil)
	waitFor(t, "the next owner", func() bool { return r.log.committedAt(0) == 10 })
	if seqs := r.received(9)[2]; seqs[10] != 5 {
		t.Fatalf("the next owner started at %d, want 5", seqs[10])
	}
}

// TestStopDrains: a process that is told to stop commits what it is answered.
func TestStopDrains(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2})
	r.inboxes[0].decide = func(delivered) (wire.Code, bool) { return 0, false }
	f, stop := r.start(r.log.consumer(), nil)
	r.log.message(0, 9, 1, 1)
	waitFor(t, "the delivery", func() bool { return len(r.inboxes[0].items()) == 1 })
	if f.Ready() != nil {
		t.Fatal("not ready while running")
	}
	done := make(chan struct{})
	go func() { stop(); close(done) }()
	waitFor(t, "the stop", func() bool { return f.stopping.Err() != nil })
	if f.Ready() == nil {
		t.Fatal("ready while stopping")
	}
	r.log.message(0, 9, 1, 2)
	r.inboxes[0].release()
	<-done
	if c := r.log.committedAt(0); c != 1 {
		t.Fatalf("committed %d, want the one that was in flight", c)
	}
}

func TestInFlightLimit(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2})
	r.inboxes[0].decide = func(delivered) (wire.Code, bool) { return 0, false }
	f, _ := r.start(r.log.consumer(), func(c *Config) { c.MaxInFlight = 8 })
	for seq := uint64(1); seq <= 100; seq++ {
		r.log.message(0, 9, 1, seq)
	}
	waitFor(t, "the limit", func() bool { return len(r.inboxes[0].items()) == 8 })
	if v := testutil.ToFloat64(f.m.inFlight); v != 8 {
		t.Fatalf("%v in flight", v)
	}
	r.inboxes[0].release()
	waitFor(t, "the rest", func() bool { return r.log.committedAt(0) == 100 })
}

func TestPoison(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2})
	r.log.append(0, []byte{0xff, 0xff, 0xff})
	r.log.append(0, nil)
	r.log.message(0, 0, 1, 1)
	r.log.message(0, 9, 1, 1)
	f, _ := r.start(r.log.consumer(), nil)
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 4 })
	if v := testutil.ToFloat64(f.m.poison); v != 3 {
		t.Fatalf("%v poison records counted, want 3", v)
	}
	if n := len(r.inboxes[0].items()); n != 1 {
		t.Fatalf("%d deliveries, want the good one", n)
	}
}

func TestPlants(t *testing.T) {
	t.Run(PlantCommitEarly, func(t *testing.T) {
		r := newRig(t, 1, 1)
		r.group.set(9, []uint64{1, 2})
		r.inboxes[0].decide = func(delivered) (wire.Code, bool) { return 0, false }
		r.start(r.log.consumer(), func(c *Config) { c.Plant = PlantCommitEarly })
		r.log.message(0, 9, 1, 1)
		waitFor(t, "the early commit", func() bool { return r.log.committedAt(0) == 1 })
		if n := len(r.inboxes[0].items()); n != 0 {
			t.Fatal("delivered before the commit: the plant does nothing")
		}
		waitFor(t, "the delivery", func() bool { return len(r.inboxes[0].items()) == 1 })
		r.inboxes[0].release()
	})
	t.Run(PlantExMember, func(t *testing.T) {
		r := newRig(t, 1, 1)
		r.group.set(9, []uint64{1, 2}, []uint64{1, 3})
		r.log.message(0, 9, 1, 1)
		r.log.change(0, 9, 2)
		r.log.message(0, 9, 1, 2)
		r.start(r.log.consumer(), func(c *Config) { c.Plant = PlantExMember })
		waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 3 })
		if got := r.received(9); !slices.Equal(got[2], []uint64{1, 2}) || !slices.Equal(got[3], []uint64{2}) {
			t.Fatalf("delivered %v, want the second one to 2 as well", got)
		}
	})
	if _, err := New(Config{Consumer: newFakeLog(1).consumer(), Inboxes: []string{"x"}, Groups: []string{"x"}, Plant: "drop"}); err == nil {
		t.Fatal("another role's planted bug was taken")
	}
}

// BenchmarkFanout measures records through one process to answers, with the
// inbox in the same process: the figure includes the cost of the fakes.
func BenchmarkFanout(b *testing.B) {
	r := newRig(b, 4, 2)
	members := make([]uint64, 100)
	for i := range members {
		members[i] = uint64(i + 1)
	}
	for g := uint64(1); g <= 50; g++ {
		r.group.set(g, members)
	}
	r.start(r.log.consumer(), nil)
	start := cpu(b)
	b.ResetTimer()
	for i := range b.N {
		g := uint64(i%50 + 1)
		r.log.message(int(g%4), g, 1, uint64(i))
	}
	for p := range 4 {
		waitFor(b, "the end", func() bool {
			r.log.mu.Lock()
			defer r.log.mu.Unlock()
			return r.log.committed[p] == int64(len(r.log.parts[p]))
		})
	}
	used := cpu(b) - start
	b.ReportMetric(float64(b.N)/used.Seconds(), "records/CPU-s")
	b.ReportMetric(float64(b.N*99)/used.Seconds(), "recipients/CPU-s")
}
