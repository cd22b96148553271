package inbox_test

import (
	"slices"
	"testing"

	"throng/system/internal/inbox"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// TestLedgersMakeRoom: ledgers stay within the limit of receipt marks; those of
// senders who are away are written and forgotten, and found again when the
// sender is back; those of live ones stay, and what does not fit is counted.
func TestLedgersMakeRoom(t *testing.T) {
	m := newMachine(inbox.Limits{Receipts: 12})
	const senders, group = 8, 9
	provision(m, 100)
	turn := func(users []uint64, f func(c *inbox.Core)) inbox.Effects {
		t.Helper()
		eff, _, err := m.turn(users, false, f)
		if err != nil {
			t.Fatal(err)
		}
		return eff
	}
	send := func(from, seq uint64) {
		t.Helper()
		turn([]uint64{from, 100}, func(c *inbox.Core) {
			it := item(group, inbox.Key{User: from}, seq, "x", from, 100)
			it.Recipients = 2
			c.Append(it)
		})
	}
	receipt := func(to, peer, seq uint64) inbox.Effects {
		t.Helper()
		return turn(nil, func(c *inbox.Core) {
			c.Receipt(&rpc.ReceiptUpdate{To: to, Group: group, Peer: peer, DeliveredSeq: seq})
		})
	}
	for u := uint64(1); u <= senders; u++ {
		send(u, 1)
		receipt(u, 100, 1)
	}
	if n := m.core.Marks(); n > 12+3 { // the last one may have grown by what it is about
		t.Fatalf("%d marks in memory, the limit is 12", n)
	}
	if n := m.core.TakeStats().ReceiptsDropped; n != 0 {
		t.Fatalf("%d receipts dropped where ledgers of senders who are away could go", n)
	}

	// The first sender comes back: what it has sent is read from the store.
	eff := turn([]uint64{1}, func(c *inbox.Core) {
		c.Open(1, &rpc.SessionOpen{Conn: 1, User: 1})
		c.Query(1, 1, 1, &wire.ReceiptsRequest{RequestId: 5, Group: group})
	})
	if got := listed(t, eff); len(got) != 1 || got[0].Peer != 100 || got[0].DeliveredSeq != 1 {
		t.Fatalf("the list is %v, want the one who has it", got)
	}
	eff = receipt(1, 101, 1)
	if len(eff.Frames) != 1 {
		t.Fatalf("the last member makes %d frames, want the receipt of all", len(eff.Frames))
	}

	// Live senders keep theirs; then there is no room for another one.
	for u := uint64(2); u <= senders; u++ {
		turn([]uint64{u}, func(c *inbox.Core) { c.Open(1, &rpc.SessionOpen{Conn: u, User: u}) })
	}
	m.core.TakeStats()
	for u := uint64(1); u <= senders; u++ {
		send(u, 2)
	}
	if n := m.core.Marks(); n > 12+3 {
		t.Fatalf("%d marks in memory, the limit is 12", n)
	}
	if n := m.core.TakeStats().ReceiptsDropped; n == 0 {
		t.Fatal("nothing was counted as dropped where nothing fits")
	}
}

func listed(t *testing.T, eff inbox.Effects) []*wire.Receipt {
	t.Helper()
	for _, o := range eff.Frames {
		f := new(wire.Frame)
		if err := f.UnmarshalVT(o.Frame); err != nil {
			t.Fatal(err)
		}
		if l := f.GetReceiptList(); l != nil {
			return l.Receipts
		}
	}
	t.Fatalf("no list among %d frames", len(eff.Frames))
	return nil
}

// TestQueriesOfASessionAreBounded: a session that asks before it is live waits,
// for a few of them.
func TestQueriesOfASessionAreBounded(t *testing.T) {
	m := newMachine(inbox.Limits{})
	provision(m, 1)
	if _, _, err := m.turn([]uint64{1}, false, func(c *inbox.Core) {
		c.Append(item(9, inbox.Key{User: 5}, 1, "x", 1))
	}); err != nil {
		t.Fatal(err)
	}
	eff, _, err := m.turn([]uint64{1}, false, func(c *inbox.Core) {
		c.Open(1, &rpc.SessionOpen{Conn: 1, User: 1})
		for range 20 {
			c.Query(1, 1, 1, &wire.ReceiptsRequest{RequestId: 5, Group: 9})
		}
		c.Query(1, 77, 1, &wire.ReceiptsRequest{RequestId: 5, Group: 9}) // no such session
	})
	if err != nil || len(eff.Frames) != 1 {
		t.Fatalf("%d frames before the device is live, want its message: %v", len(eff.Frames), err)
	}
	if n := m.core.TakeStats().QueriesDropped; n != 12 {
		t.Errorf("%d requests dropped of 20, want 12", n)
	}
	eff, _, err = m.turn(nil, false, func(c *inbox.Core) { c.Ack(1, 1, 1, 1) })
	if err != nil || len(eff.Frames) != 9 {
		t.Fatalf("%d frames, want Current and 8 lists: %v", len(eff.Frames), err)
	}
}

// TestManyLedgersAreWrittenInParts: when thousands of senders are away at once,
// what they have sent is written in several transactions, and all of it.
func TestManyLedgersAreWrittenInParts(t *testing.T) {
	m := newMachine(inbox.Limits{})
	const senders = 2500
	provision(m, senders)
	for u := uint64(1); u < senders; u++ {
		if _, _, err := m.turn([]uint64{u}, false, func(c *inbox.Core) {
			it := item(9, inbox.Key{User: u}, 1, "x", u)
			it.Recipients = 2
			c.Append(it)
		}); err != nil {
			t.Fatal(err)
		}
	}
	var parts []int
	for range 4 {
		_, batches, err := m.turn(nil, false, func(c *inbox.Core) { c.SaveReceipts(false) })
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, b := range batches {
			n += len(b.Marks)
		}
		parts = append(parts, n)
	}
	if want := []int{1000, 1000, 499, 0}; !slices.Equal(parts, want) {
		t.Fatalf("written in parts of %v, want %v", parts, want)
	}
}
