package audit

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pairOfEngines is a run of two engines: user 2 of the first writes to user 3
// of the second, and back, and all of it arrives; one to user 4, of the first, is
// lost.
func pairOfEngines() *told {
	w := tellBy(Config{}, 2, 2)
	for i := range 40 {
		a, b := Device{2, 0}, Device{3, 0}
		if i%2 == 1 {
			a, b = b, a
		}
		m := Message{ID: idNumber(i), Peer: b.User, Sender: a, Seq: uint64(i/2 + 1), Addressees: []Device{b}, Stratum: -1}
		w.sent(m)
		w.deliver(b, frame(&m, 0), Live, time.Second)
	}
	m := Message{ID: idNumber(40), Peer: 4, Sender: Device{2, 0}, Seq: 1, Addressees: []Device{{4, 0}}, Stratum: -1}
	w.sent(m)
	w.drained(Device{2, 0}, Device{3, 0}, Device{4, 0})
	return w
}

// A spool that is not whole proves nothing, and what it may have said is not
// held against the system: unproved, and a sentence that names it.
func TestSpoolsThatAreNotWhole(t *testing.T) {
	full := errors.New("no space left on device")
	for name, c := range map[string]struct {
		spoil func(*Source, []byte)
		says  string
	}{
		"missing":           {func(s *Source, _ []byte) { s.R = nil }, "there is none"},
		"it says why":       {func(s *Source, _ []byte) { s.Err = full }, "no space left"},
		"cut off":           {func(s *Source, b []byte) { s.R = bytes.NewReader(b[:len(b)-5]) }, "it is cut off"},
		"cut off at blocks": {func(s *Source, b []byte) { s.Mark.Bytes -= blockHeader + 2 }, "its last mark says"},
		"empty":             {func(s *Source, b []byte) { s.Mark = Mark{} }, "its last mark says"},
		"a bit is flipped":  {func(s *Source, b []byte) { b[len(b)/2] ^= 4 }, "damaged"},
		"a header is wrong": {func(s *Source, b []byte) { b[0] ^= 1 }, "there is no block"},
		"a length is wrong": {func(s *Source, b []byte) { b[17] = 255 }, "there is no block"},
		"a block is left out": {func(s *Source, b []byte) {
			first := blockHeader + int(b[16])
			s.R, s.Mark.Bytes = bytes.NewReader(append(b[:0:0], b[first:]...)), s.Mark.Bytes-int64(first)
		}, "there is no block"},
		"another partitioning": {func(s *Source, _ []byte) {
			var f bytes.Buffer
			mark, err := NewSpool(&f, 3).Sync()
			*s = Source{Name: s.Name, R: bytes.NewReader(f.Bytes()), Mark: mark, Err: err}
		}, "it has 3 partitions, the others have 2"},
	} {
		t.Run(name, func(t *testing.T) {
			w := pairOfEngines()
			sources := w.sources()
			b := bytes.Clone(w.files[1].Bytes())
			sources[1].R = bytes.NewReader(b)
			c.spoil(&sources[1], b)
			out, err := Replay(&w.cfg, sources, Visitor{})
			if err != nil {
				t.Fatal(err)
			}
			r := out.Audit
			if len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "engine 1") || !strings.Contains(r.Problems[0], c.says) {
				t.Errorf("problems %q, want one of engine 1 that says %q", r.Problems, c.says)
			}
			// 21 messages of user 2, whom 20 reached that nobody seems to have written.
			if r.Sends != 21 || r.Unproved != 41 || r.Expected != 41 || r.Proved+r.Lost+r.Foreign != 0 {
				t.Errorf("%+v, want all of it unproved", r)
			}
			if len(out.Pending) != 2 || out.Pending[0].User != 3 {
				t.Errorf("pending %v", out.Pending)
			}
		})
	}
	w := pairOfEngines()
	if r := w.report(t); r.Proved != 40 || r.Lost != 1 || r.Expected != 41 {
		t.Errorf("the whole of it: %+v, want 40 proved and one lost", r)
	}
}

