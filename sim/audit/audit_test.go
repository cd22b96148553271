package audit

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"throng/sim/history"
	"throng/system/wire"
)

// event is a delivery in a generated history.
type event struct {
	dev    Device
	msg    int
	offset int64
}

// correct is a generated history without a violation: every message reaches
// every device in an order that respects each sender's device.
type correct struct {
	msgs   []Message
	events []event // grouped by nothing: the order of each device is what counts
}

func generate(t *rapid.T) correct {
	var c correct
	seqs := map[streamKey]uint64{}
	byDevice := map[Device][]event{}
	var order []Device
	n := rapid.IntRange(1, 30).Draw(t, "messages")
	for i := range n {
		sender := Device{uint64(rapid.IntRange(1, 4).Draw(t, "sender")), uint32(rapid.IntRange(0, 1).Draw(t, "device"))}
		m := Message{ID: idNumber(i), Sender: sender, Phase: 1, Stratum: -1}
		key := streamKey{sender: sender}
		if rapid.Bool().Draw(t, "group") {
			m.Group = uint64(rapid.IntRange(1, 2).Draw(t, "group id"))
			key.conv, key.group = m.Group, true
			for u := uint64(1); u <= 4+40*(m.Group-1); u++ {
				if u != sender.User {
					m.Addressees = append(m.Addressees, Device{u, 0}, Device{u, 1})
				}
			}
		} else {
			m.Peer = sender.User%4 + 1
			key.conv = m.Peer
			m.Addressees = []Device{{m.Peer, 0}, {m.Peer, 1}}
		}
		seqs[key]++
		m.Seq = seqs[key]
		c.msgs = append(c.msgs, m)
		for _, d := range m.Addressees {
			if byDevice[d] == nil {
				order = append(order, d)
			}
			byDevice[d] = append(byDevice[d], event{d, i, int64(i)})
		}
	}
	// Devices get their messages interleaved; streams of other senders may
	// overtake each other, one stream may not.
	for len(order) > 0 {
		k := rapid.IntRange(0, len(order)-1).Draw(t, "next")
		d := order[k]
		q := byDevice[d]
		j := rapid.IntRange(0, min(3, len(q)-1)).Draw(t, "overtaking")
		for i := range j {
			if c.stream(q[i]) == c.stream(q[j]) {
				j = i
				break
			}
		}
		c.events = append(c.events, q[j])
		q = append(q[:j:j], q[j+1:]...)
		if byDevice[d] = q; len(q) == 0 {
			order = append(order[:k], order[k+1:]...)
		}
	}
	return c
}

func (c *correct) stream(e event) streamKey {
	m := c.msgs[e.msg]
	return streamKey{m.Sender, m.Group + m.Peer, m.Group != 0}
}

func idNumber(i int) (id wire.MessageID) {
	binary.LittleEndian.PutUint64(id[:], uint64(i)*0x9e3779b97f4a7c15)
	binary.LittleEndian.PutUint64(id[8:], uint64(i))
	return id
}

func frame(m *Message, offset int64) *wire.Deliver {
	return &wire.Deliver{
		MessageId: m.ID[:], Group: m.Group, From: m.Sender.User, FromDevice: m.Sender.Device,
		Seq: m.Seq, Offset: offset,
	}
}

func run(t *rapid.T, msgs []Message, events []event) history.Audit {
	w := tellBy(Config{Gated: []uint8{1}}, rapid.IntRange(1, 3).Draw(t, "engines"), rapid.IntRange(1, 5).Draw(t, "partitions"))
	for _, m := range msgs {
		w.sent(m)
	}
	for _, e := range events {
		w.deliver(e.dev, frame(&msgs[e.msg], e.offset), Live, time.Second)
	}
	judge := func() *Outcome {
		out, err := Replay(&w.cfg, w.sources(), Visitor{})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	w.drained(judge().Pending...)
	return judge().Audit
}

func TestRandomHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := generate(t)
		r := run(t, c.msgs, c.events)
		pairs := int64(len(c.events))
		if r.Lost+r.Duplicated+r.Reordered+r.Foreign+r.Unproved != 0 || r.Expected != pairs || r.Proved != pairs {
			t.Fatalf("a correct history of %d pairs: %+v", pairs, r)
		}
		want := history.Audit{Expected: pairs, Proved: pairs}
		events, what := mutate(t, &c, &want)
		r = run(t, c.msgs, events)
		got := history.Audit{
			Expected: r.Expected, Proved: r.Proved, Lost: r.Lost, Duplicated: r.Duplicated,
			Reordered: r.Reordered, Foreign: r.Foreign, Unproved: r.Unproved,
		}
		if diff(got, want) {
			t.Fatalf("after %s: %+v, want %+v", what, got, want)
		}
		if len(r.Examples) == 0 || len(r.Examples) > 20 {
			t.Fatalf("after %s: %d examples", what, len(r.Examples))
		}
	})
}

