package session

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// receive publishes on a until b has one of the messages.
func receive(t *testing.T, a, b *gateway, topic string) {
	t.Helper()
	i := 0
	until(t, "a message on "+topic, func() bool {
		i++
		a.Publish(topic, fmt.Append(nil, "x", i))
		select {
		case got := <-b.got:
			var n int
			if _, err := fmt.Sscanf(got, topic+" x%d", &n); err != nil || n > i {
				t.Logf("got %q", got)
				return false
			}
			return true
		default:
			return false
		}
	})
}

// ops is how often the gateway has sent a command.
func (g *gateway) ops(op string) float64 { return testutil.ToFloat64(g.m.ops.WithLabelValues(op)) }

// settle waits until what was asked of the gateway before has been done.
func (g *gateway) settle() {
	g.t.Helper()
	got := make(chan struct{})
	g.Presence(1, func(bool, time.Time) { close(got) })
	select {
	case <-got:
	case <-time.After(patience):
		g.t.Fatal("no answer")
	}
}

// published is how many messages one event makes.
func (g *gateway) published(topic string) float64 {
	g.t.Helper()
	g.settle()
	before := g.ops("publish")
	g.Publish(topic, []byte("x"))
	g.settle()
	return g.ops("publish") - before
}

// hear waits for a message and returns those before it.
func (g *gateway) hear(want string) (others []string) {
	g.t.Helper()
	late := time.After(patience)
	for {
		select {
		case got := <-g.got:
			if got == want {
				return others
			}
			others = append(others, got)
		case <-late:
			g.t.Fatalf("%s has not heard %q", g.name, want)
		}
	}
}

func channels(t *testing.T, s server) {
	n := number()
	a := start(t, s.addr, fmt.Sprint("a", n), 1, nil)
	b := start(t, s.addr, fmt.Sprint("b", n), 1, nil)
	topic := fmt.Sprint("u", n)
	b.Subscribe(topic)
	receive(t, a, b, topic)
	// Many at once, in more than one exchange.
	for i := range 3 * batchOps {
		b.Subscribe(fmt.Sprint(topic, "-", i))
	}
	for i := 0; i < 3*batchOps; i += 31 {
		receive(t, a, b, fmt.Sprint(topic, "-", i))
	}
	b.Unsubscribe(topic)
	b.Subscribe(topic + "-last")
	receive(t, a, b, topic+"-last")
	a.Publish(topic, []byte("unwanted"))
	a.Publish(topic+"-last", []byte("end"))
	if others := b.hear(topic + "-last end"); slices.Contains(others, topic+" unwanted") {
		t.Error("a message came after Unsubscribe")
	}
}

// A message goes to each gateway that is interested, to no other, and not through
// Redis to the one that publishes it.
func interest(t *testing.T, s server) {
	n := number()
	topic := fmt.Sprint("g", n)
	var g [3]*gateway
	for i := range g {
		g[i] = start(t, s.addr, fmt.Sprint("a/", n, "-", i), 1, nil)
	}
	for _, to := range g[1:] { // it listens to its channel from now on
		to.Subscribe(topic + "-0")
		receive(t, g[0], to, topic+"-0")
		to.Unsubscribe(topic + "-0")
		to.settle()
	}
	if p := g[0].published(topic); p != 0 {
		t.Errorf("nobody is interested: %v messages", p)
	}
	g[0].Subscribe(topic)
	g[0].settle()
	if p := g[0].published(topic); p != 0 {
		t.Errorf("only its own clients are interested: %v messages", p)
	}
	g[0].hear(topic + " x")
	g[1].Subscribe(topic)
	g[1].Subscribe(topic + "-2")
	g[2].Subscribe(topic)
	g[1].settle() // an interest is recorded before what was asked for after it is looked up
	g[2].settle()
	if p := g[0].published(topic); p != 2 {
		t.Errorf("two others are interested: %v messages", p)
	}
	for i := range g {
		g[i].hear(topic + " x")
	}
	g[2].Unsubscribe(topic)
	g[2].settle()
	if p := g[0].published(topic); p != 1 {
		t.Errorf("one other is interested: %v messages", p)
	}
}

