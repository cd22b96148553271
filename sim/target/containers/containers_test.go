package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"throng/sim/history"
	"throng/sim/target"
	"throng/system"
)

func countRun(ctx context.Context, api client.APIClient, run string) (int, error) {
	mine := client.Filters{}.Add("label", labelRun+"="+run)
	list, err := api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: mine})
	if err != nil {
		return 0, err
	}
	nets, err := api.NetworkList(ctx, client.NetworkListOptions{Filters: mine})
	return len(list.Items) + len(nets.Items), err
}

// TestDeployment does everything with one deployment: each start costs a Kafka
// and two MySQLs.
func TestDeployment(t *testing.T) {
	needDocker(t)
	cfg := testConfig(t)
	cfg.Topology.Gateways, cfg.Topology.Inboxes, cfg.Topology.Medias = 2, 2, 2
	cfg.Limits = map[string]Limits{string(system.Gateway): {CPUs: 0.9, MemBytes: 512 << 20, CPUSet: "0"}, RoleS3: {MemBytes: 256 << 20}}
	events := make(chan history.Event, 64)
	cfg.OnEvent = func(e history.Event) { events <- e }
	d := start(t, cfg)
	if !t.Run("carries messages", func(t *testing.T) {
		if err := exchange(within(t, time.Minute), d, 1000); err != nil {
			t.Fatal(err)
		}
	}) {
		return
	}
	t.Run("is measured", func(t *testing.T) { measured(t, d) })
	t.Run("is limited", func(t *testing.T) { limited(t, d) })
	t.Run("generator on the network", func(t *testing.T) { generatorRuns(t, d) })
	t.Run("every part killed", func(t *testing.T) { everyPartKilled(t, d, events) })
	t.Run("media", func(t *testing.T) { mediaTravels(t, d, 2500) })
	t.Run("redis flushed", func(t *testing.T) {
		if keys, err := d.Flush(RoleRedis, 0); err != nil || keys == 0 {
			t.Fatalf("%d keys, %v", keys, err)
		}
		if keys, err := d.Flush(RoleMySQL, 0); err == nil {
			t.Fatalf("%d keys of MySQL were flushed", keys)
		}
		if err := exchange(within(t, time.Minute), d, 4000); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("infrastructure away", func(t *testing.T) { infrastructureAway(t, d) })
	t.Run("replica follows", func(t *testing.T) { replicaFollows(t, d) })
	t.Run("reads at the replica", func(t *testing.T) { readsAtReplica(t, d) })
	t.Run("crash", func(t *testing.T) { crashes(t, d, events) })
}

func measured(t *testing.T, d *Deployment) {
	samples, err := d.Sample()
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != len(d.Roles()) {
		t.Errorf("%d samples of %d containers", len(samples), len(d.Roles()))
	}
	for _, s := range samples {
		t.Logf("%-10s %d  %6.2f s  %5d MB  %d threads", s.Role, s.Instance, s.CPUSeconds, s.RSSBytes>>20, s.Threads)
		if s.CPUSeconds <= 0 || s.RSSBytes < 256<<10 || s.Threads < 1 {
			t.Errorf("sample %+v", s)
		}
	}
	// The daemon, which takes a second for each answer, says the same as the
	// files that were read.
	var wg sync.WaitGroup
	for _, m := range d.members {
		wg.Go(func() {
			asked, err1 := m.ask(t.Context())
			read, err2 := m.sample(t.Context())
			if err := errors.Join(err1, err2); err != nil {
				t.Error(err)
			}
			if diff := read.cpu - asked.cpu; diff < -2*time.Second || diff > 2*time.Second {
				t.Errorf("%s: CPU %s by its files, %s by the daemon", m.name(), read.cpu, asked.cpu)
			}
		})
	}
	wg.Wait()
	counters, err := d.Scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, c := range counters {
		for name, v := range c.Values {
			got[c.Role+" "+name] += v
		}
	}
	for name, want := range map[string]float64{
		`message throng_sends_accepted_total{kind="direct"}`: 1,
		`message throng_sends_accepted_total{kind="group"}`:  1,
		`push throng_push_accepted_total`:                    1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

func limited(t *testing.T, d *Deployment) {
	for _, c := range []struct {
		role     string
		instance int
		want     Limits
	}{{string(system.Gateway), 1, Limits{CPUs: 0.9, MemBytes: 512 << 20, CPUSet: "0"}}, {RoleS3, 0, Limits{MemBytes: 256 << 20}}} {
		m, err := d.find(c.role, c.instance)
		if err != nil {
			t.Fatal(err)
		}
		info, err := d.api.ContainerInspect(t.Context(), m.id, client.ContainerInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if h := info.Container.HostConfig; h.NanoCPUs != int64(c.want.CPUs*1e9) || h.Memory != c.want.MemBytes || h.CpusetCpus != c.want.CPUSet {
			t.Errorf("limits of %s: %+v", c.role, h.Resources)
		}
	}
}

// helperGenerator runs in a container: it attaches to the deployment and uses it.
func helperGenerator(attachment string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := func() error {
		tgt, err := Attach(attachment, nil)
		if err != nil {
			return err
		}
		if err := tgt.Start(ctx, func(s string) { fmt.Println(s) }); err != nil {
			return err
		}
		if err := exchange(ctx, tgt, 2000); err != nil {
			return err
		}
		samples, err := tgt.Sample()
		if err != nil {
			return err
		}
		own := samples[0]
		if own.Role != RoleGenerator || own.CPUSeconds <= 0 || own.CPUSeconds > 20 {
			return fmt.Errorf("own sample %+v", own)
		}
		counters, err := tgt.Scrape(ctx)
		if err != nil || len(counters) != 10 {
			return fmt.Errorf("%d roles scraped: %w", len(counters), err)
		}
		if err := tgt.Kill("push", 0); err != nil {
			return err
		}
		if err := tgt.Kill("push", 0); err == nil {
			return errors.New("what is dead was killed")
		}
		if err := tgt.Restart("push", 0); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(os.Args[3], "out"), []byte("written"), 0o644); err != nil {
			return err
		}
		return tgt.Close(ctx)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	return 7
}

func generatorRuns(t *testing.T, d *Deployment) {
	dir := t.TempDir()
	var stdout, stderr bytes.Buffer
	code, err := d.RunGenerator(t.Context(), t.Context(), GeneratorConfig{
		Args:     func(attachment string) []string { return []string{"generator", attachment, dir} },
		Writable: []string{dir}, Stdout: &stdout, Stderr: &stderr,
	})
	if err != nil || code != 7 {
		t.Fatalf("exit code %d, %v\n%s%s", code, err, &stdout, &stderr)
	}
	if !strings.HasPrefix(stdout.String(), "attached to ") {
		t.Errorf("output %q", &stdout)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(data) != "written" {
		t.Errorf("its file: %q, %v", data, err)
	}
	if roles := d.Roles(); roles[0].PID != os.Getpid() {
		t.Errorf("the generator is still %+v", roles[0])
	}
	// It is interrupted, and killed.
	soft, stop := context.WithTimeout(t.Context(), 5*time.Second) // until it handles signals
	defer stop()
	code, err = d.RunGenerator(soft, t.Context(), GeneratorConfig{
		Args:   func(string) []string { return []string{"embedded", "redis", "--listen", "0.0.0.0:7000"} },
		Stdout: &stdout, Stderr: &stderr})
	if err != nil || code != 0 {
		t.Errorf("interrupted: exit code %d, %v", code, err)
	}
	if err := d.WaitReady(within(t, 30*time.Second), "push", 0); err != nil {
		t.Error(err)
	}
}

func everyPartKilled(t *testing.T, d *Deployment, events <-chan history.Event) {
	for _, r := range d.Roles() {
		if r.Role == RoleGenerator {
			continue
		}
		before := time.Now()
		if err := d.Kill(r.Role, r.Instance); err != nil {
			t.Fatal(err)
		}
		killed := time.Since(before)
		if err := d.Kill(r.Role, r.Instance); err == nil {
			t.Errorf("%s was killed twice", r.Role)
		}
		if err := d.Restart(r.Role, r.Instance); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s/%d: killed in %s, started again after %s", r.Role, r.Instance, killed, time.Since(before))
		if err := d.Restart(r.Role, r.Instance); err == nil {
			t.Errorf("%s was started twice", r.Role)
		}
		if err := d.WaitReady(within(t, 90*time.Second), r.Role, r.Instance); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range d.Roles() {
		if r.Role == RoleGenerator {
			continue
		}
		if err := d.WaitReady(within(t, time.Minute), r.Role, r.Instance); err != nil {
			t.Fatal(err)
		}
	}
	if err := exchange(within(t, time.Minute), d, 3000); err != nil {
		t.Fatal(err)
	}
	counters, err := d.Scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if want := map[bool]int{false: 1, true: 2}[c.Role == "push"]; c.Restart != want {
			t.Errorf("%s/%d: restart %d, want %d", c.Role, c.Instance, c.Restart, want)
		}
	}
	for {
		select {
		case e := <-events:
			t.Errorf("event %+v: a kill that was asked for is no crash", e)
			continue
		default:
		}
		return
	}
}

// infrastructureAway lets users talk while a part of the infrastructure is down,
// until it is back.
func infrastructureAway(t *testing.T, d *Deployment) {
	for i, part := range []struct {
		role     string
		instance int
	}{{RoleMySQL, 0}, {RoleMySQL, 1}, {RoleKafka, 0}, {RoleRedis, 0}} {
		base := 5000 + 100*uint64(i)
		if err := provision(within(t, 30*time.Second), d, base); err != nil {
			t.Fatal(err)
		}
		if err := d.Kill(part.role, part.instance); err != nil {
			t.Fatal(err)
		}
		talked := make(chan error, 1)
		before := time.Now()
		go func() { talked <- talk(within(t, 90*time.Second), d, base) }()
		select {
		case err := <-talked:
			talked <- err
		case <-time.After(2 * time.Second):
		}
		if err := d.Restart(part.role, part.instance); err != nil {
			t.Fatal(err)
		}
		if err := <-talked; err != nil {
			t.Errorf("with %s/%d away: %v", part.role, part.instance, err)
		}
		t.Logf("with %s/%d away for 2 s the exchange took %s", part.role, part.instance, time.Since(before))
		if err := d.WaitReady(within(t, time.Minute), part.role, part.instance); err != nil {
			t.Fatal(err)
		}
	}
}

func replicaFollows(t *testing.T, d *Deployment) {
	lag, err := d.ReplicaLag(within(t, 10*time.Second), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("transactions that the replica has not applied: %d", lag)
	eventually(t, 20*time.Second, "the replica has everything", func() bool {
		lag, err := d.ReplicaLag(within(t, 10*time.Second), 1)
		return err == nil && lag == 0
	})
}

func crashes(t *testing.T, d *Deployment, events <-chan history.Event) {
	i := slices.IndexFunc(d.Roles(), func(r history.RoleInstance) bool { return r.Role == "message" })
	proc, err := os.FindProcess(d.Roles()[i].PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Kill(); err != nil { // not by Kill: nobody asked for it
		t.Fatal(err)
	}
	for _, kind := range []string{"fault", "restart"} {
		select {
		case e := <-events:
			if e.Kind != kind || !strings.Contains(e.Detail, "message/0") {
				t.Errorf("event %+v, want a %s", e, kind)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no %s", kind)
		}
	}
	if err := d.WaitReady(within(t, 30*time.Second), "message", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(d.cfg.LogDir, "message-0.log")); err != nil {
		t.Errorf("log of what crashed: %v", err)
	}
}

// helperHarness starts a deployment and says when it is ready; then it waits to
// be killed.
func helperHarness() int {
	cfg := Config{Topology: small(), Images: ImagesFromEnv(os.Getenv), Env: []string{childEnv + "=1"}, WorkDir: os.Args[2]}
	d, err := New(cfg)
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("run", d.Run())
	if err := d.Start(context.Background(), func(s string) { fmt.Println(s) }); err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("ready")
	select {}
}

func TestNothingIsLeftOfAKilledHarness(t *testing.T) {
	needDocker(t)
	for name, at := range map[string]string{"while it creates": "making", "while it starts": "redis/0 is ready", "when it is ready": "ready"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe, "harness", dir)
			cmd.Env = append(os.Environ(), childEnv+"=1")
			out := watch(at)
			cmd.Stdout, cmd.Stderr = out, os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-out.seen:
			case <-time.After(3 * time.Minute):
				t.Errorf("it never came to %q", at)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed
			run, ok := strings.CutPrefix(strings.SplitN(out.String(), "\n", 2)[0], "run ")
			if !ok {
				t.Fatalf("output %q", out)
			}
			eventually(t, 90*time.Second, "everything is removed", func() bool { return leftovers(t, run) == 0 })
			eventually(t, 30*time.Second, "the work folder is removed", func() bool {
				left, err := filepath.Glob(filepath.Join(dir, "*"))
				return err == nil && len(left) == 0
			})
			if n := leftovers(t, run); n != 0 {
				t.Errorf("%d containers and networks came to light later", n)
			}
		})
	}
}

func TestNothingIsLeftOfACancelledStart(t *testing.T) {
	needDocker(t)
	for name, at := range map[string]string{"while it creates": "making", "while it starts": "redis/0 is ready"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := New(testConfig(t))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err = d.Start(ctx, func(s string) {
				if strings.HasPrefix(s, at) {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Start: %v", err)
			}
			nothingLeft(t, d.Run())
		})
	}
}

func TestFailedStartSavesLogsAndLeavesNothing(t *testing.T) {
	needDocker(t)
	cfg := testConfig(t)
	cfg.ProviderArgs = []string{"--no-such-flag"}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = d.Start(t.Context(), func(s string) { t.Log(s) })
	if err == nil || !strings.Contains(err.Error(), "provider/0 ended") || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("Start: %v", err)
	}
	nothingLeft(t, d.Run())
	for _, name := range []string{"provider-0", "kafka-0", "mysql-1"} {
		if _, err := os.Stat(filepath.Join(cfg.LogDir, name+".log")); err != nil {
			t.Error(err)
		}
	}
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMissingImageIsSaid(t *testing.T) {
	needDocker(t)
	cfg := testConfig(t)
	cfg.Images.MySQL = "throng/no-such-image:1"
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = d.Start(t.Context(), func(string) {})
	if err == nil || !strings.Contains(err.Error(), "throng/no-such-image:1") || !strings.Contains(err.Error(), "make images") {
		t.Errorf("Start: %v", err)
	}
	if err := Available(t.Context(), cfg.Images); err == nil {
		t.Error("Available did not mind")
	}
	if err := Available(t.Context(), ImagesFromEnv(os.Getenv)); err != nil {
		t.Errorf("Available: %v", err)
	}
}

func TestStaticIsChecked(t *testing.T) {
	for _, path := range []string{"/bin/sh", "containers.go"} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkStatic(f); err == nil {
			t.Errorf("%s passes for a static binary", path)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no gateway":  func(c *Config) { c.Topology.Gateways = 0 },
		"two brokers": func(c *Config) { c.Brokers = 2 },
		"brokers apart": func(c *Config) {
			c.Brokers, c.Zones.Zones = 3, []target.Zone{{Name: "a"}, {Name: "b", Has: []string{"kafka/2"}}}
		},
	} {
		cfg := Config{Topology: small()}
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	for name, c := range map[string]struct {
		lines string
		want  *cgroup
	}{
		"v2": {"0::/system.slice/docker-abc.scope\n", &cgroup{v2: true, cpu: "/sys/fs/cgroup/system.slice/docker-abc.scope",
			memory: "/sys/fs/cgroup/system.slice/docker-abc.scope", pids: "/sys/fs/cgroup/system.slice/docker-abc.scope"}},
		"v1": {"9:memory:/docker/abc\n5:cpu,cpuacct:/docker/abc\n3:pids:/docker/abc\n0::/docker/abc\n", &cgroup{
			cpu: "/sys/fs/cgroup/cpuacct/docker/abc", memory: "/sys/fs/cgroup/memory/docker/abc", pids: "/sys/fs/cgroup/pids/docker/abc"}},
		"another's": {"0::/\n", nil},
		"half":      {"5:cpu,cpuacct:/docker/abc\n", nil},
	} {
		got := parseCgroup(c.lines, "abc")
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestPropertiesOfThreeBrokers(t *testing.T) {
	d := &Deployment{cfg: Config{Brokers: 3, Topology: target.Topology{Partitions: 4}}}
	got := d.brokerProperties(1, "127.0.0.1:15999")
	for _, line := range []string{"node.id=2", "min.insync.replicas=2", "default.replication.factor=3",
		"advertised.listeners=INSIDE://kafka-1:9092,HOST://127.0.0.1:15999",
		"controller.quorum.voters=1@kafka-0:9093,2@kafka-1:9093,3@kafka-2:9093"} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("%s is missing in\n%s", line, got)
		}
	}
}
