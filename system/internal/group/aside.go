package group

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	cacheTimeout = 250 * time.Millisecond // of one operation
	cachePause   = time.Second            // after a failure nothing is asked for that long
	lockWait     = 200 * time.Millisecond // for another instance to load
	lockPoll     = 10 * time.Millisecond
	// maxStale bounds the pointers that could not be raised and are tried
	// again. A pointer beyond it is wrong until it expires.
	maxStale = 65536
)

// aside is the shared cache seen so that it cannot fail: what it cannot answer
// is a miss.
type aside struct {
	cache Cache // nil: everything misses
	log   *slog.Logger
	m     *metrics

	pausedUntil atomic.Int64 // Unix nanoseconds

	mu    sync.Mutex
	stale map[uint64]uint64 // pointers to raise, by group
}

func newAside(cache Cache, log *slog.Logger, m *metrics) *aside {
	return &aside{cache: cache, log: log, m: m, stale: map[uint64]uint64{}}
}

// do runs one operation and reports whether it worked.
func (a *aside) do(ctx context.Context, op func(context.Context) error) bool {
	if a.cache == nil || time.Now().UnixNano() < a.pausedUntil.Load() {
		return false
	}
	opCtx, cancel := context.WithTimeout(ctx, cacheTimeout)
	defer cancel()
	err := op(opCtx)
	if err == nil {
		return true
	}
	if ctx.Err() == nil {
		a.m.cacheErrors.Inc()
		if old := a.pausedUntil.Swap(time.Now().Add(cachePause).UnixNano()); time.Since(time.Unix(0, old)) > 10*cachePause {
			a.log.Warn("group cache fails, going on without it", "err", err)
		}
	}
	return false
}

func (a *aside) version(ctx context.Context, group uint64) (version uint64, ok bool) {
	worked := a.do(ctx, func(ctx context.Context) (err error) {
		version, ok, err = a.cache.Version(ctx, group)
		return err
	})
	return version, ok && worked
}

// raise makes the pointer at least version, later if it cannot be done now.
func (a *aside) raise(ctx context.Context, group, version uint64) {
	if a.cache == nil || a.do(ctx, func(ctx context.Context) error { return a.cache.SetVersion(ctx, group, version) }) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, there := a.stale[group]; there || len(a.stale) < maxStale {
		a.stale[group] = max(a.stale[group], version)
		return
	}
	a.m.stale.Dropped.Inc()
}

// offer puts a version that was read into the pointer, if the cache works.
func (a *aside) offer(ctx context.Context, group, version uint64) {
	a.do(ctx, func(ctx context.Context) error { return a.cache.SetVersion(ctx, group, version) })
}

// run raises the pointers that could not be raised when it was time.
func (a *aside) run(ctx context.Context) {
	tick := time.NewTicker(cachePause / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.repair(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (a *aside) repair(ctx context.Context) {
	a.mu.Lock()
	todo := a.stale
	a.stale = map[uint64]uint64{}
	a.m.stale.Depth.Set(float64(len(todo)))
	a.mu.Unlock()
	for group, version := range todo {
		a.raise(ctx, group, version)
	}
}

// members returns a version's members from the cache, or from load, which it
// lets one caller do at a time over all instances.
func (a *aside) members(ctx context.Context, group, version uint64, load func() ([]uint64, error)) ([]uint64, error) {
	read := func() (members []uint64, ok bool) {
		worked := a.do(ctx, func(ctx context.Context) (err error) {
			members, ok, err = a.cache.Members(ctx, group, version)
			return err
		})
		return members, ok && worked
	}
	if a.cache != nil {
		if members, ok := read(); ok {
			a.m.cacheHit(tierRedis)
			return members, nil
		}
		a.m.cacheMiss(tierRedis)
		mine := true
		a.do(ctx, func(ctx context.Context) (err error) {
			mine, err = a.cache.Lock(ctx, group, version)
			return err
		})
		for waited := time.Duration(0); !mine && waited < lockWait; waited += lockPoll {
			if !sleep(ctx, lockPoll) {
				break
			}
			if members, ok := read(); ok {
				return members, nil
			}
		}
	}
	members, err := load()
	if err != nil {
		return nil, err
	}
	a.do(ctx, func(ctx context.Context) error { return a.cache.SetMembers(ctx, group, version, members) })
	return members, nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
