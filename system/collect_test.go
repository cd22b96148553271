package system

import (
	"runtime"
	"testing"
	"time"
)

// TestCollectLess: what is live is small, and 32 MiB of garbage come before it is
// collected, where Go by itself would do so for every 4.
func TestCollectLess(t *testing.T) {
	t.Setenv("GOGC", "")
	defer CollectLess()()
	runtime.GC()
	collections := func(bytes int) uint32 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range bytes >> 10 {
			sink = make([]byte, 1<<10)
		}
		runtime.ReadMemStats(&after)
		return after.NumGC - before.NumGC
	}
	const mb = 1 << 20
	for deadline := time.Now().Add(time.Minute); ; runtime.GC() { // until it was set once
		if n := collections(20 * mb); n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("20 MB of garbage are still collected")
		}
	}
	if n := collections(400 * mb); n == 0 || n > 400/20 {
		t.Errorf("400 MB of garbage were collected %d times, want about %d", n, 400*mb/garbageLeast)
	}
}

var sink []byte
