package external

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"throng/sim/scenario"
	"throng/sim/target"
	"throng/system/wire"
)

const testKey = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=" // 32 times k

func load(t *testing.T, content string, env map[string]string) (*File, error) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"target.yaml": content, "key": testKey + "\n", "short": "c2hvcnQ=", "tokens": "# user device token\n7 0 seven\n7 1 seven-web\n", "bad-tokens": "7 zero x\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Load(filepath.Join(dir, "target.yaml"), func(name string) string { return env[name] })
}

func TestLoad(t *testing.T) {
	f, err := load(t, `
name: staging
gateways: ["ws://10.1.2.3:80", "wss://chat.example.org"]
allow_load: true
max_sends_per_s: 2500
versions: {kafka: 4.1.0, mysql: "9.4"}
key_env: STAGING_KEY
provisioning_url: https://groups.example.org:9000
pushes_url: http://10.1.2.4:80
partitions: 16
cpu: true
instances:
  - {role: fanout, instance: 0, metrics: "http://10.1.2.5:9100/metrics", kill: [ssh, host-5, "kill -9 fanout"], restart: [ssh, host-5, start]}
  - {role: gateway, metrics: "http://10.1.2.3:9100/metrics"}
`, map[string]string{"STAGING_KEY": testKey})
	if err != nil {
		t.Fatal(err)
	}
	if f.Name != "staging" || f.Generation != -1 || len(f.Gateways) != 2 || f.MaxSendsPerS != 2500 || f.Key.String() != testKey || f.Versions["mysql"] != "9.4" ||
		len(f.Instances) != 2 || f.Instances[0].Kill[2] != "kill -9 fanout" || f.Instances[1].Role != "gateway" {
		t.Errorf("%+v", f)
	}
	x := New(f)
	if c := x.Capabilities(); c != (target.Capabilities{Kill: true, Metrics: true, CPU: true, Pushes: true}) {
		t.Errorf("capabilities %+v", c)
	}
	if watched, n := x.Log(); !watched || n != 16 {
		t.Errorf("log watched %v, %d partitions", watched, n)
	}
	if !x.CanKill("fanout", 0) || x.CanKill("gateway", 0) || x.CanKill("fanout", 1) {
		t.Error("kill is for fanout/0 alone")
	}
}

func TestLoadSmallest(t *testing.T) {
	f, err := load(t, "gateways: [\"ws://localhost:8080\"]\ntokens_file: tokens\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	x := New(f)
	if f.Name != "target" || f.Generation != 0 || f.MaxSendsPerS != DefaultMaxSendsPerS || x.Capabilities() != (target.Capabilities{}) {
		t.Errorf("%+v, %+v", f, x.Capabilities())
	}
	if watched, n := x.Log(); watched || n != -1 {
		t.Errorf("log watched %v, %d partitions", watched, n)
	}
	if token, err := x.Token(7, 1); err != nil || token != "seven-web" {
		t.Errorf("token %q, %v", token, err)
	}
	if _, err := x.Token(8, 0); err == nil || !strings.Contains(err.Error(), "user 8 device 0") {
		t.Errorf("token of user 8: %v", err)
	}
	if _, err := x.Provision(t.Context(), func() (*wire.Provision, error) { return nil, io.EOF }); err == nil {
		t.Error("provisioned without provisioning_url")
	}
	if _, err := x.ChangeMembers(t.Context(), &wire.MembershipChange{}); err == nil {
		t.Error("changed members without provisioning_url")
	}
	if err := x.Kill("fanout", 0); err == nil {
		t.Error("killed without a command")
	}
}

// The example in the README is a target file.
func TestExampleOfTheREADME(t *testing.T) {
	data, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "```yaml\ngateways:")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("there is no example")
	}
	f, err := load(t, "gateways:"+example, map[string]string{"STAGING_KEY": testKey})
	if err != nil {
		t.Fatal(err)
	}
	if c := New(f).Capabilities(); c != (target.Capabilities{Kill: true, Metrics: true, CPU: true, Pushes: true}) {
		t.Errorf("%+v", c)
	}
}

