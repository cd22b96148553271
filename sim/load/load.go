// Package load is the open-loop engine: it plays a workload.Schedule against a
// deployment over real WebSockets, records what happened from the intended
// times, and proves at the end what was delivered.
//
// Arrivals never wait for the system. The scheduler hands each action on at its
// intended time to queues that do not block; how late an action was started is
// the generator's own error and recorded as such. What has to wait for the
// system (a send for its login, a reply for the message it answers) is measured
// from its intended time.
//
// It owns the simulated devices and their connections. It may not import
// sim/target: what it needs of a deployment is the Target interface.
package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"throng/sim/audit"
	"throng/sim/client"
	"throng/sim/history"
	"throng/sim/metrics"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/workload"
	"throng/system/wire"
)

// Entrance is what an engine needs of a deployment to play devices.
type Entrance interface {
	// Gateways returns the WebSocket base URLs.
	Gateways() []string
	// Token returns a bearer token of a device.
	Token(user uint64, device uint32) (string, error)
	// Offers says what else there is. What is not offered is not asked for.
	Offers() Offers
	// Sample reads the CPU and memory of all processes that are seen from here.
	Sample() ([]history.RoleSample, error)
}

// Target is what the engine that leads a run needs of a deployment.
type Target interface {
	Entrance
	// Provision creates users and groups; next returns io.EOF at the end.
	Provision(ctx context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error)
	// ChangeMembers returns when the change is in the group's log.
	ChangeMembers(ctx context.Context, c *wire.MembershipChange) (*wire.MembershipResult, error)
	// Pushes calls f for each push the provider answered, until ctx is done.
	Pushes(ctx context.Context, f func(Push)) error
	// Kill and Restart act on one process of a role.
	Kill(role string, instance int) error
	Restart(role string, instance int) error
	// Flush empties a store and returns its number of keys, below 0 if not known.
	Flush(role string, instance int) (int64, error)
	// Scrape reads the counters of all roles.
	Scrape(ctx context.Context) ([]history.CounterSample, error)
}

// Offers is what a deployment has besides carrying messages.
type Offers struct {
	// Log: the counters of every fan-out process can be scraped, so that it is
	// known what still lies in the groups' log.
	Log bool
	// Partitions of the groups' log; 0: the scenario's, below 0: not known.
	Partitions int
	// Pushes: there is a feed of accepted pushes. Without it no user opens the
	// app for a push, and the push audit checks nothing.
	Pushes bool
	// Medias are the base URLs of the media service, none without one.
	Medias []string
}

// Record takes what an engine notes while the run goes on: a history.Writer, or
// the way to one.
type Record interface {
	Second(history.Second) error
	Role(history.RoleSample) error
	Counters(history.CounterSample) error
	Interval(history.Interval) error
	Stages(*history.Stages) error
	Rig(history.Rig) error
	Event(history.Event) error
}

// Config of an engine. All fields but TLS, Log, Progress and those of a run with
// several agents are required.
type Config struct {
	Spec       *scenario.Spec
	Population *population.Population
	Schedule   *workload.Schedule
	Target     Target // for Run
	History    Record
	Spool      Spool          // empty: what the audit is told
	Start      time.Time      // run time zero
	TLS        *tls.Config    // for gateways at wss://; nil: the system's certificates
	Log        *slog.Logger   // nil: nothing is logged
	Progress   func(Progress) // called at the end of each second, when it is recorded

	// Crew plays the users; nil: the engine itself does.
	Crew Crew
	// Number, Shard, Entrance and Nonce are for an engine that is one of a crew
	// (Follow): its number from 1, the users that it plays, the way in instead of
	// Target, and what marks the bodies of this run, the same for all.
	Number   int
	Shard    workload.Shard
	Entrance Entrance
	Nonce    uint32
}