// disk takes so many bytes, then it is full.
type disk struct{ room int }

func (d *disk) Write(b []byte) (int, error) {
	if len(b) > d.room {
		return d.room, syscall.ENOSPC
	}
	d.room -= len(b)
	return len(b), nil
}

// A full disk is told once it is met, costs no memory, and goes on being told.
func TestFullDisk(t *testing.T) {
	s := NewSpool(&disk{room: 100_000}, 1)
	m := Message{ID: idNumber(1), Peer: 2, Sender: Device{1, 0}, Addressees: []Device{{2, 0}}}
	told := 0
	for s.Err() == nil {
		if told++; told > 100_000 {
			t.Fatal("the disk is full and the spool says nothing")
		}
		s.Written(&m, 0).Acknowledged(0)
	}
	for range 100_000 {
		s.Written(&m, 0).Acknowledged(0)
	}
	if n := cap(s.lanes[0].buf); n > 4*maxLaneBuffer {
		t.Errorf("%d bytes are kept for a disk that is full", n)
	}
	mark, err := s.Sync()
	if !errors.Is(err, syscall.ENOSPC) || !errors.Is(s.Err(), syscall.ENOSPC) || mark.Bytes == 0 {
		t.Errorf("mark %+v, errors %v and %v", mark, err, s.Err())
	}
}

// A spool can be judged while it goes on, again and again; what is told after a
// mark is not looked at.
func TestJudgedInBetween(t *testing.T) {
	w := tellBy(Config{}, 1, 4)
	for i := range 5 {
		m := Message{ID: idNumber(i), Peer: 2, Sender: Device{1, 0}, Seq: uint64(i + 1), Addressees: []Device{{2, 0}}, Stratum: -1}
		w.sent(m)
		before := w.sources()
		w.deliver(Device{2, 0}, frame(&m, 0), Live, time.Second)
		after := w.sources()
		for k, sources := range [][]Source{before, after} {
			sources[0].R = bytes.NewReader(w.files[0].Bytes())
			out, err := Replay(&w.cfg, sources, Visitor{})
			if err != nil || len(out.Audit.Problems) > 0 {
				t.Fatal(err, out.Audit.Problems)
			}
			if r := out.Audit; r.Proved != int64(i+k) || len(out.Pending) != 1-k {
				t.Errorf("message %d: %d proved, pending %v, want %d and %d", i, r.Proved, out.Pending, i+k, 1-k)
			}
		}
	}
}

// A large group in one event, and more of it than a buffer holds.
func TestLargeEvents(t *testing.T) {
	w := tellBy(Config{Devices: func(uint64) int { return 1 }}, 2, MaxPartitions)
	var all []uint64
	var devs []Device
	for u := uint64(1); u <= 1024; u++ {
		all = append(all, u<<20) // with all the bytes of a number
		devs = append(devs, Device{u << 20, 3})
	}
	w.of(0).Start(9, all[:1])
	for i := range 3 {
		m := Message{ID: idNumber(i), Group: 9, Sender: Device{5, 0}, Seq: uint64(i + 1), Addressees: devs, Stratum: -1}
		w.sent(m)
		w.deliver(devs[1000], frame(&m, 20), Live, time.Second)
	}
	w.system(Device{all[0], 0}, notified(9, 2, 10, all[1:], nil))
	out := w.judge(t)
	if r := out.Audit; r.Sends != 3 || r.System != 1 || r.SystemExpected != 1024 || r.SystemProved != 1 || r.Boundaries != 1023 {
		t.Errorf("%+v", r)
	}
}

