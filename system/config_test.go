package system

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func single(t *testing.T) Config {
	t.Helper()
	cfg, err := SingleNode{Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Debug: "127.0.0.1:0", Data: t.TempDir(),
		Kafka: "127.0.0.1:9092", Redis: "127.0.0.1:6379", Provider: "http://127.0.0.1:9000"}.Config()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestConfigSurvivesTheFile(t *testing.T) {
	cfg := single(t)
	cfg.Settings.PushDelay = Duration(1500 * time.Millisecond)
	cfg.GroupSQL.Replicas = []SQLReplica{{DSN: "copy.db", Zone: "far"}}
	data, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseConfig("t.json", data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.MarshalIndent(back, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, again) {
		t.Errorf("written\n%s\nread back\n%s", data, again)
	}
}

func TestConfigErrorsSayWhere(t *testing.T) {
	good, err := json.MarshalIndent(single(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, old, new, want string }{
		{"unknown field", `"kafka": {`, `"kafca": {`, `there is no field "kafca"`},
		{"wrong type", `"partitions": 16`, `"partitions": "many"`, "field kafka.partitions: string where a int belongs"},
		{"out of range", `"partitions": 16`, `"partitions": 0`, "kafka.partitions: 0 is not in 1.."},
		{"no host", `"rpc": "127.0.0.1:0"`, `"rpc": "here"`, `messages[0].rpc: "here" is not host:port`},
		{"driver", `"driver": "sqlite"`, `"driver": "oracle"`, "sql.driver"},
		{"replica", `"group_sql": {`, `"group_sql": {"replicas": [{"zone": "far"}],`, "group_sql.replicas[0].dsn"},
		{"half of TLS", `"gateways": [
    {`, `"gateways": [
    {"tls_cert": "a.pem",`, "gateways[0]: tls_cert and tls_key go together"},
		{"syntax", `"partitions": 16`, `"partitions": 16,`, "not JSON"},
		{"plant", `"key":`, `"plant": "weed", "key":`, `plant: "weed": allowed are`},
		{"short key", `"key": "`, `"key": "YQ==", "plant": "`, "signing key has 1 bytes"},
		{"duration", `"settings": {`, `"settings": {"ack_timeout": "2 seconds"`, "write it like 2s"},
		{"negative", `"settings": {`, `"settings": {"ack_timeout": "-2s"`, "is negative"},
		{"negative number", `"settings": {`, `"settings": {"device_rows": -1`, "settings.device_rows: -1 is negative"},
		{"less than none", `"settings": {`, `"settings": {"user_send_burst": -2`, "settings.user_send_burst: -2: -1 is no limit"},
		{"proxy", `"settings": {`, `"settings": {"trusted_proxies": ["lb.example"]`, `settings: trusted_proxies: "lb.example" is neither`},
		{"exempt", `"settings": {`, `"settings": {"exempt_addresses": ["none", "::1"]`, `"none" alone stands for nobody`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := strings.Replace(string(good), tc.old, tc.new, 1)
			if data == string(good) {
				t.Fatalf("nothing to replace: %s", tc.old)
			}
			_, err := ParseConfig("t.json", []byte(data))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.HasPrefix(err.Error(), "t.json:") || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q lacks %q", err, tc.want)
			}
		})
	}
	if _, err := ParseConfig("t.json", append(good, "{}"...)); err == nil {
		t.Error("a second value was accepted")
	}
}

func TestConfigFindsAnAddressUsedTwice(t *testing.T) {
	cfg := single(t)
	cfg.Pushes[0].RPC = "127.0.0.1:7000"
	cfg.Inboxes[0].Debug = "127.0.0.1:7000"
	err := cfg.Check()
	if err == nil || !strings.Contains(err.Error(), "pushes[0].rpc: 127.0.0.1:7000 is the address of inboxes[0].debug already") {
		t.Errorf("got %v", err)
	}
}

func TestSingleNodeKeepsItsKey(t *testing.T) {
	s := SingleNode{Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Debug: "127.0.0.1:0", Data: filepath.Join(t.TempDir(), "new"),
		Kafka: "127.0.0.1:9092", Redis: "127.0.0.1:6379", Provider: "http://127.0.0.1:9000"}
	first, err := s.Config()
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Config()
	if err != nil {
		t.Fatal(err)
	}
	if first.Key != second.Key {
		t.Error("a second start has another key: every token of the first is void")
	}
	info, err := os.Stat(filepath.Join(s.Data, "key"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key is readable: %v", info.Mode())
	}
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"--help", ExitOK, "Exit codes"},
		{"gateway --help", ExitOK, "--topology"},
		{"", ExitUsage, "which role?"},
		{"gatewy", ExitUsage, "unknown command"},
		{"gateway --instances 1", ExitUsage, "unknown flag"},
		{"gateway", ExitConfig, "--topology is needed"},
		{"all", ExitConfig, "--data is needed"},
		{"inbox --topology " + bad, ExitConfig, "gateways: at least one instance is needed"},
		{"inbox --topology " + filepath.Join(dir, "none.json"), ExitConfig, "no such file"},
	} {
		var out bytes.Buffer
		if code := Main(t.Context(), strings.Fields(tc.args), strings.NewReader(""), &out, &out); code != tc.code {
			t.Errorf("chatd %s: exit code %d, want %d", tc.args, code, tc.code)
		}
		if !strings.Contains(out.String(), tc.says) {
			t.Errorf("chatd %s: %q is not in:\n%s", tc.args, tc.says, out.String())
		}
	}
}

func TestRunCommandEndsWithItsParent(t *testing.T) {
	stdin, parent, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	running, release := make(chan struct{}), make(chan struct{})
	ended := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		result <- RunCommand(t.Context(), stdin, true, func(context.Context) error {
			defer close(ended)
			close(running)
			<-release // does not react to its context
			return nil
		})
	}()
	<-running
	select {
	case err := <-result:
		t.Fatalf("ended before its parent: %v", err)
	default:
	}
	parent.Close()
	if code := ExitCode(<-result, &bytes.Buffer{}); code != ExitOrphaned {
		t.Errorf("exit code %d, want %d", code, ExitOrphaned)
	}
	close(release)
	<-ended
}
