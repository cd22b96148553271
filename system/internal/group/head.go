package group

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"throng/system/internal/obs"
)

// head is the current version of a group with its members, immutable but for
// checked.
type head struct {
	version  uint64
	inactive bool
	members  []uint64  // sorted
	checked  time.Time // when version was last known to be current
}

func (h *head) has(user uint64) bool {
	_, found := slices.BinarySearch(h.members, user)
	return found
}

// stripes of the counters that keep a slow load from putting back an old head.
const stripes = 1024

// headCache keeps heads, the least recently used ones go first.
type headCache struct {
	limit  int // members
	metric *obs.Queue

	mu      sync.Mutex
	lru     *simplelru.LRU[uint64, *head]
	size    int
	changes [stripes]uint64
}

func newHeadCache(limit int, metric *obs.Queue) *headCache {
	c := &headCache{limit: limit, metric: metric}
	// A head weighs at least 1, so this limit is never the one met.
	c.lru, _ = simplelru.NewLRU(limit+1, func(_ uint64, h *head) { c.size -= weight(h) })
	return c
}

func weight(h *head) int { return max(len(h.members), 1) }

// get returns the head, nil if it is not there, and the mark to put with.
func (c *headCache) get(group uint64) (*head, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, _ := c.lru.Get(group)
	return h, c.changes[group%stripes]
}

// put keeps h, unless a change was noted since the get that returned mark.
func (c *headCache) put(group uint64, h *head, mark uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes[group%stripes] != mark {
		return
	}
	c.lru.Remove(group)
	c.lru.Add(group, h)
	c.size += weight(h)
	for c.size > c.limit && c.lru.Len() > 1 {
		c.lru.RemoveOldest()
		c.metric.Dropped.Inc()
	}
	c.metric.Depth.Set(float64(c.size))
}

// changed forgets a group whose version was replaced.
func (c *headCache) changed(group uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes[group%stripes]++
	c.lru.Remove(group)
}
