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
	// offset is the position of version in the log, if placed.
	offset int64
	placed bool
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
	// changing are the groups whose next version is being made or, after an error,
	// may have been. They have no head. It is bounded by the requests under way
	// and by the errors within doubt.
	changing map[uint64]*changing
}

// changing is a group of which more is not known for certain.
type changing struct {
	n     int       // changes under way
	until time.Time // after an error
}

// doubt is how long after an error a change may still turn out to be made.
const doubt = time.Minute

func newHeadCache(limit int, metric *obs.Queue) *headCache {
	c := &headCache{limit: limit, metric: metric, changing: make(map[uint64]*changing)}
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
	if c.changes[group%stripes] != mark || c.unsettled(group) {
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

// placed returns the head of a group where its version is in the log at or before
// offset, and so is in force there.
func (c *headCache) placed(group uint64, offset int64) *head {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, _ := c.lru.Get(group)
	if h == nil || !h.placed || h.offset > offset || c.unsettled(group) {
		return nil
	}
	return h
}

// begin says that the next version of a group may be made from now on. Whoever
// calls it calls end.
func (c *headCache) begin(group uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.changing[group]
	if g == nil {
		g = new(changing)
		c.changing[group] = g
	}
	g.n++
	c.forget(group)
}

// end says that the change has been made, or has not. Where that is not known
// the group stays in doubt for a while.
func (c *headCache) end(group uint64, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.changing[group]
	g.n--
	if !known {
		g.until = time.Now().Add(doubt)
	}
	for id := range c.changing {
		c.unsettled(id)
	}
	c.forget(group)
}

// unsettled reports whether a change of the group is under way or in doubt.
func (c *headCache) unsettled(group uint64) bool {
	g := c.changing[group]
	if g == nil || g.n > 0 || time.Now().Before(g.until) {
		return g != nil
	}
	delete(c.changing, group)
	return false
}

func (c *headCache) forget(group uint64) {
	c.changes[group%stripes]++
	c.lru.Remove(group)
}
