package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"throng/sim/history"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/workload"
	"throng/system/wire"
)

// stubGateway makes the test binary a gateway with nothing behind it, so that a
// benchmark counts the generator alone.
const stubGateway = "THRONG_TEST_STUB_GATEWAY"

func TestMain(m *testing.M) {
	if os.Getenv(stubGateway) != "" {
		serveStub()
		return
	}
	goleak.VerifyTestMain(m)
}

// stub is who is connected to the stub.
type stub struct {
	mu    sync.Mutex
	users map[uint64]*websocket.Conn
	locks map[uint64]*sync.Mutex
}

// serveStub answers every Send at once and hands it on to its user.
func serveStub() {
	s := &stub{users: map[uint64]*websocket.Conn{}, locks: map[uint64]*sync.Mutex{}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with who started it
		os.Exit(0)
	}()
	_ = http.Serve(ln, http.HandlerFunc(s.serve))
}

func (s *stub) serve(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{wire.SubprotocolProto}, ReadBufferSize: 512, WriteBufferSize: 512, WriteBufferPool: &sync.Pool{}}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	user, _ := strconv.ParseUint(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), 10, 64)
	s.mu.Lock()
	s.users[user], s.locks[user] = ws, &sync.Mutex{}
	s.mu.Unlock()
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return
		}
		f := &wire.Frame{}
		if f.UnmarshalVT(b) != nil {
			return
		}
		switch k := f.Kind.(type) {
		case *wire.Frame_Sync:
			s.write(user, &wire.Frame{Kind: &wire.Frame_Current{Current: &wire.Current{}}})
		case *wire.Frame_Send:
			id := wire.IDOf(user, 0, k.Send.ClientMsgId)
			s.write(user, &wire.Frame{Kind: &wire.Frame_Sent{Sent: &wire.Sent{ClientMsgId: k.Send.ClientMsgId, MessageId: id[:], Chain: make([]byte, 16)}}})
			if k.Send.User == user {
				continue // a note to oneself, on the only device
			}
			s.write(k.Send.User, &wire.Frame{Kind: &wire.Frame_Deliver{Deliver: &wire.Deliver{MessageId: id[:], From: user, Seq: k.Send.Seq, Body: k.Send.Body}}})
		}
	}
}

func (s *stub) write(user uint64, f *wire.Frame) {
	s.mu.Lock()
	ws, lock := s.users[user], s.locks[user]
	s.mu.Unlock()
	if ws == nil {
		return
	}
	b, _ := f.MarshalVT()
	lock.Lock()
	defer lock.Unlock()
	_ = ws.WriteMessage(websocket.BinaryMessage, b)
}

// startStub starts a stub and returns its URL.
func startStub(tb testing.TB) string {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), stubGateway+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	return "ws://" + strings.TrimSpace(line)
}

// stubTarget is a deployment that is nothing but the stub.
type stubTarget struct{ url string }

func (t stubTarget) Gateways() []string { return []string{t.url} }
func (t stubTarget) Token(user uint64, _ uint32) (string, error) {
	return strconv.FormatUint(user, 10), nil
}
func (t stubTarget) Offers() Offers                        { return Offers{Partitions: -1} }
func (t stubTarget) Sample() ([]history.RoleSample, error) { return nil, nil }
func (t stubTarget) Scrape(context.Context) ([]history.CounterSample, error) {
	return nil, nil
}
func (t stubTarget) Provision(_ context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error) {
	res := &wire.ProvisionResult{}
	for {
		p, err := next()
		if errors.Is(err, io.EOF) {
			return res, nil
		}
		res.Users += uint64(len(p.Users))
	}
}
func (t stubTarget) Pushes(context.Context, func(Push)) error { return nil }
func (t stubTarget) Kill(string, int) error                   { return errors.ErrUnsupported }
func (t stubTarget) Restart(string, int) error                { return errors.ErrUnsupported }
func (t stubTarget) Flush(string, int) (int64, error)         { return 0, errors.ErrUnsupported }
func (t stubTarget) ChangeMembers(context.Context, *wire.MembershipChange) (*wire.MembershipResult, error) {
	return nil, errors.ErrUnsupported
}

// tally keeps what the benchmarks look at.
type tally struct {
	seconds []history.Second
	late    *hdrhistogram.Histogram // in steady
	from    float64
	cpu     []time.Duration // at each of the seconds
}

