package message

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

const (
	// checkBatch bounds the pairs of one Check.
	checkBatch = 512
	// checkWorkers bounds the Checks at one group instance at a time.
	checkWorkers = 2
	checkTimeout = 2 * time.Second
	// checkGap is the least time between two Checks of a worker.
	checkGap = 2 * time.Millisecond
)

// checker asks the group service whether senders are members. Whatever waits
// for an instance goes in one request. The order among submissions does not
// matter here: a conversation has one at a time.
type checker struct {
	groups []rpc.GroupClient
	lanes  []*checkLane // by group instance
	limit  int          // of a lane, timed-out submissions included
	log    *slog.Logger
	done   func(*submission, wire.Code)
}

type checkLane struct {
	wake chan struct{} // capacity checkWorkers; never closed

	mu      sync.Mutex
	waiting []*submission
}

func newChecker(groups []rpc.GroupClient, limit int, log *slog.Logger, done func(*submission, wire.Code)) *checker {
	c := &checker{groups: groups, limit: limit, log: log, done: done}
	for range groups {
		c.lanes = append(c.lanes, &checkLane{wake: make(chan struct{}, checkWorkers)})
	}
	return c
}

func (c *checker) start(ctx context.Context, loops *sync.WaitGroup) {
	for i, l := range c.lanes {
		for range checkWorkers {
			loops.Go(func() { c.run(ctx, i, l) })
		}
	}
}

func (c *checker) add(sub *submission) {
	l := c.lanes[placement.GroupInstance(sub.conv.key.to.Group, len(c.lanes))]
	l.mu.Lock()
	if len(l.waiting) >= c.limit { // most have timed out: fewer can be live
		l.waiting = slices.DeleteFunc(l.waiting, func(w *submission) bool { return w.dead.Load() })
	}
	l.waiting = append(l.waiting, sub)
	l.mu.Unlock()
	l.signal()
}

func (l *checkLane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (c *checker) run(ctx context.Context, instance int, l *checkLane) {
	pace := rpc.NewPace(checkGap)
	for {
		select {
		case <-l.wake:
		case <-ctx.Done():
			return
		}
		pace.Wait(ctx.Done())
		for full := true; full; {
			batch := l.take()
			full = len(batch) == checkBatch
			if !c.check(ctx, instance, batch) {
				return
			}
		}
	}
}

func (l *checkLane) take() []*submission {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.waiting), checkBatch)
	batch := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	if len(l.waiting) == 0 {
		l.waiting = nil
	}
	return batch
}

// check asks until it has an answer, another instance after each failure: all
// of them can answer. It returns false when ctx is done.
func (c *checker) check(ctx context.Context, instance int, batch []*submission) bool {
	for attempt := 0; ; attempt++ {
		req := &rpc.CheckRequest{}
		live := batch[:0:0]
		for _, sub := range batch {
			if !sub.dead.Load() {
				live = append(live, sub)
				req.Groups = append(req.Groups, sub.conv.key.to.Group)
				req.Users = append(req.Users, sub.conv.key.user)
			}
		}
		if batch = live; len(batch) == 0 {
			return true // all timed out
		}
		callCtx, cancel := context.WithTimeout(ctx, checkTimeout)
		res, err := c.groups[(instance+attempt)%len(c.groups)].Check(callCtx, req)
		cancel()
		if err == nil && len(res.Codes) == len(batch) {
			for i, sub := range batch {
				c.done(sub, res.Codes[i])
			}
			return true
		}
		if attempt == 0 {
			c.log.Warn("membership check failed, will go on trying", "instance", instance, "pairs", len(batch), "err", err)
		}
		if attempt < len(c.groups)-1 {
			continue
		}
		t := time.NewTimer(100 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
	}
}