// Each mistake has its place, its field and what is allowed.
func TestMistakes(t *testing.T) {
	const ok = "gateways: [\"ws://127.0.0.1:1\"]\nkey: " + testKey + "\n"
	for _, c := range []struct{ name, content, want string }{
		{"no YAML", "gateways: [", "allowed: YAML"},
		{"no mapping", "- 1\n", "1:1: given no mapping"},
		{"empty", "", "1:1: given no mapping"},
		{"nothing given", "name: x\n", "gateways: given nothing"},
		{"no gateway", "gateways: []\nkey: " + testKey, "1:11: gateways: given a list, allowed: a list of ws://"},
		{"unknown field", ok + "allow_laod: true\n", "3:1: allow_laod: given an unknown field, allowed: name, gateways, allow_load"},
		{"wrong scheme", "gateways: [\"http://127.0.0.1:1\"]\nkey: " + testKey, `gateways: given "http://127.0.0.1:1" at gateways[0], allowed: a list of ws://`},
		{"path", "gateways: [\"ws://127.0.0.1:1/v1/ws\"]\nkey: " + testKey, "without a path"},
		{"twice", ok + "key: " + testKey, "allowed: YAML"},
		{"no flag", ok + "allow_load: perhaps\n", `3:13: allow_load: given "perhaps", allowed: true or false`},
		{"rate", ok + "max_sends_per_s: 0\n", `3:18: max_sends_per_s: given "0", allowed: a number above 0`},
		{"no key", "gateways: [\"ws://127.0.0.1:1\"]\n", "key: given nothing for tokens, allowed: one of key, key_env, key_file, tokens_file"},
		{"two keys", ok + "key_file: key\n", "3:1: key_file: given both key and key_file"},
		{"bad key", "gateways: [\"ws://127.0.0.1:1\"]\nkey: c2hvcnQ=\n", "2:6: key: given what is no key"},
		{"key variable", "gateways: [\"ws://127.0.0.1:1\"]\nkey_env: NONESUCH\n", `2:10: key_env: given "NONESUCH", which is not set`},
		{"key file", "gateways: [\"ws://127.0.0.1:1\"]\nkey_file: nonesuch\n", `2:11: key_file: given "nonesuch": open`},
		{"short key file", "gateways: [\"ws://127.0.0.1:1\"]\nkey_file: short\n", "needs 32"},
		{"tokens", "gateways: [\"ws://127.0.0.1:1\"]\ntokens_file: bad-tokens\n", `line 1: device "zero" is no number`},
		{"no certificate", ok + "ca_file: tokens\n", `3:10: ca_file: given "tokens": it has no certificate in PEM`},
		{"admin", "gateways: [\"ws://127.0.0.1:1\"]\ntokens_file: tokens\nprovisioning_url: http://127.0.0.1:2\n", "no key to sign an administrator's token"},
		{"both", ok + "provisioning_url: http://127.0.0.1:2\nprovisioned: true\n", "provisioned: given both"},
		{"cpu", ok + "cpu: true\n", "3:1: cpu: given true without a metrics endpoint"},
		{"role", ok + "instances:\n  - {role: gatway}\n", `4:12: instances[0].role: given "gatway", allowed: one of gateway, message`},
		{"no role", ok + "instances:\n  - instance: 1\n", "instances[0].role: given nothing"},
		{"instance", ok + "instances:\n  - {role: gateway, instance: -1}\n", "instances[0].instance: given \"-1\""},
		{"only kill", ok + "instances:\n  - {role: gateway, kill: [x]}\n", "instances[0]: given only one of kill and restart"},
		{"again", ok + "instances:\n  - {role: gateway}\n  - {role: gateway}\n", "instances[1]: given gateway/0 again"},
		{"stranger", "gateways: [\"ws://10.0.0.1:1\"]\nkey: " + testKey, `1:12: gateways[0]: given "10.0.0.1", allowed: hosts of this machine`},
		{"stranger's groups", ok + "provisioning_url: http://groups.example.org:1\n", `3:1: provisioning_url: given "groups.example.org"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.content, nil)
			var list scenario.Errors
			if !errors.As(err, &list) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), testKey) {
				t.Errorf("the key is in the error: %v", err)
			}
		})
	}
}

// metrics is an endpoint whose process can be replaced.
func metrics(t *testing.T, text func() string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text()) }))
	t.Cleanup(s.Close)
	return s.URL + "/metrics"
}

func TestMeasures(t *testing.T) {
	started, records := 100.0, 7.0
	url := metrics(t, func() string {
		return fmt.Sprintf("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 1.5\n# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 4096\n"+
			"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %g\n# TYPE throng_fanout_records_total counter\nthrong_fanout_records_total %g\n", started, records)
	})
	x := New(&File{CPU: true, Instances: []Instance{{Role: "fanout", Instance: 3, Metrics: url}, {Role: "gateway", Metrics: "http://127.0.0.1:1/metrics"}, {Role: "push"}}})
	defer x.Close(t.Context())
	samples, err := x.Sample()
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != 2 || samples[0].Role != "generator" || samples[1].Role != "fanout" || samples[1].Instance != 3 || samples[1].CPUSeconds != 1.5 || samples[1].RSSBytes != 4096 {
		t.Errorf("samples %+v", samples)
	}
	for _, want := range []struct {
		started, records float64
		restart          int
	}{{100, 7, 0}, {100, 9, 0}, {200, 12, 1}} {
		started, records = want.started, want.records
		counters, err := x.Scrape(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(counters) != 1 || counters[0].Restart != want.restart || counters[0].Values["throng_fanout_records_total"] != want.records || counters[0].Values[metricRSS] != 0 {
			t.Errorf("counters %+v, want restart %d", counters, want.restart)
		}
	}
}

func TestStartNamesWhatDoesNotAnswer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	up := ln.Addr().String()
	bare := metrics(t, func() string { return "# TYPE throng_logins_total counter\nthrong_logins_total 1\n" })
	for _, c := range []struct {
		f    File
		want string
	}{
		{File{Gateways: []string{"ws://" + up}}, ""},
		{File{Gateways: []string{"ws://" + up, "ws://127.0.0.1:1"}}, "gateways[1] of t.yaml"},
		{File{Gateways: []string{"ws://" + up}, Provisioning: "http://127.0.0.1:1"}, "provisioning_url of t.yaml"},
		{File{Gateways: []string{"ws://" + up}, PushesURL: "http://127.0.0.1:1"}, "pushes_url of t.yaml"},
		{File{Gateways: []string{"ws://" + up}, Instances: []Instance{{Role: "group"}, {Role: "gateway", Metrics: "http://127.0.0.1:1/metrics"}}}, "instances[1].metrics of t.yaml"},
		{File{Gateways: []string{"ws://" + up}, CPU: true, Instances: []Instance{{Role: "gateway", Metrics: bare}}}, metricCPU},
		{File{Gateways: []string{"ws://" + up}, Instances: []Instance{{Role: "gateway", Metrics: bare}}}, ""},
	} {
		c.f.Path = "t.yaml"
		x := New(&c.f)
		err := x.Start(t.Context(), func(string) {})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.f, err, c.want)
		}
		x.Close(context.Background())
	}
}

func TestCommands(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	x := New(&File{Path: "t.yaml", Instances: []Instance{
		{Role: "fanout", Kill: []string{"touch", mark}, Restart: []string{"sh", "-c", "echo no such service >&2; exit 3"}},
		{Role: "redis", Flush: []string{"touch", mark + "-flushed"}}}})
	if err := x.Kill("fanout", 0); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the kill command did not run: %v", err)
	}
	if err := x.Restart("fanout", 0); err == nil || !strings.Contains(err.Error(), "no such service") {
		t.Errorf("restart: %v", err)
	}
	if keys, err := x.Flush("redis", 0); err != nil || keys >= 0 || !x.CanFlush("redis", 0) || x.CanFlush("fanout", 0) {
		t.Errorf("%d keys, %v", keys, err)
	}
	if _, err := os.Stat(mark + "-flushed"); err != nil {
		t.Errorf("the flush command did not run: %v", err)
	}
	if _, err := x.Flush("fanout", 0); err == nil || !strings.Contains(err.Error(), "t.yaml declares no flush command for fanout/0") {
		t.Errorf("flush: %v", err)
	}
	if err := x.Kill("fanout", 1); err == nil || !strings.Contains(err.Error(), "t.yaml declares no kill command for fanout/1") {
		t.Errorf("kill of an unknown instance: %v", err)
	}
}

func TestProvisionedIsOnlyCounted(t *testing.T) {
	batches := []*wire.Provision{{Users: make([]*wire.ProvisionUser, 3)}, {Users: make([]*wire.ProvisionUser, 2), Groups: make([]*wire.ProvisionGroup, 4)}}
	res, err := New(&File{Provisioned: true}).Provision(t.Context(), func() (*wire.Provision, error) {
		if len(batches) == 0 {
			return nil, io.EOF
		}
		p := batches[0]
		batches = batches[1:]
		return p, nil
	})
	if err != nil || res.Users != 5 || res.Groups != 4 {
		t.Errorf("%+v, %v", res, err)
	}
}
