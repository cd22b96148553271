package target

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"throng/sim/client"
	"throng/sim/history"
	"throng/system"
	"throng/system/wire"
)

// small is one of each.
func small() Topology {
	return Topology{Gateways: 1, Messages: 1, Fanouts: 1, Groups: 1, Inboxes: 1, Pushes: 1, Medias: 1, Partitions: 4}
}

func newTestEmbedded(t *testing.T, top Topology, events func(history.Event)) *Embedded {
	t.Helper()
	e, err := NewEmbedded(EmbeddedConfig{Topology: top, Exe: testExe(t), Env: []string{childEnv}, WorkDir: t.TempDir(), LogDir: t.TempDir(),
		OnEvent: events, Settings: system.Settings{PushDelay: system.Duration(200 * time.Millisecond)}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func startTestEmbedded(t *testing.T, top Topology, events func(history.Event)) *Embedded {
	t.Helper()
	e := newTestEmbedded(t, top, events)
	startEmbedded(t, e)
	return e
}

func startEmbedded(t *testing.T, e *Embedded) {
	t.Helper()
	if err := e.Start(t.Context(), func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// pids returns the children that run, by name.
func pids(e *Embedded) map[string]int {
	out := map[string]int{}
	for _, r := range e.Roles() {
		if r.Role != roleGenerator && r.PID != 0 {
			out[fmt.Sprintf("%s/%d", r.Role, r.Instance)] = r.PID
		}
	}
	return out
}

func provisionUsers(t *testing.T, e *Embedded, users int, groups ...*wire.ProvisionGroup) {
	t.Helper()
	u := 0
	res, err := e.Provision(within(t, 20*time.Second), func() (*wire.Provision, error) {
		if u++; u > users+1 {
			return nil, io.EOF
		}
		if u == users+1 {
			return &wire.Provision{Groups: groups}, nil
		}
		return &wire.Provision{Users: []*wire.ProvisionUser{{User: uint64(u),
			Devices: []*wire.ProvisionDevice{{PushToken: fmt.Sprintf("%d/0", u)}}}}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.Users != uint64(users) || res.Groups != uint64(len(groups)) {
		t.Fatalf("provisioned %v", res)
	}
}

// inbox collects what a connection brings.
type inbox struct {
	mu     sync.Mutex
	frames []*wire.Frame
	closed bool
	more   chan struct{}
}

func (b *inbox) Frame(_ *client.Conn, f *wire.Frame) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.frames = append(b.frames, f)
	b.signal()
}

func (b *inbox) Closed(*client.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.signal()
}

func (b *inbox) signal() {
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// await returns the first frame, not returned before, that match accepts.
func (b *inbox) await(t *testing.T, what string, match func(*wire.Frame) bool) *wire.Frame {
	t.Helper()
	ctx := within(t, 15*time.Second)
	for {
		b.mu.Lock()
		for i, f := range b.frames {
			if match(f) {
				b.frames = slices.Delete(b.frames, i, i+1)
				b.mu.Unlock()
				return f
			}
		}
		closed := b.closed
		seen := fmt.Sprint(b.frames)
		b.mu.Unlock()
		if closed {
			t.Fatalf("the connection ended before %s; got %s", what, seen)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no %s; got %s", what, seen)
		case <-b.more:
		}
	}
}

func login(t *testing.T, e *Embedded, gateway int, user uint64) (*client.Conn, *inbox) {
	t.Helper()
	token, err := e.Token(user, 0)
	if err != nil {
		t.Fatal(err)
	}
	var d client.Dialer
	b := &inbox{more: make(chan struct{}, 1)}
	c, err := d.Dial(within(t, 10*time.Second), e.Gateways()[gateway], token, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Abort()
		eventually(t, 20*time.Second, "the connection ends", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.closed
		})
	})
	c.Start()
	if err := c.Write(&wire.Frame{Kind: &wire.Frame_Sync{Sync: &wire.Sync{}}}); err != nil {
		t.Fatal(err)
	}
	b.await(t, "Current", func(f *wire.Frame) bool { return f.GetCurrent() != nil })
	return c, b
}

// say sends a message as its conversation's first, and waits for Sent.
func say(t *testing.T, c *client.Conn, b *inbox, s *wire.Send) {
	t.Helper()
	s.Seq = 1
	if err := c.Write(&wire.Frame{Kind: &wire.Frame_Send{Send: s}}); err != nil {
		t.Fatal(err)
	}
	f := b.await(t, "answer", func(f *wire.Frame) bool {
		return f.GetSent().GetClientMsgId() == s.ClientMsgId || f.GetError().GetClientMsgId() == s.ClientMsgId
	})
	if f.GetError() != nil {
		t.Fatalf("refused: %v", f)
	}
}

func hear(t *testing.T, b *inbox, body string) {
	t.Helper()
	b.await(t, "message "+body, func(f *wire.Frame) bool { return string(f.GetDeliver().GetBody()) == body })
}

func TestEmbeddedCarriesMessagesAndIsMeasured(t *testing.T) {
	e := startTestEmbedded(t, Topology{Gateways: 2, Messages: 1, Fanouts: 1, Groups: 1, Inboxes: 2, Pushes: 1, Partitions: 4}, nil)
	provisionUsers(t, e, 4, &wire.ProvisionGroup{Group: 9, Name: "nine", Members: []uint64{1, 2, 3}})
	pushCtx, stopPushes := context.WithCancel(t.Context())
	pushes := make(chan Push, 16)
	pushesEnded := make(chan error, 1)
	go func() { pushesEnded <- e.Pushes(pushCtx, func(p Push) { pushes <- p }) }()

	a, fromA := login(t, e, 0, 1)
	_, fromB := login(t, e, 1, 2)
	say(t, a, fromA, &wire.Send{ClientMsgId: 1, User: 2, Body: []byte("direct")})
	hear(t, fromB, "direct")
	say(t, a, fromA, &wire.Send{ClientMsgId: 2, Group: 9, Body: []byte("to all")})
	hear(t, fromB, "to all")
	select {
	case p := <-pushes:
		if want := wire.IDOf(1, 0, 2); p.User != 3 || p.Device != 0 || p.MessageID != want || p.Token == "" || time.Since(p.At) > time.Minute {
			t.Errorf("push %+v, want user 3, message %x", p, want)
		}
	case <-time.After(15 * time.Second):
		t.Error("no push for the member who is offline")
	}
	stopPushes()
	if err := <-pushesEnded; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("feed of pushes: %v", err)
	}
	res, err := e.ChangeMembers(t.Context(), &wire.MembershipChange{Group: 9, Add: []uint64{4}})
	if err != nil || res.Version != 2 {
		t.Errorf("change of members: %v, %v", res, err)
	}

	samples, err := e.Sample()
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != len(e.Roles()) {
		t.Errorf("%d samples of %d processes", len(samples), len(e.Roles()))
	}
	for _, s := range samples {
		if s.CPUSeconds <= 0 || s.RSSBytes < 1<<20 || s.Threads < 1 {
			t.Errorf("sample %+v", s)
		}
	}
	counters, err := e.Scrape(t.Context())
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
		`gateway throng_logins_total`:                        2,
		`push throng_push_accepted_total`:                    1,
		`fanout throng_fanout_records_total`:                 2,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if t.Failed() {
		for _, name := range slices.Sorted(maps.Keys(got)) {
			t.Logf("%s %v", name, got[name])
		}
	}
}

func TestEmbeddedKillAndRestart(t *testing.T) {
	e := startTestEmbedded(t, small(), func(ev history.Event) { t.Errorf("event %+v: a kill that was asked for is no crash", ev) })
	provisionUsers(t, e, 2)
	before := pids(e)
	for _, r := range e.Roles() {
		if r.Role == roleGenerator {
			continue
		}
		if err := e.Kill(r.Role, r.Instance); err != nil {
			t.Fatal(err)
		}
		if alive(r.PID) {
			t.Errorf("%s is alive after Kill", r.Role)
		}
		if err := e.Kill(r.Role, r.Instance); err == nil {
			t.Errorf("%s was killed twice", r.Role)
		}
		if err := e.Restart(r.Role, r.Instance); err != nil {
			t.Fatal(err)
		}
		if err := e.Restart(r.Role, r.Instance); err == nil {
			t.Errorf("%s was started twice", r.Role)
		}
		if err := e.WaitReady(within(t, 20*time.Second), r.Role, r.Instance); err != nil {
			t.Fatal(err)
		}
	}
	cfg := e.Config()
	for _, role := range system.Roles() {
		if cfg.Instances(role) == 0 {
			continue
		}
		if err := e.WaitReady(within(t, 20*time.Second), string(role), 0); err != nil {
			t.Fatal(err)
		}
	}
	for name, pid := range pids(e) {
		if before[name] == pid {
			t.Errorf("%s has the same process", name)
		}
	}
	a, fromA := login(t, e, 0, 1)
	_, fromB := login(t, e, 0, 2)
	say(t, a, fromA, &wire.Send{ClientMsgId: 1, User: 2, Body: []byte("all of it was killed")})
	hear(t, fromB, "all of it was killed")
	counters, err := e.Scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if c.Restart != 1 {
			t.Errorf("%s/%d: restart %d, want 1", c.Role, c.Instance, c.Restart)
		}
	}
	if keys, err := e.Flush("redis", 0); err != nil || keys == 0 {
		t.Errorf("flushed %d keys, %v", keys, err)
	}
	if _, err := e.Flush("kafka", 0); err == nil {
		t.Error("Kafka was flushed")
	}
	if err := e.Kill("gateway", 7); err == nil {
		t.Error("a process that does not exist was killed")
	}
}

func TestEmbeddedRestartsWhatCrashes(t *testing.T) {
	events := make(chan history.Event, 16)
	e := startTestEmbedded(t, small(), func(ev history.Event) { events <- ev })
	pid := pids(e)["message/0"]
	proc, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Kill(); err != nil { // not by Kill: nobody asked for it
		t.Fatal(err)
	}
	for _, kind := range []string{"fault", "restart"} {
		select {
		case ev := <-events:
			if ev.Kind != kind || !strings.Contains(ev.Detail, "message/0") {
				t.Errorf("event %+v, want %s of message/0", ev, kind)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no event %s", kind)
		}
	}
	if err := e.WaitReady(within(t, 10*time.Second), "message", 0); err != nil {
		t.Fatal(err)
	}
	if now := pids(e)["message/0"]; now == pid || now == 0 {
		t.Errorf("process %d was not replaced: %d", pid, now)
	}
}

func TestEmbeddedLeavesNothing(t *testing.T) {
	work := t.TempDir()
	e := newTestEmbedded(t, small(), nil)
	e.cfg.WorkDir = work
	if err := e.Start(t.Context(), func(string) {}); err != nil {
		t.Fatal(err)
	}
	running := pids(e)
	if len(running) != 10 {
		t.Errorf("%d processes run, want 10: %v", len(running), running)
	}
	gateway := e.Gateways()[0]
	began := time.Now()
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("closed within %s", time.Since(began))
	for name, pid := range running {
		if alive(pid) {
			t.Errorf("%s is alive after Close", name)
		}
	}
	if left, err := os.ReadDir(work); err != nil || len(left) != 0 {
		t.Errorf("left in the work folder: %v %v", left, err)
	}
	if resp, err := http.Get("http" + strings.TrimPrefix(gateway, "ws")); err == nil {
		resp.Body.Close()
		t.Error("the gateway's port still answers")
	}
	if err := e.Close(t.Context()); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if err := e.Restart("gateway", 0); err == nil {
		t.Error("a closed target started a process")
	}
}

func TestEmbeddedStartCancelled(t *testing.T) {
	work := t.TempDir()
	e := newTestEmbedded(t, small(), nil)
	e.cfg.WorkDir = work
	ctx, cancel := context.WithCancel(t.Context())
	err := e.Start(ctx, func(s string) {
		if strings.Contains(s, "role processes") {
			cancel() // while the infrastructure runs and the roles are about to
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if left := pids(e); len(left) != 0 {
		t.Errorf("still running: %v", left)
	}
	if left, err := os.ReadDir(work); err != nil || len(left) != 0 {
		t.Errorf("left in the work folder: %v %v", left, err)
	}
}

func TestEmbeddedStartFailureCleansUp(t *testing.T) {
	e := newTestEmbedded(t, small(), nil)
	e.cfg.ProviderArgs = []string{"--no-such-flag"}
	err := e.Start(t.Context(), func(string) {})
	if err == nil {
		t.Fatal("started")
	}
	for _, want := range []string{"provider/0", "exit status 64", "no-such-flag"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if left := pids(e); len(left) != 0 {
		t.Errorf("still running: %v", left)
	}
}

// helperHarness is a harness that a test can kill: it starts a deployment,
// prints its processes and waits.
func helperHarness() int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	e, err := NewEmbedded(EmbeddedConfig{Topology: small(), Exe: exe, WorkDir: os.Args[2]})
	if err == nil {
		err = e.Start(context.Background(), func(string) {})
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(pids(e))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

// TestEmbeddedDiesWithTheHarness runs two harnesses at once, kills one with
// SIGKILL, and finds its children gone and those of the other in service.
func TestEmbeddedDiesWithTheHarness(t *testing.T) {
	work := t.TempDir()
	var harnesses [2]*exec.Cmd
	var outputs [2]*bufio.Reader
	for i := range harnesses {
		cmd := exec.Command(testExe(t), "harness", work)
		cmd.Env = append(os.Environ(), childEnv)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // unless the test has
			_ = cmd.Wait()
		})
		harnesses[i], outputs[i] = cmd, bufio.NewReader(out)
	}
	var children [2]map[string]int
	for i, out := range outputs {
		line, err := out.ReadBytes('\n')
		if err != nil {
			t.Fatalf("harness %d: %v", i, err)
		}
		if err := json.Unmarshal(line, &children[i]); err != nil {
			t.Fatalf("harness %d: %v", i, err)
		}
		if len(children[i]) != 10 {
			t.Fatalf("harness %d has %d children, want 10", i, len(children[i]))
		}
	}
	for i := range harnesses {
		if err := harnesses[i].Process.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the children of the killed harness vanish", func() bool {
			for _, pid := range children[i] {
				if alive(pid) {
					return false
				}
			}
			return true
		})
		if i == 0 {
			for name, pid := range children[1] {
				if !alive(pid) {
					t.Errorf("%s of the other harness died too", name)
				}
			}
		}
	}
}
