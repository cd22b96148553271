package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/workload"
)

// acceptServer makes the test binary a server that accepts WebSockets with net/http
// and gorilla, and does no more.
const acceptServer = "THRONG_TEST_ACCEPT"

func serveAccepts() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with who started it
		os.Exit(0)
	}()
	up := websocket.Upgrader{}
	_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		for {
			if _, _, err := ws.ReadMessage(); err != nil {
				return
			}
		}
	}))
}

// Logins for each CPU-second of the whole backend, embedded infrastructure
// included: connect, authenticate, register, sync and, a second later, leave. Beside
// it what net/http and gorilla need to accept a connection and to see its end.
func BenchmarkBackendLogin(b *testing.B) {
	const rate = 1500
	for b.Loop() {
		run, audit := benchRun(b, `
name: bench_login
question: How many logins does a CPU-second of the whole backend carry?
preset: B
rates: {users: 100000, sends_per_s: 10, logins_per_s: 10, mean_session: 30s}
phases: {provision: 5s, ramp: 2s, backlog: 1s, warmup: 4s, steady: 15s, settle: 3s, proof: 30s}
`, func(spec *scenario.Spec, pop *population.Population) *workload.Schedule {
			var actions []workload.Action
			start := seconds(spec.Phases.RampS + spec.Phases.BacklogS)
			n := int((spec.Phases.WarmupS + spec.Phases.SteadyS) * rate)
			for i := range n {
				at := start + time.Duration(i)*time.Second/rate
				actions = append(actions, workload.Action{Kind: workload.Open, User: uint64(i + 1), At: at, Until: at + time.Second, ReplyTo: -1, Index: -1, Stratum: -1})
			}
			// Without a delivery there is nothing to audit.
			actions = append(actions, workload.Action{Kind: workload.Send, At: start + time.Second/2, User: 1,
				Conv: workload.Conv{Peer: 2}, BodyLen: 100, ReplyTo: -1, Index: -1, Stratum: -1})
			return workload.Custom(spec, pop, actions)
		})
		mustBeClean(b, audit)
		p, ok := run.Phase("steady")
		if !ok {
			b.Fatal("no steady phase")
		}
		var logins, backend float64
		for _, s := range run.Seconds {
			if s.Phase == "steady" {
				logins += float64(s.Logins)
			}
		}
		if logins < 0.95*rate*(p.End-p.Start) {
			b.Fatalf("%v logins in %.0f s, want %d a second", logins, p.End-p.Start, rate)
		}
		for _, role := range run.RoleNames() {
			cpu, _ := run.RoleCPU(role, p.Start, p.End)
			b.ReportMetric(cpu/logins*1e6, role+"-us/login")
			if role != "generator" {
				backend += cpu
			}
		}
		accepts := acceptsPerCPU(b, 10_000)
		b.ReportMetric(logins/backend, "logins/backend-CPU-s")
		b.ReportMetric(accepts, "gorilla-accepts/CPU-s")
		b.ReportMetric(logins/backend/accepts, "x-gorilla")
		b.ReportMetric(0, "ns/op")
	}
}

// acceptsPerCPU has a bare server accept n connections, and see them end, and returns
// how many that is for a CPU-second of its process.
func acceptsPerCPU(b *testing.B, n int) float64 {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), acceptServer+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	const dialers = 8
	var clients sync.WaitGroup
	for range dialers {
		clients.Go(func() {
			for range n / dialers {
				ws, _, err := websocket.DefaultDialer.Dial("ws://"+strings.TrimSpace(addr), nil)
				if err != nil {
					b.Error(err)
					return
				}
				ws.Close()
			}
		})
	}
	clients.Wait()
	in.Close()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	return float64(n) / (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}