func diff(a, b history.Audit) bool {
	a.Examples, b.Examples = nil, nil
	return a.Expected != b.Expected || a.Proved != b.Proved || a.Lost != b.Lost || a.Duplicated != b.Duplicated ||
		a.Reordered != b.Reordered || a.Foreign != b.Foreign || a.Unproved != b.Unproved
}

// mutate puts one violation into a history and says in want what must be found.
func mutate(t *rapid.T, c *correct, want *history.Audit) ([]event, string) {
	i := rapid.IntRange(0, len(c.events)-1).Draw(t, "victim")
	e := c.events[i]
	ev := append([]event{}, c.events...)
	what := rapid.SampledFrom([]string{"drop", "duplicate", "swap", "foreign"}).Draw(t, "mutation")
	switch what {
	case "duplicate":
		at := rapid.IntRange(i, len(ev)-1).Draw(t, "at")
		ev = append(ev[:at+1:at+1], append([]event{e}, ev[at+1:]...)...)
		want.Duplicated, want.Proved = 1, want.Proved-1
		return ev, what
	case "foreign":
		e.dev = Device{1000, 0}
		want.Foreign = 1
		return append(ev, e), what
	case "swap":
		// A delivery changes places with a later one of its stream at its
		// device: that one overtakes all between.
		later := 0
		for j := i + 1; j < len(ev); j++ {
			if ev[j].dev == e.dev && c.stream(ev[j]) == c.stream(e) {
				later++
				ev[i], ev[j] = ev[j], ev[i]
				break
			}
		}
		if later > 0 {
			want.Reordered, want.Proved = 1, want.Proved-1
			return ev, what
		}
		what = "drop"
		ev = append([]event{}, c.events...)
	}
	want.Lost, want.Proved = 1, want.Proved-1
	return append(ev[:i], ev[i+1:]...), what
}

func (w *told) fanouts(t *testing.T) (all []Fanout) {
	t.Helper()
	if _, err := Replay(&w.cfg, w.sources(), Visitor{Fanout: func(f Fanout) { all = append(all, f) }}); err != nil {
		t.Fatal(err)
	}
	return all
}

// The first and the last of the devices that were online, by what they got live.
func TestFirstAndLastOnlineMember(t *testing.T) {
	w := tellBy(Config{}, 2, 3)
	devs := []Device{{2, 0}, {3, 0}, {4, 0}, {5, 0}}
	m := Message{ID: idNumber(1), Group: 7, Sender: Device{1, 0}, Seq: 1, Intended: time.Second, Addressees: devs, Stratum: -1, SizeClass: 1}
	w.sent(m)
	for _, d := range devs[:3] { // 5/0 is offline
		w.markOnline(m.ID, d)
	}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for i, s := range []struct {
		dev         Device
		class       Class
		at          int
		live        int
		first, last int
		complete    bool
	}{
		{devs[3], Drain, 5, 0, 0, 0, false},
		{devs[0], Live, 30, 1, 30, 30, false},
		{devs[1], Live, 10, 2, 10, 30, false},
		{devs[0], Live, 35, 2, 10, 30, false}, // a duplicate
		// 4/0 went offline and gets it later: the last live one was 2/0.
		{devs[2], Drain, 9000, 2, 10, 30, true},
	} {
		w.deliver(s.dev, frame(&m, 3), s.class, time.Second+ms(s.at))
		var want []Fanout
		if s.live > 0 {
			want = []Fanout{{SizeClass: 1, Stratum: -1, Intended: time.Second, Live: s.live, First: ms(s.first), Last: ms(s.last), Complete: s.complete}}
		}
		if got := w.fanouts(t); !slices.Equal(got, want) {
			t.Fatalf("step %d: %+v, want %+v", i, got, want)
		}
	}
}

