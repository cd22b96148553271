package target

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"throng/sim/client"
	"throng/sim/history"
	"throng/sim/target/wan"
	"throng/system"
	"throng/system/placement"
	"throng/system/wire"
)

// farGateway has gateway/1 and more in a zone of its own.
func farGateway(oneWay time.Duration, more ...string) Zones {
	return Zones{
		Zones: []Zone{{Name: "near", Region: "eu"}, {Name: "far", Region: "us", Has: append([]string{"gateway/1"}, more...)}},
		Links: []ZoneLink{{A: "far", B: "near", Delay: oneWay}},
	}
}

func TestRoutes(t *testing.T) {
	ports := 0
	z := farGateway(40*time.Millisecond, "group/1", "mysql/2")
	r := NewRoutes(z, func() (string, error) { ports++; return fmt.Sprintf("wan:%d", ports), nil })
	cfg := system.Config{
		Gateways: []system.GatewayInstance{{Listen: "g0:1"}, {Listen: "g1:1"}},
		Messages: []system.RPCInstance{{RPC: "m0:1"}},
		Groups:   []system.GroupInstance{{RPC: "gr0:1"}, {RPC: "gr1:1"}},
		Inboxes:  []system.InboxInstance{{RPC: "i0:1"}},
		Pushes:   []system.RPCInstance{{RPC: "p0:1"}},
		Kafka:    system.Kafka{Brokers: []string{"k0:1"}},
		Redis:    system.Redis{Addr: "r:1"},
		GroupSQL: system.GroupSQL{Replicas: make([]system.SQLReplica, 2)},
	}
	z.Place(&cfg)
	if cfg.Groups[0].Zone != "near" || cfg.Groups[1].Region != "us" || cfg.GroupSQL.Zone != "near" || cfg.GroupSQL.Replicas[0].Zone != "near" || cfg.GroupSQL.Replicas[1].Zone != "far" {
		t.Errorf("places %+v %+v", cfg.Groups, cfg.GroupSQL)
	}
	near, err := r.Config(cfg, system.Gateway, 0)
	if err != nil || near.Groups[1].RPC != "wan:1" || near.Groups[0].RPC != "gr0:1" || near.Redis.Addr != "r:1" || near.Kafka.Via != nil {
		t.Errorf("near: %+v, %v", near, err)
	}
	far, err := r.Config(cfg, system.Gateway, 1)
	if err != nil || far.Gateways[1].Listen != "g1:1" || far.Groups[1].RPC != "gr1:1" || far.Kafka.Brokers[0] != "k0:1" {
		t.Errorf("far: %+v, %v", far, err)
	}
	own, err := r.Config(cfg, system.Group, 1)
	if err != nil || own.Groups[1].RPC != "gr1:1" {
		t.Errorf("it listens where it is: %+v, %v", own.Groups, err)
	}
	reached := map[string]string{}
	for _, l := range r.Links() {
		reached[l.Listen] = l.Addr + " from " + l.From
		if l.Delay != system.Duration(40*time.Millisecond) || l.From == l.To {
			t.Errorf("link %+v", l)
		}
	}
	for addr, want := range map[string]string{
		far.Messages[0].RPC: "m0:1 from far", far.Groups[0].RPC: "gr0:1 from far", far.Inboxes[0].RPC: "i0:1 from far", far.Pushes[0].RPC: "p0:1 from far",
		far.Redis.Addr: "r:1 from far", far.Kafka.Via["k0:1"]: "k0:1 from far", near.Groups[1].RPC: "gr1:1 from near", own.Redis.Addr: "r:1 from far",
	} {
		if reached[addr] != want {
			t.Errorf("%q leads to %q, want %q", addr, reached[addr], want)
		}
	}
	if n := len(r.Links()); n != 7 { // one for each endpoint and zone, whoever asks
		t.Errorf("%d proxies: %+v", n, r.Links())
	}
	if cfg.Kafka.Via != nil || cfg.Messages[0].RPC != "m0:1" {
		t.Errorf("the deployment itself was changed: %+v", cfg)
	}
	none := errors.New("no port")
	if _, err := NewRoutes(z, func() (string, error) { return "", none }).Config(cfg, system.Gateway, 1); !errors.Is(err, none) {
		t.Error(err)
	}
	if addr, err := NewRoutes(Zones{}, nil).Addr("gateway", 1, "redis", 0, "r:1"); addr != "r:1" || err != nil {
		t.Errorf("without zones: %s, %v", addr, err)
	}
}

