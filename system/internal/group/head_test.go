package group

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/obs"
)

func TestHeadCache(t *testing.T) {
	q, err := obs.NewQueue(prometheus.NewRegistry(), "q", 10)
	if err != nil {
		t.Fatal(err)
	}
	c := newHeadCache(10, q)
	put := func(group uint64, h *head) {
		_, mark := c.get(group)
		c.put(group, h, mark)
	}
	has := func(group uint64) bool { h, _ := c.get(group); return h != nil }

	_, mark := c.get(1)
	c.changed(1) // between the load and the put
	c.put(1, &head{version: 1}, mark)
	if has(1) {
		t.Fatal("a slow load put back a version that was replaced")
	}
	put(1, &head{version: 2, members: make([]uint64, 4)})
	put(2, &head{version: 1, members: make([]uint64, 4)})
	put(1, &head{version: 3, members: make([]uint64, 5)}) // replaces its own weight
	if c.size != 9 || !has(1) || !has(2) {
		t.Fatalf("size %d", c.size)
	}
	put(3, &head{version: 1, members: make([]uint64, 2)})
	if has(1) || !has(2) || !has(3) || c.size != 6 {
		t.Fatalf("the least recently used one did not go; size %d", c.size)
	}
	if c.changed(2); has(2) || c.size != 2 {
		t.Fatalf("a changed group stays; size %d", c.size)
	}
}