// A member who has left, or not joined yet, does not keep the last one waiting.
func TestLastAfterMembersLeft(t *testing.T) {
	w := tellBy(Config{}, 2, 3)
	w.of(0).Outside(7, 4)
	w.changing(7, 3)
	w.removed(7, 3, 10)
	devs := []Device{{2, 0}, {3, 0}, {4, 0}}
	send := func(i int) Message {
		m := Message{ID: idNumber(i), Group: 7, Sender: Device{1, 0}, Seq: uint64(i), Addressees: devs, Stratum: -1}
		w.sent(m)
		w.markOnline(m.ID, devs[0])
		return m
	}
	m := send(1)
	w.deliver(devs[0], frame(&m, 11), Live, time.Second)
	if f := w.fanouts(t); len(f) != 1 || !f[0].Complete {
		t.Errorf("the only member: %+v", f)
	}
	w.changing(7, 4) // from here 4 may be in
	m = send(2)
	w.deliver(devs[0], frame(&m, 12), Live, time.Second)
	if f := w.fanouts(t); len(f) != 2 || !f[0].Complete || f[1].Complete {
		t.Errorf("with one about to join: %+v", f)
	}
	w.added(7, 4, 12)
	w.drainPending(t)
	if r := w.report(t); r.Expected != 2+1 || r.Proved != 2 || r.Unproved != 1 || r.Foreign != 0 {
		t.Errorf("the join and the message cannot both be at 12: %+v", r)
	}
}

// Goroutines tell of different devices at the same time; the counts must be as
// if they had not.
func TestConcurrentEvents(t *testing.T) {
	const messages, receivers = 400, 70
	devs := make([]Device, receivers)
	for i := range devs {
		devs[i] = Device{uint64(i + 10), 0}
	}
	w := tell(Config{Gated: []uint8{1}})
	s := w.spools[0]
	msgs := make([]Message, messages)
	var wg sync.WaitGroup
	for sender := range 4 {
		wg.Go(func() {
			for i := sender; i < messages; i += 4 {
				msgs[i] = Message{ID: idNumber(i), Group: 7, Sender: Device{uint64(sender + 1), 0}, Seq: uint64(i/4 + 1), Addressees: devs, Phase: 1, Stratum: -1}
				s.Written(&msgs[i], 0).Acknowledged(0)
			}
		})
	}
	for _, d := range devs { // deliveries may be told before what was sent
		wg.Go(func() {
			for i := range messages {
				m := Message{ID: idNumber(i), Group: 7, Sender: Device{uint64(i%4 + 1), 0}, Seq: uint64(i/4 + 1)}
				s.Delivered(&Delivery{To: d, Frame: frame(&m, int64(i)), In: InGroup(7), Class: Live, At: time.Second})
				s.Redelivered()
			}
		})
	}
	wg.Wait()
	r := w.report(t)
	if n := int64(messages * receivers); r.Proved != n || r.Expected != n || r.Live != n || r.Redelivered != n || len(r.Examples) != 0 {
		t.Fatalf("%+v, want %d proved", r, n)
	}
}

// A message that moves up because one before it was refused is proved under
// its new number, and stays in order.
func TestRenumberAfterRefusal(t *testing.T) {
	w := tell(Config{})
	sender, dev := Device{1, 0}, Device{2, 0}
	msg := func(i int, seq uint64) Message {
		return Message{ID: idNumber(i), Peer: 2, Sender: sender, Seq: seq, Addressees: []Device{dev}, Stratum: -1}
	}
	w.write(msg(1, 1)).Refused()
	h := w.write(msg(2, 2))
	h.Renumber(1)
	h.Acknowledged(w.tick())
	m := msg(2, 1)
	w.deliver(dev, frame(&m, 0), Live, time.Second)
	r := w.report(t)
	if r.Proved != 1 || r.Foreign != 0 || r.Reordered != 0 {
		t.Errorf("proved %d, foreign %d, reordered %d; want 1, 0, 0", r.Proved, r.Foreign, r.Reordered)
	}
}
