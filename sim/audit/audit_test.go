package audit

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
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

func run(msgs []Message, events []event) history.Audit {
	a := New(Config{Gated: []uint8{1}})
	for _, m := range msgs {
		a.Written(m).Acknowledged()
	}
	for _, e := range events {
		a.Delivered(e.dev, frame(&msgs[e.msg], e.offset), Live, time.Second)
	}
	for _, d := range a.Pending() {
		a.Drained(d)
	}
	return a.Report()
}

func TestRandomHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := generate(t)
		r := run(c.msgs, c.events)
		pairs := int64(len(c.events))
		if r.Lost+r.Duplicated+r.Reordered+r.Foreign+r.Unproved != 0 || r.Expected != pairs || r.Proved != pairs {
			t.Fatalf("a correct history of %d pairs: %+v", pairs, r)
		}
		want := history.Audit{Expected: pairs, Proved: pairs}
		events, what := mutate(t, &c, &want)
		r = run(c.msgs, events)
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

func TestFirstAndLastOnlineMember(t *testing.T) {
	a := New(Config{})
	devs := []Device{{2, 0}, {3, 0}, {4, 0}, {5, 0}}
	m := Message{ID: idNumber(1), Group: 7, Sender: Device{1, 0}, Seq: 1, Intended: time.Second, Addressees: devs, Stratum: -1, SizeClass: 1}
	h := a.Written(m)
	for i := range 3 { // 5/0 is offline
		h.OnlineAt(i)
	}
	at := func(ms int) time.Duration { return time.Second + time.Duration(ms)*time.Millisecond }
	steps := []struct {
		dev         Device
		class       Class
		at          int
		first, last bool
		firstMs     int
		lastMs      int
	}{
		{devs[3], Drain, 5, false, false, 0, 0},
		{devs[1], Live, 10, true, false, 10, 0},
		{devs[0], Live, 30, false, false, 10, 0},
		{devs[0], Live, 35, false, false, 0, 0}, // a duplicate
		// 4/0 went offline and gets it later: the last live one was 2/0.
		{devs[2], Drain, 9000, false, true, 10, 30},
	}
	for i, s := range steps {
		d := a.Delivered(s.dev, frame(&m, 3), s.class, at(s.at))
		if !d.Known || d.First != s.first || d.Last != s.last || d.Latency != time.Duration(s.at)*time.Millisecond {
			t.Fatalf("step %d: %+v", i, d)
		}
		if s.first && d.FirstLatency != time.Duration(s.firstMs)*time.Millisecond ||
			s.last && d.LastLatency != time.Duration(s.lastMs)*time.Millisecond {
			t.Fatalf("step %d: first %v, last %v", i, d.FirstLatency, d.LastLatency)
		}
	}
	var all []Fanout
	a.Fanouts(func(f Fanout) { all = append(all, f) })
	want := Fanout{SizeClass: 1, Stratum: -1, Intended: time.Second, Marked: 3, Live: 2, First: 10 * time.Millisecond, Last: 30 * time.Millisecond}
	if len(all) != 1 || all[0] != want {
		t.Fatalf("Fanouts %+v, want %+v", all, want)
	}
}