// The interest of a gateway that was killed brings nothing to its next life.
func interestOfKilledGateway(t *testing.T, s server) {
	n := number()
	name, topic := fmt.Sprint("gw", n), fmt.Sprint("u", n)
	a := start(t, s.addr, name+"-a", 1, nil)
	dead := start(t, s.addr, name, 1, nil)
	dead.Subscribe(topic)
	receive(t, a, dead, topic)
	dead.stop() // without a word about its interest
	again := start(t, s.addr, name, 2, nil)
	again.Subscribe(topic + "-2")
	receive(t, a, again, topic+"-2")
	again.Subscribe(topic)
	again.settle()
	a.Publish(topic, []byte("once"))
	a.Publish(topic, []byte("end"))
	once := 0
	for _, got := range again.hear(topic + " end") {
		if got == topic+" once" {
			once++
		}
	}
	if once != 1 {
		t.Errorf("heard %d times", once)
	}
}

// An interest is renewed while there is one, and what a killed gateway leaves
// behind is deleted when somebody meets it, or expires.
func TestInterestTTL(t *testing.T) {
	const ttl = 300 * time.Millisecond
	m := miniredis.RunT(t)
	short := func(c *Config) { c.InterestTTL = ttl }
	a := start(t, m.Addr(), "a", 1, nil)
	b := start(t, m.Addr(), "b", 1, short)
	dead := start(t, m.Addr(), "dead", 1, short)
	key := interestPrefix + "g1"
	good := func(gateway string) int64 { // until when its interest lasts; 0: there is none
		ms, err := strconv.ParseInt(m.HGet(key, gateway), 10, 64)
		if err != nil {
			return 0
		}
		return ms
	}
	b.Subscribe("g1")
	dead.Subscribe("g1")
	until(t, "both interests", func() bool { return good("b/1") != 0 && good("dead/1") != 0 })
	if d := m.TTL(key); d <= 0 || d > ttl {
		t.Errorf("the set lives %v", d)
	}
	first := good("b/1")
	dead.stop()
	until(t, "the other to be renewed past its end", func() bool { return good("b/1") > first+2*ttl.Milliseconds() })
	if good("dead/1") == 0 {
		t.Fatal("deleted by nobody")
	}
	until(t, "the dead one to be deleted", func() bool {
		a.Publish("g1", nil)
		return good("dead/1") == 0
	})
	receive(t, a, b, "g1")
	b.Unsubscribe("g1")
	until(t, "the set to be gone", func() bool { return !m.Exists(key) })
	a.stop()
	b.stop()
}

// An interest that Redis refuses is recorded, or deleted, when it does no more.
func TestInterestAgain(t *testing.T) {
	m := miniredis.RunT(t)
	a := start(t, m.Addr(), "a", 1, nil)
	b := start(t, m.Addr(), "b", 1, nil)
	b.Subscribe("g1")
	receive(t, a, b, "g1")
	m.SetError("LOADING it reads its data") // and it loses neither data nor leases
	b.Subscribe("g2")
	b.Unsubscribe("g1")
	until(t, "both to fail", func() bool {
		return b.ops("hset") > 1 && b.ops("hdel") > 0 && testutil.ToFloat64(b.m.failed) > 1
	})
	m.SetError("")
	receive(t, a, b, "g2")
	until(t, "the other set to be gone", func() bool { return !m.Exists(interestPrefix + "g1") })
	a.stop()
	b.stop()
}

func TestEvents(t *testing.T) {
	in := []event{{topic: "u1", payload: []byte("payload")}, {topic: "", payload: nil}, {topic: "g2", payload: make([]byte, 300)}}
	var b []byte
	whole := map[int]bool{0: true}
	for _, e := range in {
		b = appendEvent(b, e)
		whole[len(b)] = true
	}
	var out []string
	note := func(topic string, payload []byte) { out = append(out, topic+" "+string(payload)) }
	if !each(b, note) || len(out) != len(in) {
		t.Fatalf("read %q", out)
	}
	for i, e := range in {
		if out[i] != e.topic+" "+string(e.payload) {
			t.Errorf("event %d: %q", i, out[i])
		}
	}
	for n := range b {
		if each(b[:n], func(string, []byte) {}) != whole[n] {
			t.Errorf("cut to %d bytes: %v", n, !whole[n])
		}
	}
	for _, bad := range []string{"\xff", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01x"} {
		if each([]byte(bad), func(string, []byte) {}) {
			t.Errorf("%q is taken", bad)
		}
	}
}
