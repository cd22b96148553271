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
// it what net/http and gorilla need for the same arrivals, to accept each and to see
// its end; and for as many as they can, which shares the price of waking up among
// them.
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
		accepts := acceptsPerCPU(b, func(dial func() *websocket.Conn) int {
			return arrive(15*rate, rate, time.Second, dial)
		})
		b.ReportMetric(logins/backend, "logins/backend-CPU-s")
		b.ReportMetric(accepts, "gorilla-accepts/CPU-s")
		b.ReportMetric(acceptsPerCPU(b, crowd), "gorilla-accepts-at-most/CPU-s")
		b.ReportMetric(logins/backend/accepts, "x-gorilla")
		b.ReportMetric(0, "ns/op")
	}
}

// arrive dials n times, at a rate for each second whatever comes of it, and closes
// each connection after its stay.
func arrive(n int, rate float64, stay time.Duration, dial func() *websocket.Conn) int {
	var clients sync.WaitGroup
	start := time.Now()
	for i := range n {
		<-time.After(time.Until(start.Add(time.Duration(float64(i) / rate * float64(time.Second)))))
		clients.Go(func() {
			if ws := dial(); ws != nil {
				<-time.After(stay)
				ws.Close()
			}
		})
	}
	clients.Wait()
	return n
}

// crowd dials and closes as often as a few clients can.
func crowd(dial func() *websocket.Conn) int {
	const dialers, each = 8, 1250
	var clients sync.WaitGroup
	for range dialers {
		clients.Go(func() {
			for range each {
				if ws := dial(); ws != nil {
					ws.Close()
				}
			}
		})
	}
	clients.Wait()
	return dialers * each
}

// acceptsPerCPU has a bare server accept connections, and see them end, and returns
// how many that is for a CPU-second of its process. use says how many there were.
func acceptsPerCPU(b *testing.B, use func(dial func() *websocket.Conn) int) float64 {
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
	url := "ws://" + strings.TrimSpace(addr)
	n := use(func() *websocket.Conn {
		ws, _, err := websocket.DefaultDialer.Dial(url, nil)
		if err != nil {
			b.Error(err)
			return nil
		}
		return ws
	})
	in.Close()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	return float64(n) / (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}
