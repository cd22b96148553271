// Package fanout turns each group message into deliveries to its addressees:
// it consumes the groups' partitions, finds the members at a message's
// position, hands the message to the inbox instances of the addressees, and
// commits the contiguous watermark of what they have answered for. It owns the
// position in each partition assigned to it and nothing that lasts. It may not
// import another role or an adapter.
package fanout

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

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// Planted bugs of this role.
const (
	// PlantCommitEarly commits an offset when it is fetched and processes it
	// commitEarly later.
	PlantCommitEarly = "commit-early"
	// PlantExMember delivers to the members of one version earlier too.
	PlantExMember = "ex-member"
)

const commitEarly = 250 * time.Millisecond

// drainTimeout bounds how long Run waits, when it is told to stop, for the
// answers to what it has sent.
const drainTimeout = 3 * time.Second

// Partition is one assigned partition of the groups' topic. Fetch returns the
// next records in order, at least one, with the offset after the last record
// the partition has, and fails only when its context ends. Commit says that
// everything before next is done; it does not block.
type Partition interface {
	Name() string
	Fetch(ctx context.Context) (offsets []int64, values [][]byte, high int64, err error)
	Commit(next int64)
}

// Consumer calls handle in a goroutine for each partition assigned to this
// process until ctx is done; handle's context ends when the partition is taken
// away. Run returns when every handle has returned.
type Consumer interface {
	Run(ctx context.Context, handle func(ctx context.Context, p Partition)) error
}

// Config of a fan-out instance. Zero limits mean the defaults.
type Config struct {
	Instance int
	Consumer Consumer
	Inboxes  []string // addresses of all inbox instances, by index
	Groups   []string // addresses of all group instances, by index
	Key      wire.Key // signs who may fetch the media of a message

	// MaxInFlight bounds the records of one partition that are not resolved;
	// default 512. At the bound the partition is not read.
	MaxInFlight int
	// MaxCachedMembers bounds the member lists kept in memory, in members (8
	// bytes each); default 8,388,608.
	MaxCachedMembers int
	// MaxGroups bounds the groups of one partition whose version is
	// remembered; default 65,536. The group service knows the others.
	MaxGroups int

	Tracer *obs.Tracer // may be nil
	Plant  string
	// Identity is shown to the other roles; nil: they speak without TLS.
	Identity *rpc.Identity
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

func (c *Config) defaults() error {
	switch {
	case c.Consumer == nil:
		return errors.New("fanout: no consumer given")
	case len(c.Inboxes) == 0 || len(c.Groups) == 0:
		return errors.New("fanout: no inbox or no group instances given")
	case c.Plant != "" && c.Plant != PlantCommitEarly && c.Plant != PlantExMember:
		return fmt.Errorf("fanout: unknown planted bug %q", c.Plant)
	}
	if c.MaxInFlight <= 0 {
		c.MaxInFlight = 512
	}
	if c.MaxCachedMembers <= 0 {
		c.MaxCachedMembers = 8 << 20
	}
	if c.MaxGroups <= 0 {
		c.MaxGroups = 65536
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	return nil
}

// Fanout is a fan-out instance.
type Fanout struct {
	cfg       Config
	groups    []rpc.GroupClient
	appenders []*rpc.Appender // by inbox instance
	members   *memberCache
	conns     []*grpc.ClientConn
	m         metrics

	inFlight atomic.Int64       // records not resolved, over all partitions
	stopping context.Context    // ends when Run is told to stop
	stop     context.CancelFunc // ends stopping
	running  atomic.Bool
}

// New connects lazily to the other roles.
func New(cfg Config) (*Fanout, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	f := &Fanout{cfg: cfg}
	f.stopping, f.stop = context.WithCancel(context.Background())
	if err := f.m.register(cfg.Metrics, cfg.MaxCachedMembers); err != nil {
		return nil, fmt.Errorf("fanout: %w", err)
	}
	f.members = newMemberCache(cfg.MaxCachedMembers, len(cfg.Inboxes), f.m.cached)
	handler, err := obs.RPCStats(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("fanout: %w", err)
	}
	dial := func(addr, role string) (*grpc.ClientConn, error) {
		c, err := rpc.Dial(addr, grpc.WithStatsHandler(handler), cfg.Identity.Dialling(role))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("fanout: %w", err), f.closeConns())
		}
		f.conns = append(f.conns, c)
		return c, nil
	}
	for i, addr := range cfg.Inboxes {
		c, err := dial(addr, "inbox")
		if err != nil {
			return nil, err
		}
		f.appenders = append(f.appenders, rpc.NewAppender(rpc.AppenderConfig{
			Conn: c, Log: cfg.Log.With("inbox", i), Resent: f.m.redelivered}))
	}
	for _, addr := range cfg.Groups {
		c, err := dial(addr, "group")
		if err != nil {
			return nil, err
		}
		f.groups = append(f.groups, rpc.NewGroupClient(c))
	}
	return f, nil
}

func (f *Fanout) closeConns() error {
	var errs []error
	for _, c := range f.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Run works until ctx is done, then stops reading, waits for what is in flight
// (at most drainTimeout) and returns. It serves nothing: the listener is nil.
func (f *Fanout) Run(ctx context.Context, _ net.Listener) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	consume, leave := context.WithCancel(work)
	defer leave()
	var loops sync.WaitGroup
	for _, a := range f.appenders {
		loops.Go(func() { a.Run(work) })
	}
	consumed := make(chan struct{})
	loops.Go(func() {
		select {
		case <-ctx.Done():
			f.stop()
			f.drain()
		case <-consumed:
		}
		leave()
	})
	f.running.Store(true)
	err := f.cfg.Consumer.Run(consume, f.handle)
	f.running.Store(false)
	close(consumed)
	cancel()
	loops.Wait()
	f.stop()
	if cerr := f.closeConns(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("fanout %d: %w", f.cfg.Instance, err)
	}
	return nil
}

func (f *Fanout) drain() {
	deadline := time.NewTimer(drainTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for f.inFlight.Load() > 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			return
		}
	}
}

// Ready returns nil while the instance consumes, also when it has no
// partition assigned.
func (f *Fanout) Ready() error {
	if !f.running.Load() || f.stopping.Err() != nil {
		return errors.New("fanout: not running")
	}
	return nil
}
