package audit

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// play tells a spool of n messages of a mix like preset B's, each with its
// acknowledgement and its deliveries, and returns the number of deliveries. A
// conversation has ten messages in the mean.
func play(s *Spool, n int) (deliveries int) {
	rng := rand.New(rand.NewPCG(1, 1))
	seqs := map[uint64]uint64{}
	var devs []Device
	for i := range n {
		conv := rng.Uint64N(uint64(n/10+1)) + 1
		size := uint64(1)
		switch conv % 100 { // 1 of them is a large group, 42 are small ones
		case 0:
			size = 200
		default:
			if conv%100 <= 42 {
				size = 4
			}
		}
		devs = devs[:0]
		for u := range size {
			devs = append(devs, Device{conv*1000 + u, 0})
		}
		seqs[conv]++
		m := Message{ID: idNumber(i), Sender: Device{conv*1000 + 500, 0}, Seq: seqs[conv], Addressees: devs, Phase: 1, Stratum: -1, Intended: time.Duration(i) * time.Millisecond}
		in := InGroup(conv)
		if size > 1 {
			m.Group = conv
		} else {
			m.Peer = conv * 1000
			in = Between(m.Sender.User, m.Peer)
		}
		h := s.Written(&m, m.Intended)
		h.Acknowledged(m.Intended + 3*time.Millisecond)
		f := frame(&m, int64(i))
		for _, d := range devs {
			s.Delivered(&Delivery{To: d, Frame: f, In: in, Class: Live, Online: d.User%4 == 0, At: m.Intended + 5*time.Millisecond})
		}
		deliveries += len(devs)
	}
	return deliveries
}

// spoolOf returns the spool of n messages as a file.
func spoolOf(tb testing.TB, n int) (src Source, deliveries int) {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "spool"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	s := NewSpool(f, Partitions(n))
	deliveries = play(s, n)
	mark, err := s.Sync()
	return Source{Name: "all", R: f, Mark: mark, Err: err}, deliveries
}

// judged replays a source and returns the most memory that was alive in it.
func judged(tb testing.TB, src Source, deliveries int) (peak uint64) {
	tb.Helper()
	alive := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := alive()
	look := false
	out, err := Replay(&Config{Gated: []uint8{1}}, []Source{src}, Visitor{
		Progress: func(int, int) { look = true },
		Fanout: func(Fanout) { // once for each partition, when all of it is in memory
			if look {
				look, peak = false, max(peak, alive()-before)
			}
		},
	})
	if err != nil || len(out.Audit.Problems) > 0 || out.Audit.Proved != int64(deliveries) {
		tb.Fatalf("%v, %+v, want %d proved", err, out, deliveries)
	}
	return peak
}

// Ten times the messages take the same memory, in the spool and in the judge.
func TestMemoryDoesNotGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("a million events")
	}
	few, fewDeliveries := spoolOf(t, 2*messagesAPartition)
	many, manyDeliveries := spoolOf(t, 10*2*messagesAPartition)
	if many.Mark.Events < 9*few.Mark.Events {
		t.Fatalf("%d events against %d", many.Mark.Events, few.Mark.Events)
	}
	least, most := judged(t, few, fewDeliveries), judged(t, many, manyDeliveries)
	t.Logf("%.1f MB for %d events, %.1f MB for %d", float64(least)/1e6, few.Mark.Events, float64(most)/1e6, many.Mark.Events)
	if float64(most) > 1.4*float64(least) {
		t.Errorf("%d bytes for %d events, %d for %d", least, few.Mark.Events, most, many.Mark.Events)
	}
}

func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Skip(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkReplay judges what is on disk: the memory is the same for ten times
// as much.
func BenchmarkReplay(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			if testing.Short() && n > 100_000 {
				b.Skip("200 MB")
			}
			src, deliveries := spoolOf(b, n)
			peak := judged(b, src, deliveries)
			start := cpu(b)
			for b.Loop() {
				if out, err := Replay(&Config{Gated: []uint8{1}}, []Source{src}, Visitor{}); err != nil || out.Audit.Proved != int64(deliveries) {
					b.Fatal(err, out)
				}
			}
			events := float64(src.Mark.Events)
			b.ReportMetric(events*float64(b.N)/(cpu(b)-start).Seconds(), "events/CPU-s")
			b.ReportMetric(float64(src.Mark.Bytes)/events, "B/event")
			b.ReportMetric(float64(peak)/1e6, "peak-MB")
		})
	}
}

// BenchmarkSpool is what an engine spends on telling.
func BenchmarkSpool(b *testing.B) {
	b.Run("message", func(b *testing.B) {
		s := NewSpool(io.Discard, 64)
		m := Message{Peer: 77_000_000, Sender: Device{76_000_000, 0}, Seq: 9, Addressees: []Device{{77_000_000, 0}}, Phase: 1, Stratum: -1}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			m.ID = idNumber(i)
			m.Sender.User = uint64(i)
			at := time.Duration(i) * time.Millisecond
			s.Written(&m, at).Acknowledged(at)
		}
	})
	b.Run("delivery", func(b *testing.B) {
		s := NewSpool(io.Discard, 64)
		m := Message{ID: idNumber(1), Group: 1, Seq: 9, Sender: Device{76_000_000, 0}}
		d := Delivery{Frame: frame(&m, 1_000_000), Class: Live}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			d.To.User, d.In, d.At = uint64(i), Conversation(i), time.Duration(i)*time.Millisecond
			s.Delivered(&d)
		}
	})
}

// The spool of a run is as large as what is told, not larger than its mark says.
func TestMarkIsTheLength(t *testing.T) {
	var f bytes.Buffer
	s := NewSpool(&f, 7)
	play(s, 500)
	mark, err := s.Sync()
	if err != nil || mark.Bytes != int64(f.Len()) || mark.Events == 0 {
		t.Errorf("mark %+v (%v), the file has %d bytes", mark, err, f.Len())
	}
}