// Limits of the engine itself.
const (
	maxConnecting  = 1 << 14          // logins in progress; more count as unstarted
	sendWorkers    = 4                // senders of a device always share one worker
	sendQueue      = 1 << 17          // actions waiting for a worker; more count as unstarted
	resendAfter    = 15 * time.Second // an unanswered send is sent again
	reconnectMin   = 50 * time.Millisecond
	proofInFlight  = 384 // devices being drained at once at the end
	scrapeInterval = 5 * time.Second
)

// Engine runs one schedule once.
type Engine struct {
	cfg    Config
	spec   *scenario.Spec
	sched  *workload.Schedule
	target Target   // nil in an agent
	access Entrance // target, or what the agent has of it
	crew   Crew
	offers Offers
	log    *slog.Logger

	audit  *audit.Spool
	rec    *metrics.Recorder
	kinds  kinds
	stages stages
	stats  stats
	timers *timers
	dialer client.Dialer
	heart  *client.Heartbeat
	gates  []string
	zones  []zoneKinds // by gateway; none without zones

	start     time.Time     // run time zero
	loadStart time.Duration // run time of the schedule's zero
	loadEnd   time.Duration
	phase     atomic.Pointer[string]
	nonce     uint32
	backlog   atomic.Bool // backlog pushes cause no opens
	closing   atomic.Bool // the load is over: nobody reconnects on their own

	devices [deviceShards]deviceShard
	members sync.Map            // group -> *groupEntry
	joiners map[uint64][]uint64 // group -> users that the schedule adds to it
	ids     [deviceShards]idShard
	media   *media // nil: the scenario has none
	replies *replies
	jitter  jitter
	queues  [sendWorkers]chan job
	flying  flying
	asks    asks

	judging       judging
	pending       atomic.Int64 // devices to be proved
	historyFailed atomic.Bool
	pushes        pushCounts
	feedEnded     atomic.Pointer[error]
	outages       outages

	readers sync.WaitGroup // one for each connection's reader and each login
}

