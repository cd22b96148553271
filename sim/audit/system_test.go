package audit

import (
	"testing"

	"throng/system/wire"
)

// notified is a system message as a device gets it.
func notified(group, version uint64, offset int64, add, remove []uint64) *wire.Deliver {
	id := wire.SystemIDOf(group, version)
	return &wire.Deliver{MessageId: id[:], Group: group, Seq: version, Kind: wire.Kind_KIND_SYSTEM, Offset: offset,
		Change: &wire.GroupChange{Version: version, Add: add, Remove: remove}}
}

// TestSystemMessages: group 9 starts with users 1 and 2, each with one device;
// version 2 adds 3, version 3 removes 2. Each case leaves out or adds something.
func TestSystemMessages(t *testing.T) {
	type got struct {
		user, version uint64
		offset        int64
	}
	all := []got{{1, 2, 10}, {2, 2, 10}, {3, 2, 10}, {1, 3, 20}, {2, 3, 20}, {3, 3, 20}}
	const proved, lost, foreign, reordered, duplicated, unproved = 0, 1, 2, 3, 4, 5
	for name, c := range map[string]struct {
		events  []got
		reached uint64
		want    [6]int64
	}{
		"all is well":            {all, 3, [6]int64{proved: 6}},
		"nobody said so":         {all, 0, [6]int64{proved: 6}},
		"removed is not told":    {append(append([]got{}, all[:4]...), all[5]), 3, [6]int64{proved: 5, lost: 1}},
		"nobody heard of 3":      {all[:3], 3, [6]int64{proved: 3, lost: 3}},
		"nobody heard of 2 or 3": {nil, 3, [6]int64{lost: 4}}, // 3 is not known to be one
		"stranger is told":       {append(append([]got{}, all...), got{4, 3, 20}), 3, [6]int64{proved: 6, foreign: 1}},
		"told before its time":   {append([]got{all[3], all[0]}, append(all[1:3:3], all[4:]...)...), 3, [6]int64{proved: 5, reordered: 1}},
		"told twice":             {append(append([]got{}, all...), all[0]), 3, [6]int64{proved: 5, duplicated: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			a := tellBy(Config{Devices: func(uint64) int { return 1 }}, 3, 2)
			a.of(1).Start(9, []uint64{1, 2})
			for _, e := range c.events {
				d := notified(9, 2, e.offset, []uint64{3}, nil)
				if e.version == 3 {
					d = notified(9, 3, e.offset, nil, []uint64{2})
				}
				a.system(Device{User: e.user}, d)
			}
			a.of(2).Reached(9, c.reached)
			if pending := len(a.judge(t).Pending); (c.want[lost] > 0) != (pending > 0) {
				t.Errorf("%d devices pending", pending)
			}
			for u := uint64(1); u <= 4; u++ {
				a.drained(Device{User: u})
			}
			r := a.report(t)
			if have := [6]int64{r.Proved, r.Lost, r.Foreign, r.Reordered, r.Duplicated, r.Unproved}; have != c.want {
				t.Errorf("%v, want %v (%v)", have, c.want, r.Examples)
			}
			if wrong := r.Lost + r.Duplicated + r.Reordered + r.Foreign; r.SystemExpected != r.Expected || r.SystemProved != r.Proved || r.SystemWrong != wrong {
				t.Errorf("of the system messages: %d expected, %d proved, %d wrong; want %d, %d, %d", r.SystemExpected, r.SystemProved, r.SystemWrong, r.Expected, r.Proved, wrong)
			}
			boundaries := map[uint64]bool{}
			for _, e := range c.events {
				boundaries[e.version] = true // each version moves one user
			}
			if r.Boundaries != int64(len(boundaries)) {
				t.Errorf("%d boundaries, want %d", r.Boundaries, len(boundaries))
			}
			if r.System != int64(len(c.events)) || r.Sends != 0 {
				t.Errorf("counted %d system messages, %d sends", r.System, r.Sends)
			}
		})
	}
}