// TestZonesEmbedded: a send from the gateway that is far takes the way there and
// back at least, to the message service and on to a gateway of the receiver;
// near it does not. Every process goes on when the proxies are killed.
func TestZonesEmbedded(t *testing.T) {
	const oneWay = 50 * time.Millisecond
	top := small()
	top.Gateways, top.Groups = 2, 2
	e := newTestEmbedded(t, top, nil)
	e.cfg.Zones = farGateway(oneWay, "group/1")
	startEmbedded(t, e)
	groups := groupsOfBoth()
	provisionUsers(t, e, 4, groups...)

	near, fromNear := login(t, e, 0, 1)
	far, fromFar := login(t, e, 1, 2)
	// took sends as the first message of a conversation, and returns the time
	// until Sent and until the other has it.
	message := uint64(0)
	took := func(c *client.Conn, from, to *inbox, s *wire.Send) (sent, delivered time.Duration) {
		t.Helper()
		message++
		s.ClientMsgId, s.Body = message, fmt.Appendf(nil, "message %d", message)
		start := time.Now()
		say(t, c, from, s)
		sent = time.Since(start)
		hear(t, to, string(s.Body))
		return sent, time.Since(start)
	}
	sentNear, _ := took(near, fromNear, fromFar, &wire.Send{User: 2})
	sentFar, _ := took(far, fromFar, fromNear, &wire.Send{User: 1})
	if sentFar < 2*oneWay {
		t.Errorf("a send from afar took %s, less than the way there and back", sentFar)
	}
	if sentNear >= sentFar {
		t.Errorf("a send from near took %s, from afar %s", sentNear, sentFar)
	}
	// A group that group/1 looks after: the far gateway, there and back; the
	// message service to ask group/1, there and back; Redis and Kafka are near.
	sent, delivered := took(far, fromFar, fromNear, &wire.Send{Group: groups[1].Group})
	if sent < 4*oneWay || delivered < 5*oneWay {
		t.Errorf("a send from afar to a group that is looked after afar took %s, %s until delivered; want 4 and 5 ways of %s", sent, delivered, oneWay)
	}
	sent, _ = took(near, fromNear, fromFar, &wire.Send{Group: groups[1].Group})
	if sent < 2*oneWay {
		t.Errorf("a send from near to a group that is looked after afar took %s", sent)
	}
	carried(t, e)
	if err := e.Kill(roleWAN, 0); err != nil {
		t.Fatal(err)
	}
	if err := e.Restart(roleWAN, 0); err != nil {
		t.Fatal(err)
	}
	if err := e.WaitReady(within(t, 20*time.Second), roleWAN, 0); err != nil {
		t.Fatal(err)
	}
	c, b := login(t, e, 1, 3)
	eventually(t, 20*time.Second, "the far gateway reaches the others again", func() bool {
		message++
		_ = c.Write(&wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{ClientMsgId: message, User: 4, Seq: 1, Body: []byte("again")}}})
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.ContainsFunc(b.frames, func(f *wire.Frame) bool { return f.GetSent() != nil })
	})
}

// groupsOfBoth returns a group that each of two group instances looks after.
func groupsOfBoth() []*wire.ProvisionGroup {
	var out []*wire.ProvisionGroup
	for id := uint64(1); len(out) < 2; id++ {
		if placement.GroupInstance(id, 2) == len(out) {
			out = append(out, &wire.ProvisionGroup{Group: id, Name: "both", Members: []uint64{1, 2}})
		}
	}
	return out
}

// carried checks what the proxies say, and that they are counted as a process.
func carried(t *testing.T, e *Embedded) {
	t.Helper()
	counters, err := e.Scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(counters, func(c history.CounterSample) bool { return c.Role == roleWAN })
	if i < 0 {
		t.Fatal("the proxies have no counters")
	}
	for _, name := range []string{`throng_wan_bytes_total{from="far",to="near"}`, `throng_wan_bytes_total{from="near",to="far"}`, "process_cpu_seconds_total"} {
		if counters[i].Values[name] <= 0 {
			t.Errorf("%s is %v", name, counters[i].Values[name])
		}
	}
	data, err := os.ReadFile(filepath.Join(e.data.path, "wan.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cfg wan.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		t.Fatal(err)
	}
	for _, l := range cfg.Links {
		if l.From == "far" && strings.HasSuffix(l.Addr, e.sys.Kafka.Brokers[0]) {
			return
		}
	}
	t.Errorf("no proxy for Kafka: %+v", cfg.Links)
}
