package crew

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"throng/sim/history"
	"throng/sim/load"
)

// LeadConfig says what crew a run wants. All fields but Exe, Listen, Token and
// Log are required.
type LeadConfig struct {
	Agents int    // all of them
	Local  int    // of them started by Assemble
	Exe    string // this program
	Listen string // host:port for agents; empty: any port of this machine alone
	Token  string // that agents have to know; empty: a random one
	Dir    string // the run folder
	LogDir string
	// Sockets is how many of them an agent must be able to open, with its other files.
	Sockets  uint64
	Terms    Terms
	Schedule string // what the leader's schedule says of the run, see Describe
	Writer   *history.Writer
	Progress func(load.Progress)
	Log      *slog.Logger // nil: nothing is logged
	// DeadAfter is how long an agent may be silent; 0 means 15 s.
	DeadAfter time.Duration
	// JoinWithin is how long all agents have to join and be ready; 0 means 3 min.
	JoinWithin time.Duration
	// OnDeath is called, from any goroutine, when an agent has died.
	OnDeath func(why string)
}

// Defaults of LeadConfig.
const (
	defaultDeadAfter  = 15 * time.Second
	defaultJoinWithin = 3 * time.Minute
)

// Lead is the leader of a crew. It is the load.Crew of the leader's engine.
type Lead struct {
	cfg LeadConfig
	hub *hub
	log *slog.Logger

	merger  *merger
	results jetstream.ConsumeContext
	subs    []*nats.Subscription
	watch   sync.WaitGroup
	closing chan struct{} // closed by Close
	once    sync.Once

	pushed pushedBatches

	mu      sync.Mutex
	agents  []*agent // by number - 1
	changed chan struct{}
	locals  []*process
	over    bool // no death is told any more
	failed  error
}

// agent is one member as the leader sees it. The fields below mu of Lead are
// guarded by it.
type agent struct {
	number int
	hello  hello
	same   bool // its clock is this one's
	first  offset
	alive  context.Context // done when it has died
	kill   context.CancelCauseFunc

	inFlight atomic.Int64

	ready bool
	// ending: it has been told to finish, and finished: it has, so that the end
	// of its process is none of its death.
	ending, finished bool

	dead  string // why; "" while it lives
	died  time.Duration
	beat  time.Time
	drift offset // the clocks of the run against each other, as measured last
	most  time.Duration
	got   int // results
	spool spoolCopy
}

// Assemble opens the leader's server, starts the local agents and returns when
// all have joined and made their schedules. ctx bounds it.
func Assemble(ctx context.Context, cfg LeadConfig, say func(string)) (*Lead, error) {
	cfg.defaults()
	l := &Lead{cfg: cfg, log: cfg.Log, closing: make(chan struct{}), changed: make(chan struct{}, 1)}
	l.merger = newMerger(cfg.Writer, cfg.Agents+1, cfg.Progress)
	var err error
	if l.hub, err = openHub(ctx, cfg.Listen, cfg.Token, filepath.Join(cfg.Dir, "jetstream")); err != nil {
		return nil, err
	}
	if err := l.gather(ctx, say); err != nil {
		l.Close()
		return nil, err
	}
	l.watch.Go(l.watchAll)
	return l, nil
}

