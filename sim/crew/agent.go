package crew

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/workload"
	"throng/system/wire"
)

// JoinConfig says how an agent joins. All fields but Folder and Log are required.
type JoinConfig struct {
	URL    string // nats://host:port
	Token  string
	Files  uint64                             // that this process may open
	Folder string                             // the leader's run folder; empty: on another machine
	Sample func() (history.RoleSample, error) // CPU and memory of this process
	Log    *slog.Logger                       // nil: nothing is logged

	boot string // for tests: in place of bootID
}

// Times of an agent.
const (
	joinWithin = 30 * time.Second // the leader has this long to answer, or to be reached again
	publishIn  = 20 * time.Second // of a result
	tokenLife  = 24 * time.Hour
)

// player is an agent at work.
type player struct {
	cfg    JoinConfig
	log    *slog.Logger
	id     string
	nc     *nats.Conn
	js     jetstream.JetStream
	number int
	terms  Terms
	start  time.Time // run time zero by this clock, with the monotonic one

	spool  *os.File
	sent   int64 // bytes of it, for a leader on another machine
	engine *load.Engine
	record *Recorder
	begin  chan time.Duration
	stop   context.CancelFunc // ends the load
	end    context.CancelFunc // ends the engine
	out    context.Context    // done when nobody takes results any more
	task   context.Context    // of orders that take long
	cease  context.CancelFunc // ends them

	mu       sync.Mutex
	began    bool
	failed   error // of a result
	followed chan struct{}
	done     chan struct{} // closed when the leader knows that all is told
	jobs     sync.WaitGroup
	tasks    sync.WaitGroup // orders that connect devices: none may run when the engine ends
}

// Join joins a crew and plays a shard of its run until the leader ends it. When
// ctx is cancelled the agent leaves and tells the leader so.
func Join(ctx context.Context, cfg JoinConfig) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	lost := make(chan struct{})
	nc, err := nats.Connect(cfg.URL, nats.Token(cfg.Token), nats.Timeout(5*time.Second), nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(int(joinWithin/time.Second)), nats.ReconnectWait(time.Second), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.ClosedHandler(func(*nats.Conn) { close(lost) }))
	if err != nil {
		return fmt.Errorf("crew: join %s: %w", cfg.URL, err)
	}
	defer func() {
		nc.Close()
		<-lost
	}()
	p := &player{cfg: cfg, log: cfg.Log, id: rand.Text(), nc: nc, begin: make(chan time.Duration, 1), followed: make(chan struct{}), done: make(chan struct{})}
	if p.js, err = jetstream.New(nc); err != nil {
		return fmt.Errorf("crew: JetStream: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-lost:
			cancel(errors.New("crew: the leader cannot be reached any more"))
		case <-ctx.Done():
		}
	}()
	if err := p.join(ctx); err != nil {
		return err
	}
	return p.play(ctx)
}

