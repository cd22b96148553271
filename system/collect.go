package system

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// A role's heap is collected when it holds this much garbage for what is live, in
// per cent, and this many bytes of it at least. With Go's own 100 % and no least
// collecting was a seventh of all CPU at scale 1/2000: small heaps of 3 to 8 MB
// were collected every second, and the inbox's 200 MB for 1.5 s at a time, in which its
// deliveries waited.
const (
	garbagePercent = 200
	garbageLeast   = 32 << 20
)

// CollectLess has the garbage collector of this process run less often than it
// would by itself, for memory: the heap grows to three times what is live, or to
// 32 MiB more than that. GOGC in the environment decides instead if it is there;
// GOMEMLIMIT bounds either. stop ends it.
func CollectLess() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	c := &collections{}
	before := debug.SetGCPercent(garbagePercent)
	c.percent = garbagePercent
	c.next()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.stopped = true
		debug.SetGCPercent(before)
	}
}

// collections sets GOGC after each of them.
type collections struct {
	mu      sync.Mutex
	percent int
	stopped bool
}

// next has after called when the next collection is over: it finds a new object
// unreachable.
func (c *collections) next() {
	runtime.AddCleanup(&struct{ of *collections }{c}, (*collections).after, c)
}

func (c *collections) after() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	percent := int(max(garbagePercent, garbageLeast*100/max(live[0].Value.Uint64(), 1<<20)))
	// It stops the world, so not for a change of nothing.
	if percent < c.percent*9/10 || percent > c.percent*11/10 {
		debug.SetGCPercent(percent)
		c.percent = percent
	}
	c.next()
}