func (c *LeadConfig) defaults() {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if c.Token == "" {
		c.Token = rand.Text()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.DeadAfter == 0 {
		c.DeadAfter = defaultDeadAfter
	}
	if c.JoinWithin == 0 {
		c.JoinWithin = defaultJoinWithin
	}
	c.Terms.Agents = c.Agents
}

// gather starts the local agents and waits for all.
func (l *Lead) gather(ctx context.Context, say func(string)) error {
	if err := l.listen(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(l.cfg.LogDir, 0o755); err != nil {
		return fmt.Errorf("crew: %w", err)
	}
	if n := l.cfg.Agents - l.cfg.Local; n > 0 {
		say(fmt.Sprintf("waiting for %d agents from elsewhere: %s=%s throng agent --join nats://HOST:%s", n, TokenEnv, l.cfg.Token, portOf(l.hub.url())))
	}
	if l.cfg.Local > 0 {
		say(fmt.Sprintf("starting %d agents", l.cfg.Local))
	}
	for i := range l.cfg.Local {
		p, err := startAgent(l.cfg.Exe, l.hub.url(), l.cfg.Token, l.cfg.Dir, agentLog(l.cfg.LogDir, i+1), l.cfg.Local, l.exited)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.locals = append(l.locals, p)
		l.mu.Unlock()
	}
	return l.awaitAll(ctx)
}

// listen subscribes to what agents say.
func (l *Lead) listen(ctx context.Context) error {
	for subject, f := range map[string]func(*nats.Msg){subjectJoin: l.join, subjectReady: l.ready, subjectBeat: l.beat} {
		sub, err := l.hub.nc.Subscribe(subject, f)
		if err != nil {
			return fmt.Errorf("crew: %w", err)
		}
		l.subs = append(l.subs, sub)
	}
	consumer, err := l.hub.stream.CreateConsumer(ctx, jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		return fmt.Errorf("crew: consumer of results: %w", err)
	}
	if l.results, err = consumer.Consume(l.result); err != nil {
		return fmt.Errorf("crew: consumer of results: %w", err)
	}
	return nil
}

// join takes an agent, or refuses it.
func (l *Lead) join(m *nats.Msg) {
	h, err := decode[hello](m.Data)
	if err != nil {
		l.log.Warn("join", "err", err)
		return
	}
	w := welcome{Terms: l.cfg.Terms}
	same := h.BootID != "" && h.BootID == bootID()
	var first offset
	switch {
	case h.Files < l.cfg.Sockets:
		w.Refused = fmt.Sprintf("the agent may open %d files and needs %d: raise ulimit -n there, or take more agents", h.Files, l.cfg.Sockets)
	case !same:
		first, err = l.wallOffset(h.ID)
		if err != nil {
			w.Refused = err.Error()
		}
	}
	if w.Refused == "" {
		w.Offset = first.ahead
		if w.Number = l.enlist(h, same, first); w.Number == 0 {
			w.Refused = "the crew is complete"
		}
	}
	if err := m.Respond(encode(w)); err != nil {
		l.log.Warn("join", "err", err)
	}
	if w.Refused != "" {
		l.fail(fmt.Errorf("crew: an agent of %s was refused: %s", h.Host, w.Refused))
	}
}

func (l *Lead) wallOffset(id string) (offset, error) {
	start := time.Now()
	return estimate(func() time.Duration { return time.Since(start) }, func() (time.Duration, error) {
		c, err := askClock(context.Background(), l.hub.nc, id)
		return c.Wall.Sub(start.Round(0)), err
	})
}

// enlist gives an agent a number, 0 when there is none left.
func (l *Lead) enlist(h hello, same bool, first offset) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.agents) == l.cfg.Agents {
		return 0
	}
	a := &agent{number: len(l.agents) + 1, hello: h, same: same, first: first, beat: time.Now()}
	a.alive, a.kill = context.WithCancelCause(context.Background())
	l.agents = append(l.agents, a)
	l.wake()
	return a.number
}

// fail notes why the crew cannot be assembled.
func (l *Lead) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = err
	}
	l.wake()
}

func (l *Lead) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

func (l *Lead) ready(m *nats.Msg) {
	r, err := decode[ready](m.Data)
	if err != nil || r.Number < 1 {
		l.log.Warn("ready", "err", err)
		return
	}
	if r.Error == "" && r.Schedule != l.cfg.Schedule {
		r.Error = "it makes another schedule of the same scenario: its throng is another version"
	}
	if r.Error != "" {
		l.fail(fmt.Errorf("crew: agent %d cannot play: %s", r.Number, r.Error))
		return
	}
	l.mu.Lock()
	if r.Number <= len(l.agents) {
		l.agents[r.Number-1].ready = true
	}
	l.mu.Unlock()
	l.wake()
}

// awaitAll returns when all agents are ready.
func (l *Lead) awaitAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.JoinWithin)
	defer cancel()
	for {
		l.mu.Lock()
		n, failed := 0, l.failed
		for _, a := range l.agents {
			if a.ready {
				n++
			}
			if a.dead != "" {
				failed = errors.Join(failed, fmt.Errorf("crew: agent %d ended before the run: %s", a.number, a.dead))
			}
		}
		joined := len(l.agents)
		l.mu.Unlock()
		switch {
		case failed != nil:
			return failed
		case n == l.cfg.Agents:
			return nil
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			return fmt.Errorf("crew: of %d agents %d joined and %d were ready: %w", l.cfg.Agents, joined, n, ctx.Err())
		}
	}
}

