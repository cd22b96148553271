package session

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/rueidis"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(serveRedis) != "" {
		serve()
		return
	}
	goleak.VerifyTestMain(m)
}

const patience = 10 * time.Second

// server is a Redis that a test may use, and how to make time pass on it.
type server struct {
	addr    string
	advance func(time.Duration)
	cut     func(*testing.T) // breaks every connection
}

// TestConformance is what the registry does, on miniredis, on which embedded
// deployments run, and on a real Redis (see servers).
func TestConformance(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, s server){
		"register": registers, "leases": leases, "presence": presence, "channels": channels,
		"interest": interest, "interest of a killed gateway": interestOfKilledGateway,
		"a stale gateway": staleGateway, "forgetful": forgets, "lost connections": losesConnections, "time to live": timeToLive,
	} {
		t.Run(name, func(t *testing.T) { servers(t, test) })
	}
}

// servers runs a test on miniredis and, if THRONG_REDIS_ADDR names one, on a
// real Redis.
func servers(t *testing.T, test func(t *testing.T, s server)) {
	t.Run("miniredis", func(t *testing.T) {
		m := miniredis.RunT(t)
		test(t, server{addr: m.Addr(), advance: m.FastForward, cut: func(t *testing.T) {
			addr := m.Addr()
			m.Close() // it keeps its keys
			until(t, "the port to be free", func() bool { return m.StartAddr(addr) == nil })
		}})
	})
	t.Run("redis", func(t *testing.T) {
		addr := os.Getenv("THRONG_REDIS_ADDR")
		if addr == "" {
			t.Skip("THRONG_REDIS_ADDR is not set")
		}
		s := server{addr: addr, advance: func(d time.Duration) { <-time.After(d) }}
		s.cut = func(t *testing.T) {
			s.do(t, "CLIENT", "KILL", "TYPE", "normal")
			s.do(t, "CLIENT", "KILL", "TYPE", "pubsub")
		}
		test(t, s)
	})
}

// number returns a number that no other test, or run, uses on a shared Redis.
func number() uint64 { return uint64(time.Now().UnixNano()) }

type gateway struct {
	*Registry
	t    *testing.T
	name string
	inc  uint64
	got  chan string // "topic payload"
	stop func()
}

