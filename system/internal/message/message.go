// Package message accepts what clients send. For each submission it checks the
// membership (groups), gives it its id, holds the order of each (device,
// conversation), makes it durable and only then answers: a direct message is a
// row of the addressee's inbox, a group message is a record of the group's
// partition. It owns the in-memory state of conversations (who may send what
// next), which any other instance can rebuild from the chain that clients
// carry. It may not import another role or an adapter.
package message

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
	"throng/system/placement"
	"throng/system/wire"
)

// PlantAckEarly is the planted bug of this role: Sent is answered ackEarly
// before the message starts to become durable.
const PlantAckEarly = "ack-early"

const ackEarly = 250 * time.Millisecond

// drainTimeout bounds how long Run waits, when it is told to stop, for what is
// in flight.
const drainTimeout = 4 * time.Second

// Producer appends a record of a group to a partition. done is called once,
// not from within Produce, in the order of the calls of that partition, with
// the offset of the durable record or an error; after an error everything
// queued for the partition before done returned fails too. When Produce itself
// fails done is not called.
type Producer interface {
	Produce(partition int, group uint64, value []byte, done func(offset int64, err error)) error
}

// Config of a message instance. Zero limits mean the defaults.
type Config struct {
	Instance   int
	Key        wire.Key // of chains
	Inboxes    []string // addresses of all inbox instances, by index
	Groups     []string // addresses of all group instances, by index
	Producer   Producer
	Partitions int // of the groups' topic

	// Timeout bounds the time from a submission to its answer; default 10 s,
	// then CODE_RETRY.
	Timeout time.Duration
	// MaxInFlight bounds the submissions without an answer; default 65,536.
	// One more is answered CODE_RETRY with retry_after_ms.
	MaxInFlight int
	// MaxConversations bounds the conversations remembered while nothing is in
	// flight; default 262,144, of about 200 bytes. The oldest is forgotten:
	// the next send of it is proved by its chain.
	MaxConversations int

	Tracer *obs.Tracer // may be nil
	Plant  string
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
		return fmt.Errorf("message: key of %d bytes", len(c.Key))
	case len(c.Inboxes) == 0 || len(c.Groups) == 0:
		return errors.New("message: no inbox or no group instances given")
	case c.Producer == nil || c.Partitions <= 0:
		return errors.New("message: no producer or no partitions given")
	case c.Plant != "" && c.Plant != PlantAckEarly:
		return fmt.Errorf("message: unknown planted bug %q", c.Plant)
	}
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	if c.MaxInFlight <= 0 {
		c.MaxInFlight = 65536
	}
	if c.MaxConversations <= 0 {
		c.MaxConversations = 262144
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	return nil
}

// Service is a message instance.
type Service struct {
	rpc.UnimplementedMessageServer

	cfg       Config
	keys      wire.Keys // that verify
	convs     *conversations
	appenders []*rpc.Appender // by inbox instance
	checker   *checker
	conns     []*grpc.ClientConn
	m         metrics
	stats     grpc.ServerOption

	inFlight atomic.Int64
	draining atomic.Bool
	drained  chan struct{} // closed when what was in flight is answered, or given up
	serving  atomic.Bool
}

// New connects lazily to the other roles.
func New(cfg Config) (*Service, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, keys: append(wire.Keys{cfg.Key}, cfg.OldKeys...), drained: make(chan struct{})}
	if err := s.m.register(cfg.Metrics, cfg.MaxInFlight, cfg.MaxConversations); err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	s.convs = newConversations(cfg.MaxConversations, s.m.conversations)
	handler, err := obs.RPCStats(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	s.stats = grpc.StatsHandler(handler)
	dial := func(addr, role string) (*grpc.ClientConn, error) {
		c, err := rpc.Dial(addr, grpc.WithStatsHandler(handler), cfg.Identity.Dialling(role))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("message: %w", err), s.closeConns())
		}
		s.conns = append(s.conns, c)
		return c, nil
	}
	for i, addr := range cfg.Inboxes {
		c, err := dial(addr, "inbox")
		if err != nil {
			return nil, err
		}
		s.appenders = append(s.appenders, rpc.NewAppender(rpc.AppenderConfig{
			Conn: c, Log: cfg.Log.With("inbox", i), Resent: s.m.resent}))
	}
	var groups []rpc.GroupClient
	for _, addr := range cfg.Groups {
		c, err := dial(addr, "group")
		if err != nil {
			return nil, err
		}
		groups = append(groups, rpc.NewGroupClient(c))
	}
	s.checker = newChecker(groups, 2*cfg.MaxInFlight, cfg.Log, s.checked)
	return s, nil
}