// join says hello and makes everything ready.
func (p *player) join(ctx context.Context) error {
	if _, err := p.nc.Subscribe(subjectClock+p.id, p.clock); err != nil {
		return fmt.Errorf("crew: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	boot := p.cfg.boot
	if boot == "" {
		boot = bootID()
	}
	ask, cancel := context.WithTimeout(ctx, joinWithin)
	defer cancel()
	m, err := p.nc.RequestWithContext(ask, subjectJoin, encode(hello{ID: p.id, Host: host, PID: os.Getpid(), BootID: boot, Files: p.cfg.Files, Folder: p.cfg.Folder != ""}))
	if err != nil {
		return fmt.Errorf("crew: the leader at %s does not answer: %w", p.cfg.URL, err)
	}
	w, err := decode[welcome](m.Data)
	if err != nil {
		return err
	}
	if w.Refused != "" {
		return fmt.Errorf("crew: the leader refuses: %s", w.Refused)
	}
	now := time.Now()
	p.mu.Lock()
	p.number, p.terms = w.Number, w.Terms
	p.start = now.Add(w.Terms.Start.Sub(now) + w.Offset) // on the monotonic clock from here on
	p.mu.Unlock()
	p.log.Info("joined", "agent", w.Number, "of", w.Terms.Agents, "run", w.Terms.RunID)
	return nil
}

// play builds the schedule and follows the leader to the end.
func (p *player) play(ctx context.Context) error {
	beats, stopBeats := context.WithCancel(context.Background())
	var bg sync.WaitGroup
	defer bg.Wait()
	defer stopBeats()
	bg.Go(func() { p.beats(beats) })
	defer p.closeSpool()
	schedule, err := p.prepare()
	if err != nil {
		_ = p.nc.Publish(subjectReady, encode(ready{Number: p.number, Error: err.Error()}))
		_ = p.nc.Flush()
		return err
	}
	run, end := context.WithCancel(context.Background())
	soft, stop := context.WithCancel(run)
	defer end()
	defer stop()
	out, deaf := context.WithCancel(context.Background())
	defer deaf()
	p.stop, p.end, p.out = stop, end, out
	p.task, p.cease = context.WithCancel(run)
	defer p.endTasks()
	for subject, f := range map[string]func(*nats.Msg){subjectOrder + p.id: p.order, subjectPushed + p.id: p.pushed} {
		if _, err := p.nc.Subscribe(subject, f); err != nil {
			return fmt.Errorf("crew: %w", err)
		}
	}
	if err := p.nc.Publish(subjectReady, encode(ready{Number: p.number, Schedule: schedule})); err != nil {
		return fmt.Errorf("crew: %w", err)
	}
	bg.Go(func() {
		defer close(p.followed)
		p.engine.Follow(run, soft, p.begin)
	})
	select {
	case <-p.done:
		p.jobs.Wait()
		_ = p.nc.Flush() // the reply
		return nil
	case <-ctx.Done():
		deaf()
		_ = p.nc.Publish(subjectBeat, encode(beat{Number: p.number, Left: "it was told to leave: " + context.Cause(ctx).Error()}))
		_ = p.nc.FlushTimeout(time.Second)
		return context.Cause(ctx)
	}
}

func (p *player) endTasks() {
	p.cease()
	p.tasks.Wait()
}

// prepare makes the schedule and the engine, and returns what the schedule says
// of the whole run.
func (p *player) prepare() (string, error) {
	spec, err := scenario.Parse("scenario of the leader", p.terms.Spec)
	if err != nil {
		return "", fmt.Errorf("crew: %w", err)
	}
	pop := population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices).Generation(p.terms.Generation)
	own := shard(p.number, p.terms.Agents)
	sched, err := workload.BuildShard(spec, pop, own)
	if err != nil {
		return "", fmt.Errorf("crew: %w", err)
	}
	if p.spool, err = openSpool(p.cfg.Folder, p.number); err != nil {
		return "", err
	}
	p.record = newRecorder(p.number, p.publish, nil)
	cfg := load.Config{Spec: spec, Population: pop, Schedule: sched, Entrance: p, Number: p.number, Shard: own, Nonce: p.terms.Nonce, Start: p.start,
		History: p.record, Spool: p.spool, Log: p.log, Progress: func(load.Progress) { p.fail(p.record.Tick()) }}
	if p.terms.CA != nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(p.terms.CA) {
			return "", errors.New("crew: the leader's certificates cannot be read")
		}
		cfg.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	if p.engine, err = load.New(cfg); err != nil {
		return "", err
	}
	return Describe(sched), nil
}

// Describe says what a schedule, whole or of a shard, says of the whole run:
// who has the same scenario and another schedule is another version.
func Describe(s *workload.Schedule) string {
	st := s.Stats
	st.TouchedUsers, st.TouchedGroups = 0, 0
	return fmt.Sprintf("%+v", st)
}

// beats tells the leader that the agent lives.
func (p *player) beats(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b := beat{Number: p.number}
		p.mu.Lock()
		began := p.began
		p.mu.Unlock()
		if began {
			b.InFlight, _ = p.engine.InFlight()
		}
		if err := p.nc.Publish(subjectBeat, encode(b)); err != nil {
			p.log.Warn("beat", "err", err)
		}
	}
}

