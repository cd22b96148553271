package system_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"throng/system"
	"throng/system/wire"
)

// A user's linked devices show the same conversations as the phone: each gets
// what the others send, knows whom it went to, and drains it when it was away.
func TestLinkedDevices(t *testing.T) {
	d := startAll(t, counts{gateways: 2, messages: 2, fanouts: 1, groups: 1, inboxes: 2, pushes: 1})
	d.provision(3, 3, map[uint64][]uint64{100: {1, 2, 3}})
	phone, laptop, peer := d.dial(1, 0), d.dial(1, 1), d.dial(2, 0)
	for _, dev := range []*device{phone, laptop, peer} {
		dev.awaitCurrent()
	}
	const n = 30
	for i := range n {
		phone.send(direct(2), fmt.Sprintf("to two %d", i))
		phone.send(direct(3), fmt.Sprintf("to three %d", i))
		phone.send(group(100), fmt.Sprintf("to all %d", i))
		laptop.send(direct(2), fmt.Sprintf("from the laptop %d", i))
		phone.send(direct(1), fmt.Sprintf("note %d", i))
	}
	phone.awaitSent()
	laptop.awaitSent()
	tablet := d.dial(1, 2) // was away
	tablet.awaitCurrent()
	copies := func(dev *device, from uint32, to uint64, want string) {
		t.Helper()
		var got []string
		dev.await("copies of what went to "+fmt.Sprint(to), func() bool {
			got = nil
			for _, m := range dev.got {
				if m.From == 1 && m.FromDevice == from && m.To == to && m.Group == 0 {
					got = append(got, string(m.Body))
				}
			}
			return len(got) >= n
		})
		if !slices.Equal(got, numbered(want, n)) {
			t.Errorf("device 1.%d has %q of what device %d sent to %d", dev.number, got, from, to)
		}
	}
	for _, dev := range []*device{laptop, tablet} {
		copies(dev, 0, 2, "to two")
		copies(dev, 0, 3, "to three")
		copies(dev, 0, 1, "note")
		dev.awaitBodies(1, 100, numbered("to all", n)...)
	}
	copies(phone, 1, 2, "from the laptop")
	copies(tablet, 1, 2, "from the laptop")
	peer.awaitBodies(1, 100, numbered("to all", n)...)
	peer.await("everything of user 1", func() bool { return len(peer.got) >= 3*n })
	peer.update(func() {
		for _, m := range peer.got {
			if m.To != 0 {
				t.Errorf("the addressee was told that it is for %d", m.To)
			}
		}
	})
	phone.update(func() {
		if len(phone.got) != n {
			t.Errorf("the phone got %d, want the laptop's %d", len(phone.got), n)
		}
	})
	// The copies wake nobody: only user 3, who is away, is pushed.
	for _, p := range d.in.provider.log("") {
		if p.token != "token-3" {
			t.Errorf("a push to %s", p.token)
		}
	}
}

// A phone and four linked devices, the most there are: each acknowledges for
// itself. What one has not acknowledged waits for that one alone, and what has
// been acknowledged comes to it no second time.
func TestEachDeviceAcknowledgesForItself(t *testing.T) {
	d := startAll(t, counts{gateways: 2, messages: 1, fanouts: 1, groups: 1, inboxes: 2, pushes: 1}, func(c *system.Config) {
		c.Settings.AckTimeout = system.Duration(300 * time.Millisecond)
	})
	d.provision(2, wire.MaxDevices, map[uint64][]uint64{100: {1, 2}})
	writer := d.dial(2, 0)
	writer.awaitCurrent()
	var devices []*device
	for i := range uint32(wire.MaxDevices) {
		dev := d.dial(1, i)
		dev.awaitCurrent()
		devices = append(devices, dev)
	}
	mute, away := devices[1], devices[3]
	mute.update(func() { mute.silent = true }) // it gets some of it and acknowledges nothing
	away.hangUp()
	const n = 20
	for i := range n {
		writer.send(direct(1), fmt.Sprintf("direct %d", i))
		writer.send(group(100), fmt.Sprintf("group %d", i))
	}
	writer.awaitSent()
	for _, dev := range devices {
		if dev == away || dev == mute {
			continue
		}
		dev.awaitBodies(2, 0, numbered("direct", n)...)
		dev.awaitBodies(2, 100, numbered("group", n)...)
	}
	// All of it waits for two of the five; user 2's other devices have their
	// copies waiting too.
	own := float64((wire.MaxDevices - 1) * 2 * n)
	awaitMetric(t, "throng_inbox_rows", is(2*2*n+own), d.inboxDebug()...)
	mute.hangUp()
	mute.update(func() { mute.silent = false })
	for _, dev := range []*device{mute, away} {
		dev.connect()
		dev.awaitCurrent()
		dev.awaitBodies(2, 0, numbered("direct", n)...)
		dev.awaitBodies(2, 100, numbered("group", n)...)
	}
	awaitMetric(t, "throng_inbox_rows", is(own), d.inboxDebug()...)
	for _, dev := range devices {
		dev.hangUp()
		if len(dev.got) != 2*n {
			t.Errorf("device %d has %d messages, want %d", dev.number, len(dev.got), 2*n)
		}
	}
}

