package system_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/protobuf/encoding/protowire"

	"throng/system"
	"throng/system/wire"
)

// infrastructure is a broker, a Redis and a push provider in this process.
type infrastructure struct {
	kafka    string
	redis    string
	provider *provider
}

const partitions = 4

func startInfrastructure(t *testing.T) *infrastructure {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "groups"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	redis := miniredis.NewMiniRedis()
	if err := redis.StartAddr("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redis.Close)
	return &infrastructure{kafka: cluster.ListenAddrs()[0], redis: redis.Addr(), provider: startProvider(t)}
}

// counts is the number of instances of each role.
type counts struct{ gateways, messages, fanouts, groups, inboxes, pushes int }

// topology returns a deployment on this infrastructure, on ports that addr gives.
func (in *infrastructure) topology(t *testing.T, n counts, addr func() string) system.Config {
	t.Helper()
	dir := t.TempDir()
	key := make(wire.Key, wire.MinKeyBytes)
	copy(key, "a key for tests alone, not secret")
	cfg := system.Config{
		Kafka:    system.Kafka{Brokers: []string{in.kafka}, Topic: "groups", Partitions: partitions},
		Redis:    system.Redis{Addr: in.redis},
		GroupSQL: system.GroupSQL{SQL: system.SQL{Driver: "sqlite", DSN: filepath.Join(dir, "groups.db")}},
		Provider: system.Provider{URL: in.provider.url, DeadLetters: dir},
		Key:      key.String(),
		Log:      system.Log{Level: "info"},
		Settings: system.Settings{PushDelay: system.Duration(200 * time.Millisecond)},
	}
	for range n.gateways {
		cfg.Gateways = append(cfg.Gateways, system.GatewayInstance{Listen: addr(), Debug: addr()})
	}
	for range n.messages {
		cfg.Messages = append(cfg.Messages, system.RPCInstance{RPC: addr(), Debug: addr()})
	}
	for range n.fanouts {
		cfg.Fanouts = append(cfg.Fanouts, system.FanoutInstance{Debug: addr()})
	}
	for range n.groups {
		cfg.Groups = append(cfg.Groups, system.GroupInstance{RPC: addr(), HTTP: addr(), Debug: addr()})
	}
	for i := range n.inboxes {
		cfg.Inboxes = append(cfg.Inboxes, system.InboxInstance{RPC: addr(), Debug: addr(),
			SQL: system.SQL{Driver: "sqlite", DSN: filepath.Join(dir, fmt.Sprintf("inbox-%d.db", i))}})
	}
	for range n.pushes {
		cfg.Pushes = append(cfg.Pushes, system.RPCInstance{RPC: addr(), Debug: addr()})
	}
	return cfg
}

// deployment is a running backend as a client and an administrator see it.
type deployment struct {
	t   *testing.T
	cfg system.Config // with the addresses that were taken
	key wire.Key
	in  *infrastructure
}

// startAll runs every role in this process, with what edit changes of the
// topology.
func startAll(t *testing.T, n counts, edit ...func(*system.Config)) *deployment {
	t.Helper()
	in := startInfrastructure(t)
	cfg := in.topology(t, n, func() string { return "127.0.0.1:0" })
	for _, f := range edit {
		f(&cfg)
	}
	log := &logs{}
	p, err := system.Start(t.Context(), cfg, system.All, 0, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("the backend failed: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the backend:\n%s", log.tail(100))
		}
	})
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.Ready() != nil {
		select {
		case <-p.Done():
			t.Fatalf("the backend ended: %v", p.Wait())
		case <-deadline.C:
			t.Fatalf("the backend is not ready: %v", p.Ready())
		case <-tick.C:
		}
	}
	return describe(t, p.Addrs(), in)
}

func describe(t *testing.T, cfg system.Config, in *infrastructure) *deployment {
	t.Helper()
	key, err := wire.ParseKey(cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &deployment{t: t, cfg: cfg, key: key, in: in}
}

// logs collects the log of a process.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(l.buf.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (d *deployment) gateways() []string {
	var out []string
	for _, g := range d.cfg.Gateways {
		out = append(out, g.Listen)
	}
	return out
}

