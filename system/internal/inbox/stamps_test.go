package inbox_test

import (
	"bytes"
	"testing"

	"throng/system/internal/inbox"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// TestStampsInRows: only the row of a device that is connected and not live
// keeps the stamps, and its page takes them along. The others hold what they
// would without.
func TestStampsInRows(t *testing.T) {
	const from, live, away, behind = 9, 1, 2, 3
	stamps := &wire.Stamps{GatewayInUs: 4, InboxInUs: 5}
	message := func(group, seq uint64, s *wire.Stamps) *inbox.Message {
		id := wire.IDOf(from, 0, seq)
		m, err := inbox.NewMessage(&rpc.Envelope{MessageId: id[:], Group: group, From: from, Seq: seq, About: id[:],
			Body: []byte("hello"), Stamps: s}, false)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := newMachine(inbox.Limits{})
	users := []uint64{live, away, behind}
	turn := func(events func(c *inbox.Core)) (inbox.Effects, []*inbox.Batch) {
		t.Helper()
		e, b, err := m.turn(users, false, events)
		if err != nil {
			t.Fatal(err)
		}
		return e, b
	}
	turn(func(c *inbox.Core) {
		for _, u := range users {
			c.Provision([]inbox.Registration{{Key: inbox.Key{User: u}}})
		}
	})
	// behind gets a page and does not acknowledge it.
	turn(func(c *inbox.Core) { c.Append(&inbox.Item{Msg: message(0, 1, nil), Users: []uint64{behind}}) })
	open := func(conn, user uint64) func(*inbox.Core) {
		return func(c *inbox.Core) { c.Open(1, &rpc.SessionOpen{Conn: conn, User: user}) }
	}
	turn(func(c *inbox.Core) { open(10, live)(c); open(30, behind)(c) })
	for i, group := range []uint64{0, 77} {
		seq := uint64(i + 2)
		plain := message(group, seq, nil)
		e, batches := turn(func(c *inbox.Core) { c.Append(&inbox.Item{Msg: message(group, seq, stamps), Users: users}) })
		if len(e.Frames) != 1 || !e.Frames[0].Stamped || deliverOf(t, e.Frames[0].Frame).Stamps.GetInboxInUs() != 5 {
			t.Errorf("group %d: the frame for the live device is not stamped: %+v", group, e.Frames)
		}
		for _, r := range batches[0].Rows {
			var d wire.Deliver
			if err := d.UnmarshalVT(r.Body); err != nil {
				t.Fatal(err)
			}
			if (d.Stamps != nil) != (r.User == behind) {
				t.Errorf("group %d: the row of user %d has stamps %v", group, r.User, d.Stamps)
			}
			if r.User == away && !bytes.Equal(r.Body, plain.Deliver) {
				t.Errorf("group %d: the row of who is away differs from that of a message without stamps", group)
			}
		}
	}
	e, _ := turn(func(c *inbox.Core) { c.Ack(1, 30, behind, 1) })
	if len(e.Frames) != 2 {
		t.Fatalf("%d frames in the page, want 2", len(e.Frames))
	}
	for _, f := range e.Frames {
		if d := deliverOf(t, f.Frame); !f.Stamped || d.Stamps.GetInboxInUs() != 5 || d.InboxSeq == 0 {
			t.Errorf("a page has %v, to be stamped: %v", d, f.Stamped)
		}
	}
}

func deliverOf(t *testing.T, frame []byte) *wire.Deliver {
	t.Helper()
	f, err := wire.Proto.Decode(frame)
	if err != nil {
		t.Fatal(err)
	}
	f.CollectStamps()
	return f.GetDeliver()
}
