package gateway

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// bus is the registry and the channels of several gateways, in memory. Like
// the real one it delivers on a goroutine of its own.
type bus struct {
	mu     sync.Mutex
	online map[uint64]int // connections by user
	seen   map[uint64]time.Time
	users  map[uint64]uint64 // by connection
	hidden map[uint64]bool
	subs   map[string]map[*busPort]bool
	log    []string
}

type busPort struct {
	b    *bus
	mail chan [2]string
}

func newBus() *bus {
	return &bus{online: map[uint64]int{}, seen: map[uint64]time.Time{}, users: map[uint64]uint64{}, hidden: map[uint64]bool{}, subs: map[string]map[*busPort]bool{}}
}

func (b *bus) port() *busPort { return &busPort{b: b, mail: make(chan [2]string, 1000)} }

func (p *busPort) Run(ctx context.Context, _ string, _ uint64, deliver func(string, []byte)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-p.mail:
			deliver(m[0], []byte(m[1]))
		}
	}
}

func (p *busPort) Register(user uint64, _ uint32, conn uint64) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	p.b.online[user]++
	p.b.users[conn] = user
	p.b.log = append(p.b.log, fmt.Sprint("register ", user))
}

func (p *busPort) Unregister(user uint64, _ uint32, _ uint64, seen bool) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	p.b.online[user]--
	if seen {
		p.b.seen[user] = time.UnixMilli(1234)
	}
	p.b.log = append(p.b.log, fmt.Sprint("unregister ", user))
}

func (p *busPort) Hide(conn uint64, hidden bool) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	user := p.b.users[conn]
	p.b.hidden[user] = hidden
	if hidden {
		delete(p.b.seen, user)
	}
}

func (p *busPort) Presence(user uint64, answer func(bool, time.Time)) {
	p.b.mu.Lock()
	online, seen := p.b.online[user] > 0 && !p.b.hidden[user], p.b.seen[user]
	p.b.mu.Unlock()
	answer(online, seen)
}

func (p *busPort) Publish(topic string, payload []byte) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	for to := range p.b.subs[topic] {
		to.mail <- [2]string{topic, string(payload)}
	}
}

func (p *busPort) Subscribe(topic string) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	if p.b.subs[topic] == nil {
		p.b.subs[topic] = map[*busPort]bool{}
	}
	p.b.subs[topic][p] = true
}

func (p *busPort) Unsubscribe(topic string) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	delete(p.b.subs[topic], p)
}

func (b *bus) subscribers(topic string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs[topic])
}

func viewOf(user, group uint64) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_View{View: &wire.View{User: user, Group: group}}}
}

func typingOf(user, group uint64) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_Typing{Typing: &wire.Typing{User: user, Group: group}}}
}

func presenceOf(available bool) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_Presence{Presence: &wire.Presence{Available: available}}}
}

// pingPong makes sure that everything c sent before has been handled.
func (c *client) pingPong() {
	c.t.Helper()
	c.send(&wire.Frame{Kind: &wire.Frame_Ping{Ping: &wire.Ping{Nonce: 5}}})
	for c.recv().GetPong().GetNonce() != 5 {
	}
}

