package fanout

import (
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"throng/system/internal/obs"
	"throng/system/placement"
)

// memberSet is the members of a group in one version, immutable.
type memberSet struct {
	version uint64
	size    int
	// byInbox holds them sorted, by the inbox instance they belong to.
	byInbox [][]uint64
}

func newMemberSet(version uint64, members []uint64, inboxes int) *memberSet {
	s := &memberSet{version: version, size: len(members), byInbox: make([][]uint64, inboxes)}
	for _, u := range members {
		i := placement.UserInboxInstance(u, inboxes)
		s.byInbox[i] = append(s.byInbox[i], u)
	}
	for _, users := range s.byInbox {
		slices.Sort(users)
	}
	return s
}

// union returns the members of both, under the version of s.
func (s *memberSet) union(other *memberSet) *memberSet {
	var all []uint64
	for i := range s.byInbox {
		all = append(append(all, s.byInbox[i]...), other.byInbox[i]...)
	}
	slices.Sort(all)
	return newMemberSet(s.version, slices.Compact(all), len(s.byInbox))
}

// instanceOf returns the inbox instance that a member belongs to, -1 for a user
// who is none.
func (s *memberSet) instanceOf(user uint64) int {
	i := placement.UserInboxInstance(user, len(s.byInbox))
	if _, found := slices.BinarySearch(s.byInbox[i], user); !found {
		return -1
	}
	return i
}

type memberKey struct{ group, version uint64 }

// memberCache keeps member sets, the least recently used ones go first. A set
// of a version never changes, so nothing is ever invalidated.
type memberCache struct {
	inboxes int
	limit   int // members
	metric  *obs.Queue

	mu   sync.Mutex
	lru  *simplelru.LRU[memberKey, *memberSet]
	size int
}

func newMemberCache(limit, inboxes int, metric *obs.Queue) *memberCache {
	c := &memberCache{inboxes: inboxes, limit: limit, metric: metric}
	// An entry has at least one member, so this limit is never the one met.
	c.lru, _ = simplelru.NewLRU(limit+1, func(_ memberKey, s *memberSet) { c.size -= weight(s) })
	return c
}

func weight(s *memberSet) int { return max(s.size, 1) }

func (c *memberCache) get(group, version uint64) *memberSet {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, _ := c.lru.Get(memberKey{group, version})
	return s
}

func (c *memberCache) put(group uint64, s *memberSet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := memberKey{group, s.version}
	if c.lru.Contains(k) {
		return
	}
	c.lru.Add(k, s)
	c.size += weight(s)
	for c.size > c.limit && c.lru.Len() > 1 {
		c.lru.RemoveOldest()
		c.metric.Dropped.Inc()
	}
	c.metric.Depth.Set(float64(c.size))
}
