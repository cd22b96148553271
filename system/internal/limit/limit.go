// Package limit bounds what one user or one address may do: rates as token
// buckets, and what is open at a time, by key and in bounded memory. It knows no
// protocol: roles decide what is counted and what a refusal looks like. It owns
// the question which address a client has (Sources). It may import nothing of the
// project.
package limit

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Rate is how much may be taken: PerSecond on average, Burst at once. Of zero
// PerSecond everything may be.
type Rate struct {
	PerSecond float64
	Burst     int64
}

// cost is the time in which n come back.
func (r Rate) cost(n int64) time.Duration {
	return time.Duration(float64(n) / r.PerSecond * float64(time.Second))
}

// Bucket is a token bucket, full at first, kept as one number: the time at which
// it will be full again. A connection has one for each thing that is counted, so
// it is as small as that and takes no lock. (x/time/rate has a mutex,
// and allocates to say for how long.) Times are of one monotonic clock
// that begins at 0.
type Bucket struct{ full atomic.Int64 }

// Take takes n and returns 0 if there is anything in the bucket, however little;
// else it takes nothing and returns how long it will be until there is.
func (b *Bucket) Take(r Rate, n int64, now time.Duration) time.Duration {
	if r.PerSecond <= 0 {
		return 0
	}
	size, cost := r.cost(r.Burst), r.cost(n)
	for {
		full := b.full.Load()
		owed := max(time.Duration(full)-now, 0)
		if owed > size {
			return owed - size
		}
		if b.full.CompareAndSwap(full, int64(now+owed+cost)) {
			return 0
		}
	}
}

// Charge takes n that have been used already, whether there are as many or not,
// and returns by how much the bucket is overdrawn: how long it will be until
// Take gives something.
func (b *Bucket) Charge(r Rate, n int64, now time.Duration) time.Duration {
	if r.PerSecond <= 0 {
		return 0
	}
	size, cost := r.cost(r.Burst), r.cost(n)
	for {
		full := b.full.Load()
		owed := max(time.Duration(full)-now, 0) + cost
		if b.full.CompareAndSwap(full, int64(now+owed)) {
			return max(owed-size, 0)
		}
	}
}

// Wait returns how long it will be until Take gives something.
func (b *Bucket) Wait(r Rate, now time.Duration) time.Duration { return b.Charge(r, 0, now) }

// Table has a V for each key that somebody holds, and remembers those that nobody
// holds any more, the least recently used one last: whoever comes back finds what
// they have used up, unless as many others have come meanwhile.
type Table[K comparable, V any] struct {
	mu        sync.Mutex
	held      map[K]*Entry[K, V]
	idle      *simplelru.LRU[K, *Entry[K, V]]
	forgotten func()
}

// Entry is the V of a key.
type Entry[K comparable, V any] struct {
	V     V
	key   K
	holds int // by Table.mu
}

// Key returns the key that the entry is for.
func (e *Entry[K, V]) Key() K { return e.key }

// NewTable returns a table that remembers up to idle keys beside those that are
// held. forgotten, which may be nil, is called when one more was.
func NewTable[K comparable, V any](idle int, forgotten func()) *Table[K, V] {
	lru, err := simplelru.NewLRU[K, *Entry[K, V]](max(idle, 1), nil)
	if err != nil {
		panic("limit: " + err.Error()) // of sizes below 1 alone
	}
	return &Table[K, V]{held: map[K]*Entry[K, V]{}, idle: lru, forgotten: forgotten}
}

// Hold returns the entry of a key; each Hold needs a Release. fit, if not nil, is
// called with the entry under the table's lock: where it returns false the entry
// is not held, and Hold returns nil.
func (t *Table[K, V]) Hold(key K, fit func(*V) bool) *Entry[K, V] {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.held[key]
	if e == nil {
		if old, ok := t.idle.Peek(key); ok {
			e = old
		} else {
			e = &Entry[K, V]{key: key}
		}
	}
	if fit != nil && !fit(&e.V) {
		if e.holds == 0 {
			t.rest(e)
		}
		return nil
	}
	if e.holds == 0 {
		t.idle.Remove(key)
		t.held[key] = e
	}
	e.holds++
	return e
}

// Release gives an entry back; done, if not nil, is called with it as in Hold. A
// nil entry is nobody's.
func (t *Table[K, V]) Release(e *Entry[K, V], done func(*V)) {
	if e == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if done != nil {
		done(&e.V)
	}
	if e.holds--; e.holds == 0 {
		delete(t.held, e.key)
		t.rest(e)
	}
}

func (t *Table[K, V]) rest(e *Entry[K, V]) {
	if t.idle.Add(e.key, e) && t.forgotten != nil {
		t.forgotten()
	}
}

// Do calls f with the entry of a key, under the table's lock.
func (t *Table[K, V]) Do(key K, f func(*V)) {
	t.Release(t.Hold(key, nil), f)
}

// Len returns how many keys are held and how many are remembered beside them.
func (t *Table[K, V]) Len() (held, idle int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.held), t.idle.Len()
}