func (s *Service) closeConns() error {
	var errs []error
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Run serves until ctx is done, then answers what is in flight (at most
// drainTimeout) and returns.
func (s *Service) Run(ctx context.Context, ln net.Listener) error {
	srv := rpc.NewServer(append(s.cfg.Identity.Serving(), s.stats)...)
	rpc.RegisterMessageServer(srv, s)
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	for _, a := range s.appenders {
		loops.Go(func() { a.Run(work) })
	}
	s.checker.start(work, &loops)
	loops.Go(func() { s.sweep(work) })
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	s.serving.Store(true)

	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		s.drain()
	}
	s.serving.Store(false)
	close(s.drained)
	obs.StopGRPC(srv, time.Second)
	stop()
	loops.Wait()
	if cerr := s.closeConns(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("message %d: %w", s.cfg.Instance, err)
	}
	return nil
}

// drain refuses new submissions and waits for those in flight.
func (s *Service) drain() {
	s.draining.Store(true)
	deadline := time.NewTimer(drainTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.inFlight.Load() > 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			return
		}
	}
}

// Ready returns nil while the instance accepts submissions.
func (s *Service) Ready() error {
	if !s.serving.Load() || s.draining.Load() {
		return errors.New("message: not serving")
	}
	return nil
}

// sweep gives up on submissions that have waited for Timeout.
func (s *Service) sweep(ctx context.Context) {
	tick := time.NewTicker(max(s.cfg.Timeout/20, 5*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for _, late := range s.convs.olderThan(now.Add(-s.cfg.Timeout)) {
				s.complete(late, wire.Code_CODE_RETRY, "timed out")
			}
			s.m.inFlight.Depth.Set(float64(s.inFlight.Load()))
		case <-ctx.Done():
			return
		}
	}
}

// begin starts to make the submission at the head of its conversation durable.
// It is called with the conversation's shard locked, and only queues.
func (s *Service) begin(sub *submission) {
	if s.cfg.Plant == PlantAckEarly {
		time.AfterFunc(ackEarly, func() { s.route(sub) })
		return
	}
	s.route(sub)
}

func (s *Service) route(sub *submission) {
	if sub.conv.key.to.Group != 0 {
		s.checker.add(sub)
		return
	}
	s.appendTo(sub.env.To, (*direct)(sub))
}

// appendTo hands an item to the inbox instance of a user.
func (s *Service) appendTo(user uint64, item rpc.Appendee) {
	a := s.appenders[placement.UserInboxInstance(user, len(s.appenders))]
	// Submissions that timed out while the instance is away are still in its
	// queue; drop them before they pile up.
	if a.Unresolved() >= 2*s.cfg.MaxInFlight {
		a.Purge()
	}
	a.Add(item)
}

// checked is told the checker's verdict on a group submission.
func (s *Service) checked(sub *submission, code wire.Code) {
	if code != 0 {
		s.complete(sub, code, "")
		return
	}
	group := sub.conv.key.to.Group
	sub.span.Event("handed to the log")
	if st := sub.env.Stamps; st != nil {
		st.LoggedUs = time.Now().UnixMicro()
	}
	value, err := (&rpc.GroupRecord{Kind: &rpc.GroupRecord_Message{Message: sub.env}}).MarshalVT()
	if err != nil { // cannot be: the fields come from a decoded message
		s.cfg.Log.Error("encode a record", "err", err)
		s.complete(sub, wire.Code_CODE_INTERNAL, "")
		return
	}
	err = s.cfg.Producer.Produce(placement.GroupPartition(group, s.cfg.Partitions), group, value, func(_ int64, err error) {
		if err != nil {
			s.complete(sub, wire.Code_CODE_RETRY, "the log did not take it")
			return
		}
		s.complete(sub, 0, "")
	})
	if err != nil {
		s.complete(sub, wire.Code_CODE_RETRY, "the log is busy")
	}
}

// direct is a submission on its way to the addressee's inbox.
type direct submission

func (d *direct) Item() *rpc.AppendItem {
	d.appends++
	if d.item == nil {
		d.item = &rpc.AppendItem{Message: d.env, Users: []uint64{d.env.To}}
	}
	return d.item
}

func (d *direct) Cancelled() bool { return d.dead.Load() }

func (d *direct) Resolve(res *rpc.AppendResult) bool {
	if res.Code == 0 && d.env.From != d.env.To {
		own := &ownCopy{submission: (*submission)(d), item: rpc.AppendItem{Message: d.env, Users: []uint64{d.env.From}}}
		d.service.appendTo(d.env.From, own)
		return true
	}
	code := inboxCode(res)
	if code != 0 && d.appends > 1 {
		// An instance that died may have taken it. The client is to find out by
		// itself, so that only what it wrote once is surely refused.
		code = wire.Code_CODE_RETRY
	}
	d.service.complete((*submission)(d), code, "")
	return true
}

// inboxCode is what the sender is told of an inbox's answer.
func inboxCode(res *rpc.AppendResult) wire.Code {
	if res.Code == wire.Code_CODE_INTERNAL {
		return wire.Code_CODE_RETRY // the inbox's trouble passes
	}
	return res.Code
}

// ownCopy is a direct submission that the addressee has, on its way to the
// sender's other devices. It comes second, so that they never show a message
// that was refused.
type ownCopy struct {
	*submission
	item rpc.AppendItem
}

func (o *ownCopy) Item() *rpc.AppendItem { return &o.item }
func (o *ownCopy) Cancelled() bool       { return o.dead.Load() }

func (o *ownCopy) Resolve(res *rpc.AppendResult) bool {
	o.service.complete(o.submission, inboxCode(res), "")
	return true
}