// start runs the registry of one gateway.
func start(t *testing.T, addr, name string, inc uint64, change func(*Config)) *gateway {
	t.Helper()
	cfg := Config{Addr: addr, LeaseTTL: 500 * time.Millisecond, RenewEvery: 50 * time.Millisecond, Timeout: 500 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{Registry: r, t: t, name: name, inc: inc, got: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx, name, inc, func(topic string, p []byte) { g.got <- topic + " " + string(p) }); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	g.stop = sync.OnceFunc(func() { cancel(); <-done; r.Close() })
	t.Cleanup(g.stop)
	return g
}

// until waits for a condition that nothing announces.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}

func (g *gateway) lookup(user uint64) User {
	m, err := g.Lookup(g.t.Context(), user)
	if err != nil {
		return User{}
	}
	return m[user]
}

func registers(t *testing.T, s server) {
	user := number()
	a := start(t, s.addr, fmt.Sprint("a/@", user), 7, nil)
	b := start(t, s.addr, fmt.Sprint("b", user), 8, nil)
	if u := a.lookup(user); len(u.Sessions) != 0 || !u.LastSeen.IsZero() {
		t.Fatalf("before: %+v", u)
	}
	a.Register(user, 0, 11)
	b.Register(user, 1, 12)
	until(t, "both devices", func() bool { return len(b.lookup(user).Sessions) == 2 })
	for _, x := range b.lookup(user).Sessions {
		want := Session{Device: 0, Gateway: a.name, Incarnation: 7, Conn: 11, Since: x.Since}
		if x.Device == 1 {
			want = Session{Device: 1, Gateway: b.name, Incarnation: 8, Conn: 12, Since: x.Since}
		}
		if x != want || time.Since(x.Since).Abs() > time.Minute {
			t.Errorf("session %+v, want %+v", x, want)
		}
	}
	// The device has connected again before the end of its old connection
	// is recorded: the new entry stays.
	a.Register(user, 0, 21)
	a.Unregister(user, 0, 11, true)
	until(t, "the old connection to be gone", func() bool {
		u := a.lookup(user)
		return len(u.Sessions) == 2 && !u.LastSeen.IsZero()
	})
	for _, x := range a.lookup(user).Sessions {
		if x.Conn == 11 {
			t.Errorf("still there: %+v", x)
		}
	}
	a.Unregister(user, 0, 21, true)
	b.Unregister(user, 1, 12, true)
	until(t, "nobody", func() bool { return len(a.lookup(user).Sessions) == 0 })
	if seen := a.lookup(user).LastSeen; time.Since(seen).Abs() > time.Minute {
		t.Errorf("last seen %v", seen)
	}
}

func leases(t *testing.T, s server) {
	user := number()
	name := fmt.Sprint("gw", user)
	reader := start(t, s.addr, name+"-reader", 1, nil)
	// Killed: it renews nothing and says nothing.
	dead := start(t, s.addr, name, 1, func(c *Config) { c.RenewEvery = time.Hour })
	dead.Register(user, 0, 5)
	until(t, "entry", func() bool { return len(reader.lookup(user).Sessions) == 1 })
	s.advance(600 * time.Millisecond)
	if u := reader.lookup(user); len(u.Sessions) != 0 {
		t.Fatalf("entry outlives the lease: %+v", u)
	}
	// A gateway of that name comes back; the entry of its former life is dead.
	again := start(t, s.addr, name, 2, nil)
	again.Register(user+1, 0, 5)
	until(t, "new entry", func() bool { return len(reader.lookup(user+1).Sessions) == 1 })
	if u := reader.lookup(user); len(u.Sessions) != 0 {
		t.Fatalf("entry of an earlier incarnation: %+v", u)
	}
}

func presence(t *testing.T, s server) {
	user := number()
	g := start(t, s.addr, fmt.Sprint("gw", user), 1, nil)
	ask := func() (online bool, seen time.Time) {
		type answer struct {
			online bool
			seen   time.Time
		}
		got := make(chan answer, 1)
		g.Presence(user, func(online bool, seen time.Time) { got <- answer{online, seen} })
		select {
		case a := <-got:
			return a.online, a.seen
		case <-time.After(patience):
			t.Fatal("no answer")
			return
		}
	}
	if online, seen := ask(); online || !seen.IsZero() {
		t.Errorf("nobody: %v %v", online, seen)
	}
	g.Register(user, 3, 1)
	until(t, "online", func() bool { online, _ := ask(); return online })
	g.Unregister(user, 3, 1, true)
	until(t, "offline", func() bool { online, seen := ask(); return !online && !seen.IsZero() })
	// Whoever hides is not there, and what was known is erased.
	g.Register(user, 3, 2)
	g.Hide(2, true)
	until(t, "hidden", func() bool {
		online, seen := ask()
		u := g.lookup(user)
		return !online && seen.IsZero() && u.Hidden && u.LastSeen.IsZero() && len(u.Sessions) == 1
	})
	g.Unregister(user, 3, 2, false)
	until(t, "hidden and gone", func() bool { u := g.lookup(user); return u.Hidden && u.LastSeen.IsZero() && len(u.Sessions) == 0 })
	g.Register(user, 3, 3)
	g.Hide(3, false)
	until(t, "shown again", func() bool { online, _ := ask(); return online && !g.lookup(user).Hidden })
}

// Redis goes away, with all it knew, and comes back at the same address.
func TestRedisRestart(t *testing.T) {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	addr := m.Addr()
	g := start(t, addr, "gw", 1, nil)
	other := start(t, addr, "other", 1, nil)
	g.Register(1, 0, 11)
	other.Subscribe("u9")
	receive(t, g, other, "u9")
	until(t, "entry", func() bool { return len(g.lookup(1).Sessions) == 1 })
	m.Close()
	g.Register(2, 0, 12)
	g.Hide(12, true)
	g.Unregister(1, 0, 11, true)
	g.Publish("u9", []byte("lost"))
	other.Subscribe("u10")
	m = miniredis.NewMiniRedis()
	until(t, "the port to be free", func() bool { return m.StartAddr(addr) == nil })
	t.Cleanup(m.Close)
	until(t, "the entry made while it was away", func() bool { u := g.lookup(2); return len(u.Sessions) == 1 && u.Hidden })
	until(t, "the other to be gone", func() bool { return len(g.lookup(1).Sessions) == 0 })
	receive(t, g, other, "u9")
	receive(t, g, other, "u10")
	// Now it forgets everything without any connection breaking.
	m.FlushAll()
	until(t, "the entry to be made again", func() bool { return len(g.lookup(2).Sessions) == 1 })
	receive(t, g, other, "u9")
	receive(t, g, other, "u10")
	g.stop() // before Redis, so that closing finds it
	other.stop()
}

// A Redis that takes connections and never answers must not hold anybody up.
func TestDeadRedisBlocksNobody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	reg := prometheus.NewRegistry()
	g := start(t, ln.Addr().String(), "gw", 1, func(c *Config) {
		c.RegistryQueue, c.EphemeralQueue, c.Topics, c.Timeout, c.Metrics = 10, 10, 10, 50*time.Millisecond, reg
	})
	began := time.Now()
	for i := range uint64(1000) {
		g.Register(i, 0, i)
		g.Publish("u1", nil)
		g.Presence(i, func(bool, time.Time) { t.Error("an answer from a dead Redis") })
		g.Subscribe(fmt.Sprint("u", i))
		g.Unregister(i, 0, i, true)
	}
	if took := time.Since(began); took > 10*time.Second { // held up each time: 250 s
		t.Errorf("5,000 calls took %v", took)
	}
	if n, err := testutil.GatherAndCount(reg, "throng_queue_dropped_total"); err != nil || n != 3 {
		t.Errorf("%d queues with drops, %v", n, err)
	}
	if d := testutil.ToFloat64(g.m.ephemeral.Dropped); d < 1900 {
		t.Errorf("%v events and look-ups dropped", d)
	}
	g.stop()
}