// New returns an engine; nothing runs before Run.
func New(cfg Config) (*Engine, error) {
	if cfg.Target != nil {
		cfg.Entrance = cfg.Target
	}
	gates := cfg.Entrance.Gateways()
	if len(gates) == 0 {
		return nil, errors.New("load: the target has no gateway")
	}
	if cfg.Spool == nil {
		return nil, errors.New("load: there is no file for what the audit is told")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Progress == nil {
		cfg.Progress = func(Progress) {}
	}
	e := &Engine{cfg: cfg, spec: cfg.Spec, sched: cfg.Schedule, target: cfg.Target, access: cfg.Entrance, crew: cfg.Crew,
		offers: cfg.Entrance.Offers(), log: cfg.Log, gates: gates, start: cfg.Start, nonce: cfg.Nonce}
	if e.nonce == 0 {
		e.nonce = uint32(cfg.Start.UnixNano())
	}
	if e.crew == nil {
		e.crew = solo{e}
	}
	e.dialer.TLS = cfg.TLS
	e.audit = audit.NewSpool(cfg.Spool, audit.Partitions(len(cfg.Schedule.Sends)))
	e.rec = metrics.NewRecorder(0)
	e.kinds = registerKinds(e.rec, len(e.spec.Faults))
	e.zones = zonesOf(cfg.Spec, e.rec, len(gates))
	e.stages = newStages(e.rec)
	e.dialer.Grid = client.Grid{Epoch: e.start, Step: seconds(cfg.Spec.ResolutionS)}
	e.timers = newTimers(e.now, e.dialer.Grid)
	e.heart = client.NewHeartbeat(0)
	e.replies = newReplies(cfg.Schedule)
	e.jitter.rng = rand.New(rand.NewPCG(cfg.Spec.Seed, jitterStream))
	e.joiners = joinersOf(cfg.Schedule)
	e.asks.made, e.asks.held = make(map[uint64]bool), make(map[uint64][]*workload.Action)
	if e.target != nil {
		e.startOf(cfg.Schedule)
	}
	for i := range e.devices {
		e.devices[i].m = make(map[audit.Device]*device)
		e.ids[i].m = make(map[wire.MessageID]int32)
	}
	for i := range e.queues {
		e.queues[i] = make(chan job, sendQueue)
	}
	if local(e.gates) {
		e.dialer.Sources = client.LoopbackSources(cfg.Shard.Index)
	}
	if cfg.Crew != nil {
		e.indexAll()
	}
	e.setPhase("provision")
	var err error
	e.media, err = newMedia(e, e.offers.Medias, cfg.TLS)
	return e, err
}

// now is the time since the start of the run, on the monotonic clock.
func (e *Engine) now() time.Duration { return time.Since(e.start) }

func (e *Engine) setPhase(name string) { e.phase.Store(&name) }

// Outcome of a run.
type Outcome struct {
	Phases      []history.Phase
	Audit       history.Audit
	Interrupted bool
	// FeedEnded is why the feed of pushes ended before the run did; nil: it did not.
	FeedEnded error
}

// Run provisions the target, plays the schedule, lets the system settle and
// proves the deliveries. When ctx is cancelled the load stops, and what was
// sent until then is still proved; when hard is cancelled Run returns as soon
// as it can. An error means that the run could not be carried out at all.
func (e *Engine) Run(ctx, hard context.Context) (*Outcome, error) {
	out := &Outcome{}
	run, stop := context.WithCancel(hard)
	var bg sync.WaitGroup
	defer e.finish(stop, &bg)
	bg.Go(func() { e.sampleLoop(run) })
	bg.Go(func() { e.scrapeLoop(run) })
	phase := e.beginPhase("provision", e.spec.Phases.ProvisionS, false)
	if err := e.provision(ctx); err != nil {
		return nil, fmt.Errorf("load: provisioning: %w", err)
	}
	out.Phases = append(out.Phases, e.endPhase(phase))
	e.loadStart = e.now() + e.crew.Begins()
	e.crew.Begin(ctx, e.loadStart)
	e.work(run, &bg)
	if e.offers.Pushes {
		bg.Go(func() { e.watchPushes(run) })
	}
	bg.Go(func() { e.faults(run) })
	phases := e.playPhases(ctx)
	out.Phases = append(out.Phases, phases...)
	out.Interrupted = ctx.Err() != nil
	e.loadEnd = e.now()
	if out.Interrupted {
		e.crew.Stop()
	}

	phase = e.beginPhase("settle", e.spec.Phases.SettleS, false)
	e.settle(hard)
	out.Phases = append(out.Phases, e.endPhase(phase))

	e.closing.Store(true)
	e.crew.EndLoad(hard)
	phase = e.beginPhase("proof", e.spec.Phases.ProofS, false)
	var last *fanouts
	out.Audit, last = e.prove(hard, phases)
	last.write(e)
	if e.spec.Media.Share > 0 {
		out.Audit.Media = e.crew.ProveMedia(hard)
	}
	out.Phases = append(out.Phases, e.endPhase(phase))
	out.Audit.Push = e.crew.PushAudit(hard)
	if err := e.feedEnded.Load(); err != nil {
		out.FeedEnded = *err
	}
	if n := e.stats.silent.Load(); n > 0 {
		e.event("warning", fmt.Sprintf("%d connections were given up because nothing came within %v after a ping", n, pongWait))
	}
	if hard.Err() != nil {
		out.Interrupted = true
	}
	return out, nil
}

// work starts what carries out the devices' actions, until run is done.
func (e *Engine) work(run context.Context, bg *sync.WaitGroup) {
	if e.media != nil {
		e.media.ctx = run
	}
	bg.Go(func() { e.timers.run(run) })
	bg.Go(func() { e.heart.Run(run) })
	bg.Go(func() { e.resendLoop(run) })
	for i := range e.queues {
		bg.Go(func() { e.sendLoop(run, e.queues[i]) })
	}
}

// finish ends what work started, then the connections: while timers and senders
// live, a device may connect again.
func (e *Engine) finish(stop func(), bg *sync.WaitGroup) {
	stop()
	bg.Wait()
	e.abortAll()
	e.readers.Wait()
}

// beginPhase and endPhase bracket a phase outside the schedule.
func (e *Engine) beginPhase(name string, budget float64, load bool) history.Phase {
	e.setPhase(name)
	return history.Phase{Name: name, Start: e.now().Seconds(), BudgetS: budget, Load: load}
}

func (e *Engine) endPhase(p history.Phase) history.Phase {
	p.End = e.now().Seconds()
	return p
}

// playPhases runs the schedule and returns its phases as they really were.
func (e *Engine) playPhases(ctx context.Context) []history.Phase {
	var out []history.Phase
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.play(ctx)
	}()
	for _, span := range e.sched.Phases {
		if span.Name == "settle" || span.End == span.Start {
			continue // settle is the engine's own, and a phase may be left out
		}
		p := history.Phase{Name: span.Name, Start: (e.loadStart + span.Start).Seconds(),
			BudgetS: (span.End - span.Start).Seconds(), Load: span.Load, Gated: span.Gated}
		e.setPhase(span.Name)
		e.backlog.Store(span.Name == "ramp" || span.Name == "backlog")
		if span.Name == "warmup" {
			debug.FreeOSMemory() // what the logins of the ramp left behind is the system's to have
		}
		select {
		case <-time.After(e.loadStart + span.End - e.now()):
		case <-ctx.Done():
		}
		p.End = min(e.now(), e.loadStart+span.End).Seconds()
		out = append(out, p)
		if ctx.Err() != nil {
			break
		}
	}
	<-done
	return out
}

