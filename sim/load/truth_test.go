package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"throng/sim/client"
	"throng/sim/history"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/workload"
	"throng/system/wire"
)

// A server takes a tenth of a millisecond for each send, one after the other, and
// does nothing at all for a while.
const (
	truthSends   = 12_000
	truthLength  = 12 * time.Second
	truthService = 100 * time.Microsecond
	truthStall   = 3 * time.Second
	truthAfter   = 4 * time.Second // of the steady phase, when it stalls
	truthUsers   = 40
)

// sendAt is when the schedule has a send, from the start of the steady phase.
func sendAt(i int) time.Duration {
	return truthLength*time.Duration(i)/truthSends + truthService/2
}

// truth is what every send must take, in order of length: it leaves when the one
// before has left and the server is there, and has been served (Lindley's
// recursion for a single server in order of arrival).
func truth() []time.Duration {
	var all []time.Duration
	free := time.Duration(0)
	for i := range truthSends {
		at := sendAt(i)
		begun := max(at, free)
		if begun >= truthAfter && begun < truthAfter+truthStall {
			begun = truthAfter + truthStall
		}
		free = begun + truthService
		all = append(all, free-at)
	}
	slices.Sort(all)
	return all
}

const truthSpec = `
name: stall
question: What does a stall of three seconds look like?
preset: B
seed: 1
rates: {users: 100000, sends_per_s: 1000, logins_per_s: 10, mean_session: 30s}
topology: {gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1, partitions: 4}
phases: {provision: 1s, ramp: 1s, backlog: 0s, warmup: 1s, steady: 12s, settle: 1s, proof: 5s}
resolution: %v
`

// TestStallIsReportedAsItIs: what the engine records of the stall, and reports
// are made of, is the analytic truth within 2 %, and counts the whole schedule;
// ten clients that wait for their answers before they send again see nothing of
// it. It runs on a virtual clock, so that nothing depends on the machine. An
// engine that looks up once in a while says more, by that at most, and never less.
func TestStallIsReportedAsItIs(t *testing.T) {
	for _, resolution := range []time.Duration{0, 700 * time.Microsecond} {
		t.Run(resolution.String(), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run")
			synctest.Test(t, func(t *testing.T) { playTruth(t, dir, resolution) })
			checkTruth(t, dir, resolution)
		})
	}
	var closed []time.Duration
	synctest.Test(t, func(t *testing.T) { closed = closedLoop(t) })
	slices.Sort(closed)
	p99 := closed[len(closed)*99/100]
	t.Logf("a closed loop: %d sends, p99 %v", len(closed), p99)
	if want := truth()[truthSends*99/100]; p99 > want/10 || len(closed) > truthSends*9/10 || closed[len(closed)-1] < truthStall/2 {
		t.Errorf("the closed loop made %d sends with a p99 of %v, at most %v: the server did not stall", len(closed), p99, closed[len(closed)-1])
	}
}

func checkTruth(t *testing.T, dir string, resolution time.Duration) {
	run, err := history.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	steady, ok := run.Phase("steady")
	if !ok {
		t.Fatal("the run has no steady phase")
	}
	real := truth()
	for _, kind := range []string{history.KindSent, history.KindDeliverDirect} {
		h := run.Merged(kind, steady.Start, steady.End)
		if h.TotalCount() != truthSends {
			t.Errorf("%s: %d samples, want %d", kind, h.TotalCount(), truthSends)
		}
		for _, q := range []float64{50, 76, 80, 90, 99, 99.9, 100} {
			got, want := h.ValueAtQuantile(q), real[int(math.Ceil(q/100*truthSends))-1].Microseconds()
			t.Logf("%s p%v: %d us, in truth %d", kind, q, got, want)
			if more := float64(got - want); more < -0.02*float64(want) || more > 0.02*float64(want)+float64(resolution.Microseconds()) {
				t.Errorf("%s p%v is %d us, in truth %d", kind, q, got, want)
			}
		}
	}
	sum, _ := run.Sum(steady.Start, steady.End)
	if sum.Offered != truthSends || sum.Written != truthSends || sum.Accepted != truthSends || sum.Live != truthSends || sum.Unstarted != 0 {
		t.Errorf("%d offered, %d written, %d accepted, %d delivered, %d not started: want %d, and 0", sum.Offered, sum.Written, sum.Accepted, sum.Live, sum.Unstarted, truthSends)
	}
	if waiting := run.Seconds[int(steady.Start+truthAfter.Seconds()+truthStall.Seconds())-1].InFlight; waiting < 2000 {
		t.Errorf("%d sends were unanswered near the end of the stall: the load did not go on", waiting)
	}
	if a := run.Audit; a == nil || a.Proved != truthSends || a.Expected != truthSends {
		t.Errorf("audit %+v, want %d proved", a, truthSends)
	}
	if late := run.MergedAll(history.KindLate); late.TotalCount() < truthSends || late.Max() > 1000 || resolution > 0 && late.Mean() < 100 {
		t.Errorf("the generator was late %d times by at most %d us", late.TotalCount(), late.Max())
	}
}

