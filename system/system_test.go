package system_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"throng/system/wire"
)

func verifyNoLeaks(m *testing.M) { goleak.VerifyTestMain(m) }

func direct(user uint64) wire.Conversation { return wire.Conversation{User: user} }
func group(id uint64) wire.Conversation    { return wire.Conversation{Group: id} }

func numbered(prefix string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("%s %d", prefix, i))
	}
	return out
}

// TestBackend runs every role in one process, with two instances of each, and
// talks to it as clients do.
func TestBackend(t *testing.T) {
	d := startAll(t, counts{gateways: 2, messages: 2, fanouts: 2, groups: 2, inboxes: 2, pushes: 2})
	d.provision(20, 2, map[uint64][]uint64{
		100: {1, 2, 3, 4, 5},
		200: {6, 7, 8},
		300: {9, 10},
		400: {4, 20},
	})
	// Each part has users of its own, so that they can run in any order.
	t.Run("direct", func(t *testing.T) { testDirect(t, d.in2(t)) })
	t.Run("group", func(t *testing.T) { testGroup(t, d.in2(t)) })
	t.Run("membership", func(t *testing.T) { testMembership(t, d.in2(t)) })
	t.Run("offline", func(t *testing.T) { testOffline(t, d.in2(t)) })
	t.Run("push", func(t *testing.T) { testPush(t, d.in2(t)) })
	t.Run("ephemeral", func(t *testing.T) { testEphemeral(t, d.in2(t)) })
	t.Run("refused", func(t *testing.T) { testRefused(t, d.in2(t)) })
	t.Run("stamps", func(t *testing.T) { testStamps(t, d.in2(t)) })
	t.Run("replaced", func(t *testing.T) { testReplaced(t, d.in2(t)) })
}

// in2 returns the same deployment for a sub-test.
func (d *deployment) in2(t *testing.T) *deployment {
	c := *d
	c.t = t
	return &c
}

func testDirect(t *testing.T, d *deployment) {
	alice, phone, tablet := d.dial(11, 0), d.dial(12, 0), d.dial(12, 1)
	for _, dev := range []*device{alice, phone, tablet} {
		dev.awaitCurrent()
	}
	var any []byte // bodies are the clients' own: any bytes, not text
	for b := range 256 {
		any = append(any, byte(b))
	}
	want := append(numbered("hello", 49), string(any))
	for _, body := range want {
		alice.send(direct(12), body)
	}
	alice.awaitSent()
	phone.awaitBodies(11, 0, want...)
	tablet.awaitBodies(11, 0, want...)
	phone.do(&wire.Frame{Kind: &wire.Frame_Read{Read: &wire.Read{From: 11, UptoSeq: 50}}})
	alice.await("receipts", func() bool {
		return alice.receipts[peerIn{12, 0}] == watermarks{delivered: 50, read: 50}
	})
	phone.send(direct(11), "and back")
	alice.awaitBodies(12, 0, "and back")
	// Receipts wait for a sender who is away.
	alice.send(direct(12), "read while you were away")
	alice.awaitSent()
	alice.hangUp()
	phone.awaitBodies(11, 0, append(want, "read while you were away")...)
	phone.do(&wire.Frame{Kind: &wire.Frame_Read{Read: &wire.Read{From: 11, UptoSeq: 51}}})
	alice.connect()
	alice.await("the receipts that waited", func() bool {
		return alice.receipts[peerIn{12, 0}] == watermarks{delivered: 51, read: 51}
	})
}

func testGroup(t *testing.T, d *deployment) {
	var members []*device
	for u := uint64(1); u <= 5; u++ {
		members = append(members, d.dial(u, 0))
	}
	linked := d.dial(3, 1)
	for _, m := range append(members, linked) {
		m.awaitCurrent()
	}
	const n = 40
	for i := range n {
		members[0].send(group(100), fmt.Sprintf("a %d", i))
		members[1].send(group(100), fmt.Sprintf("b %d", i))
	}
	members[0].awaitSent()
	members[1].awaitSent()
	for _, m := range append(members[1:], linked) {
		m.awaitBodies(1, 100, numbered("a", n)...)
	}
	for _, m := range append(members[2:], members[0], linked) {
		m.awaitBodies(2, 100, numbered("b", n)...)
	}
	members[0].update(func() {
		if got := members[0].bodies(1, 100); len(got) != 0 {
			t.Errorf("the sender's own device got %q", got)
		}
	})
}