// TestSystemMessageBoundary: a message on the wrong side of a change that its
// device has heard of is out of order, whichever of the two comes first.
func TestSystemMessageBoundary(t *testing.T) {
	for _, c := range []struct {
		name      string
		message   int64 // its offset; the change is at 10
		first     bool  // the message comes before the change
		reordered int64
	}{
		{"before, in order", 9, true, 0}, {"before, late", 9, false, 1},
		{"after, in order", 11, false, 0}, {"after, early", 11, true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := Device{User: 2}
			a := tellBy(Config{Devices: func(uint64) int { return 1 }}, 3, 2)
			a.of(1).Start(9, []uint64{1, 2})
			m := Message{ID: idNumber(1), Group: 9, Sender: Device{User: 1}, Seq: 1, Addressees: []Device{dev}, Stratum: -1}
			a.sent(m)
			deliver := func() {
				a.deliver(dev, &wire.Deliver{MessageId: m.ID[:], Group: 9, From: 1, Seq: 1, Offset: c.message}, Live, 0)
			}
			if c.first {
				deliver()
			}
			a.system(dev, notified(9, 2, 10, nil, nil))
			if !c.first {
				deliver()
			}
			if r := a.report(t); r.Reordered != c.reordered {
				t.Errorf("%d out of order, want %d", r.Reordered, c.reordered)
			}
		})
	}
}

// TestSystemMessageForged: one that nobody can have sent is foreign.
func TestSystemMessageForged(t *testing.T) {
	for name, edit := range map[string]func(*wire.Deliver){
		"another id":      func(d *wire.Deliver) { d.MessageId = make([]byte, 16) },
		"short id":        func(d *wire.Deliver) { d.MessageId = d.MessageId[:8] },
		"from somebody":   func(d *wire.Deliver) { d.From = 1 },
		"without change":  func(d *wire.Deliver) { d.Change = nil },
		"another version": func(d *wire.Deliver) { d.Change.Version++ },
		"unknown group":   func(d *wire.Deliver) { d.Group = 8 },
		"version unheard of": func(d *wire.Deliver) {
			id := wire.SystemIDOf(9, 1<<60)
			d.MessageId, d.Seq, d.Change.Version = id[:], 1<<60, 1<<60
		},
	} {
		a := tellBy(Config{Devices: func(uint64) int { return 1 }}, 3, 2)
		a.of(1).Start(9, []uint64{1})
		d := notified(9, 2, 1, nil, nil)
		edit(d)
		a.system(Device{User: 1}, d)
		if r := a.report(t); r.Foreign != 1 || r.Proved != 0 {
			t.Errorf("%s: %d foreign, %d proved", name, r.Foreign, r.Proved)
		}
	}
}

// TestSystemMessageTellsOfAChange: the audit learns from it where a user who
// was added begins, and a refused change leaves nothing.
func TestSystemMessageTellsOfAChange(t *testing.T) {
	a := tellBy(Config{Devices: func(uint64) int { return 1 }}, 3, 2)
	a.of(1).Start(9, []uint64{1, 2})
	a.of(3).Outside(9, 3)
	a.changing(9, 3)
	a.of(2).Unchanged(9, 2, a.changing(9, 2))
	devs := []Device{{User: 2}, {User: 3}}
	for i, offset := range []int64{5, 15} {
		m := Message{ID: idNumber(i), Group: 9, Sender: Device{User: 1}, Seq: uint64(i + 1), Addressees: devs, Stratum: -1}
		a.sent(m)
		for _, dev := range devs[:i+1] {
			if dev.User == 3 {
				a.system(dev, notified(9, 2, 10, []uint64{3}, nil))
			}
			a.deliver(dev, &wire.Deliver{MessageId: m.ID[:], Group: 9, From: 1, Seq: m.Seq, Offset: offset}, Live, 0)
		}
	}
	for u := uint64(1); u <= 3; u++ {
		a.drained(Device{User: u})
	}
	// Three deliveries and one system message are there; 1 and 2 lack theirs.
	if r := a.report(t); r.Proved != 4 || r.Lost != 2 || r.Foreign != 0 || r.Unproved != 0 {
		t.Errorf("%+v", r)
	}
}