// Whoever hides when they were last seen is seen by nobody, from then on and on
// all devices, until they show themselves again.
func TestLastSeenPrivacy(t *testing.T) {
	d := startAll(t, counts{gateways: 2, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1})
	d.provision(2, 2, map[uint64][]uint64{100: {1, 2}})
	viewer, phone, laptop := d.dial(1, 0), d.dial(2, 0), d.dial(2, 1)
	for _, dev := range []*device{viewer, phone, laptop} {
		dev.awaitCurrent()
	}
	available := func(dev *device, is bool) {
		dev.do(&wire.Frame{Kind: &wire.Frame_Presence{Presence: &wire.Presence{Available: is}}})
	}
	available(phone, true)
	viewer.lookAt(2, "phone is here", func(e *wire.PresenceEvent) bool { return e.Available })
	phone.do(&wire.Frame{Kind: &wire.Frame_Privacy{Privacy: &wire.Privacy{HideLastSeen: true}}})
	// What the phone's gateway had published before is here when this is, and
	// what the viewer's has looked up before comes before an answer that it is hidden.
	viewer.insist("typing", func() { phone.do(&wire.Frame{Kind: &wire.Frame_Typing{Typing: &wire.Typing{User: 1}}}) },
		func() bool { return len(viewer.typing) > 0 })
	viewer.update(func() { viewer.presence = nil })
	hidden := func(e *wire.PresenceEvent) bool { return !e.Available && e.LastSeenMs == 0 }
	viewer.lookAt(2, "hidden", hidden)
	// The owner has it when it has answered the phone, and the laptop's gateway
	// when it has answered the laptop.
	for i, dev := range []*device{phone, laptop} {
		dev.do(&wire.Frame{Kind: &wire.Frame_ReceiptsRequest{ReceiptsRequest: &wire.ReceiptsRequest{RequestId: uint64(i + 1), Group: 100}}})
		dev.await("an answer of the owner", func() bool { return len(dev.lists) == 1 })
	}

	// On another device, through another session and after both have gone.
	phone.hangUp()
	phone.connect()
	phone.awaitCurrent()
	viewer.update(func() { viewer.presence = nil })
	available(phone, true)
	available(laptop, true)
	laptop.hangUp()
	viewer.lookAt(2, "the answer to a view", func(*wire.PresenceEvent) bool { return true })
	viewer.update(func() {
		for _, e := range viewer.presence {
			if !hidden(e) {
				t.Errorf("seen: %v", e)
			}
		}
	})

	phone.do(&wire.Frame{Kind: &wire.Frame_Privacy{Privacy: &wire.Privacy{}}})
	viewer.lookAt(2, "shown", func(e *wire.PresenceEvent) bool { return e.Available })
	phone.hangUp()
	viewer.lookAt(2, "gone, and when", func(e *wire.PresenceEvent) bool { return !e.Available && e.LastSeenMs != 0 })
}

// A connection that drops in the middle of a drain goes on where the device was:
// what it has is not sent again, though its acknowledgements were lost.
func TestResumeAfterDrop(t *testing.T) {
	d := startAll(t, counts{gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1})
	d.provision(2, 1, nil)
	alice := d.dial(1, 0)
	const n = 350 // more than three pages
	for _, body := range numbered("row", n) {
		alice.send(direct(2), body)
	}
	alice.awaitSent()
	bob := d.dial(2, 0)
	bob.awaitCurrent()
	bob.hangUp()
	if got := len(bob.got); got != n || bob.duplicates != 0 {
		t.Fatalf("%d of %d, %d twice", got, n, bob.duplicates)
	}
	for _, body := range numbered("more", n) {
		alice.send(direct(2), body)
	}
	alice.awaitSent()
	bob.update(func() { bob.silent = true })
	drops := 0
	for have := n; have < 2*n; drops++ {
		bob.connect()
		bob.await("a page", func() bool { return len(bob.got) > have || bob.current })
		bob.hangUp()
		bob.update(func() { have = len(bob.got) })
	}
	bob.update(func() { bob.silent = false })
	bob.connect()
	bob.awaitCurrent()
	bob.awaitBodies(1, 0, append(numbered("row", n), numbered("more", n)...)...)
	bob.hangUp()
	if bob.duplicates != 0 || drops < 3 {
		t.Errorf("%d came twice over %d drops", bob.duplicates, drops)
	}
}

