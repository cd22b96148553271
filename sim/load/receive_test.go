package load

import (
	"testing"
	"time"

	"throng/sim/audit"
	"throng/system/wire"
)

// A delivery is live only for a device that was up to date before the intended
// time and whose user has not left; the classes leave nothing out.
func TestClassify(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name     string
		d        *device
		intended time.Duration
		want     audit.Class
		online   bool
	}{
		{"online before", &device{openedAt: 1 * s, onlineAt: 2 * s, lastOpen: -1, lastClose: -1, lastOnline: -1}, 3 * s, audit.Live, true},
		{"online at that instant", &device{openedAt: 1 * s, onlineAt: 3 * s, lastOpen: -1, lastClose: -1, lastOnline: -1}, 3 * s, audit.Live, true},
		{"draining then", &device{openedAt: 1 * s, onlineAt: 4 * s, lastOpen: -1, lastClose: -1, lastOnline: -1}, 3 * s, audit.Transition, false},
		{"not up to date yet", &device{openedAt: 1 * s, onlineAt: -1, lastOpen: -1, lastClose: -1, lastOnline: -1}, 3 * s, audit.Transition, false},
		{"left before it came", &device{openedAt: 6 * s, onlineAt: 7 * s, lastOpen: 1 * s, lastOnline: 2 * s, lastClose: 4 * s}, 3 * s, audit.Transition, true},
		{"left before it was up to date", &device{openedAt: 6 * s, onlineAt: 7 * s, lastOpen: 1 * s, lastOnline: -1, lastClose: 4 * s}, 3 * s, audit.Transition, false},
		{"away then", &device{openedAt: 6 * s, onlineAt: 7 * s, lastOpen: 1 * s, lastOnline: 1 * s, lastClose: 2 * s}, 3 * s, audit.Drain, false},
		{"never seen before", &device{openedAt: 6 * s, onlineAt: -1, lastOpen: -1, lastClose: -1, lastOnline: -1}, 3 * s, audit.Drain, false},
		{"after the load", &device{proof: true, openedAt: 1 * s, onlineAt: 2 * s, lastOpen: -1, lastClose: -1, lastOnline: -1}, 3 * s, audit.Proof, true},
		{"after the load, in the session before", &device{proof: true, openedAt: 6 * s, onlineAt: 7 * s, lastOpen: 1 * s, lastOnline: 2 * s, lastClose: 4 * s}, 3 * s, audit.Proof, true},
	} {
		if got, online := (&Engine{}).classify(c.d, c.intended); got != c.want || online != c.online {
			t.Errorf("%s: class %d, online %v, want %d, %v", c.name, got, online, c.want, c.online)
		}
	}
}

func TestBodyRoundTrip(t *testing.T) {
	want := header{42, 1234567 * time.Microsecond, audit.InGroup(9)}
	b := makeBody(60, 7, want)
	if len(b) != 60 {
		t.Errorf("%d bytes, want 60", len(b))
	}
	setWritten(b, 5*time.Millisecond)
	h, ok := readBody(b, 7)
	if !ok || h != want || writtenAfter(b) != 5*time.Millisecond {
		t.Errorf("read back %+v, %v, ok %v", h, writtenAfter(b), ok)
	}
	if _, ok := readBody(b, 8); ok {
		t.Error("a body of another run was taken for one of this run")
	}
	if _, ok := readBody(b[:bodyHeader-1], 7); ok {
		t.Error("a body that is too short was accepted")
	}
}

// The client's window drops a second copy and lets a late first one through: a
// high-water mark would turn reordering into silent loss.
func TestDeviceAcceptsOnceInAnyOrder(t *testing.T) {
	d := &device{}
	msg := func(seq uint64) *wire.Deliver { return &wire.Deliver{From: 1, FromDevice: 0, Seq: seq} }
	for _, c := range []struct {
		seq  uint64
		want bool
	}{{1, true}, {3, true}, {2, true}, {3, false}, {2, false}, {4, true}} {
		if got := d.accept(msg(c.seq)); got != c.want {
			t.Errorf("seq %d accepted %v, want %v", c.seq, got, c.want)
		}
	}
	if other := (&wire.Deliver{From: 1, FromDevice: 1, Seq: 3}); !d.accept(other) {
		t.Error("the same number of another device of the sender was dropped")
	}
	if copied := (&wire.Deliver{From: 1, FromDevice: 0, Seq: 3, To: 9}); !d.accept(copied) {
		t.Error("the same number in a conversation of the user's own was dropped")
	}
	if got := d.newest(stream{from: 1}); got != 4 {
		t.Errorf("newest is %d, want 4", got)
	}
}
