package gateway

import (
	"testing"
	"time"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

func privacyOfUser(hide bool) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_Privacy{Privacy: &wire.Privacy{HideLastSeen: hide}}}
}

// A session whose epoch never came might have been replaced without a word: its
// client has to connect again, and may.
func TestSessionWithoutEpoch(t *testing.T) {
	r := newRig(t, nil)
	r.inbox.mu.Lock()
	r.inbox.mute = true
	r.inbox.mu.Unlock()
	c, _ := r.login(1, 0, wire.Proto)
	r.inbox.srv.Stop()
	r.inbox = startInbox(t, r.inbox.addr, 2)
	if code := c.closed(); code != wire.CloseOwnerLost || !code.Reconnect() {
		t.Fatalf("closed with %v", code)
	}
	r.until("ready again", func() bool { return r.gw.Ready() == nil })
	_, again := r.login(1, 0, wire.Proto)
	if again.Epoch != 0 {
		t.Fatalf("a new connection opened as %v", again)
	}
}

// Whoever hides is announced to nobody, from the first moment, and the choice
// reaches the inbox, also when its stream is lost.
func TestPrivacy(t *testing.T) {
	b := newBus()
	r := newRig(t, func(c *Config) { c.Sessions = b.port() })
	r.inbox.hidden = map[uint64]bool{2: true}
	alice, _ := r.login(1, 0, wire.Proto)
	bob, open := r.login(2, 0, wire.Proto)
	bob.send(presenceOf(true))
	r.until("what the inbox says", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.hidden[2] })
	bob.pingPong()
	alice.send(viewOf(2, 0))
	if e := alice.recv().GetPresenceEvent(); e.GetUser() != 2 || e.GetAvailable() || e.GetLastSeenMs() != 0 {
		t.Fatalf("view of bob, who hides: %v", e)
	}

	// He shows himself, and hides again: his viewers see him come and go, and
	// not when.
	bob.send(privacyOfUser(false))
	if e := alice.recv().GetPresenceEvent(); e.GetUser() != 2 || !e.GetAvailable() {
		t.Fatalf("bob shows himself: %v", e)
	}
	if u := next[*rpc.PrivacyUpdate](t, r.inbox.events); u.User != 2 || u.Privacy.GetHideLastSeen() {
		t.Fatalf("the inbox was told %v", u)
	}
	bob.send(privacyOfUser(true))
	if e := alice.recv().GetPresenceEvent(); e.GetAvailable() || e.GetLastSeenMs() != 0 {
		t.Fatalf("bob hides: %v", e)
	}
	if u := next[*rpc.PrivacyUpdate](t, r.inbox.events); !u.Privacy.GetHideLastSeen() {
		t.Fatalf("the inbox was told %v", u)
	}

	// The owner has died before it could keep that.
	r.inbox.srv.Stop()
	r.inbox = startInbox(t, r.inbox.addr, 2)
	if u := next[*rpc.PrivacyUpdate](t, r.inbox.events); u.User != 2 || !u.Privacy.GetHideLastSeen() {
		t.Fatalf("the new owner was told %v", u)
	}
	// Another device of his has shown him: what the owner says counts from the
	// moment it has confirmed what was said here.
	say := func(hide bool) {
		r.inbox.send(t, &rpc.OwnerBatch{Opened: []*rpc.SessionOpened{{Conn: open.Conn, Epoch: 7, Privacy: &wire.Privacy{HideLastSeen: hide}}}})
	}
	say(true)
	say(false)
	if e := alice.recv().GetPresenceEvent(); e.GetUser() != 2 || !e.GetAvailable() {
		t.Fatalf("bob shows himself elsewhere: %v", e)
	}
	say(true)
	if e := alice.recv().GetPresenceEvent(); e.GetAvailable() || e.GetLastSeenMs() != 0 {
		t.Fatalf("bob hides elsewhere: %v", e)
	}
	bob.ws.Close()
	r.until("bob to be gone", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.online[2] == 0 })
	b.mu.Lock()
	defer b.mu.Unlock()
	if seen, ok := b.seen[2]; ok {
		t.Fatalf("bob was seen at %v", seen)
	}
}

// Mobile clients may be silent for longer than others.
func TestIdleByPlatform(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Limits.IdleTimeout = time.Second
		cfg.Limits.IdleIOS = 3 * time.Second
		cfg.Limits.IdleAndroid = time.Minute
	})
	silent := func(user uint64, p wire.Platform) (*client, time.Time) {
		since := time.Now()
		c := r.dial(user, 0, wire.Proto)
		c.ws.SetPingHandler(func(string) error { return nil })
		c.send(&wire.Frame{Kind: &wire.Frame_Sync{Sync: &wire.Sync{Platform: p}}})
		next[*rpc.SessionOpen](t, r.inbox.events)
		return c, since
	}
	android, _ := silent(1, wire.Platform_PLATFORM_ANDROID)
	ios, begun := silent(2, wire.Platform_PLATFORM_IOS)
	closed := func(c *client, since time.Time, p wire.Platform, least time.Duration) {
		t.Helper()
		if code := c.closed(); code != wire.CloseIdle || time.Since(since) < least {
			t.Errorf("%v: closed with %v after %v", p, code, time.Since(since))
		}
	}
	for i, p := range []wire.Platform{wire.Platform_PLATFORM_DESKTOP, wire.Platform_PLATFORM_UNSPECIFIED} {
		c, since := silent(uint64(3+i), p)
		closed(c, since, p, time.Second)
	}
	closed(ios, begun, wire.Platform_PLATFORM_IOS, 3*time.Second)
	android.pingPong() // it is still there
	if got := (Limits{}).withDefaults(); got.IdleTimeout != 75*time.Second || got.IdleIOS != 180*time.Second || got.IdleAndroid != 900*time.Second {
		t.Errorf("defaults %v, %v, %v", got.IdleTimeout, got.IdleIOS, got.IdleAndroid)
	}
}
