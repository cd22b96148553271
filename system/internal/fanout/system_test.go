package fanout

import (
	"slices"
	"testing"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// changeWith appends a change with what the members are told.
func (l *fakeLog) changeWith(partition int, group, version uint64, add, remove []uint64) {
	l.append(partition, encoded(&rpc.GroupRecord{Kind: &rpc.GroupRecord_Membership{Membership: &rpc.Membership{
		Group: group, Version: version, Add: add, Remove: remove, AtMs: 77,
		Change: &wire.GroupChange{Version: version, By: 1, Add: add, Remove: remove}}}}))
}

// TestSystemMessages: each change reaches the members of both its versions, in
// order with the messages: an added member gets it first, a removed one last.
func TestSystemMessages(t *testing.T) {
	r := newRig(t, 1, 2)
	r.group.set(9, []uint64{1, 2}, []uint64{1, 2, 3, 4}, []uint64{1, 3, 4}, []uint64{1, 3, 4}, []uint64{1, 3, 4})
	r.log.message(0, 9, 1, 101)                    // 0
	r.log.changeWith(0, 9, 2, []uint64{3, 4}, nil) // 1
	r.log.message(0, 9, 1, 102)                    // 2
	r.log.changeWith(0, 9, 2, []uint64{3, 4}, nil) // 3: said again
	r.log.changeWith(0, 9, 3, nil, []uint64{2})    // 4
	r.log.message(0, 9, 1, 103)                    // 5
	r.log.changeWith(0, 9, 4, nil, nil)            // 6: a new name
	r.log.message(0, 9, 1, 104)                    // 7
	r.log.change(0, 9, 5)                          // 8: a record without anything to tell
	r.start(r.log.consumer(), nil)
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 9 })
	got := r.received(9)
	for user, want := range map[uint64][]uint64{
		1: {2, 3, 4}, // and its own, on other devices
		2: {101, 2, 102, 3},
		3: {2, 102, 3, 103, 4, 104},
		4: {2, 102, 3, 103, 4, 104},
	} {
		if !slices.Equal(got[user], want) {
			t.Errorf("user %d got %v, want %v", user, got[user], want)
		}
	}
	if len(got) != 4 {
		t.Errorf("delivered to %d users", len(got))
	}
	id := wire.SystemIDOf(9, 3)
	for _, in := range r.inboxes {
		for _, d := range in.items() {
			system := d.kind == wire.Kind_KIND_SYSTEM
			if system != (d.seq < 100) || system && (d.from != 0 || d.change.GetVersion() != d.seq || d.acceptedMS != 77) {
				t.Errorf("%+v", d)
			}
			if d.seq == 3 && (d.offset != 4 || string(d.id) != string(id[:])) {
				t.Errorf("version 3: %+v", d)
			}
		}
	}
	for version, at := range map[uint64]int64{2: 1, 3: 4, 4: 6, 5: 8} {
		if o, _ := r.group.position(9, version); o != at {
			t.Errorf("version %d is recorded at %d, want %d", version, o, at)
		}
	}
}

// TestSystemMessageWaits: the watermark does not pass a change whose message is
// not answered for, and a process that takes over tells it again, but not one
// that is older than where it starts.
func TestSystemMessageWaits(t *testing.T) {
	r := newRig(t, 1, 1)
	r.group.set(9, []uint64{1, 2}, []uint64{1, 2, 3}, []uint64{1, 2})
	r.inboxes[0].decide = func(d delivered) (wire.Code, bool) { return 0, d.seq != 3 }
	r.log.changeWith(0, 9, 2, []uint64{3}, nil)
	r.log.changeWith(0, 9, 3, nil, []uint64{3})
	r.log.message(0, 9, 1, 101)
	c := r.log.consumer()
	r.start(c, nil)
	waitFor(t, "all deliveries", func() bool { return len(r.inboxes[0].items()) == 3 })
	waitFor(t, "the watermark", func() bool { return r.log.committedAt(0) == 1 })
	waitFor(t, "the positions", func() bool { _, ok := r.group.position(9, 3); return ok })
	close(c.revoked)
	r.inboxes[0].release()
	r.log.changeWith(0, 9, 2, []uint64{3}, nil) // by an outbox that does not know
	r.start(r.log.consumer(), nil)
	waitFor(t, "the next owner", func() bool { return r.log.committedAt(0) == 4 })
	if got := r.received(9)[3]; !slices.Equal(got, []uint64{2, 3, 3}) {
		t.Fatalf("the one who was added and removed got %v", got)
	}
}
