package audit

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"throng/sim/history"
	"throng/system/wire"
)

// told is what tests tell: the spools of some engines, in memory, and a clock
// on which every event has a time of its own. Users belong to engines by number.
type told struct {
	cfg    Config
	spools []*Spool
	files  []*bytes.Buffer
	msgs   map[wire.MessageID]*Message
	handle map[wire.MessageID]Handle
	online map[wire.MessageID]map[Device]bool
	now    time.Duration
}

func tell(cfg Config) *told { return tellBy(cfg, 1, 3) }

func tellBy(cfg Config, engines, partitions int) *told {
	w := &told{cfg: cfg, msgs: map[wire.MessageID]*Message{}, handle: map[wire.MessageID]Handle{}, online: map[wire.MessageID]map[Device]bool{}}
	for range engines {
		f := &bytes.Buffer{}
		w.files = append(w.files, f)
		w.spools = append(w.spools, NewSpool(f, partitions))
	}
	return w
}

func (w *told) of(user uint64) *Spool { return w.spools[user%uint64(len(w.spools))] }

func (w *told) tick() time.Duration {
	w.now += time.Millisecond
	return w.now
}

func (w *told) write(m Message) Handle {
	h := w.of(m.Sender.User).Written(&m, w.tick())
	if w.msgs[m.ID] == nil {
		w.msgs[m.ID], w.handle[m.ID] = &m, h
	}
	return h
}

// sent writes a message and acknowledges it.
func (w *told) sent(m Message) { w.write(m).Acknowledged(w.tick()) }

// markOnline says that a device is online for a message.
func (w *told) markOnline(id wire.MessageID, dev Device) {
	if w.online[id] == nil {
		w.online[id] = map[Device]bool{}
	}
	w.online[id][dev] = true
}

func (w *told) deliver(dev Device, f *wire.Deliver, class Class, at time.Duration) {
	d := Delivery{To: dev, Frame: f, In: Claimed(dev, f), Class: class, At: at}
	if id, ok := idOf(f); ok {
		if m := w.msgs[id]; m != nil {
			d.In = Between(m.Sender.User, m.Peer)
			if m.Group != 0 {
				d.In = InGroup(m.Group)
			}
		}
		d.Online = w.online[id][dev]
	}
	w.of(dev.User).Delivered(&d)
}

func idOf(f *wire.Deliver) (id wire.MessageID, ok bool) {
	return id, copy(id[:], f.MessageId) == len(f.MessageId) && len(f.MessageId) == len(id)
}

func (w *told) system(dev Device, f *wire.Deliver) { w.of(dev.User).System(dev, f, w.tick()) }

func (w *told) changing(group, user uint64) time.Duration {
	at := w.tick()
	w.of(user).Changing(group, user, at)
	return at
}

func (w *told) removed(group, user uint64, offset int64) {
	w.of(user).Removed(group, user, offset, w.tick())
}

func (w *told) added(group, user uint64, offset int64) {
	w.of(user).Added(group, user, offset, w.tick())
}

func (w *told) drained(devs ...Device) {
	for _, d := range devs {
		w.of(d.User).Drained(d)
	}
}

// sources are the spools as they are now.
func (w *told) sources() []Source {
	var all []Source
	for i, s := range w.spools {
		m, err := s.Sync()
		all = append(all, Source{Name: fmt.Sprintf("engine %d", i), R: bytes.NewReader(w.files[i].Bytes()), Mark: m, Err: err})
	}
	return all
}

func (w *told) judge(t testing.TB) *Outcome {
	t.Helper()
	out, err := Replay(&w.cfg, w.sources(), Visitor{})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Audit.Problems) > 0 {
		t.Fatalf("problems: %q", out.Audit.Problems)
	}
	return out
}

func (w *told) report(t testing.TB) history.Audit { t.Helper(); return w.judge(t).Audit }

func (w *told) drainPending(t testing.TB) {
	t.Helper()
	w.drained(w.judge(t).Pending...)
}