func TestTypingAndPresence(t *testing.T) {
	b := newBus()
	r1 := newRig(t, func(c *Config) { c.Sessions = b.port() })
	r2 := newRig(t, func(c *Config) { c.Sessions = b.port() })
	alice, _ := r1.login(1, 0, wire.Proto)
	carol, _ := r1.login(3, 0, wire.JSON)
	bob, _ := r2.login(2, 0, wire.Proto)

	// Who looks at somebody is told once whether they are there.
	alice.send(viewOf(2, 0))
	if e := alice.recv().GetPresenceEvent(); e.GetUser() != 2 || !e.GetAvailable() {
		t.Fatalf("view of bob: %v", e)
	}
	carol.send(viewOf(2, 0))
	if e := carol.recv().GetPresenceEvent(); !e.GetAvailable() {
		t.Fatalf("view of bob: %v", e)
	}
	if n := b.subscribers("u2"); n != 1 {
		t.Fatalf("%d subscriptions for two viewers on one gateway", n)
	}

	// Bob types to Carol: Alice, who looks at him too, does not see it.
	bob.send(typingOf(3, 0))
	if e := carol.recv().GetTypingEvent(); e.GetFrom() != 2 || e.GetGroup() != 0 {
		t.Fatalf("typing: %v", e)
	}
	bob.send(typingOf(1, 0))
	if e := alice.recv().GetTypingEvent(); e.GetFrom() != 2 {
		t.Fatalf("typing: %v", e)
	}
	bob.send(presenceOf(true))
	for _, c := range []*client{alice, carol} {
		if e := c.recv().GetPresenceEvent(); e.GetUser() != 2 || !e.GetAvailable() {
			t.Fatalf("presence: %v", e)
		}
	}

	// In a group everybody who looks at it sees who types, but not who types it.
	for _, c := range []*client{alice, carol, bob} {
		c.send(viewOf(0, 77))
		c.pingPong()
	}
	if n := b.subscribers("u2"); n != 0 {
		t.Fatalf("%d subscriptions when nobody looks any more", n)
	}
	bob.send(typingOf(0, 77))
	for _, c := range []*client{alice, carol} {
		if e := c.recv().GetTypingEvent(); e.GetFrom() != 2 || e.GetGroup() != 77 {
			t.Fatalf("typing in a group: %v", e)
		}
	}
	alice.send(typingOf(0, 77))
	for _, c := range []*client{bob, carol} {
		if e := c.recv().GetTypingEvent(); e.GetFrom() != 1 { // bob has not got his own
			t.Fatalf("typing in a group: %v", e)
		}
	}

	// Bob goes without a word; whoever looks at him learns it.
	carol.send(viewOf(2, 0))
	if e := carol.recv().GetPresenceEvent(); !e.GetAvailable() {
		t.Fatalf("view of bob: %v", e)
	}
	bob.ws.Close()
	if e := carol.recv().GetPresenceEvent(); e.GetUser() != 2 || e.GetAvailable() || e.GetLastSeenMs() == 0 {
		t.Fatalf("presence: %v", e)
	}
	alice.send(viewOf(2, 0))
	if e := alice.recv().GetPresenceEvent(); e.GetAvailable() || e.GetLastSeenMs() != 1234 {
		t.Fatalf("view of bob, who has gone: %v", e)
	}
	alice.ws.Close()
	carol.ws.Close()
	r1.until("no subscriptions", func() bool { return b.subscribers("u2")+b.subscribers("g77") == 0 })
}

// registerProbe sees whether the inbox knew of a session before it was registered.
type registerProbe struct {
	*busPort
	r      atomic.Pointer[rig]
	opened int
}

func (p *registerProbe) Register(user uint64, device uint32, conn uint64) {
	p.opened = len(p.r.Load().inbox.events)
	p.busPort.Register(user, device, conn)
}

func TestRegisterBeforeOpen(t *testing.T) {
	b := newBus()
	p := &registerProbe{busPort: b.port()}
	r := newRig(t, func(c *Config) { c.Sessions = p })
	p.r.Store(r)
	next[*rpc.GatewayHello](t, r.inbox.events)
	c, _ := r.login(1, 0, wire.Proto)
	c.ws.Close()
	next[*rpc.SessionClose](t, r.inbox.events)
	if p.opened != 0 {
		t.Errorf("the inbox had heard %d things before the session was registered", p.opened)
	}
	r.until("unregistered", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.log) == 2 && b.log[0] == "register 1" && b.log[1] == "unregister 1"
	})
}

func TestMalformedEvents(t *testing.T) {
	r := newRig(t, nil)
	for _, topic := range []string{"", "u", "x1", "u1", "g-1", "u99999999999999999999"} {
		for _, payload := range []string{"", "short", string(make([]byte, eventHeader)), string(make([]byte, 64))} {
			r.gw.views.deliver(topic, []byte(payload)) // must not panic
		}
	}
}
