package fanout

import (
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"throng/system/internal/obs"
	"throng/system/placement"
)

// TestMemberSet: the parts by inbox are a partition of the members, each at
// the instance that owns it, and the sender is found if it is one of them.
func TestMemberSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inboxes := rapid.IntRange(1, 5).Draw(t, "inboxes")
		members := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 1<<62), 1, 40, rapid.ID[uint64]).Draw(t, "members")
		others := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 1<<62), 0, 5, rapid.ID[uint64]).Draw(t, "others")
		sender := rapid.SampledFrom(append(slices.Clone(members), 1<<63)).Draw(t, "sender")
		set := newMemberSet(3, members, inboxes)
		var got []uint64
		for i := range inboxes {
			for _, u := range set.byInbox[i] {
				if placement.UserInboxInstance(u, inboxes) != i {
					t.Fatalf("user %d at instance %d", u, i)
				}
				got = append(got, u)
			}
		}
		want := slices.Clone(members)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("addressees %v, want %v", got, want)
		}
		home := -1
		if slices.Contains(members, sender) {
			home = placement.UserInboxInstance(sender, inboxes)
		}
		if got := set.instanceOf(sender); got != home {
			t.Fatalf("user %d at instance %d, want %d", sender, got, home)
		}
		both := set.union(newMemberSet(2, append(slices.Clone(others), members[0]), inboxes))
		all := append(slices.Clone(members), others...)
		slices.Sort(all)
		if both.size != len(slices.Compact(all)) || both.version != 3 {
			t.Fatalf("union of %d in version %d, want %d", both.size, both.version, len(slices.Compact(all)))
		}
	})
}

func TestMemberCacheLimit(t *testing.T) {
	q, err := obs.NewQueue(prometheus.NewRegistry(), "q", 100)
	if err != nil {
		t.Fatal(err)
	}
	c := newMemberCache(100, 2, q)
	members := make([]uint64, 30)
	for i := range members {
		members[i] = uint64(i + 1)
	}
	for v := uint64(1); v <= 10; v++ {
		c.put(1, newMemberSet(v, members, 2))
		c.put(1, newMemberSet(v, members, 2)) // again: counts once
		c.get(1, 1)                           // keep this one
	}
	if c.get(1, 1) == nil || c.get(1, 10) == nil || c.get(1, 5) != nil {
		t.Fatal("it is not the least recently used ones that go")
	}
	if c.size != 90 || testutil.ToFloat64(q.Depth) != 90 || testutil.ToFloat64(q.Dropped) != 7 {
		t.Fatalf("%d members, the metrics say %v and %v dropped", c.size, testutil.ToFloat64(q.Depth), testutil.ToFloat64(q.Dropped))
	}
	c.put(2, newMemberSet(1, make([]uint64, 500), 2))
	if c.get(2, 1) == nil {
		t.Fatal("a set over the limit is not kept even alone")
	}
}
