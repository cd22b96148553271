// Package group is the group service: which groups there are, who their
// members were at every version, and the way of a membership change into the
// group's log. It answers who may send (Check) and who is addressed at a
// position of the log (Members), and serves the provisioning API. It owns the
// group store, through which every change goes, and the outbox that carries
// changes into the log; a cache in front is only ever a shortcut. It may not
// import another role or an adapter.
package group

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
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"

	"throng/system/internal/limit"
	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// MaxMembers bounds the members of a group.
const MaxMembers = 1024

// SmallGroup is up to how many members the primary is asked for together with the
// version, which only it knows; a look into the shared cache would cost more.
const SmallGroup = 64

// FirstVersion is the version of a group's creation, in force from before the
// first record of its log.
const FirstVersion = 1

// Staleness bounds for how long an instance that is not the one that looks
// after a group may go on answering Check by a version that was replaced. The
// one that does (placement.GroupInstance) knows of every change at once.
const Staleness = time.Second

// maxCreators bounds the users of whom is known how many groups they have made; the
// one who has made none for the longest time is forgotten.
const maxCreators = 65_536

// Errors of a Store.
var (
	ErrNoGroup = errors.New("group: no such group")
	// ErrTooMany: the change would make more than MaxMembers members.
	ErrTooMany = errors.New("group: too many members")
)

// NewGroup is a group to create. Members are distinct; the first is the owner.
type NewGroup struct {
	ID      uint64
	Name    string
	Members []uint64
}

// Versions are what a group's store knows about its versions.
type Versions struct {
	Current uint64
	// CurrentOffset is the position of Current in the log, if it is known.
	CurrentOffset int64
	Known         bool
	Inactive      bool // of Current
	// At is the greatest version whose position is known and not after the
	// offset asked for; FirstVersion if there is none.
	At uint64
}

// State is a group in one version.
type State struct {
	Version                 uint64
	Name, Description, Icon string
	Inactive                bool
	Members                 []Member // sorted by user
	// Done: the request that Update was called for has been carried out before.
	Done bool
}

// Member of a group.
type Member struct {
	User  uint64
	Admin bool
	Since uint64 // version
}

// Request names what a device asked for. An ID of 0 is nobody's request.
type Request struct {
	User   uint64
	Device uint32
	ID     uint64
}

// Edit is the next version of a group. Its change names users to add who are
// no members, users to remove, promote and demote who are.
type Edit struct {
	Change *wire.GroupChange
	Record []byte // for the outbox
}

// Position is the place of a membership change in the log.
type Position struct {
	Group, Version uint64
	Offset         int64 // of the first copy; NoOffset where only the fan-out knows it
}

// NoOffset is the position of a change that is in the log at an unknown place.
const NoOffset = -1

// Pending is a change that may not be in the log yet.
type Pending struct {
	Group, Version uint64
	Record         []byte // the encoded rpc.GroupRecord
}

// Store keeps groups, members by version, and the outbox. What a method has
// done is durable when it returns.
type Store interface {
	// Create adds the groups that do not exist, in version FirstVersion, and
	// leaves the others as they are. It returns how many it added.
	Create(ctx context.Context, groups []NewGroup) (int, error)
	// Update makes the next version of a group, in one transaction. decide is
	// given the current one, nil if there is no such group, and returns what is
	// to change, nil for nothing; it may be called more than once, the last call
	// counts. Its error is returned as it is. Where there was no group, version
	// FirstVersion is made as well, with by.User as its only member.
	Update(ctx context.Context, group uint64, by Request, decide func(*State) (*Edit, error)) error
	// Current returns the current version. Error: ErrNoGroup.
	Current(ctx context.Context, group uint64) (*State, error)
	// Head is Versions, without At, with the members of the current version,
	// sorted; nil where they are more than SmallGroup. Error: ErrNoGroup.
	Head(ctx context.Context, group uint64) (Versions, []uint64, error)
	// Versions of a group, At for an offset. Error: ErrNoGroup.
	Versions(ctx context.Context, group uint64, offset int64) (Versions, error)
	// Recent is Versions at the end of the log, of which only Current and
	// Inactive count: it may be behind, but not a version before least.
	Recent(ctx context.Context, group, least uint64) (Versions, error)
	// Members of a group in a version, sorted.
	Members(ctx context.Context, group, version uint64) ([]uint64, error)
	Outbox
}

// Outbox holds the changes that may not be in the log.
type Outbox interface {
	// Pending returns up to limit changes that follow after (nil: from the
	// start), each group's in order of version.
	Pending(ctx context.Context, after *Pending, limit int) ([]Pending, error)
	// Settle records the positions of changes, the least one seen of each and
	// none for NoOffset, and takes them out of the outbox.
	Settle(ctx context.Context, positions []Position) error
}

// Cache is shared by the instances. Any of its methods may fail, and any entry
// may be gone, at any time.
type Cache interface {
	// Version returns the pointer to a group's current version.
	Version(ctx context.Context, group uint64) (version uint64, ok bool, err error)
	// SetVersion raises the pointer; it never lowers it.
	SetVersion(ctx context.Context, group, version uint64) error
	// Members of a version.
	Members(ctx context.Context, group, version uint64) (members []uint64, ok bool, err error)
	// SetMembers keeps the members of a version, and ends a Lock of it.
	SetMembers(ctx context.Context, group, version uint64, members []uint64) error
	// Lock reports whether the caller is the one to load a version's members;
	// it is for a moment only.
	Lock(ctx context.Context, group, version uint64) (bool, error)
}