func (t *tally) Second(s history.Second) error {
	t.seconds, t.cpu = append(t.seconds, s), append(t.cpu, ownCPU())
	return nil
}
func (t *tally) Interval(i history.Interval) error {
	if i.Kind == history.KindLate && i.Start >= t.from {
		if t.late == nil {
			t.late = hdrhistogram.New(1, 60_000_000, 3)
		}
		t.late.Merge(i.Hist)
	}
	return nil
}
func (t *tally) Role(history.RoleSample) error        { return nil }
func (t *tally) Counters(history.CounterSample) error { return nil }
func (t *tally) Stages(*history.Stages) error         { return nil }
func (t *tally) Rig(history.Rig) error                { return nil }
func (t *tally) Event(history.Event) error            { return nil }

// ownCPU is the CPU that this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// residentBytes is the process's memory.
func residentBytes() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}

// settledBytes is the process's memory after a collection.
func settledBytes() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	return residentBytes()
}

// What a simulated user costs the generator, against a gateway that does
// nothing else and is another process: 5,000 users are online, and each writes
// one message a second. A round trip is that from Send to Sent; with delivery,
// another user gets each message and acknowledges it, which is as much again.
func BenchmarkRoundTrips(b *testing.B) {
	b.Run("alone", func(b *testing.B) { roundTrips(b, 0) })
	b.Run("with-delivery", func(b *testing.B) { roundTrips(b, 1) })
}

// roundTrips lets each user write to the one so many further.
func roundTrips(b *testing.B, to uint64) {
	const users, perS, seconds = 5000, 5000, 12
	for b.Loop() {
		spec, err := scenario.Parse("bench", []byte(`
name: bench_round_trips
question: What does a round trip cost the generator?
preset: direct
rates: {users: 20000, sends_per_s: 10, logins_per_s: 10, mean_session: 30s, devices: 1}
phases: {provision: 1s, ramp: 8s, backlog: 0s, warmup: 2s, steady: 10s, settle: 1s, proof: 5s}
`))
		if err != nil {
			b.Fatal(err)
		}
		pop := population.New(spec.Seed, 20000, spec.Preset, 1)
		end := 25 * time.Second
		var actions []workload.Action
		for u := range uint64(users) {
			actions = append(actions, workload.Action{Kind: workload.Open, User: u + 1, Until: end, ReplyTo: -1, Index: -1, Stratum: -1,
				At: time.Duration(u) * 7 * time.Second / users})
		}
		for i := range uint64(perS * seconds) {
			user := i%users + 1
			actions = append(actions, workload.Action{Kind: workload.Send, At: 8*time.Second + time.Duration(i)*time.Second/perS, User: user,
				Conv: workload.Conv{Peer: (user-1+to)%users + 1}, BodyLen: 100, ReplyTo: -1, Index: -1, Stratum: -1})
		}
		t := &tally{from: 10}
		sched := workload.Custom(spec, pop, actions)
		var before, online int64
		spool, err := os.Create(filepath.Join(b.TempDir(), "spool"))
		if err != nil {
			b.Fatal(err)
		}
		e, err := New(Config{Spec: spec, Population: pop, Schedule: sched, Target: stubTarget{startStub(b)}, History: t, Spool: spool, Start: time.Now(),
			Progress: func(p Progress) {
				switch {
				case before == 0:
					before = settledBytes()
				case p.Second.Connected == users && online == 0:
					online = settledBytes()
				}
			}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Run(b.Context(), b.Context()); err != nil {
			b.Fatal(err)
		}
		reportRoundTrips(b, t)
		b.ReportMetric(float64(online-before)/users, "RSS-B/user")
	}
}

func reportRoundTrips(b *testing.B, t *tally) {
	var cpu time.Duration
	var trips, n int64
	for i, s := range t.seconds {
		if s.Phase == "steady" && i > 0 && t.seconds[i-1].Phase == "steady" {
			cpu += t.cpu[i] - t.cpu[i-1]
			trips += s.Accepted
			n++
		}
	}
	if trips == 0 || t.late == nil {
		b.Fatal("nothing was answered in steady")
	}
	b.ReportMetric(cpu.Seconds()/float64(trips)*1000, "CPU-s/1000-round-trips")
	b.ReportMetric(float64(trips)/float64(n), "round-trips/s")
	b.ReportMetric(float64(t.late.ValueAtQuantile(99))/1000, "late-p99-ms")
	b.ReportMetric(0, "ns/op")
}