// dial connects a device.
func (d *deployment) dial(user uint64, number uint32) *device {
	d.t.Helper()
	return dial(d.t, d.gateways(), d.key, user, number)
}

// admin posts to the provisioning API.
func (d *deployment) admin(path string, body []byte, into interface{ UnmarshalVT([]byte) error }) {
	d.t.Helper()
	token, err := d.key.Sign(wire.Claims{Admin: true, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.cfg.Groups[0].HTTP+path, bytes.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/x-protobuf")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		d.t.Fatalf("%s: %s: %s", path, resp.Status, answer)
	}
	if err := into.UnmarshalVT(answer); err != nil {
		d.t.Fatal(err)
	}
}

// provision creates users 1..users, each with that many devices (the first has
// a push token), and groups.
func (d *deployment) provision(users, devices int, groups map[uint64][]uint64) {
	d.t.Helper()
	p := &wire.Provision{}
	for u := 1; u <= users; u++ {
		pu := &wire.ProvisionUser{User: uint64(u)}
		for n := range devices {
			token := ""
			if n == 0 {
				token = fmt.Sprintf("token-%d", u)
			}
			pu.Devices = append(pu.Devices, &wire.ProvisionDevice{Device: uint32(n), PushToken: token})
		}
		p.Users = append(p.Users, pu)
	}
	for g, members := range groups {
		p.Groups = append(p.Groups, &wire.ProvisionGroup{Group: g, Name: fmt.Sprintf("group %d", g), Members: members})
	}
	data, err := p.MarshalVT()
	if err != nil {
		d.t.Fatal(err)
	}
	res := &wire.ProvisionResult{}
	d.admin("/admin/v1/provision", protowire.AppendBytes(nil, data), res)
	if res.Users != uint64(users) || res.Groups != uint64(len(groups)) {
		d.t.Fatalf("provisioned %d users and %d groups, want %d and %d", res.Users, res.Groups, users, len(groups))
	}
}

// provisionTokens gives the first devices of users push tokens.
func (d *deployment) provisionTokens(tokens map[uint64]string) {
	d.t.Helper()
	p := &wire.Provision{}
	for u, token := range tokens {
		p.Users = append(p.Users, &wire.ProvisionUser{User: u, Devices: []*wire.ProvisionDevice{{PushToken: token}}})
	}
	data, err := p.MarshalVT()
	if err != nil {
		d.t.Fatal(err)
	}
	d.admin("/admin/v1/provision", protowire.AppendBytes(nil, data), &wire.ProvisionResult{})
}

func (d *deployment) changeMembers(group uint64, add, remove []uint64) *wire.MembershipResult {
	d.t.Helper()
	data, err := (&wire.MembershipChange{Group: group, Add: add, Remove: remove}).MarshalVT()
	if err != nil {
		d.t.Fatal(err)
	}
	res := &wire.MembershipResult{}
	d.admin("/admin/v1/members", data, res)
	return res
}

// childEnv makes this test binary a process of the backend.
const childEnv = "THRONG_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "1" {
		os.Exit(system.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	verifyNoLeaks(m)
}

// freePort returns an address that nobody listens on at the moment, outside
// the range of client sockets. As in sim/target, whose tests run at the same
// time, holding the UDP port of that number claims it until the test ends, also
// while the process that listens there is dead.
func freePort(t *testing.T) func() string {
	next := 20_000 + rand.IntN(8_000)
	return func() string {
		for ; next < 32_000; next++ {
			addr := fmt.Sprintf("127.0.0.1:%d", next)
			claim, err := net.ListenPacket("udp", addr)
			if err != nil {
				continue
			}
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				claim.Close()
				continue
			}
			t.Cleanup(func() { claim.Close() })
			next++
			ln.Close()
			return addr
		}
		t.Fatal("no free port")
		return ""
	}
}