func testMembership(t *testing.T, d *deployment) {
	owner, leaver, stayer, joiner := d.dial(6, 0), d.dial(7, 0), d.dial(8, 0), d.dial(13, 0)
	for _, m := range []*device{owner, leaver, stayer, joiner} {
		m.awaitCurrent()
	}
	owner.send(group(200), "before")
	leaver.awaitBodies(6, 200, "before")
	stayer.awaitBodies(6, 200, "before")
	res := d.changeMembers(200, []uint64{13}, []uint64{7})
	if res.Version != 2 {
		t.Errorf("version %d after one change, want 2", res.Version)
	}
	owner.send(group(200), "after")
	joiner.awaitBodies(6, 200, "after")
	stayer.awaitBodies(6, 200, "before", "after")
	joiner.update(func() {
		if first, second := joiner.got[0], joiner.got[1]; first.Kind != wire.Kind_KIND_SYSTEM || first.Offset != res.Offset || second.Offset <= res.Offset {
			t.Errorf("the new member got %v and %v, want the change at offset %d first", first, second, res.Offset)
		}
	})
	leaver.send(group(200), "from outside")
	leaver.await("the refusal", func() bool {
		return len(leaver.refused) == 1 && leaver.refused[0].Code == wire.Code_CODE_NOT_MEMBER
	})
	// The message that stayer gets next was sent after the refused one and
	// after "after": whatever the leaver was going to get has been decided.
	owner.send(group(200), "last")
	stayer.awaitBodies(6, 200, "before", "after", "last")
	leaver.awaitBodies(6, 200, "before")
	leaver.update(func() {
		if n := len(leaver.got); n != 2 || leaver.got[1].Kind != wire.Kind_KIND_SYSTEM || leaver.got[1].Offset != res.Offset {
			t.Errorf("who was removed got %v, want the change at offset %d last", leaver.got, res.Offset)
		}
	})
}

func testOffline(t *testing.T, d *deployment) {
	a, b := d.dial(9, 0), d.dial(10, 0)
	a.awaitCurrent()
	b.awaitCurrent()
	b.hangUp()
	inDirect, inGroup := numbered("direct", 300), numbered("group", 100)
	for i := range inDirect {
		a.send(direct(10), inDirect[i])
		if i < len(inGroup) {
			a.send(group(300), inGroup[i])
		}
	}
	a.awaitSent()
	b.connect()
	b.awaitBodies(9, 0, inDirect...)
	b.awaitBodies(9, 300, inGroup...)
	b.awaitCurrent()
	b.update(func() {
		if b.duplicates > 10 {
			t.Errorf("%d messages came twice", b.duplicates)
		}
	})
	a.await("delivered receipts", func() bool {
		return a.receipts[peerIn{10, 0}].delivered == 300 && a.receipts[peerIn{0, 300}].delivered == 100
	})
	// Live again.
	a.send(direct(10), "now")
	b.awaitBodies(9, 0, append(inDirect, "now")...)
}

func testPush(t *testing.T, d *deployment) {
	a := d.dial(14, 0)
	a.awaitCurrent()
	a.send(direct(15), "wake up")
	a.awaitSent()
	push := d.in.provider.await(t, "token-15")
	want := wire.IDOf(14, 0, 1)
	if push != want {
		t.Errorf("pushed message %x, want %x", push, want)
	}
}

func testEphemeral(t *testing.T, d *deployment) {
	viewer, other := d.dial(16, 0), d.dial(17, 0)
	viewer.awaitCurrent()
	other.awaitCurrent()
	other.do(&wire.Frame{Kind: &wire.Frame_Presence{Presence: &wire.Presence{Available: true}}})
	viewer.lookAt(17, "presence of who is viewed", func(e *wire.PresenceEvent) bool { return e.Available })
	viewer.insist("typing of who is viewed", func() { other.do(&wire.Frame{Kind: &wire.Frame_Typing{Typing: &wire.Typing{User: 16}}}) },
		func() bool { return len(viewer.typing) > 0 && viewer.typing[0].From == 17 })
}

func testRefused(t *testing.T, d *deployment) {
	for name, header := range map[string]http.Header{
		"no token":  {},
		"bad token": {"Authorization": {"Bearer x.y.z"}},
	} {
		ws, resp, err := (&websocket.Dialer{Subprotocols: []string{wire.SubprotocolProto}}).Dial("ws://"+d.gateways()[0]+wire.Path, header)
		if err == nil {
			ws.Close()
			t.Fatalf("%s: connected", name)
		}
		if resp == nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	a := d.dial(18, 0)
	a.awaitCurrent()
	for _, tc := range []struct {
		to   wire.Conversation
		code wire.Code
	}{
		{direct(999), wire.Code_CODE_NO_SUCH_USER},
		{group(999), wire.Code_CODE_NO_SUCH_GROUP},
		{group(100), wire.Code_CODE_NOT_MEMBER},
	} {
		a.send(tc.to, "?")
		a.await("a refusal", func() bool { return len(a.refused) > 0 })
		a.update(func() {
			if a.refused[0].Code != tc.code {
				t.Errorf("send to %+v: %v, want %v", tc.to, a.refused[0], tc.code)
			}
			a.refused = nil
		})
	}
}

func testReplaced(t *testing.T, d *deployment) {
	first := d.dial(19, 0)
	first.awaitCurrent()
	second := d.dial(19, 0)
	second.awaitCurrent()
	first.await("being replaced", func() bool {
		for _, c := range first.closes {
			if c == wire.CloseReplaced {
				return true
			}
		}
		return false
	})
}