// playTruth runs the engine against the server into a run folder.
func playTruth(t *testing.T, dir string, resolution time.Duration) {
	spec, err := scenario.Parse("stall", fmt.Appendf(nil, truthSpec, resolution))
	if err != nil {
		t.Fatal(err)
	}
	pop := population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices)
	start := time.Now()
	m := &history.Manifest{FormatVersion: history.FormatVersion, Scenario: spec.Name, Target: "embedded", SpecYAML: string(spec.YAML()), SpecHash: spec.Hash(), Start: start}
	w, err := history.Create(dir, m)
	if err != nil {
		t.Fatal(err)
	}
	spool, err := os.Create(filepath.Join(dir, SpoolFile))
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	s := newStalling()
	defer s.close()
	e, err := New(Config{Spec: spec, Population: pop, Schedule: truthSchedule(spec, pop), Target: &truthTarget{s: s}, History: w, Spool: spool, Start: start})
	if err != nil {
		t.Fatal(err)
	}
	e.dialer.NetDial = s.dial
	s.stall(start.Add(2*time.Second+truthAfter), truthStall)
	out, err := e.Run(t.Context(), t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.Phases, m.End = out.Phases, time.Now()
	if err := errors.Join(w.Audit(&out.Audit), w.Finish(m)); err != nil {
		t.Fatal(err)
	}
}

// truthSchedule has users with one device each online all the time, who write to
// the next of them by turns, one send each millisecond of the steady phase.
func truthSchedule(spec *scenario.Spec, pop *population.Population) *workload.Schedule {
	var users []uint64
	for u := uint64(1); len(users) < truthUsers; u++ {
		if pop.Devices(u) == 1 {
			users = append(users, u)
		}
	}
	none := workload.Action{ReplyTo: -1, Index: -1, Stratum: -1}
	var actions []workload.Action
	for i, u := range users {
		a := none
		a.Kind, a.User, a.At, a.Until = workload.Open, u, time.Duration(i)*10*time.Millisecond, 30*time.Second
		actions = append(actions, a)
	}
	for i := range truthSends {
		a := none
		a.Kind, a.User, a.Conv.Peer, a.BodyLen = workload.Send, users[i%truthUsers], users[(i+1)%truthUsers], 60
		a.At = 2*time.Second + sendAt(i)
		actions = append(actions, a)
	}
	return workload.Custom(spec, pop, actions)
}

// closedLoop has ten clients send as many, each the next one when the last is
// answered and its time has come, and returns what they measure.
func closedLoop(t *testing.T) []time.Duration {
	const clients = 10
	s := newStalling()
	defer s.close()
	d := client.Dialer{NetDial: s.dial}
	start := time.Now()
	s.stall(start.Add(truthAfter), truthStall)
	measured := make([][]time.Duration, clients)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			answers := make(chan struct{}, 1)
			c, err := d.Dial(t.Context(), truthURL, fmt.Sprintf("%d/0", i+1), answered(answers))
			if err != nil {
				t.Error(err)
				return
			}
			c.Start()
			pace := truthLength * clients / truthSends
			for n := uint64(1); ; n++ {
				sent := time.Now()
				if sent.Sub(start) >= truthLength {
					break
				}
				_ = c.Write(&wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{ClientMsgId: n, User: 1000, Seq: n}}})
				<-answers
				took := time.Since(sent)
				measured[i] = append(measured[i], took)
				time.Sleep(pace - took)
			}
			c.Abort()
		})
	}
	all.Wait()
	var out []time.Duration
	for _, m := range measured {
		out = append(out, m...)
	}
	return out
}

// answered is a client.Handler that hands on each Sent.
type answered chan struct{}

func (a answered) Frame(_ *client.Conn, f *wire.Frame) {
	if f.GetSent() != nil {
		a <- struct{}{}
	}
}

func (answered) Closed(*client.Conn, error) {}

const truthURL = "ws://stalling.test"

// truthTarget is the server as a deployment: it has everybody.
type truthTarget struct {
	Target
	s *stalling
}

