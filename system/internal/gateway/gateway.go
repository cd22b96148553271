// Package gateway holds the WebSocket sessions of clients. It turns what
// clients send into calls of the message and inbox services and writes what
// those services hand it; it decides nothing about messages: what is stored,
// who is live and in which order is for the inbox shards (package inbox).
//
// It owns the sockets, the table of connections, the write path and the limits
// of one connection. It may import wire, placement, rpc, limit and obs, and no other
// role or adapter: the session registry is given to it.
//
// On Linux a few loops over epoll read all connections, without a goroutine or a
// buffer for an idle one (epoll_linux.go); elsewhere, and with TLS, a goroutine
// reads each (front.go). Nobody waits for a socket to be writable: whoever has
// something for a connection appends it to the connection's pending list and
// writes all that is pending in one non-blocking call (write.go). What the
// socket does not take waits, bounded; above the bound the connection is closed.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"throng/system/internal/limit"
	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// Registry is told who is connected here, and is asked who is online. Calls
// return at once; what cannot be done soon is dropped (and counted) by the
// registry, never waited for.
type Registry interface {
	// Run holds the lease of this gateway and its subscriptions until ctx is
	// done. Published messages of subscribed topics are handed to deliver,
	// which may be called from several goroutines at once.
	Run(ctx context.Context, gateway string, incarnation uint64, deliver func(topic string, payload []byte)) error
	Register(user uint64, device uint32, conn uint64)
	// seen: the user may be said to have been here until now.
	Unregister(user uint64, device uint32, conn uint64, seen bool)
	// Hide says whether the user of a registered connection shows nobody when
	// they are here or were last seen.
	Hide(conn uint64, hidden bool)
	// Presence calls answer, on another goroutine, if the registry answers.
	// lastSeen is zero when not known, or hidden.
	Presence(user uint64, answer func(online bool, lastSeen time.Time))
}

// Channels carry typing and presence between gateways, best effort.
type Channels interface {
	Publish(topic string, payload []byte)
	Subscribe(topic string)
	Unsubscribe(topic string)
}

// Sessions is what a gateway needs of the session registry.
type Sessions interface {
	Registry
	Channels
}

