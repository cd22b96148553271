package message

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// TestOrderUnderFaults plays clients that do not wait for answers against an
// inbox and a log that refuse, lose answers and fail, over restarts of the
// instance. What became durable must be gapless and in order, counting the
// first time of each message, and nothing may be Sent that is not durable.
func TestOrderUnderFaults(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { orderUnderFaults(t, seed) })
	}
}

// dice are shared by the fakes, which run in several goroutines.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (d *dice) hit(oneIn int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(oneIn) == 0
}

// durables is what has become durable, in order, by conversation.
type durables struct {
	mu   sync.Mutex
	seqs map[convKey][]uint64
}

func (d *durables) add(k convKey, seq uint64) {
	d.mu.Lock()
	d.seqs[k] = append(d.seqs[k], seq)
	d.mu.Unlock()
}

func (d *durables) has(k convKey, seq uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.seqs[k] {
		if s == seq {
			return true
		}
	}
	return false
}

func orderUnderFaults(t *testing.T, seed uint64) {
	const each = 40
	d := &dice{r: rand.New(rand.NewPCG(seed, 7))}
	stored := &durables{seqs: map[convKey][]uint64{}}
	r := newRig(t, func(c *Config) { c.Timeout = 150 * time.Millisecond })
	r.inbox.decide = func(_ int, item *rpc.AppendItem) (wire.Code, bool) {
		if d.hit(12) {
			return wire.Code_CODE_INBOX_FULL, true
		}
		stored.add(convKey{item.Message.From, 1, wire.Conversation{User: item.Users[0]}}, item.Message.Seq)
		return 0, !d.hit(30) // durable, but nobody is told
	}
	r.log.fail = func(int) error {
		if d.hit(12) {
			return errors.New("no")
		}
		return nil
	}
	g := r.start()
	clients := []*pipeline{
		{k: convKey{2, 1, wire.Conversation{User: 4}}}, {k: convKey{2, 1, wire.Conversation{User: 5}}},
		{k: convKey{2, 1, wire.Conversation{Group: 9}}}, {k: convKey{6, 1, wire.Conversation{Group: 9}}},
	}
	partition := placement.GroupPartition(9, 4)
	isDurable := func(k convKey, seq uint64) bool {
		if k.to.Group == 0 {
			return stored.has(k, seq)
		}
		for _, m := range r.log.records(partition) {
			if m.From == k.user && m.Seq == seq {
				return true
			}
		}
		return false
	}
	for round := 0; ; round++ {
		if round > 5000 {
			t.Fatalf("no end in sight: %+v", clients)
		}
		if round%25 == 24 {
			g.stopService()
			g = r.start()
			for _, c := range clients {
				c.outstanding = nil // the connection is gone: send again
			}
		}
		open := false
		for _, c := range clients {
			c.step(t, g, each, isDurable)
			open = open || c.acked < each
		}
		if !open {
			break
		}
		<-time.After(time.Millisecond)
	}
	for _, m := range r.log.records(partition) {
		stored.add(convKey{m.From, 1, wire.Conversation{Group: 9}}, m.Seq)
	}
	for _, c := range clients {
		next := uint64(1)
		for _, s := range stored.seqs[c.k] {
			if s > next {
				t.Fatalf("%+v: %d became durable before %d", c.k, s, next)
			}
			if s == next {
				next++
			}
		}
		if next != each+1 {
			t.Fatalf("%+v: durable up to %d of %d", c.k, next-1, each)
		}
	}
}

// pipeline is a client of one conversation with several sends outstanding.
type pipeline struct {
	k           convKey
	acked       uint64
	chain       []byte
	outstanding []uint64 // refs of acked+1, acked+2, ...
}

// step takes the answers there are and sends what is due.
func (p *pipeline) step(t *testing.T, g *gateway, each uint64, isDurable func(convKey, uint64) bool) {
	for len(p.outstanding) > 0 {
		res := g.answer(p.outstanding[0])
		if res == nil {
			break
		}
		if res.Error != nil {
			switch res.Error.Code {
			case wire.Code_CODE_RETRY, wire.Code_CODE_SEQUENCE, wire.Code_CODE_INBOX_FULL:
			default:
				t.Fatalf("%+v: %v", p.k, res.Error)
			}
			p.outstanding = nil // everything unacknowledged again, in order
			break
		}
		p.acked++
		p.chain = res.Sent.Chain
		p.outstanding = p.outstanding[1:]
		if !isDurable(p.k, p.acked) {
			t.Fatalf("%+v: %d is Sent and not durable", p.k, p.acked)
		}
	}
	for len(p.outstanding) < 5 {
		seq := p.acked + uint64(len(p.outstanding)) + 1
		if seq > each {
			return
		}
		send := &wire.Send{ClientMsgId: seq, User: p.k.to.User, Group: p.k.to.Group, Seq: seq}
		if len(p.outstanding) == 0 {
			send.Chain = p.chain
		}
		p.outstanding = append(p.outstanding, g.send(p.k.user, send))
	}
}

// BenchmarkSubmit measures sends through one instance to Sent, with a window
// of 1,024; gateway, inbox, group service and log are fakes in the same
// process, and their cost is in the figure.
func BenchmarkSubmit(b *testing.B) {
	for name, send := range map[string]func(uint64) *wire.Send{
		"direct": func(i uint64) *wire.Send { return &wire.Send{ClientMsgId: i + 1, User: i%10000 + 1, Seq: i/10000 + 1} },
		"group":  func(i uint64) *wire.Send { return &wire.Send{ClientMsgId: i + 1, Group: i%10000 + 1, Seq: i/10000 + 1} },
	} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, nil)
			g := r.start()
			start := cpu(b)
			b.ResetTimer()
			batch := &rpc.SubmitBatch{}
			for i := range uint64(b.N) {
				s := send(i)
				s.Body = make([]byte, 100)
				batch.Items = append(batch.Items, &rpc.Submission{Ref: i + 1, User: 2, Device: 1, Send: s})
				if len(batch.Items) == 64 || i == uint64(b.N)-1 {
					if err := g.stream.Send(batch); err != nil {
						b.Fatal(err)
					}
					batch.Items = batch.Items[:0]
					waitFor(b, "the window", func() bool {
						g.mu.Lock()
						defer g.mu.Unlock()
						return i+1-uint64(len(g.order)) < 1024 && (i != uint64(b.N)-1 || len(g.order) == b.N)
					})
				}
			}
			used := cpu(b) - start
			b.ReportMetric(float64(b.N)/used.Seconds(), "sends/CPU-s")
			for _, res := range g.answers {
				if res.Sent == nil {
					b.Fatal(res.Error)
				}
			}
		})
	}
}

// cpu returns the processor time this process has used.
func cpu(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