// do sends a command to the server.
func (s server) do(t *testing.T, command ...string) int64 {
	t.Helper()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{s.addr}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n, err := c.Do(t.Context(), c.B().Arbitrary(command...).Build()).AsInt64()
	if err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	return n
}

// What is known of a user ends some time, whether they are connected or not.
func timeToLive(t *testing.T, s server) {
	user := number()
	g := start(t, s.addr, fmt.Sprint("gw", user), 1, nil)
	lives := func(when string) {
		t.Helper()
		ttl := time.Duration(s.do(t, "TTL", userKey(user))) * time.Second
		if ttl > keep || ttl < keep-time.Minute {
			t.Errorf("%s the hash lives %v", when, ttl)
		}
	}
	for conn := range uint64(2) {
		g.Register(user, 0, conn)
		until(t, "entry", func() bool { return len(g.lookup(user).Sessions) == 1 })
		lives(fmt.Sprintf("connection %d:", conn))
		g.Unregister(user, 0, conn, true)
		until(t, "its end", func() bool { return len(g.lookup(user).Sessions) == 0 })
		lives(fmt.Sprintf("after connection %d:", conn))
	}
}

// A gateway that was taken for dead, and whose place another has taken, owns
// nothing any more: neither what it registered before nor what it registers now
// is believed, and it cannot end what its successor has.
func staleGateway(t *testing.T, s server) {
	user := number()
	name := fmt.Sprint("gw", user)
	reader := start(t, s.addr, name+"-reader", 1, nil)
	stale := start(t, s.addr, name, 1, func(c *Config) { c.RenewEvery = time.Hour })
	stale.Register(user, 0, 5)
	until(t, "entry", func() bool { return len(reader.lookup(user).Sessions) == 1 })
	again := start(t, s.addr, name, 2, nil)
	again.Register(user, 0, 5)
	successor := func() bool {
		u := reader.lookup(user)
		return len(u.Sessions) == 1 && u.Sessions[0].Incarnation == 2
	}
	until(t, "the successor's entry alone", successor)
	stale.Register(user, 1, 6)
	stale.settle()
	stale.Unregister(user, 0, 5, true)
	stale.settle()
	until(t, "the stale one's end to be recorded", func() bool { return !reader.lookup(user).LastSeen.IsZero() })
	if !successor() {
		t.Errorf("a stale gateway has changed what its successor has: %+v", reader.lookup(user))
	}
}

// Redis forgets everything without any connection breaking.
func forgets(t *testing.T, s server) {
	user := number()
	name := fmt.Sprint("gw", user)
	g, other := start(t, s.addr, name, 1, nil), start(t, s.addr, name+"-other", 1, nil)
	topic := fmt.Sprint("u", user)
	g.Register(user, 0, 1)
	other.Subscribe(topic)
	receive(t, g, other, topic)
	until(t, "entry", func() bool { return len(g.lookup(user).Sessions) == 1 })
	s.do(t, "DEL", userKey(user), leasePrefix+name, leasePrefix+name+"-other", interestPrefix+topic)
	until(t, "the entry to be made again", func() bool { return len(g.lookup(user).Sessions) == 1 })
	receive(t, g, other, topic)
}

// The connections break; Redis has kept what it knew.
func losesConnections(t *testing.T, s server) {
	user := number()
	name := fmt.Sprint("gw", user)
	g, other := start(t, s.addr, name, 1, nil), start(t, s.addr, name+"-other", 1, nil)
	topic := fmt.Sprint("u", user)
	g.Register(user, 0, 1)
	other.Subscribe(topic)
	receive(t, g, other, topic)
	s.cut(t)
	g.Register(user, 1, 2)
	until(t, "both devices", func() bool { return len(g.lookup(user).Sessions) == 2 })
	receive(t, g, other, topic)
}

func TestParseField(t *testing.T) {
	for field, want := range map[string]Session{
		"3@gw-1/17/9":      {Device: 3, Gateway: "gw-1", Incarnation: 17, Conn: 9},
		"0@a/b@c/1/2":      {Gateway: "a/b@c", Incarnation: 1, Conn: 2},
		"seen":             {},
		"3@gw/9":           {},
		"x@gw/1/2":         {},
		"3@gw/-1/2":        {},
		"99999999999@/1/2": {},
	} {
		got, ok := parseField(field)
		if ok != (want != Session{}) || (ok && got != want) {
			t.Errorf("%q: %+v, %v", field, got, ok)
		}
	}
}