// Config is what a gateway is made from.
type Config struct {
	ID string // names this gateway in the registry and to inboxes; required
	// Key verifies tokens; required.
	Key wire.Key
	// Messages and Inboxes are the addresses of all instances, instance i at
	// index i; at least one of each.
	Messages []string
	Inboxes  []string
	// Groups are the addresses of all group instances, in the same way. None:
	// group requests are answered with CODE_RETRY.
	Groups []string
	// Sessions may be nil: then nobody is registered, and no typing or presence travels.
	Sessions Sessions
	// AllowedOrigins are the values of the Origin header that browsers may
	// connect from, "*" for any. Requests without the header, and those from
	// the gateway's own host, are always allowed.
	AllowedOrigins []string
	// TLS, if not nil, has clients connect by wss://. Connections then cost a
	// goroutine and its buffers each; where many come, a load balancer in front
	// ends TLS for less.
	TLS *tls.Config
	// Streams serves clients without epoll also where there is one.
	Streams bool
	// StampEvery: one in so many sends is stamped at each stage of its way
	// (wire.Stamps); below 0 none is. [16]
	StampEvery int
	// Sources says whose address counts for the limits by address; the zero value,
	// every peer's own.
	Sources limit.Sources
	// Tracer makes a span of each sampled send and of each delivery of it; may be nil.
	Tracer *obs.Tracer
	Limits Limits
	// OldKeys verify beside Key, while the signing key changes.
	OldKeys wire.Keys
	// Identity is shown to the other roles; nil: they speak without TLS.
	Identity *rpc.Identity
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

// Gateway is one gateway instance.
type Gateway struct {
	cfg         Config
	keys        wire.Keys // that verify
	limits      Limits
	log         *slog.Logger
	m           *metrics
	incarnation uint64
	start       time.Time
	guard       *guard
	origins     map[string]bool

	table    table
	views    views
	messages []*messageLink
	inboxes  []*inboxLink
	groups   *groupLink
	front    front
	scratch  sync.Pool // *scratch
	pends    sync.Pool // *[pendRoom][]byte, all nil, for conn.pend

	handshakeBufs sync.Pool // gorilla's write buffers, for the upgrade

	serving    atomic.Bool
	gate       sync.Mutex     // held to admit a connection, and to begin draining
	draining   atomic.Bool    // changes once, under gate
	handshakes atomic.Int64   // sockets accepted and not upgraded yet
	conns      sync.WaitGroup // connections, and the writers of streams
}

// New checks cfg and returns a gateway that Run serves.
func New(cfg Config) (*Gateway, error) {
	if cfg.ID == "" || len(cfg.Messages) == 0 || len(cfg.Inboxes) == 0 {
		return nil, errors.New("gateway: config needs an id, message and inbox addresses")
	}
	if len(cfg.Key) < wire.MinKeyBytes {
		return nil, fmt.Errorf("gateway: key has %d bytes, needs %d", len(cfg.Key), wire.MinKeyBytes)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	if cfg.Sessions == nil {
		cfg.Sessions = nowhere{}
	}
	if cfg.StampEvery == 0 {
		cfg.StampEvery = stampEvery
	}
	now := time.Now()
	g := &Gateway{
		cfg: cfg, keys: append(wire.Keys{cfg.Key}, cfg.OldKeys...), limits: cfg.Limits.withDefaults(), log: cfg.Log, start: now,
		// Unique for each process of this gateway id, which is all it has to be.
		incarnation: uint64(now.UnixNano()),
		origins:     make(map[string]bool, len(cfg.AllowedOrigins)),
	}
	for _, o := range cfg.AllowedOrigins {
		g.origins[o] = true
	}
	var err error
	if g.m, err = newMetrics(cfg.Metrics, g.limits); err != nil {
		return nil, fmt.Errorf("gateway: metrics: %w", err)
	}
	g.guard = newGuard(cfg.Sources, &g.limits, g.m)
	g.scratch.New = func() any { return &scratch{b: make([]byte, 0, scratchBytes)} }
	g.pends.New = func() any { return new([pendRoom][]byte) }
	g.views.init(g)
	if err := g.dial(); err != nil {
		g.hangUp()
		return nil, err
	}
	return g, nil
}

// dial makes the links to the other roles. Nothing is connected yet.
func (g *Gateway) dial() error {
	stats, err := obs.RPCStats(g.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("gateway: metrics: %w", err)
	}
	opt := grpc.WithStatsHandler(stats)
	g.groups = newGroupLink(g)
	for i, addr := range g.cfg.Groups {
		cc, err := rpc.Dial(addr, opt, g.cfg.Identity.Dialling("group"))
		if err != nil {
			return fmt.Errorf("gateway: group instance %d: %w", i, err)
		}
		g.groups.add(cc)
	}
	for i, addr := range g.cfg.Messages {
		cc, err := rpc.Dial(addr, opt, g.cfg.Identity.Dialling("message"))
		if err != nil {
			return fmt.Errorf("gateway: message instance %d: %w", i, err)
		}
		g.messages = append(g.messages, newMessageLink(g, i, cc))
	}
	for i, addr := range g.cfg.Inboxes {
		cc, err := rpc.Dial(addr, opt, g.cfg.Identity.Dialling("inbox"))
		if err != nil {
			return fmt.Errorf("gateway: inbox instance %d: %w", i, err)
		}
		g.inboxes = append(g.inboxes, newInboxLink(g, i, cc))
	}
	return nil
}

func (g *Gateway) hangUp() {
	for _, l := range g.messages {
		l.cc.Close()
	}
	for _, l := range g.inboxes {
		l.cc.Close()
	}
	if g.groups != nil { // nil: dial failed early
		for _, cc := range g.groups.conns {
			cc.Close()
		}
	}
}

// Run serves clients on ln until ctx is done. Then it sends everybody away
// (Drain), waits for them at most Limits.DrainTimeout, and returns when the
// last connection is gone. It can be called once.
func (g *Gateway) Run(ctx context.Context, ln net.Listener) error {
	defer g.hangUp()
	// What runs behind the clients outlives ctx until they are gone.
	back, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg, inboxes sync.WaitGroup
	defer func() {
		g.settle(&inboxes)
		stop()
		wg.Wait()
		inboxes.Wait()
	}()
	var err error
	if g.front, err = g.open(ln); err != nil {
		return err
	}
	defer g.front.close()
	for _, l := range g.messages {
		wg.Go(func() { l.run(back) })
	}
	for _, l := range g.inboxes {
		inboxes.Go(func() { l.run(back) })
	}
	wg.Go(func() { g.groups.run(back) })
	wg.Go(func() { g.sweep(back) })
	wg.Go(func() {
		if err := g.cfg.Sessions.Run(back, g.cfg.ID, g.incarnation, g.views.deliver); err != nil && back.Err() == nil {
			g.log.Error("session registry ended", "err", err)
		}
	})

	failed := make(chan error, 1)
	wg.Go(func() { failed <- g.front.serve() })
	g.serving.Store(true)
	g.log.Info("gateway serves", "addr", ln.Addr().String(), "incarnation", g.incarnation)

	select {
	case err = <-failed:
		err = fmt.Errorf("gateway: serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	g.serving.Store(false)
	g.gate.Lock()
	g.draining.Store(true)
	g.gate.Unlock()
	g.front.stop()
	g.drain()
	return err
}

// open returns the front for ln: the cheapest that can serve it.
func (g *Gateway) open(ln net.Listener) (front, error) {
	if g.cfg.TLS == nil && !g.cfg.Streams {
		if f, err := g.newEvented(ln); f != nil || err != nil {
			return f, err
		}
	}
	return g.newStreams(ln, g.cfg.TLS), nil
}

// Ready returns nil when clients can be served: the listener is up and there
// is a stream to each message and inbox instance.
func (g *Gateway) Ready() error {
	if !g.serving.Load() {
		return errors.New("gateway: not listening")
	}
	for _, l := range g.messages {
		if !l.isUp() {
			return fmt.Errorf("gateway: no stream to message instance %d", l.index)
		}
	}
	for _, l := range g.inboxes {
		if !l.isUp() {
			return fmt.Errorf("gateway: no stream to inbox instance %d", l.index)
		}
	}
	return nil
}

// drain asks all clients to go, waits, and closes who has stayed.
func (g *Gateway) drain() {
	frame, err := wire.Proto.ServerMessage(&wire.Frame{Kind: &wire.Frame_Drain{Drain: &wire.Drain{
		JitterMs: uint32(g.limits.DrainJitter.Milliseconds())}}})
	if err != nil {
		panic(fmt.Sprintf("gateway: a Drain cannot be encoded: %v", err))
	}
	shared := &sharedFrame{g: g, kind: kindDrain, proto: frame}
	for _, c := range g.table.all() {
		c.sendShared(shared)
	}
	gone := make(chan struct{})
	go func() { g.conns.Wait(); close(gone) }()
	if within(gone, g.limits.DrainTimeout) {
		return
	}
	for _, c := range g.table.all() {
		c.close(wire.CloseDraining)
	}
	if within(gone, closeGrace+time.Second) {
		return
	}
	for _, c := range g.table.all() {
		c.abort("draining")
	}
	<-gone
}

// settle lets the inboxes hear of the last sessions' ends. One that does not
// sees the end of the stream, which ends all its sessions.
func (g *Gateway) settle(inboxes *sync.WaitGroup) {
	for _, l := range g.inboxes {
		close(l.quit)
	}
	told := make(chan struct{})
	go func() { inboxes.Wait(); close(told) }()
	within(told, settleTimeout)
}

// within waits for done, at most d, and reports whether it came.
func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// inboxOf returns the link to the inbox instance that owns user.
func (g *Gateway) inboxOf(user uint64) *inboxLink {
	return g.inboxes[placement.UserInboxInstance(user, len(g.inboxes))]
}

// messageOf returns the link to the message instance that accepts user's sends.
func (g *Gateway) messageOf(user uint64) *messageLink {
	return g.messages[placement.MessageInstance(user, len(g.messages))]
}

// sinceStart is the gateway's clock: monotonic, so that it can be compared.
func (g *Gateway) sinceStart() time.Duration { return time.Since(g.start) }

// nowhere stands for a session registry when there is none.
type nowhere struct{}

func (nowhere) Run(ctx context.Context, _ string, _ uint64, _ func(string, []byte)) error {
	<-ctx.Done()
	return nil
}
func (nowhere) Register(uint64, uint32, uint64)         {}
func (nowhere) Unregister(uint64, uint32, uint64, bool) {}
func (nowhere) Hide(uint64, bool)                       {}
func (nowhere) Presence(uint64, func(bool, time.Time))  {}
func (nowhere) Publish(topic string, payload []byte)    {}
func (nowhere) Subscribe(topic string)                  {}
func (nowhere) Unsubscribe(topic string)                {}
