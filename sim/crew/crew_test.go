package crew

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/workload"
	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The true offset is within what the estimate says, however uneven the ways
// there and back are, and a quick round trip among slow ones is what counts.
func TestOffsetIsWithinItsError(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		truth := time.Duration(rng.Int64N(int64(time.Hour))) - 30*time.Minute
		now := time.Duration(0)
		quickest := time.Hour
		o, err := estimate(func() time.Duration { return now }, func() (time.Duration, error) {
			there, back := time.Duration(rng.Int64N(1e7)), time.Duration(rng.Int64N(1e6))
			quickest = min(quickest, there+back)
			now += there
			says := now + truth
			now += back
			return says, nil
		})
		if err != nil || (o.ahead-truth).Abs() > o.within || o.within != quickest/2 {
			t.Fatalf("%v, estimated %v within %v of a quickest round trip of %v: %v", truth, o.ahead, o.within, quickest, err)
		}
	}
	if _, err := estimate(func() time.Duration { return 0 }, func() (time.Duration, error) { return 0, io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("of a clock that does not answer: %v", err)
	}
}

// A second is written once, when all have told of it: counts and levels added up,
// histograms merged. Who has died is not waited for.
func TestSecondsAreMerged(t *testing.T) {
	dir := t.TempDir()
	w, err := history.Create(filepath.Join(dir, "run"), &history.Manifest{FormatVersion: history.FormatVersion, Start: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	m := newMerger(w, 3, func(load.Progress) { rows++ })
	tell := func(part, second int, values ...int64) {
		t.Helper()
		r := newRecorder(part, func(r *result) error { return m.add(part, r) }, nil)
		h := history.NewHist()
		for _, v := range values {
			_ = h.RecordValue(v)
		}
		at := float64(second) + 0.01*float64(part)
		_ = r.Second(history.Second{T: at, Phase: "steady", Offered: int64(len(values)), Connected: 10, InFlight: int64(part)})
		if len(values) > 0 {
			if err := r.Interval(history.Interval{Kind: history.KindSent, Start: at - 1, End: at, Hist: h}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Tick(); err != nil {
			t.Fatal(err)
		}
	}
	tell(1, 1, 1000, 2000)
	tell(2, 1, 9000)
	if rows != 0 {
		t.Fatal("a second was written before the leader told of it")
	}
	tell(0, 1)
	tell(0, 2)
	tell(1, 2, 3000)
	m.leave(2)
	tell(1, 3, 4000) // and not yet the leader
	if rows != 2 {
		t.Errorf("%d rows, want 2", rows)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	run, err := history.Open(filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	if s := run.Seconds[0]; s.Offered != 3 || s.Connected != 30 || s.InFlight != 3 || len(run.Seconds) != 2 {
		t.Errorf("rows %+v", run.Seconds)
	}
	h := run.Merged(history.KindSent, 0, 1.5)
	if h.TotalCount() != 3 || h.Max() < 8990 || h.Min() > 1001 || run.Intervals(history.KindSent) != 2 {
		t.Errorf("merged %d values from %d to %d in %d intervals", h.TotalCount(), h.Min(), h.Max(), run.Intervals(history.KindSent))
	}
}

// message is a result as JetStream hands it over.
type message struct {
	jetstream.Msg
	data []byte
}

func (m message) Subject() string { return subjectResult + "1" }
func (m message) Data() []byte    { return m.data }
func (m message) Ack() error      { return nil }

// A result of an agent counts as come when it is merged: who waits for the last one
// finds it in the sums.
func TestResultCountsWhenMerged(t *testing.T) {
	w, err := history.Create(filepath.Join(t.TempDir(), "run"), &history.Manifest{FormatVersion: history.FormatVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	l := &Lead{cfg: LeadConfig{Agents: 1, Writer: w}, changed: make(chan struct{}, 1), agents: []*agent{{number: 1}}}
	merging := 0
	l.merger = newMerger(w, 2, func(load.Progress) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if merging++; l.agents[0].got != 0 {
			t.Error("it counts as come while it is being merged")
		}
	})
	l.merger.leave(0)
	l.result(message{data: encode(result{Number: 1, N: 1, Second: history.Second{T: 1}})})
	if merging != 1 || l.agents[0].got != 1 {
		t.Errorf("merged %d times, %d come", merging, l.agents[0].got)
	}
}

const testSpec = `name: crew
question: what do leader and agents tell each other?
seed: 3
rates: {users: 200, sends_per_s: 50, logins_per_s: 2, mean_session: 2s}
phases: {ramp: 500ms, backlog: 0s, warmup: 0s, steady: 1s}
`

// testLead is a leader of a run at a gateway that is not there.
func testLead(t *testing.T, agents int, change func(*LeadConfig)) (cfg LeadConfig, url string) {
	t.Helper()
	spec, err := scenario.Parse("crew", []byte(testSpec))
	if err != nil {
		t.Fatal(err)
	}
	sched, err := workload.Build(spec, population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "run")
	start := time.Now()
	w, err := history.Create(dir, &history.Manifest{FormatVersion: history.FormatVersion, Start: start})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	cfg = LeadConfig{Agents: agents, Listen: listen, Token: "secret", Dir: dir, LogDir: dir, Writer: w, Schedule: Describe(sched), Progress: func(load.Progress) {},
		DeadAfter: time.Minute, JoinWithin: time.Minute,
		Terms: Terms{RunID: "test", Spec: spec.YAML(), Start: start, Nonce: 7, Gateways: []string{"ws://127.0.0.1:1"}, Key: make(wire.Key, wire.MinKeyBytes)}}
	if change != nil {
		change(&cfg)
	}
	return cfg, "nats://" + listen
}

// joiner is an agent in this process that says it is of another machine.
func joiner(url string) JoinConfig {
	return JoinConfig{URL: url, Token: "secret", Files: 1 << 20, boot: "another",
		Sample: func() (history.RoleSample, error) { return history.RoleSample{Role: history.RoleGenerator}, nil }}
}

// Agents of other machines: their clocks are estimated, what they record and
// what they tell the audit comes to the leader whole, and who leaves is named.
func TestAgentsFromElsewhere(t *testing.T) {
	died := make(chan string, 1)
	cfg, url := testLead(t, 2, func(c *LeadConfig) { c.OnDeath = func(why string) { died <- why } })
	leave, told := context.WithCancel(t.Context())
	defer told()
	ended := make(chan error, 2)
	for _, ctx := range []context.Context{t.Context(), leave} {
		go func() { ended <- Join(ctx, joiner(url)) }()
	}
	l, err := Assemble(t.Context(), cfg, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := time.Since(cfg.Terms.Start) + l.Begins()
	l.Begin(t.Context(), at)
	await(t, func() bool {
		s := l.Spools(t.Context())
		return s[0].Mark.Events > 0 && s[1].Mark.Events > 0
	}, "both agents play")
	l.Stop()
	l.EndLoad(t.Context())
	if err := judge(l.Spools(t.Context())); err != nil {
		t.Errorf("the spools of two agents: %v", err)
	}
	if l.ClockError() <= 0 {
		t.Error("the clocks of other machines are known exactly")
	}
	told()
	if why := <-died; !strings.Contains(why, "it was told to leave") {
		t.Errorf("an agent that left: %q", why)
	}
	if err := judge(l.Spools(t.Context())); err == nil || !strings.Contains(err.Error(), "it died") {
		t.Errorf("the spool of an agent that is gone: %v", err)
	}
	agents := l.Finish(t.Context())
	dead, actions := 0, int64(0)
	for _, a := range agents {
		if a.Died != "" {
			dead++
		}
		actions += a.Actions
		if a.SameClock || a.ClockErrorMs <= 0 || a.ClockErrorMs > 60_000 {
			t.Errorf("clock of agent %d: %+v", a.Number, a)
		}
	}
	if len(agents) != 2 || dead != 1 || actions == 0 {
		t.Errorf("agents %+v", agents)
	}
	for range 2 {
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("an agent ended with %v", err)
		}
	}
}

// judge replays spools.
func judge(sources []audit.Source) error {
	for i := range sources {
		if sources[i].Err == nil && sources[i].Mark.Events == 0 {
			return fmt.Errorf("%s told nothing", sources[i].Name)
		}
	}
	out, err := audit.Replay(&audit.Config{ClockError: time.Second}, sources, audit.Visitor{})
	if err == nil && len(out.Audit.Problems) > 0 {
		err = errors.New(strings.Join(out.Audit.Problems, "; "))
	}
	return err
}

func await(t *testing.T, ok func() bool, what string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not in a minute: %s", what)
		}
		<-tick.C
	}
}

// An agent that says nothing any more has died.
func TestSilentAgentIsDead(t *testing.T) {
	died := make(chan string, 1)
	cfg, url := testLead(t, 1, func(c *LeadConfig) { c.DeadAfter, c.OnDeath = time.Second, func(why string) { died <- why } })
	go func() {
		// It joins, is ready, and is never heard of again.
		nc, err := nats.Connect(url, nats.Token("secret"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
		if err != nil {
			return
		}
		defer nc.Close()
		if m, err := nc.Request(subjectJoin, encode(hello{ID: "mute", BootID: bootID(), Files: 1 << 20}), time.Minute); err == nil {
			w, _ := decode[welcome](m.Data)
			_ = nc.Publish(subjectReady, encode(ready{Number: w.Number, Schedule: cfg.Schedule}))
			_ = nc.Flush()
		}
	}()
	l, err := Assemble(t.Context(), cfg, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if why := <-died; !strings.Contains(why, "agent 1") || !strings.Contains(why, "silent") {
		t.Errorf("it died: %q", why)
	}
}

// An agent that cannot play is refused, and the leader says why.
func TestAgentsAreRefused(t *testing.T) {
	for what, c := range map[string]struct {
		lead func(*LeadConfig)
		want string
	}{
		"too few files":    {func(c *LeadConfig) { c.Sockets = 1 << 30 }, "raise ulimit -n"},
		"another schedule": {func(c *LeadConfig) { c.Schedule = "of another version" }, "another version"},
		"nobody":           {func(c *LeadConfig) { c.JoinWithin, c.Token = 500*time.Millisecond, "other" }, "of 1 agents 0 joined"},
	} {
		t.Run(what, func(t *testing.T) {
			cfg, url := testLead(t, 1, c.lead)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = Join(ctx, joiner(url))
			}()
			l, err := Assemble(t.Context(), cfg, func(string) {})
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the leader says %v, want %q", err, c.want)
			}
			cancel()
			<-ended
			if _, err := os.Stat(filepath.Join(cfg.Dir, "jetstream")); err == nil {
				t.Error("the stream's folder is left")
			}
		})
	}
}
