package audit

import (
	"testing"
	"time"
)

// A user's other devices are addressees like anybody's: of a direct message
// they must be told whom it went to, of a group's while the user is a member,
// and the device that sent it gets nothing.
func TestCopiesForTheSendersOtherDevices(t *testing.T) {
	phone, laptop, peer := Device{1, 0}, Device{1, 1}, Device{2, 0}
	a := tell(Config{Devices: func(user uint64) int { return map[uint64]int{1: 2, 2: 1}[user] }})
	direct := Message{ID: idNumber(1), Peer: 2, Sender: phone, Seq: 1, Addressees: []Device{laptop, peer}}
	group := Message{ID: idNumber(2), Group: 9, Sender: phone, Seq: 1, Addressees: []Device{laptop, peer}}
	late := Message{ID: idNumber(3), Group: 9, Sender: phone, Seq: 2, Addressees: []Device{laptop, peer}}
	for _, m := range []Message{direct, group, late} {
		a.sent(m)
	}
	a.changing(9, 1)
	a.removed(9, 1, 5) // between the two
	copied := frame(&direct, 0)
	copied.To = 2
	a.deliver(laptop, copied, Live, time.Second)
	a.deliver(peer, frame(&direct, 0), Live, time.Second)
	a.deliver(laptop, frame(&group, 4), Live, time.Second)
	a.deliver(peer, frame(&group, 4), Live, time.Second)
	a.deliver(peer, frame(&late, 7), Live, time.Second)
	a.drained(phone, laptop, peer)
	if r := a.report(t); r.Expected != 5 || r.Proved != 5 || r.Lost+r.Foreign+r.Unproved != 0 {
		t.Errorf("%+v, want 5 expected and proved", r)
	}
	if p := a.judge(t).Pending; len(p) != 0 {
		t.Errorf("pending %v", p)
	}

	a.deliver(laptop, frame(&late, 7), Live, time.Second) // its user had left
	a.deliver(phone, frame(&group, 4), Live, time.Second) // it came from there
	wrong := tell(Config{})
	wrong.sent(direct)
	wrong.deliver(laptop, frame(&direct, 0), Live, time.Second) // does not say to whom
	wrong.deliver(peer, copied, Live, time.Second)              // says it to the addressee
	if r, w := a.report(t), wrong.report(t); r.Foreign != 2 || w.Foreign != 2 {
		t.Errorf("foreign: %d and %d, want 2 and 2\n%v\n%v", r.Foreign, w.Foreign, r.Examples, w.Examples)
	}
}
