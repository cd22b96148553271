package load

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"throng/sim/client"
)

// timers runs what was decided during the run: reads, reconnects, opens caused
// by pushes. One heap and one goroutine serve all devices; a callback must not
// block.
type timers struct {
	now  func() time.Duration
	grid client.Grid // when it looks up
	wake chan struct{}

	mu    sync.Mutex
	heap  timerHeap
	until time.Duration // when run looks next; before now while it works
}

type timer struct {
	at time.Duration
	f  func()
}

type timerHeap []timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(timer)) }
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = timer{}
	*h = old[:len(old)-1]
	return t
}

func newTimers(now func() time.Duration, grid client.Grid) *timers {
	return &timers{now: now, grid: grid, wake: make(chan struct{}, 1)}
}

// at calls f at run time t, or soon if that is past.
func (t *timers) at(at time.Duration, f func()) {
	t.mu.Lock()
	first := t.grid.After(at) < t.until
	heap.Push(&t.heap, timer{at, f})
	t.mu.Unlock()
	if first {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// run calls what falls due until ctx is done.
func (t *timers) run(ctx context.Context) {
	sleep := time.NewTimer(time.Hour)
	defer sleep.Stop()
	for {
		var due []func()
		t.mu.Lock()
		now := t.now()
		for len(t.heap) > 0 && t.heap[0].at <= now {
			due = append(due, heap.Pop(&t.heap).(timer).f)
		}
		wait := time.Hour
		if len(t.heap) > 0 {
			wait = t.grid.After(t.heap[0].at) - now
		}
		t.until = now + wait
		if len(due) > 0 {
			t.until = 0 // looks again at once
		}
		t.mu.Unlock()
		for _, f := range due {
			f()
		}
		if len(due) > 0 {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		sleep.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-sleep.C:
		}
	}
}