// kinds are the recorder's numbers of the kinds of latency.
type kinds struct {
	sent, direct, group, own, read, drain, login, push, late, held metrics.Kind
	deliveredAll, readAll, change                                  metrics.Kind
	back                                                           []metrics.Kind // by fault
	drainRows                                                      []metrics.Kind // by drain class
}

func registerKinds(r *metrics.Recorder, faults int) kinds {
	k := kinds{
		sent: r.Kind(history.KindSent), direct: r.Kind(history.KindDeliverDirect), group: r.Kind(history.KindDeliverGroup),
		own:  r.Kind(history.KindDeliverOwn),
		read: r.Kind(history.KindRead), drain: r.Kind(history.KindDrain), login: r.Kind(history.KindLogin),
		deliveredAll: r.Kind(history.KindDeliveredAll), readAll: r.Kind(history.KindReadAll),
		push: r.Kind(history.KindPush), late: r.Kind(history.KindLate), change: r.Kind(history.KindGroupChange), held: r.Kind(history.KindHeld),
	}
	for i := range faults {
		k.back = append(k.back, r.Kind(history.KindBack+strconv.Itoa(i)))
	}
	for _, c := range history.DrainClasses {
		k.drainRows = append(k.drainRows, r.Kind(history.KindDrainRows+c.Name))
	}
	return k
}

// gatedPhases returns the indexes of the phases whose figures decide.
func gatedPhases(s *workload.Schedule) []uint8 {
	var out []uint8
	for i, p := range s.Phases {
		if p.Gated {
			out = append(out, uint8(i))
		}
	}
	return out
}

// jitterStream names the random stream of the engine's own jitter: reconnects
// and retries, which depend on the system and so not on the schedule.
const jitterStream = 0x6a6974746572

// jitter draws random delays. Safe for concurrent use.
type jitter struct {
	mu  sync.Mutex
	rng *rand.Rand
}

// upTo returns a random time in [0, d).
func (j *jitter) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return time.Duration(j.rng.Int64N(int64(d)))
}

// local says whether all gateways are on the loopback interface.
func local(gates []string) bool {
	for _, g := range gates {
		u, err := url.Parse(g)
		if err != nil {
			return false
		}
		if a, err := netip.ParseAddr(u.Hostname()); err != nil || !a.IsLoopback() {
			return false
		}
	}
	return true
}
