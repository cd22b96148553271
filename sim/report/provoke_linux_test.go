package report

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/load/roundtrip"
	"throng/sim/report/runtest"
)

// provokes makes the test binary a generator that is short of what it names.
const provokes = "THRONG_TEST_PROVOKE"

// short is what such a generator recorded.
type short struct {
	Rig     []history.Rig
	LateP99 float64 // µs, in its steady phase
}

// Each cause is provoked on a generator that plays, in a process of its own: the
// run is inconclusive, says which, and gives no capacity. Steal is the hypervisor's and
// a step of the clock would be everybody's: sim/rig tests both from what the
// machine would say.
func TestProvoked(t *testing.T) {
	computes(t)
	if r := judged(t, brief(t, onOtherMachine)); r.Verdict != Pass || len(r.Capacity) == 0 {
		t.Fatalf("with nothing provoked: %s, %q, a plan of %d rows", r.Verdict, r.Reasons, len(r.Capacity))
	}
	gateway := httptest.NewServer(roundtrip.NewGateway())
	defer gateway.Close()
	var names []string
	var checks []func(*testing.T)
	for _, c := range []struct {
		cause string
		ownIP bool // in a network namespace of its own
		says  []string
	}{
		{"files", false, []string{"agent 1 ran out of open files: "}},
		{"ports", true, []string{"agent 1 ran out of local ports: "}},
		{"cpu", false, []string{"the machine of agent 1 was busy for "}},
		{"collector", false, []string{"garbage collection stopped agent 1 for up to "}},
		{"network", true, []string{"the machine of agent 1 sent ", " of its TCP segments again", "full socket buffers and queues of agent 1's machine dropped "}},
		{"stopped", false, []string{"the generator was ", " late at p99, limit 10 ms"}},
	} {
		// All at once: each takes ten seconds, and does little in them.
		await := provoke(t, c.cause, c.ownIP, gateway.Listener.Addr().String())
		checks = append(checks, func(t *testing.T) {
			s := await(t)
			late := 0.0
			if c.cause == "stopped" { // the others are judged without their lateness, which would do alone
				late = s.LateP99
			}
			run, err := history.Open(brief(t, func(o *runtest.Options) { onOtherMachine(o); o.LateUs = late }))
			if err != nil {
				t.Fatal(err)
			}
			phase, _ := gatedPhase(run)
			if c.cause == "stopped" {
				s.Rig = nil
			}
			// It was short all the time, and rows of a starved process come when they can.
			for i, row := range s.Rig[min(len(s.Rig), 1):] {
				row.T, row.Instance = phase.Start+float64(i+1), 1
				run.Rig = append(run.Rig, row)
			}
			r := evaluate(run, readTerms(&run.Manifest))
			text := r.markdown()
			t.Logf("%s: %s", r.Verdict, strings.Join(r.Reasons, "; "))
			if r.Verdict != Inconclusive || len(r.Capacity) != 0 || !strings.Contains(text, "No capacity estimate: the generator was the limit: ") {
				t.Errorf("%s, a plan of %d rows, says:\n%s", r.Verdict, len(r.Capacity), text)
			}
			for _, want := range c.says {
				if !strings.Contains(strings.Join(r.Reasons, "\n"), want) {
					t.Errorf("it does not say %q but %q", want, r.Reasons)
				}
			}
		})
		names = append(names, c.cause)
	}
	for i, check := range checks {
		t.Run(names[i], check)
	}
}

// onOtherMachine lets the load come from a machine that carries nothing else.
func onOtherMachine(o *runtest.Options) {
	o.Edit = func(m *history.Manifest, _ *history.Audit) bool {
		m.Target = "external"
		m.Agents = []history.Agent{{Number: 1, Host: "a", SameClock: true, LateP99Ms: 1, Actions: 10}}
		return true
	}
}

// provoke starts a generator that is short of something, and returns what waits
// for its end.
func provoke(t *testing.T, cause string, ownIP bool, gateway string) func(*testing.T) short {
	t.Helper()
	result := filepath.Join(t.TempDir(), "short.json")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestShortGenerator$")
	cmd.Env = append(os.Environ(), provokes+"="+strings.Join([]string{cause, gateway, result}, " "))
	if ownIP {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	}
	said := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	refused := cmd.Start()
	if refused != nil && !ownIP {
		t.Fatal(refused)
	}
	if refused == nil {
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) // where nothing waits for it any more
	}
	return func(t *testing.T) (s short) {
		t.Helper()
		if refused != nil {
			t.Skipf("this process may not make a network namespace: %v", refused)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		data, err := os.ReadFile(result)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// TestShortGenerator is the generator of TestProvoked.
func TestShortGenerator(t *testing.T) {
	args := strings.Fields(os.Getenv(provokes))
	if len(args) != 3 {
		t.Skip("TestProvoked starts it")
	}
	cause, gateway, result := args[0], args[1], args[2]
	spool, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	if cause == "ports" || cause == "network" {
		if err := loopbackUp(); err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(roundtrip.NewGateway())
		gateway = server.Listener.Addr().String() // ends with the process
	}
	relieve := func() error { return nil } // after the steady phase: what is left to prove takes long else
	switch cause {
	case "files":
		var all unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &all); err != nil {
			t.Fatal(err)
		}
		relieve = func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &all) }
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: all.Max})
	case "ports": // for each of the addresses that the load comes from
		const ports = "/proc/sys/net/ipv4/ip_local_port_range"
		relieve = func() error { return os.WriteFile(ports, []byte("40000 60999"), 0) }
		err = os.WriteFile(ports, []byte("40000 40003"), 0)
	case "cpu":
		useCPU(t.Context())
	case "collector":
		collect(t.Context())
	case "network":
		err = overflow(t.Context())
	case "stopped": // for 2 s in every 4
		err = exec.Command("sh", "-c", fmt.Sprintf("while sleep 2 && kill -STOP %[1]d; do sleep 2; kill -CONT %[1]d; done", os.Getpid())).Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	played, err := roundtrip.Play(t.Context(), roundtrip.Work{Gateway: "ws://" + gateway, Users: 200, RampS: 2, SteadyS: 4, Spool: spool,
		Progress: func(p load.Progress) {
			if p.Second.Phase == "settle" {
				if err := relieve(); err != nil {
					t.Error(err)
				}
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(short{Rig: played.Rig, LateP99: float64(played.Late.ValueAtQuantile(99))})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(result, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// useCPU takes all of the machine's CPUs.
func useCPU(ctx context.Context) {
	for range runtime.NumCPU() {
		go func() {
			for ctx.Err() == nil {
			}
		}()
	}
}

// collect collects garbage all the time, beside copies of memory that cannot be
// interrupted and take longer than the generator may be late.
func collect(ctx context.Context) {
	runtime.GOMAXPROCS(max(2, runtime.NumCPU()))
	for _, f := range []func(){runtime.GC, func() { b := make([]byte, 256<<20); copy(b[1:], b) }} {
		go func() {
			for ctx.Err() == nil {
				f()
			}
		}()
	}
}

// overflow connects to a listener that accepts nobody, again and again: its queue
// drops what does not fit, which is sent again.
func overflow(ctx context.Context) error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(l, 1); err != nil {
		return err
	}
	at, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	go func() {
		for tick := time.NewTicker(500 * time.Millisecond); ; {
			for range 100 {
				c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					break // they are enough
				}
				_ = unix.Connect(c, at) // in progress, and stays so
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return nil
}

// loopbackUp brings up the loopback of a new network namespace.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}
