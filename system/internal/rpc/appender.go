package rpc

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// Bounds of one AppendBatch.
const (
	maxAppendItems = 512
	maxAppendBytes = 1 << 20
)

// appendGap is the least time between two batches to an inbox instance, which
// takes what has come in turns that are further apart.
const appendGap = 2 * time.Millisecond

// Appendee is one item on its way to an inbox instance.
type Appendee interface {
	// Item returns what to send. The Appender sets its Ref.
	Item() *AppendItem
	// Resolve is given the instance's answer, in whatever order answers come.
	// It returns false to have the item sent again, and then every unresolved
	// item behind it is sent again too, so that the order stays. Otherwise it
	// is not called again. It must not block.
	Resolve(*AppendResult) bool
	// Cancelled reports that nobody waits for the item: it is dropped, without
	// Resolve, where it would be sent (again).
	Cancelled() bool
}

// AppenderConfig says where an Appender sends.
type AppenderConfig struct {
	Conn grpc.ClientConnInterface // to the inbox instance, see Dial
	Log  *slog.Logger             // may be nil
	// Resent counts the items sent again; may be nil.
	Resent prometheus.Counter
}

// Appender sends items to one inbox instance over one ordered stream, taking
// all that waits into each batch. When the stream breaks it opens another one,
// for ever, and sends everything unresolved again in the order of Add: the
// instance may see an item twice, but never in another order. It holds as many
// items as its callers have unresolved; the bound is theirs.
type Appender struct {
	client InboxClient
	log    *slog.Logger
	resent prometheus.Counter
	wake   chan struct{} // capacity 1; never closed

	mu      sync.Mutex
	waiting []Appendee // not sent on this stream
	sent    []sentItem // sent on this stream, in order; ref of sent[i] is base+i
	base    uint64
	again   bool // an item wants to be sent again
}

type sentItem struct {
	item     Appendee
	resolved bool
}

// NewAppender returns an appender; Run makes it work.
func NewAppender(cfg AppenderConfig) *Appender {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Appender{client: NewInboxClient(cfg.Conn), log: cfg.Log, resent: cfg.Resent, wake: make(chan struct{}, 1), base: 1}
}

// Add queues items behind everything added before.
func (a *Appender) Add(items ...Appendee) {
	a.mu.Lock()
	a.waiting = append(a.waiting, items...)
	a.mu.Unlock()
	a.signal()
}

// Unresolved returns how many items wait for an answer.
func (a *Appender) Unresolved() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.waiting) + len(a.sent)
}

// Purge drops the cancelled items among those not sent, for a caller that
// meets its bound.
func (a *Appender) Purge() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting = dropCancelled(a.waiting)
}

func (a *Appender) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run serves the queue until ctx is done. What is unresolved then stays so.
func (a *Appender) Run(ctx context.Context) {
	failing := false
	for wait := 10 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 200*time.Millisecond) {
		progress, err := a.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if progress {
			wait, failing = 10*time.Millisecond, false
		}
		if !failing {
			a.log.Warn("inbox stream ended, will go on trying", "unresolved", a.Unresolved(), "err", err)
			failing = true
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// session opens one stream and uses it until it ends, and reports whether
// anything was resolved on it.
func (a *Appender) session(ctx context.Context) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.client.Append(ctx)
	if err != nil {
		return false, err
	}
	a.rewind()
	received := make(chan struct{})
	var recvErr error
	go func() {
		defer close(received)
		defer cancel() // a Send may be waiting for a server that no longer reads
		for {
			batch, err := stream.Recv()
			if err != nil {
				recvErr = err
				return
			}
			resolved, again := a.resolve(batch.Items)
			progress = progress || resolved
			if again {
				recvErr = errAgain
				return
			}
		}
	}()
	var batch AppendBatch
	pace := NewPace(appendGap)
	for {
		select {
		case <-a.wake:
		case <-received:
			return progress, recvErr
		}
		pace.Wait(received)
		for a.take(&batch) {
			if err := stream.Send(&batch); err != nil {
				cancel() // the reason comes from Recv
				<-received
				return progress, recvErr
			}
			select {
			case <-received:
				return progress, recvErr
			default:
			}
		}
	}
}

type againError struct{}

func (againError) Error() string { return "rpc: an item is to be sent again" }

var errAgain = againError{}

// rewind makes everything unresolved wait to be sent.
func (a *Appender) rewind() {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]Appendee, 0, len(a.sent)+len(a.waiting))
	for _, s := range a.sent {
		if !s.resolved {
			all = append(all, s.item)
		}
	}
	all = dropCancelled(all)
	if a.resent != nil {
		a.resent.Add(float64(len(all)))
	}
	a.base += uint64(len(a.sent))
	a.waiting, a.sent, a.again = append(all, a.waiting...), nil, false
	if len(a.waiting) > 0 {
		a.signal()
	}
}

// take moves one batch from waiting to sent; false if there is nothing.
func (a *Appender) take(batch *AppendBatch) bool {
	clear(batch.Items)
	batch.Items = batch.Items[:0]
	a.mu.Lock()
	defer a.mu.Unlock()
	taken, size := 0, 0
	for _, w := range a.waiting {
		if len(batch.Items) == maxAppendItems || size >= maxAppendBytes || a.again {
			break
		}
		taken++
		if w.Cancelled() {
			continue
		}
		item := w.Item()
		item.Ref = a.base + uint64(len(a.sent))
		size += len(item.Message.GetBody()) + 8*len(item.Users) + 64
		batch.Items = append(batch.Items, item)
		a.sent = append(a.sent, sentItem{item: w})
	}
	clear(a.waiting[:taken])
	a.waiting = a.waiting[taken:]
	if len(a.waiting) == 0 {
		a.waiting = nil
	}
	return len(batch.Items) > 0
}

// resolve hands out answers and reports whether any resolved its item, and
// whether any item is to be sent again.
func (a *Appender) resolve(results []*AppendResult) (resolved, again bool) {
	for _, res := range results {
		a.mu.Lock()
		i := res.Ref - a.base
		if i >= uint64(len(a.sent)) || a.sent[i].resolved {
			a.mu.Unlock()
			continue // an answer given twice
		}
		item := a.sent[i].item
		a.mu.Unlock()
		// Outside of the lock: Resolve may Add. Only this goroutine shifts sent.
		done := item.Resolve(res)
		a.mu.Lock()
		if done {
			a.sent[i].resolved, resolved = true, true
			a.pop()
		} else {
			a.again, again = true, true
		}
		a.mu.Unlock()
	}
	return resolved, again
}

// pop forgets the resolved items at the front.
func (a *Appender) pop() {
	n := 0
	for n < len(a.sent) && a.sent[n].resolved {
		a.sent[n].item = nil
		n++
	}
	a.sent = a.sent[n:]
	a.base += uint64(n)
}

func dropCancelled(items []Appendee) []Appendee {
	kept := items[:0]
	for _, it := range items {
		if !it.Cancelled() {
			kept = append(kept, it)
		}
	}
	clear(items[len(kept):])
	return kept
}