// Record takes what the leader's engine records: its part of each second.
func (l *Lead) Record() *Recorder {
	return newRecorder(0, func(r *result) error { return l.merger.add(0, r) }, l.cfg.Writer)
}

// Proof tells how the leader's engine gets on with its proof, for the progress.
func (l *Lead) Proof(p load.Progress) {
	l.merger.mu.Lock()
	defer l.merger.mu.Unlock()
	l.merger.proof = p
}

// result takes what an agent recorded, or a piece of its spool.
func (l *Lead) result(m jetstream.Msg) {
	if strings.HasPrefix(m.Subject(), subjectSpool) {
		l.piece(m)
		return
	}
	r, err := decode[result](m.Data())
	if err != nil || r.Number < 1 || r.Number > l.cfg.Agents {
		l.log.Warn("result", "err", err)
		_ = m.Term()
		return
	}
	l.mu.Lock()
	a := l.agents[r.Number-1]
	again := r.N <= a.got
	l.mu.Unlock()
	if !again { // only one comes at a time
		if err := l.take(&r); err != nil {
			l.log.Error("result", "agent", r.Number, "err", err)
		}
		l.mu.Lock()
		a.got = r.N // not before it is merged: awaitResults waits for that
		l.mu.Unlock()
	}
	_ = m.Ack() // else it comes again, and is known
	l.wake()
}

// take merges a result and writes down what is the agent's own.
func (l *Lead) take(r *result) error {
	errs := []error{l.merger.add(r.Number, r)}
	for _, s := range r.Roles {
		errs = append(errs, l.cfg.Writer.Role(s))
	}
	for i := range r.Stages {
		errs = append(errs, l.cfg.Writer.Stages(&r.Stages[i]))
	}
	for _, s := range r.Rig {
		errs = append(errs, l.cfg.Writer.Rig(s))
	}
	for _, e := range r.Events {
		e.Detail = fmt.Sprintf("agent %d: %s", r.Number, e.Detail)
		errs = append(errs, l.cfg.Writer.Event(e))
	}
	return errors.Join(errs...)
}

// Finish ends the agents, takes the rest of what they recorded and says who they
// were.
func (l *Lead) Finish(ctx context.Context) []history.Agent {
	l.merger.leave(0)
	l.measureClocks()
	l.mu.Lock()
	for _, a := range l.agents {
		a.ending = true
	}
	l.mu.Unlock()
	l.each(ctx, order{Op: opFinish}, func(a *agent, r *reply, err error) {
		if err == nil {
			err = l.awaitResults(ctx, a, r.Results)
		}
		if err != nil {
			l.die(a, fmt.Sprintf("its last results are missing: %v", err))
		}
		l.mu.Lock()
		a.finished = err == nil
		l.mu.Unlock()
		l.merger.leave(a.number)
	})
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	return l.describe()
}

// awaitResults waits until n results of an agent have been taken.
func (l *Lead) awaitResults(ctx context.Context, a *agent, n int) error {
	ctx, cancel := context.WithTimeout(ctx, orderWithin)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		l.mu.Lock()
		got := a.got
		l.mu.Unlock()
		if got >= n {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d came", got, n)
		}
	}
}

// describe says who the agents were.
func (l *Lead) describe() []history.Agent {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []history.Agent
	for _, a := range l.agents {
		late, n := l.merger.lateP99(a.number)
		x := history.Agent{Number: a.number, Host: a.hello.Host, PID: a.hello.PID, SameClock: a.same, Died: a.dead, DiedS: a.died.Seconds(), Actions: n,
			LateP99Ms: float64(late.Microseconds()) / 1000}
		if !a.same {
			x.ClockAheadMs, x.ClockErrorMs = millis(a.first.ahead), millis(a.first.within+a.most)
		}
		out = append(out, x)
	}
	return out
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// Close ends everything, local agents included.
func (l *Lead) Close() {
	l.once.Do(func() {
		l.mu.Lock()
		l.over = true
		locals := l.locals
		agents := l.agents
		l.mu.Unlock()
		close(l.closing)
		var all sync.WaitGroup
		for _, p := range locals {
			all.Go(p.stop)
		}
		all.Wait()
		for _, a := range agents {
			a.kill(errors.New("the run is over"))
		}
		l.watch.Wait()
		if l.results != nil {
			l.results.Stop()
			<-l.results.Closed()
		}
		for _, a := range agents {
			a.spool.close()
		}
		l.hub.close()
	})
}
