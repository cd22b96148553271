package inbox_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"throng/system/internal/inbox"
	"throng/system/internal/rpc"
)

func TestNewRefuses(t *testing.T) {
	one := []inbox.Store{nil}
	for name, cfg := range map[string]inbox.Config{
		"no store":        {Instances: 1},
		"instance":        {Instance: 1, Instances: 1, Stores: one},
		"too many stores": {Instances: 1, Stores: make([]inbox.Store, 65)},
		"peers":           {Instances: 2, Stores: one, Peers: []string{"a:1"}},
		"plant":           {Instances: 1, Stores: one, Plant: "nonsense"},
	} {
		if _, err := inbox.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func provision(m *machine, users int) {
	regs := make([]inbox.Registration, users)
	for i := range regs {
		regs[i].User = uint64(i + 1)
	}
	if _, _, err := m.turn(nil, true, func(c *inbox.Core) { c.Provision(regs) }); err != nil {
		panic(err)
	}
}

func TestPlantDropsOneInAThousand(t *testing.T) {
	m := newMachine(inbox.Limits{DeviceRows: 10_000})
	m.plant = true
	m.restart()
	provision(m, 1)
	for seq := range uint64(3000) {
		eff, _, err := m.turn([]uint64{1}, false, func(c *inbox.Core) {
			c.Append(item(9*(seq%2), inbox.Key{User: 5}, seq, "x", 1))
		})
		if err != nil || len(eff.Answers) != 1 || eff.Answers[0].Code != 0 {
			t.Fatalf("message %d: %v, answers %v", seq, err, eff.Answers)
		}
	}
	if n := len(m.store.Rows(inbox.Key{User: 1})); n != 2997 {
		t.Fatalf("%d of 3000 stored, want 2997", n)
	}
}

// Users in memory are bounded, and what is forgotten is loaded again as it was.
func TestForgottenUsersLoseNothing(t *testing.T) {
	m := newMachine(inbox.Limits{Users: 5})
	provision(m, 50)
	for round := range uint64(3) {
		for u := uint64(1); u <= 50; u++ {
			if _, _, err := m.turn([]uint64{u}, false, func(c *inbox.Core) {
				c.Append(item(9, inbox.Key{User: 99}, round*50+u, "x", u))
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	known := 0
	for u := uint64(1); u <= 50; u++ {
		if !m.core.Missing(u) {
			known++
		}
		if n := len(m.store.Rows(inbox.Key{User: u})); n != 3 {
			t.Fatalf("user %d has %d rows, want 3", u, n)
		}
	}
	if known > 5 {
		t.Fatalf("%d users in memory, limit 5", known)
	}
}

// Receipts in memory are bounded for each device and in all; known peers go on.
func TestReceiptsAreBounded(t *testing.T) {
	m := newMachine(inbox.Limits{DeviceMarks: 3, Receipts: 5})
	receipt := func(to, peer, seq uint64) {
		if _, _, err := m.turn(nil, false, func(c *inbox.Core) {
			c.Receipt(&rpc.ReceiptUpdate{To: to, Peer: peer, DeliveredSeq: seq})
		}); err != nil {
			t.Fatal(err)
		}
	}
	for to := range uint64(3) {
		for peer := range uint64(4) {
			receipt(to, peer, 1)
		}
	}
	if n := m.core.TakeStats().ReceiptsDropped; n != 7 {
		t.Fatalf("%d of 12 dropped, want 7: three fit for each device, five in all", n)
	}
	receipt(0, 2, 9)
	if n := m.core.TakeStats().ReceiptsDropped; n != 0 {
		t.Fatal("a newer mark of a peer that is waiting was dropped")
	}
	_, batches, err := m.turn(nil, false, func(c *inbox.Core) { c.SaveReceipts(false) })
	if err != nil || len(batches) != 1 || len(batches[0].Marks) != 5 {
		t.Fatalf("saved %v: %v", batches, err)
	}
	if !slices.ContainsFunc(batches[0].Marks, func(k inbox.Mark) bool { return k.User == 0 && k.Peer == 2 && k.Delivered == 9 }) {
		t.Fatalf("saved %v, want the newest mark", batches[0].Marks)
	}
	receipt(3, 1, 1)
	if n := m.core.TakeStats().ReceiptsDropped; n != 0 {
		t.Fatal("there is room again, and a mark was dropped")
	}
}

// A mailbox of many pages drains in order, each page within its bytes.
func TestLongDrain(t *testing.T) {
	m := newMachine(inbox.Limits{})
	provision(m, 1)
	const n = 350
	if _, _, err := m.turn([]uint64{1}, true, func(c *inbox.Core) {
		for seq := range uint64(n) {
			c.Append(item(9, inbox.Key{User: 5}, seq+1, fmt.Sprintf("%01000d", seq), 1))
		}
	}); err != nil {
		t.Fatal(err)
	}
	next, acked := uint64(1), uint64(0)
	event := func(c *inbox.Core) { c.Open(1, &rpc.SessionOpen{Conn: 1, User: 1}) }
	for turns := 0; ; turns++ {
		eff, _, err := m.turn([]uint64{1}, false, event)
		if err != nil || turns > 20 {
			t.Fatalf("turn %d: %v", turns, err)
		}
		bytes := 0
		for _, f := range eff.Frames {
			if !f.Deliver {
				if next != n+1 {
					t.Fatalf("current after %d of %d", next-1, n)
				}
				return
			}
			bytes += len(f.Frame)
			next++
			acked++
		}
		if bytes == 0 || bytes > 70<<10 {
			t.Fatalf("a page of %d bytes", bytes)
		}
		event = func(c *inbox.Core) { c.Ack(1, 1, 1, acked) }
	}
}

// A large inbox is looked through once for thousands of rows, not for each page,
// and deletions do not have to be written before the next page is read.
func TestLargeInboxIsLookedThroughRarely(t *testing.T) {
	m := newMachine(inbox.Limits{DeviceRows: 20_000, PageRows: 50})
	provision(m, 1)
	const n = 5_000
	if _, _, err := m.turn([]uint64{1}, true, func(c *inbox.Core) {
		for seq := range uint64(n) {
			c.Append(item(9, inbox.Key{User: 5}, seq+1, "x", 1))
		}
	}); err != nil {
		t.Fatal(err)
	}
	got, looked, pages := uint64(0), 0, 0
	event := func(c *inbox.Core) { c.Open(1, &rpc.SessionOpen{Conn: 1, User: 1}) }
	for live := false; !live; {
		eff, batches, err := m.turn([]uint64{1}, false, event)
		if err != nil || len(batches) == 0 && len(eff.Frames) == 0 {
			t.Fatalf("stuck after %d: %v", got, err)
		}
		for _, b := range batches {
			for _, p := range b.Pages {
				pages++
				if len(p.Seqs) == 0 {
					looked++
				}
			}
		}
		for _, f := range eff.Frames {
			if live = !f.Deliver; !live {
				got++
			}
		}
		event = func(c *inbox.Core) { c.Ack(1, 1, 1, got) }
	}
	if got != n || pages < n/50 || looked > 3 {
		t.Errorf("%d of %d rows in %d pages, the inbox was looked through %d times, want at most 3", got, n, pages, looked)
	}
}

// Timers fire once and not early, also those further away than the wheel is
// wide and those that a long pause has passed over.
func TestTimersAcrossALongPause(t *testing.T) {
	m := newMachine(inbox.Limits{AckTimeout: time.Minute})
	provision(m, 1)
	step := func(d time.Duration, f func(c *inbox.Core)) inbox.Effects {
		t.Helper()
		m.now = m.now.Add(d)
		eff, _, err := m.turn([]uint64{1}, false, f)
		if err != nil {
			t.Fatal(err)
		}
		return eff
	}
	step(0, func(c *inbox.Core) { c.Open(1, &rpc.SessionOpen{Conn: 1, User: 1}) })
	step(0, func(c *inbox.Core) { c.Append(item(9, inbox.Key{User: 5}, 1, "x", 1)) })
	for range 599 {
		if eff := step(100*time.Millisecond, func(*inbox.Core) {}); len(eff.Answers) > 0 {
			t.Fatal("demoted early")
		}
	}
	if eff := step(200*time.Millisecond, func(*inbox.Core) {}); len(eff.Answers) != 1 {
		t.Fatal("not demoted after a minute")
	}
	step(0, func(c *inbox.Core) { c.Ack(1, 1, 1, 1) })
	step(0, func(c *inbox.Core) { c.Append(item(9, inbox.Key{User: 5}, 2, "x", 1)) })
	if eff := step(time.Hour, func(*inbox.Core) {}); len(eff.Answers) != 1 {
		t.Fatal("not demoted after a long pause")
	}
}