// A gateway that is told to stop sends its clients away, spread over the jitter,
// and nothing that was accepted is lost on the way.
func TestDrainLosesNothing(t *testing.T) {
	in := startInfrastructure(t)
	cfg := in.topology(t, counts{gateways: 2, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1}, freePort(t))
	cfg.Settings.DrainJitter = system.Duration(time.Second)
	processes := startEach(t, cfg)
	d := describe(t, cfg, in)
	const users = 12
	groups := map[uint64][]uint64{100: {1, 2, 3, 4, 5, 6}, 101: {7, 8, 9, 10, 11, 12}}
	d.provision(users, 1, groups)
	online := map[uint64]*device{}
	leaving := cfg.Gateways[0].Listen
	for u := uint64(1); u <= users; u++ {
		online[u] = dial(t, []string{leaving}, d.key, u, 0)
	}
	for _, dev := range online {
		dev.awaitCurrent()
		dev.update(func() { dev.gateways = d.gateways()[1:] })
	}
	talk := startTalk(online, groups, users)
	talk.await(t, 200)
	gateway := processes[system.Gateway][0]
	if err := gateway.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var moved []time.Time
	for _, dev := range online {
		dev.await("another gateway", func() bool { return dev.connects == 2 && dev.current })
		dev.update(func() { moved = append(moved, dev.at) })
	}
	if err := gateway.cmd.Wait(); err != nil {
		t.Errorf("the gateway ended with %v", err)
	}
	talk.await(t, 200)
	sent := talk.stop()
	for _, dev := range online {
		dev.awaitSent()
	}
	slices.SortFunc(moved, time.Time.Compare)
	if spread := moved[len(moved)-1].Sub(moved[0]); spread < 100*time.Millisecond {
		t.Errorf("all clients came back within %v", spread)
	}
	for _, dev := range online {
		dev.update(func() {
			if len(dev.drains) != 1 || dev.drains[0] != time.Second {
				t.Errorf("device %d was told to go %v", dev.user, dev.drains)
			}
		})
		for from, to := range sent {
			for conv, n := range to {
				if addressed(dev.user, from, conv, groups) {
					dev.awaitBodies(from, conv.Group, numbered("message", n)...)
				}
			}
		}
	}
}

// A gateway that was cut off from the inbox, and whose client has connected
// elsewhere since, does not take it back: the half-open connection is closed for
// good, and messages go to the new one.
func TestStaleGatewayIsFenced(t *testing.T) {
	d := startAll(t, counts{gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1})
	d.provision(3, 1, nil)
	link := newLink(t, d.cfg.Inboxes[0].RPC)
	there := d.gatewayWith(func(c *system.Config) {
		c.Inboxes = slices.Clone(c.Inboxes)
		c.Inboxes[0].RPC = link.addr()
	})
	old := dial(t, there, d.key, 1, 0)
	old.awaitCurrent()
	other := dial(t, there, d.key, 3, 0)
	other.awaitCurrent()

	link.cut()
	now := d.dial(1, 0)
	now.awaitCurrent()
	writer := d.dial(2, 0)
	writer.send(direct(1), "to the new one")
	now.awaitBodies(2, 0, "to the new one")
	link.restore()
	old.await("closed for good", func() bool { return len(old.closes) == 1 })
	old.update(func() {
		if old.closes[0] != wire.CloseReplaced {
			t.Errorf("the stale connection was closed with %v", old.closes[0])
		}
	})
	writer.send(direct(1), "still")
	writer.send(direct(3), "and to who stayed")
	now.awaitBodies(2, 0, "to the new one", "still")
	other.awaitBodies(2, 0, "and to who stayed") // its session was opened again
	for _, dev := range []*device{old, now, other} {
		dev.hangUp()
	}
	if len(old.got) != 0 || now.connects != 1 || other.connects != 1 {
		t.Errorf("the stale connection got %v; %d and %d connects", old.got, now.connects, other.connects)
	}
}