// Two engines whose clocks may differ do not know what was first when it was
// close.
func TestClockError(t *testing.T) {
	for _, c := range []struct {
		apart time.Duration // from the change's answer to the message
		want  string
	}{{3 * time.Millisecond, "undecided"}, {20 * time.Millisecond, "foreign"}} {
		w := tellBy(Config{Devices: func(uint64) int { return 1 }, ClockError: 10 * time.Millisecond}, 2, 1)
		w.changing(7, 3)
		w.removed(7, 3, 10)
		w.now += c.apart
		m := Message{ID: idNumber(1), Group: 7, Sender: Device{2, 0}, Seq: 1, Addressees: []Device{{3, 0}}, Stratum: -1}
		w.sent(m)
		w.drained(Device{3, 0})
		got := "foreign"
		if r := w.report(t); r.Unproved == 1 {
			got = "undecided"
		} else if r.Expected != 0 {
			got = fmt.Sprintf("%+v", r)
		}
		if got != c.want {
			t.Errorf("%v after the change: %s, want %s", c.apart, got, c.want)
		}
	}
}

// A change that was known before anybody asked for one is not what was asked for.
func TestAskedForAfterwards(t *testing.T) {
	w := tellBy(Config{Devices: func(uint64) int { return 1 }}, 2, 1)
	w.removed(7, 3, 10)
	m := Message{ID: idNumber(1), Group: 7, Sender: Device{2, 0}, Seq: 1, Addressees: []Device{{3, 0}}, Stratum: -1}
	w.sent(m)
	w.changing(7, 3)
	w.added(7, 3, 20)
	if r := w.report(t); r.Expected != 0 {
		t.Errorf("between the two: %+v, want nothing due", r)
	}
}

// A body that was not written in this run is not what was sent.
func TestDamagedBody(t *testing.T) {
	w := tell(Config{})
	m := Message{ID: idNumber(1), Peer: 2, Sender: Device{1, 0}, Seq: 1, Addressees: []Device{{2, 0}}, Stratum: -1}
	w.sent(m)
	w.spools[0].Delivered(&Delivery{To: Device{2, 0}, Frame: frame(&m, 0), In: Between(1, 2), Damaged: true})
	if r := w.report(t); r.Foreign != 1 || r.Proved != 0 || r.Expected != 1 {
		t.Errorf("%+v, want it foreign", r)
	}
}

// Whatever is in a block, the judge says an error or a verdict.
func FuzzEvents(f *testing.F) {
	w := pairOfEngines()
	w.changing(7, 3)
	w.added(7, 3, 4)
	w.of(1).Start(7, []uint64{1, 2})
	w.system(Device{2, 0}, notified(7, 2, 4, []uint64{3}, []uint64{2}))
	for _, s := range w.sources() {
		r, err := s.wind()
		if err != nil {
			f.Fatal(err)
		}
		for lane, places := range r.lanes {
			for _, p := range places {
				if err := r.read(p); err != nil {
					f.Fatal(err)
				}
				f.Add(lane%2 == 1, bytes.Clone(r.buf))
			}
		}
	}
	f.Fuzz(func(t *testing.T, received bool, block []byte) {
		l := newLedger(&Config{Devices: func(uint64) int { return 1 }})
		c := cursor{b: block}
		if received {
			l.received(&c)
		} else {
			l.did(&c, nil, map[Device]proof{})
		}
		(&tally{examples: map[string]int{}, pending: map[Device]struct{}{}, devices: map[Device]proof{}}).add(l)
	})
}

// Whatever is in a spool, it is read to its mark, or left out with an error.
func FuzzSpool(f *testing.F) {
	for _, s := range pairOfEngines().sources() {
		b := make([]byte, s.Mark.Bytes)
		if _, err := s.R.ReadAt(b, 0); err != nil {
			f.Fatal(err)
		}
		f.Add(b, s.Mark.Bytes, s.Mark.Events)
		f.Add(b[:len(b)/2], s.Mark.Bytes, s.Mark.Events)
	}
	f.Fuzz(func(t *testing.T, file []byte, size, events int64) {
		r, err := (&Source{R: bytes.NewReader(file), Mark: Mark{size, events}}).wind()
		if (r == nil) == (err == nil) {
			t.Fatalf("%v, %v", r, err)
		}
	})
}