// Topics makes what the log of a new group is kept in.
type Topics interface {
	// Ensure returns when all of the groups have it.
	Ensure(ctx context.Context, groups []uint64) error
}

// Producer appends a record to a partition; see message.Producer.
type Producer interface {
	Produce(partition int, group uint64, value []byte, done func(offset int64, err error)) error
}

// Config of a group instance. Zero limits mean the defaults.
type Config struct {
	Instance   int
	Key        wire.Key // of the tokens of the provisioning API
	Store      Store
	Cache      Cache  // nil: none
	Topics     Topics // nil: the log has room for every group
	Producer   Producer
	Partitions int
	Inboxes    []string // addresses of all inbox instances, by index
	// Groups are the addresses of all group instances, by index, this one
	// included. Empty means that this is the only one.
	Groups []string
	// MaxCachedMembers bounds the members of current versions kept in memory
	// (8 bytes each); default 8,388,608.
	MaxCachedMembers int
	// CreationsPerHour is how many groups one user may make at once, and in an hour on
	// average; default 100, below 0 as many as they like.
	CreationsPerHour int

	// OldKeys verify beside Key, while the signing key changes.
	OldKeys wire.Keys
	// Identity is shown to the other roles; nil: they speak without TLS.
	Identity *rpc.Identity
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

func (c *Config) defaults() error {
	switch {
	case len(c.Key) < wire.MinKeyBytes:
		return fmt.Errorf("group: key of %d bytes", len(c.Key))
	case c.Store == nil || c.Producer == nil || c.Partitions <= 0:
		return errors.New("group: no store, no producer or no partitions given")
	case len(c.Inboxes) == 0:
		return errors.New("group: no inbox instances given")
	case len(c.Groups) > 0 && (c.Instance < 0 || c.Instance >= len(c.Groups)):
		return fmt.Errorf("group: instance %d of %d", c.Instance, len(c.Groups))
	}
	if c.MaxCachedMembers <= 0 {
		c.MaxCachedMembers = 8 << 20
	}
	if c.CreationsPerHour == 0 {
		c.CreationsPerHour = 100
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	return nil
}

// Service is a group instance.
type Service struct {
	rpc.UnimplementedGroupServer

	cfg      Config
	keys     wire.Keys // that verify
	start    time.Time
	creators *limit.Table[uint64, limit.Bucket] // groups that users have made
	heads    *headCache
	shared   *aside
	loads    singleflight.Group
	relay    *relay
	inboxes  []rpc.InboxClient // by instance
	peers    []rpc.GroupClient // by instance; nil if this is the only one
	conns    []*grpc.ClientConn
	m        metrics
	stats    grpc.ServerOption
	serving  atomic.Bool
}

// New connects lazily to the other roles.
func New(cfg Config) (*Service, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, keys: append(wire.Keys{cfg.Key}, cfg.OldKeys...), start: time.Now()}
	if err := s.m.register(cfg.Metrics, cfg.MaxCachedMembers); err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	s.creators = limit.NewTable[uint64, limit.Bucket](maxCreators, s.m.creators.Dropped.Inc)
	s.heads = newHeadCache(cfg.MaxCachedMembers, s.m.cached)
	s.shared = newAside(cfg.Cache, cfg.Log, &s.m)
	s.relay = newRelay(cfg, s.owns)
	handler, err := obs.RPCStats(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	s.stats = grpc.StatsHandler(handler)
	dial := func(addr, role string) (*grpc.ClientConn, error) {
		c, err := rpc.Dial(addr, grpc.WithStatsHandler(handler), cfg.Identity.Dialling(role))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("group: %w", err), s.closeConns())
		}
		s.conns = append(s.conns, c)
		return c, nil
	}
	for _, addr := range cfg.Inboxes {
		c, err := dial(addr, "inbox")
		if err != nil {
			return nil, err
		}
		s.inboxes = append(s.inboxes, rpc.NewInboxClient(c))
	}
	for _, addr := range cfg.Groups {
		c, err := dial(addr, "group")
		if err != nil {
			return nil, err
		}
		s.peers = append(s.peers, rpc.NewGroupClient(c))
	}
	return s, nil
}

func (s *Service) closeConns() error {
	var errs []error
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// owner returns the instance that looks after a group.
func (s *Service) owner(group uint64) int {
	if len(s.peers) == 0 {
		return s.cfg.Instance
	}
	return placement.GroupInstance(group, len(s.peers))
}

func (s *Service) owns(group uint64) bool { return s.owner(group) == s.cfg.Instance }

// Run serves until ctx is done, then finishes the calls in progress and
// returns. The store, the cache and the producer stay open: they are the
// caller's.
func (s *Service) Run(ctx context.Context, ln net.Listener) error {
	srv := rpc.NewServer(append(s.cfg.Identity.Serving(), s.stats)...)
	rpc.RegisterGroupServer(srv, s)
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	loops.Go(func() { s.relay.run(work) })
	loops.Go(func() { s.shared.run(work) })
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	s.serving.Store(true)
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	s.serving.Store(false)
	obs.StopGRPC(srv, 3*time.Second)
	stop()
	loops.Wait()
	if cerr := s.closeConns(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("group %d: %w", s.cfg.Instance, err)
	}
	return nil
}

// Ready returns nil while the instance serves.
func (s *Service) Ready() error {
	if !s.serving.Load() {
		return errors.New("group: not serving")
	}
	return nil
}
