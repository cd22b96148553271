package group

import (
	"testing"
	"testing/synctest"
	"time"

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
	c.begin(1) // between the load and the put
	c.end(1, true)
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
	if c.begin(2); has(2) || c.size != 2 {
		t.Fatalf("a changed group stays; size %d", c.size)
	}
	if put(2, &head{version: 1}); has(2) {
		t.Fatal("a version is kept while the next one is being made")
	}
	c.begin(2)
	c.end(2, true)
	if put(2, &head{version: 1}); has(2) {
		t.Fatal("a version is kept while another change is under way")
	}
	c.end(2, true)
	if put(2, &head{version: 2}); !has(2) || len(c.changing) != 0 {
		t.Fatalf("after the changes nothing is kept, or a note of them: %d", len(c.changing))
	}
}

// What is in force at an offset is known from a head alone where its version is
// in the log before that and nothing can have followed it.
func TestHeadPlaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, err := obs.NewQueue(prometheus.NewRegistry(), "q", 10)
		if err != nil {
			t.Fatal(err)
		}
		c := newHeadCache(10, q)
		keep := func(h *head) {
			_, mark := c.get(1)
			c.put(1, h, mark)
		}
		knows := func(offset int64) bool { return c.placed(1, offset) != nil }
		if keep(&head{version: 3}); knows(100) {
			t.Fatal("the position of the version is not known")
		}
		keep(&head{version: 3, offset: 7, placed: true})
		if knows(6) || !knows(7) || !knows(8) {
			t.Fatalf("in force at 6, 7, 8: %v, %v, %v; want it from 7 on", knows(6), knows(7), knows(8))
		}
		c.begin(1)
		c.end(1, false) // nobody knows whether there is a version 4
		if keep(&head{version: 3, offset: 7, placed: true}); knows(8) {
			t.Fatal("a head is believed although a change may have been made")
		}
		<-time.After(doubt)
		if keep(&head{version: 3, offset: 7, placed: true}); !knows(8) {
			t.Fatal("the doubt does not end")
		}
	})
}