func (t *truthTarget) Gateways() []string { return []string{truthURL} }
func (t *truthTarget) Token(u uint64, d uint32) (string, error) {
	return fmt.Sprintf("%d/%d", u, d), nil
}
func (t *truthTarget) Offers() Offers                                          { return Offers{} }
func (t *truthTarget) Sample() ([]history.RoleSample, error)                   { return nil, nil }
func (t *truthTarget) Scrape(context.Context) ([]history.CounterSample, error) { return nil, nil }

func (t *truthTarget) Provision(_ context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error) {
	out := &wire.ProvisionResult{}
	for {
		p, err := next()
		if errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		out.Users += uint64(len(p.Users))
	}
}

// stalling is a server of the protocol, of users with one device, in memory. One
// loop does all its work, and stands still between from and until; what comes in
// the meantime waits, as in the buffers of a kernel.
type stalling struct {
	http  http.Server
	conns chan net.Conn
	work  chan func()
	ended chan struct{}
	all   sync.WaitGroup

	// Of the loop.
	from, until time.Time
	online      map[string]*websocket.Conn // by user/device
	waiting     map[string][]*wire.Frame
}

func newStalling() *stalling {
	s := &stalling{conns: make(chan net.Conn), work: make(chan func(), 2*truthSends), ended: make(chan struct{}),
		online: map[string]*websocket.Conn{}, waiting: map[string][]*wire.Frame{}}
	s.http.Handler = http.HandlerFunc(s.serve)
	s.all.Go(func() { _ = s.http.Serve(s) })
	s.all.Go(s.loop)
	return s
}

// stall makes it stand still; it is called before anybody connects.
func (s *stalling) stall(from time.Time, length time.Duration) {
	s.from, s.until = from, from.Add(length)
}

func (s *stalling) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case s.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept, Close and Addr make it the listener of its HTTP server.
func (s *stalling) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.ended:
		return nil, net.ErrClosed
	}
}

func (s *stalling) Close() error   { return nil }
func (s *stalling) Addr() net.Addr { return &net.TCPAddr{} }

func (s *stalling) close() {
	close(s.ended)
	_ = s.http.Close()
	s.all.Wait()
}

func (s *stalling) loop() {
	for {
		select {
		case do := <-s.work:
			if now := time.Now(); !now.Before(s.from) && now.Before(s.until) {
				time.Sleep(s.until.Sub(now))
			}
			do()
		case <-s.ended:
			return
		}
	}
}

func (s *stalling) serve(w http.ResponseWriter, r *http.Request) {
	device := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	up := websocket.Upgrader{Subprotocols: []string{wire.SubprotocolProto}}
	c, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		_, b, err := c.ReadMessage()
		if err != nil {
			s.work <- func() {
				if s.online[device] == c {
					delete(s.online, device)
				}
			}
			return
		}
		f := &wire.Frame{}
		if err := f.UnmarshalVT(b); err != nil {
			return
		}
		s.work <- func() { s.handle(device, c, f) }
	}
}

func (s *stalling) handle(device string, c *websocket.Conn, f *wire.Frame) {
	switch {
	case f.GetSync() != nil:
		s.online[device] = c
		for _, f := range s.waiting[device] {
			write(c, f)
		}
		delete(s.waiting, device)
		write(c, &wire.Frame{Kind: &wire.Frame_Current{Current: &wire.Current{}}})
	case f.GetSend() != nil:
		time.Sleep(truthService)
		send := f.GetSend()
		var from uint64
		_, _ = fmt.Sscanf(device, "%d/", &from)
		id := wire.IDOf(from, 0, send.ClientMsgId)
		write(c, &wire.Frame{Kind: &wire.Frame_Sent{Sent: &wire.Sent{ClientMsgId: send.ClientMsgId, MessageId: id[:]}}})
		to, d := fmt.Sprintf("%d/0", send.User), &wire.Frame{Kind: &wire.Frame_Deliver{Deliver: &wire.Deliver{
			MessageId: id[:], From: from, Seq: send.Seq, Kind: send.Kind, Body: send.Body, AcceptedMs: time.Now().UnixMilli()}}}
		if peer := s.online[to]; peer != nil {
			write(peer, d)
		} else {
			s.waiting[to] = append(s.waiting[to], d)
		}
	}
}

func write(c *websocket.Conn, f *wire.Frame) {
	if b, err := f.MarshalVT(); err == nil {
		_ = c.WriteMessage(websocket.BinaryMessage, b) // an error shows as a failed read
	}
}
