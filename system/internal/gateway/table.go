package gateway

import "sync"

// table finds a connection by its id in constant time. An id is a slot number
// in the low 32 bits and the slot's generation in the high ones, so that no id
// is used twice: a slot would have to be taken four billion times.
type table struct {
	mu    sync.RWMutex
	slots []slot
	free  []uint32
	n     int
}

type slot struct {
	gen uint32
	c   *conn
}

// add gives c its id, never 0.
func (t *table) add(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var i uint32
	if n := len(t.free); n > 0 {
		i, t.free = t.free[n-1], t.free[:n-1]
	} else {
		i = uint32(len(t.slots))
		t.slots = append(t.slots, slot{})
	}
	s := &t.slots[i]
	s.gen++
	s.c = c
	c.id = uint64(s.gen)<<32 | uint64(i)
	t.n++
}

// remove frees the slot of c; a second call does nothing.
func (t *table) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := uint32(c.id)
	if t.slots[i].c != c {
		return
	}
	t.slots[i].c = nil
	t.free = append(t.free, i)
	t.n--
}

// get returns the connection with that id, nil if it is gone.
func (t *table) get(id uint64) *conn {
	t.mu.RLock()
	c := t.getLocked(id)
	t.mu.RUnlock()
	return c
}

// find appends those of the connections with the given ids that are here.
func (t *table) find(dst []*conn, ids []uint64) []*conn {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, id := range ids {
		if c := t.getLocked(id); c != nil {
			dst = append(dst, c)
		}
	}
	return dst
}

// getLocked is get for a caller that holds mu.
func (t *table) getLocked(id uint64) *conn {
	i := uint64(uint32(id))
	if i >= uint64(len(t.slots)) {
		return nil
	}
	if s := &t.slots[i]; s.c != nil && s.gen == uint32(id>>32) {
		return s.c
	}
	return nil
}

func (t *table) count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.n
}

// all returns every connection at this moment.
func (t *table) all() []*conn { return t.part(0, 1) }

// part returns the connections in slots that are i modulo n.
func (t *table) part(i, n int) []*conn {
	t.mu.RLock()
	defer t.mu.RUnlock()
	cs := make([]*conn, 0, t.n/n+1)
	for ; i < len(t.slots); i += n {
		if c := t.slots[i].c; c != nil {
			cs = append(cs, c)
		}
	}
	return cs
}