// A member who has left, or not joined yet, does not keep the last one waiting.
func TestLastAfterMembersLeft(t *testing.T) {
	a := New(Config{})
	a.Outside(7, 4)
	a.Changing(7, 3)
	a.Removed(7, 3, 10)
	devs := []Device{{2, 0}, {3, 0}, {4, 0}}
	write := func(i int) (Message, Handle) {
		m := Message{ID: idNumber(i), Group: 7, Sender: Device{1, 0}, Seq: uint64(i), Addressees: devs, Stratum: -1}
		h := a.Written(m)
		for i := range devs {
			h.OnlineAt(i)
		}
		h.Acknowledged()
		return m, h
	}
	m, _ := write(1)
	if d := a.Delivered(devs[0], frame(&m, 11), Live, time.Second); !d.First || !d.Last {
		t.Errorf("the only member: %+v", d)
	}
	a.Changing(7, 4) // from here 4 may be in
	m, _ = write(2)
	if d := a.Delivered(devs[0], frame(&m, 12), Live, time.Second); !d.First || d.Last {
		t.Errorf("with one about to join: %+v", d)
	}
	a.Added(7, 4, 12)
	for _, d := range a.Pending() {
		a.Drained(d)
	}
	if r := a.Report(); r.Expected != 2+1 || r.Proved != 2 || r.Unproved != 1 || r.Foreign != 0 {
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
	a := New(Config{Gated: []uint8{1}})
	msgs := make([]Message, messages)
	var wg sync.WaitGroup
	for s := range 4 {
		wg.Go(func() {
			for i := s; i < messages; i += 4 {
				msgs[i] = Message{ID: idNumber(i), Group: 7, Sender: Device{uint64(s + 1), 0}, Seq: uint64(i/4 + 1), Addressees: devs, Phase: 1, Stratum: -1}
				a.Written(msgs[i]).Acknowledged()
			}
		})
	}
	wg.Wait()
	for _, d := range devs {
		wg.Go(func() {
			for i := range msgs {
				a.Delivered(d, frame(&msgs[i], int64(i)), Live, time.Second)
				a.Redelivered(d)
			}
		})
	}
	wg.Wait()
	r := a.Report()
	if n := int64(messages * receivers); r.Proved != n || r.Expected != n || r.Live != n || r.Redelivered != n || len(r.Examples) != 0 {
		t.Fatalf("%+v, want %d proved", r, n)
	}
}

// world writes n messages of a preset-B-like mix and returns their deliveries.
func world(a *Audit, n int) (msgs []Message, events []event) {
	rng := rand.New(rand.NewPCG(1, 1))
	lists := map[uint64][]Device{}
	seqs := map[streamKey]uint64{}
	for i := range n {
		conv := rng.Uint64N(uint64(n)) + 1
		size := 1
		switch r := rng.Float64(); {
		case r > 0.99:
			size = 200
		case r > 0.57:
			size = 4
		}
		if lists[conv] == nil {
			for u := range uint64(size) {
				lists[conv] = append(lists[conv], Device{conv*1000 + u, 0})
			}
		}
		m := Message{ID: idNumber(i), Sender: Device{conv*1000 + 500, 0}, Addressees: lists[conv], Phase: 1, Stratum: -1}
		if len(lists[conv]) > 1 {
			m.Group = conv
		} else {
			m.Peer = conv * 1000
		}
		key := streamKey{m.Sender, conv, m.Group != 0}
		seqs[key]++
		m.Seq = seqs[key]
		msgs = append(msgs, m)
		if a != nil {
			a.Written(m).Acknowledged()
		}
		for _, d := range m.Addressees {
			events = append(events, event{d, i, int64(i)})
		}
	}
	return msgs, events
}

func BenchmarkDelivered(b *testing.B) {
	a := New(Config{})
	msgs, events := world(a, 50_000)
	frames := make([]*wire.Deliver, len(msgs))
	for i := range msgs {
		frames[i] = frame(&msgs[i], int64(i))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if i%len(events) == 0 && i > 0 {
			b.StopTimer()
			a = New(Config{})
			world(a, 50_000)
			b.StartTimer()
		}
		e := events[i%len(events)]
		a.Delivered(e.dev, frames[e.msg], Live, time.Second)
	}
}

func BenchmarkWritten(b *testing.B) {
	msgs, _ := world(nil, 50_000)
	a := New(Config{})
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if i%len(msgs) == 0 {
			a = New(Config{})
		}
		a.Written(msgs[i%len(msgs)]).Acknowledged()
	}
}

func BenchmarkMemory(b *testing.B) {
	const n = 50_000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		msgs, events := world(nil, n)
		before := heap()
		a := New(Config{})
		for i := range msgs {
			a.Written(msgs[i]).Acknowledged()
		}
		for _, e := range events {
			a.Delivered(e.dev, frame(&msgs[e.msg], e.offset), Live, time.Second)
		}
		b.ReportMetric(float64(heap()-before)/n, "B/message")
		b.ReportMetric(float64(len(events))/n, "deliveries/message")
		start := time.Now()
		r := a.Report()
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "report-ms")
		if r.Proved != int64(len(events)) {
			b.Fatalf("%+v", r)
		}
	}
}

// A message that moves up because one before it was refused is proved under
// its new number, and stays in order.
func TestRenumberAfterRefusal(t *testing.T) {
	a := New(Config{})
	sender, dev := Device{1, 0}, Device{2, 0}
	msg := func(i int, seq uint64) Message {
		return Message{ID: idNumber(i), Peer: 2, Sender: sender, Seq: seq, Addressees: []Device{dev}, Stratum: -1}
	}
	a.Written(msg(1, 1)).Refused()
	h := a.Written(msg(2, 2))
	h.Renumber(1)
	h.Acknowledged()
	m := msg(2, 1)
	a.Delivered(dev, frame(&m, 0), Live, time.Second)
	r := a.Report()
	if r.Proved != 1 || r.Foreign != 0 || r.Reordered != 0 {
		t.Errorf("proved %d, foreign %d, reordered %d; want 1, 0, 0", r.Proved, r.Foreign, r.Reordered)
	}
}
