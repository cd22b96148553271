// Package inbox owns the mailboxes: for each (user, device) what is stored, who
// is live, and what is in flight. It is the only place that decides whether a
// message goes out at once or is stored.
//
// Its core (core.go, session.go, receipts.go, pushing.go) is a state machine
// without I/O or clock. A loop (loop.go) drives one core for some shards: it
// takes every event that waits, lets the core decide, commits the store
// operations as one transaction, then lets the effects out. The server
// (server.go) turns RPC streams into events.
//
// The package may import placement, wire, rpc and obs. It may not import
// another role or a store: the stores come in its Config.
package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/placement"
)

// DefaultLoops is the number of loops of an instance. Each has its own store
// and keeps at most one core of the machine busy.
const DefaultLoops = 2

// stopGrace bounds how long Run waits for streams when it is told to stop.
const stopGrace = 2 * time.Second

// Plant names of planted bugs, for tests of the audit.
const PlantDrop = "drop"

// Config of an inbox instance.
type Config struct {
	Instance, Instances int
	// Stores, one for each loop. The caller closes them after Run.
	Stores []Store
	// Peers are the RPC addresses of all inbox instances, this one included.
	Peers []string
	// Push are the RPC addresses of the push instances.
	Push   []string
	Limits Limits
	Tracer *obs.Tracer // may be nil
	Plant  string
	// Identity is shown to the other roles; nil: they speak without TLS.
	Identity *rpc.Identity
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

// Inbox is one instance.
type Inbox struct {
	cfg     Config
	m       *metrics
	loops   []*loop
	peers   []*peer // nil for this instance
	pushers []*pusher
	nextID  atomic.Uint64 // of gateway streams
	recvs   sync.WaitGroup

	mu       sync.Mutex
	epoch    uint64 // counts resets; what came in under an earlier one is void
	stopping bool
	streams  map[*streamCtl]struct{}
	gateways map[string]*gatewayStream
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Inbox, error) {
	if cfg.Instances < 1 || cfg.Instance < 0 || cfg.Instance >= cfg.Instances {
		return nil, fmt.Errorf("inbox: instance %d of %d", cfg.Instance, cfg.Instances)
	}
	if len(cfg.Stores) == 0 || len(cfg.Stores) > placement.InboxShards {
		return nil, fmt.Errorf("inbox: %d stores, want 1 to %d", len(cfg.Stores), placement.InboxShards)
	}
	if len(cfg.Peers) != cfg.Instances && cfg.Instances > 1 {
		return nil, fmt.Errorf("inbox: %d peers for %d instances", len(cfg.Peers), cfg.Instances)
	}
	if cfg.Plant != "" && cfg.Plant != PlantDrop {
		return nil, fmt.Errorf("inbox: unknown plant %q", cfg.Plant)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	cfg.Limits.defaults()
	in := &Inbox{cfg: cfg, streams: make(map[*streamCtl]struct{}), gateways: make(map[string]*gatewayStream)}
	var err error
	if in.m, err = newMetrics(cfg.Metrics, len(cfg.Stores), cfg.Limits); err != nil {
		return nil, fmt.Errorf("inbox: %w", err)
	}
	for i, st := range cfg.Stores {
		in.loops = append(in.loops, newLoop(in, i, st))
	}
	for _, addr := range cfg.Push {
		in.pushers = append(in.pushers, newPusher(in, addr))
	}
	in.peers = make([]*peer, cfg.Instances)
	for i, addr := range cfg.Peers {
		if i < cfg.Instances && i != cfg.Instance {
			in.peers[i] = newPeer(in, addr)
		}
	}
	return in, nil
}

// loopOf returns the loop that owns a user, nil if another instance does.
func (in *Inbox) loopOf(user uint64) *loop {
	s := placement.InboxShard(user)
	if placement.InboxInstance(s, in.cfg.Instances) != in.cfg.Instance {
		return nil
	}
	return in.loops[in.loopOfShard(s)]
}

func (in *Inbox) loopOfShard(shard int) int { return shard / in.cfg.Instances % len(in.loops) }

// Run claims the shards and serves until ctx is done, then stops: streams are
// cut, what was deferred is written. It returns an error when it cannot serve
// or when another process has claimed the shards.
func (in *Inbox) Run(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stats, err := obs.RPCStats(in.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("inbox: %w", err)
	}
	srv := rpc.NewServer(append(in.cfg.Identity.Serving(), grpc.StatsHandler(stats))...)
	rpc.RegisterInboxServer(srv, server{in: in})
	rpc.RegisterReceiptsServer(srv, receiptsServer{in: in})

	var clients, loops sync.WaitGroup
	loopCtx, stopLoops := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLoops()
	for _, l := range in.loops {
		loops.Go(func() {
			if err := l.run(loopCtx); err != nil {
				cancel(fmt.Errorf("inbox: loop %d: %w", l.n, err))
			}
		})
	}
	for _, p := range in.pushers {
		clients.Go(func() { p.run(ctx, stats) })
	}
	for _, p := range in.peers {
		if p != nil {
			clients.Go(func() { p.run(ctx, stats) })
		}
	}
	clients.Go(func() {
		if err := srv.Serve(ln); err != nil {
			cancel(fmt.Errorf("inbox: serve: %w", err))
		}
	})
	<-ctx.Done()
	in.cut(true)
	obs.StopGRPC(srv, stopGrace)
	clients.Wait()
	in.recvs.Wait()
	stopLoops()
	loops.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Ready returns nil when every loop owns its shards.
func (in *Inbox) Ready() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.readyLocked()
}

func (in *Inbox) readyLocked() error {
	if in.stopping {
		return errors.New("inbox: stopping")
	}
	for _, l := range in.loops {
		if l.incarnation == 0 {
			return fmt.Errorf("inbox: loop %d has not claimed its shards", l.n)
		}
	}
	return nil
}

// streamCtl lets the instance cut a stream.
type streamCtl struct {
	epoch  uint64
	cancel context.CancelCauseFunc
}

var (
	errCut      = status.Error(codes.Unavailable, "inbox: the owner starts over")
	errReplaced = status.Error(codes.Aborted, "inbox: the gateway has a newer stream")
	errOverflow = status.Error(codes.ResourceExhausted, "inbox: the stream's reader is too slow")
)

// admit registers a stream and returns the incarnation it is served under. It
// answers Unavailable while the instance does not own all of its shards.
func (in *Inbox) admit(c *streamCtl) (incarnation uint64, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.readyLocked(); err != nil {
		return 0, status.Error(codes.Unavailable, err.Error())
	}
	for _, l := range in.loops {
		incarnation += l.incarnation // grows when any of them does
	}
	c.epoch = in.epoch
	in.streams[c] = struct{}{}
	return incarnation, nil
}

func (in *Inbox) leave(c *streamCtl) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.streams, c)
}

// cut ends every stream and voids what they have sent: to its callers the
// instance looks as if its process had been killed.
func (in *Inbox) cut(stopping bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.epoch++
	in.stopping = in.stopping || stopping
	for c := range in.streams {
		c.cancel(errCut)
	}
}

// owned records that a loop has claimed its shards (0: it no longer serves).
func (in *Inbox) owned(l *loop, incarnation uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	l.incarnation = incarnation
}

func (in *Inbox) currentEpoch() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.epoch
}
