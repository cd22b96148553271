package containers

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"throng/sim/target"
	"throng/sim/target/infra"
	"throng/system"
)

// childEnv makes this test binary behave like the harness's own: it is the
// content of the roles' image and the reaper.
const childEnv = "THRONG_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "1" && len(os.Args) > 1 {
		ctx := context.Background()
		switch os.Args[1] {
		case "chatd":
			os.Exit(system.Main(ctx, os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		case "embedded":
			os.Exit(infra.Main(ctx, os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		case "containers":
			os.Exit(Main(ctx, os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		case "harness":
			os.Exit(helperHarness())
		case "generator":
			os.Exit(helperGenerator(os.Args[2]))
		}
	}
	goleak.VerifyTestMain(m)
}

// needDocker skips a test, loudly, where it was not asked for. THRONG_DOCKER=1
// asks for it: then a daemon or an image that is missing is a failure. go test
// shows nothing of a package that passes, so make test says it as well.
func needDocker(t *testing.T) {
	t.Helper()
	reason := ""
	switch {
	case os.Getenv("THRONG_DOCKER") != "1":
		reason = "it needs Docker and the images: THRONG_DOCKER=1, make test-containers"
	case testing.Short():
		reason = "-short leaves it out"
	default:
		return
	}
	fmt.Fprintf(os.Stderr, "NOT RUN: %s: %s\n", t.Name(), reason)
	t.Skip(reason)
}

func small() target.Topology {
	return target.Topology{Gateways: 1, Messages: 1, Fanouts: 1, Groups: 1, Inboxes: 1, Pushes: 1, Partitions: 4}
}

func testConfig(t *testing.T) Config {
	t.Helper()
	return Config{Topology: small(), Images: ImagesFromEnv(os.Getenv), Env: []string{childEnv + "=1"}, LogDir: t.TempDir(),
		Settings: system.Settings{PushDelay: system.Duration(200 * time.Millisecond)}}
}

func start(t *testing.T, cfg Config) *Deployment {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dumpLogs(t, d)
		}
		if err := d.Close(context.Background()); err != nil {
			t.Error(err)
		}
		nothingLeft(t, d.Run())
	})
	return d
}

func dumpLogs(t *testing.T, d *Deployment) {
	t.Helper()
	for _, m := range d.members {
		t.Logf("%s%s", m.name(), m.logTail(context.Background()))
	}
}

// nothingLeft checks that the daemon has nothing of a run.
func nothingLeft(t *testing.T, run string) {
	t.Helper()
	if n := leftovers(t, run); n != 0 {
		t.Errorf("%d containers and networks of run %s are left", n, run)
	}
}

func leftovers(t *testing.T, run string) int {
	t.Helper()
	p, err := connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Client().Close()
	n, err := countRun(context.Background(), p.Client(), run)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", d, what)
		case <-tick.C:
		}
	}
}

// watched closes seen when a line begins with what at matches.
type watched struct {
	mu   sync.Mutex
	buf  strings.Builder
	at   *regexp.Regexp
	seen chan struct{}
	done bool
}

func watch(at string) *watched {
	return &watched{at: regexp.MustCompile("(?m)^" + at), seen: make(chan struct{})}
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if !w.done && w.at.MatchString(w.buf.String()) {
		w.done = true
		close(w.seen)
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
