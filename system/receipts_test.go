package system_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"throng/system/wire"
)

// TestReceiptsOfAGroup: one receipt for the sender when the last member has
// it, read or not; the list on request says more before.
func TestReceiptsOfAGroup(t *testing.T) {
	d := startAll(t, counts{gateways: 2, messages: 1, fanouts: 1, groups: 1, inboxes: 2, pushes: 1})
	const members = 40
	var all []uint64
	for u := uint64(1); u <= members; u++ {
		all = append(all, u)
	}
	d.provision(members, 1, map[uint64][]uint64{7: all})
	sender, late := d.dial(1, 0), uint64(members)
	var others []*device
	for u := uint64(2); u < late; u++ {
		others = append(others, d.dial(u, 0))
	}
	for _, m := range append(others, sender) {
		m.awaitCurrent()
	}
	const n = 10
	for i := range n {
		sender.send(group(7), fmt.Sprint("m ", i))
	}
	everybody := peerIn{group: 7}
	for _, m := range others {
		m.awaitBodies(1, 7, numbered("m", n)...)
		m.do(&wire.Frame{Kind: &wire.Frame_Read{Read: &wire.Read{Group: 7, From: 1, UptoSeq: n}}})
	}
	want := map[uint64]watermarks{}
	for _, m := range others {
		want[m.user] = watermarks{n, n}
	}
	sender.awaitList(7, want)
	sender.update(func() {
		if len(sender.receipts) != 0 {
			t.Errorf("receipts before the last member has the messages: %v", sender.receipts)
		}
	})

	last := d.dial(late, 0)
	last.awaitBodies(1, 7, numbered("m", n)...)
	sender.await("the receipt of all", func() bool { return sender.receipts[everybody] == watermarks{delivered: n} })

	// The last one reads while the sender is away, who hears of it on coming back.
	sender.hangUp()
	last.do(&wire.Frame{Kind: &wire.Frame_Read{Read: &wire.Read{Group: 7, From: 1, UptoSeq: n}}})
	sender.connect()
	sender.await("everybody has read", func() bool { return sender.receipts[everybody] == watermarks{n, n} })
	want[late] = watermarks{n, n}
	sender.awaitList(7, want)
	sender.update(func() {
		if len(sender.receipts) != 1 {
			t.Errorf("receipts %v, want one for all members", sender.receipts)
		}
	})
}

// awaitList asks for the list of receipts of a group until it is want.
func (d *device) awaitList(group uint64, want map[uint64]watermarks) {
	d.t.Helper()
	d.awaitCurrent()
	seen := 0
	ask := func() {
		d.do(&wire.Frame{Kind: &wire.Frame_ReceiptsRequest{ReceiptsRequest: &wire.ReceiptsRequest{RequestId: 9, Group: group}}})
	}
	ask()
	for done := false; !done; {
		var got map[uint64]watermarks
		d.await(fmt.Sprintf("list of receipts %v", want), func() bool {
			if len(d.lists) == seen {
				return false
			}
			seen = len(d.lists)
			got = map[uint64]watermarks{}
			for _, r := range d.lists[seen-1].Receipts {
				got[r.Peer] = watermarks{r.DeliveredSeq, r.ReadSeq}
			}
			return true
		})
		if done = fmt.Sprint(got) == fmt.Sprint(want); !done {
			time.AfterFunc(20*time.Millisecond, ask) // a receipt is still on its way
		}
	}
}

// TestKindsOfMessages: every kind arrives as what it is, with the name of the
// message that it is about, direct and in a group, live and out of the inbox.
func TestKindsOfMessages(t *testing.T) {
	d := startAll(t, counts{gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 2, pushes: 1})
	d.provision(3, 1, map[uint64][]uint64{7: {1, 2, 3}})
	a, live, away := d.dial(1, 0), d.dial(2, 0), d.dial(3, 0)
	for _, m := range []*device{a, live, away} {
		m.awaitCurrent()
	}
	away.hangUp()
	kinds := []wire.Kind{wire.Kind_KIND_IMAGE, wire.Kind_KIND_CALL_OFFER, wire.Kind_KIND_CALL_ANSWER, wire.Kind_KIND_CALL_HANGUP,
		wire.Kind_KIND_REACTION, wire.Kind_KIND_EDIT, wire.Kind_KIND_DELETE}
	for _, conv := range []wire.Conversation{direct(2), direct(3), group(7)} {
		about := a.sendKind(conv, wire.Kind_KIND_TEXT, nil, "named")
		for _, k := range kinds {
			if k == wire.Kind_KIND_IMAGE || k == wire.Kind_KIND_CALL_OFFER {
				about = a.sendKind(conv, k, nil, k.String())
				continue
			}
			a.sendKind(conv, k, about[:], k.String())
		}
	}
	a.awaitSent()
	away.connect()
	for _, m := range []*device{live, away} {
		for _, g := range []uint64{0, 7} {
			m.await("all kinds", func() bool { return len(m.bodies(1, g)) == 1+len(kinds) })
			m.update(func() { m.checkKinds(g, kinds) })
		}
	}
	// Who names nothing, or what is no message id, is told so.
	a.sendKind(direct(2), wire.Kind_KIND_EDIT, nil, "of what?")
	a.sendKind(direct(2), wire.Kind_KIND_TEXT, make([]byte, 16), "text about")
	a.await("two refusals", func() bool { return len(a.refused) == 2 })
}

func (d *device) checkKinds(group uint64, kinds []wire.Kind) {
	var named []byte
	i := -1
	for _, m := range d.got {
		if m.From != 1 || m.Group != group {
			continue
		}
		want := wire.Kind_KIND_TEXT
		if i++; i > 0 {
			want = kinds[i-1]
		}
		about := named
		if want < wire.Kind_KIND_CALL_ANSWER {
			named, about = m.MessageId, nil
		}
		if m.Kind != want || !bytes.Equal(m.About, about) {
			d.t.Errorf("device %d, group %d: message %d is %v about %x, want %v about %x", d.user, group, i, m.Kind, m.About, want, about)
		}
	}
}