// clock answers what time it is here.
func (p *player) clock(m *nats.Msg) {
	now := time.Now()
	p.mu.Lock()
	start := p.start
	p.mu.Unlock()
	c := clock{Wall: now}
	if !start.IsZero() {
		c.Run = now.Sub(start)
	}
	if err := m.Respond(encode(c)); err != nil {
		p.log.Warn("clock", "err", err)
	}
}

func (p *player) pushed(m *nats.Msg) {
	all, err := decode[[]load.Pushed](m.Data)
	if err != nil {
		p.log.Warn("pushed", "err", err)
		return
	}
	for _, x := range all {
		p.engine.Pushed(x)
	}
}

// publish sends a result.
func (p *player) publish(r *result) error {
	ctx, cancel := context.WithTimeout(p.out, publishIn)
	defer cancel()
	if _, err := p.js.Publish(ctx, fmt.Sprintf("%s%d", subjectResult, p.number), encode(r)); err != nil {
		return fmt.Errorf("crew: result %d: %w", r.N, err)
	}
	return nil
}

// fail notes the first result that could not be sent.
func (p *player) fail(err error) {
	if err == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil {
		p.log.Error("results", "err", err)
		p.failed = err
	}
}

// order carries out what the leader wants, one order after the other; what
// takes long does not hold up the next.
func (p *player) order(m *nats.Msg) {
	o, err := decode[order](m.Data)
	if err != nil {
		p.respond(m, &reply{Error: err.Error()})
		return
	}
	switch o.Op {
	case opDrain:
		p.tasks.Go(func() {
			p.engine.Drain(p.task, o.Devices, o.At)
			p.respond(m, &reply{})
		})
	case opMedia:
		p.tasks.Go(func() { p.respond(m, &reply{Media: p.engine.ProveMedia(p.task)}) })
	case opSync:
		p.jobs.Go(func() {
			mark, err := p.sync()
			r := &reply{Mark: mark}
			if err != nil {
				r.Error = err.Error()
			}
			p.respond(m, r)
		})
	case opFinish:
		p.jobs.Go(func() {
			p.endTasks()
			p.end()
			<-p.followed
			p.mu.Lock()
			failed := p.failed
			p.mu.Unlock()
			r := &reply{Results: p.record.ticks()}
			if failed != nil {
				r.Error = failed.Error()
			}
			p.respond(m, r)
			close(p.done)
		})
	default:
		p.respond(m, p.carryOut(o))
	}
}

// carryOut does what takes no time.
func (p *player) carryOut(o order) *reply {
	r := &reply{}
	switch o.Op {
	case opBegin:
		p.mu.Lock()
		again := p.began
		p.began = true
		p.mu.Unlock()
		if again {
			r.Error = "it has begun already"
			break
		}
		p.begin <- o.At
	case opStop:
		p.stop()
	case opUnanswered:
		r.Waits = p.engine.Unanswered()
	case opEndLoad:
		p.engine.EndLoad()
	case opOpen:
		r.Devices = p.engine.Open()
	case opOutages:
		p.engine.Outages(o.Outages)
	case opPushAudit:
		r.Push = p.engine.PushAudit()
	default:
		r.Error = fmt.Sprintf("an order that is unknown: %q", o.Op)
	}
	return r
}

func (p *player) respond(m *nats.Msg, r *reply) {
	if err := m.Respond(encode(r)); err != nil {
		p.log.Warn("reply", "err", err)
	}
}

// Gateways, Token, Offers and Sample are the way into the deployment that the
// leader told of.

// Gateways returns the leader's list.
func (p *player) Gateways() []string { return p.terms.Gateways }

// Token signs a token that is good for a day.
func (p *player) Token(user uint64, device uint32) (string, error) {
	return p.terms.Key.Sign(wire.Claims{User: user, Device: device, Expires: time.Now().Add(tokenLife)})
}

// Offers says what the leader said.
func (p *player) Offers() load.Offers { return p.terms.Offers }

// Sample reads this process, named by the agent's number.
func (p *player) Sample() ([]history.RoleSample, error) {
	s, err := p.cfg.Sample()
	if err != nil {
		return nil, err
	}
	s.Instance = p.number
	return []history.RoleSample{s}, nil
}
