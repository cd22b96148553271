package rpc

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"throng/system/wire"
)

// moodyInbox breaks streams, leaves items unanswered and asks for some again,
// as its dice say, and keeps what it took of each stream.
type moodyInbox struct {
	UnimplementedInboxServer
	mu      sync.Mutex
	dice    *rand.Rand
	kind    bool // no more moods
	streams [][]uint64
}

var errMood = errors.New("not today")

func (m *moodyInbox) Append(stream Inbox_AppendServer) error {
	m.mu.Lock()
	mine := len(m.streams)
	m.streams = append(m.streams, nil)
	m.mu.Unlock()
	stuck := false // an item was refused: nothing behind it is taken
	for {
		batch, err := stream.Recv()
		if err != nil {
			return nil
		}
		var out AppendResultBatch
		m.mu.Lock()
		for _, item := range batch.Items {
			m.streams[mine] = append(m.streams[mine], item.Message.Seq)
			mood := m.dice.IntN(40)
			switch {
			case m.kind:
			case mood == 0:
				m.mu.Unlock()
				_ = stream.Send(&out)
				return errMood
			case mood == 1:
				stuck = true
			}
			res := &AppendResult{Ref: item.Ref}
			if stuck {
				res.Code = wire.Code_CODE_RETRY
			}
			out.Items = append(out.Items, res)
		}
		m.dice.Shuffle(len(out.Items), func(i, j int) { out.Items[i], out.Items[j] = out.Items[j], out.Items[i] })
		m.mu.Unlock()
		if err := stream.Send(&out); err != nil {
			return nil
		}
	}
}

type testItem struct {
	item      AppendItem
	resolved  atomic.Int32
	cancelled atomic.Bool
	left      *sync.WaitGroup
}

func (i *testItem) Item() *AppendItem { return &i.item }
func (i *testItem) Cancelled() bool   { return i.cancelled.Load() }
func (i *testItem) Resolve(res *AppendResult) bool {
	if res.Code != 0 {
		return false
	}
	i.resolved.Add(1)
	i.left.Done()
	return true
}

// TestAppenderKeepsOrder: whatever happens to the streams, each of them
// carries the items in the order of Add without holes from where it starts,
// and every item is resolved once.
func TestAppenderKeepsOrder(t *testing.T) {
	defer goleak.VerifyNone(t)
	const n = 2000
	inbox := &moodyInbox{dice: rand.New(rand.NewPCG(1, 2))}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer()
	RegisterInboxServer(srv, inbox)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	defer func() { srv.Stop(); wg.Wait() }()
	conn, err := Dial(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	resent := prometheus.NewCounter(prometheus.CounterOpts{Name: "resent"})
	a := NewAppender(AppenderConfig{Conn: conn, Resent: resent})
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { a.Run(ctx) })
	defer run.Wait()
	defer cancel()

	var left sync.WaitGroup
	items := make([]*testItem, n)
	for i := range items {
		left.Add(1)
		items[i] = &testItem{item: AppendItem{Message: &Envelope{Seq: uint64(i)}}, left: &left}
		a.Add(items[i])
		if i == n/2 {
			// Lets the streams break at many places, not only at the start.
			waitUntil(t, func() bool { return a.Unresolved() < n/4 })
		}
		if i == n*9/10 {
			inbox.mu.Lock()
			inbox.kind = true
			inbox.mu.Unlock()
		}
	}
	done := make(chan struct{})
	go func() { left.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%d items unresolved", a.Unresolved())
	}
	for i, it := range items {
		if it.resolved.Load() != 1 {
			t.Fatalf("item %d resolved %d times", i, it.resolved.Load())
		}
	}
	inbox.mu.Lock()
	defer inbox.mu.Unlock()
	sent := 0
	for s, seqs := range inbox.streams {
		sent += len(seqs)
		for i := 1; i < len(seqs); i++ {
			if seqs[i] <= seqs[i-1] {
				t.Fatalf("stream %d: %d after %d", s, seqs[i], seqs[i-1])
			}
		}
	}
	if len(inbox.streams) < 5 || testutil.ToFloat64(resent) == 0 {
		t.Fatalf("%d streams, %v sent again: nothing was tested", len(inbox.streams), testutil.ToFloat64(resent))
	}
	t.Logf("%d streams, %d items sent for %d", len(inbox.streams), sent, n)
}

// TestAppenderDropsTheCancelled: what nobody waits for is not sent.
func TestAppenderDropsTheCancelled(t *testing.T) {
	defer goleak.VerifyNone(t)
	inbox := &moodyInbox{kind: true, dice: rand.New(rand.NewPCG(1, 2))}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := Dial(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a := NewAppender(AppenderConfig{Conn: conn})
	var left sync.WaitGroup
	for i := range 10 {
		it := &testItem{item: AppendItem{Message: &Envelope{Seq: uint64(i)}}, left: &left}
		it.cancelled.Store(i%2 == 1)
		if i%2 == 0 {
			left.Add(1)
		}
		a.Add(it)
	}
	if a.Unresolved() != 10 {
		t.Fatalf("%d unresolved", a.Unresolved())
	}
	if a.Purge(); a.Unresolved() != 5 {
		t.Fatalf("%d unresolved after Purge", a.Unresolved())
	}
	srv := NewServer()
	RegisterInboxServer(srv, inbox)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	defer func() { srv.Stop(); wg.Wait() }()
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { a.Run(ctx) })
	left.Wait()
	cancel()
	inbox.mu.Lock()
	defer inbox.mu.Unlock()
	for _, seqs := range inbox.streams {
		for _, s := range seqs {
			if s%2 == 1 {
				t.Fatalf("item %d was sent", s)
			}
		}
	}
}

func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
		<-time.After(time.Millisecond)
	}
}
