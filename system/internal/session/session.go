// Package session is the registry of who is connected where, kept in Redis,
// and the channels that carry typing and presence between gateways.
//
// Nothing that must not be lost depends on it: the inbox shards decide who is
// live (package inbox). So everything here is best effort and bounded, and a
// dead or slow Redis never holds up a login or a message: calls put work into
// a bounded queue and return; what does not fit is dropped and counted.
// Registrations that were lost are made again once Redis answers.
//
// It owns the keys below and may import wire, obs and rpc, and no role.
//
//	throng:gw:<gateway>   the incarnation that holds the gateway's lease, with a time to live
//	throng:s:<user>       hash: "<device>@<gateway>/<incarnation>/<conn>" -> connected at, Unix ms
//	                            "seen" -> when a device was last disconnected, Unix ms
//	                            "hidden" -> there if the user wants nobody to know
//	throng:i:<topic>      hash: "<gateway>/<incarnation>" -> until when its interest lasts, Unix ms
//	throng:c:<gateway>/<incarnation>   Pub/Sub channel of a gateway
//
// An entry counts only while its gateway's lease names the same incarnation, so
// a gateway that was killed takes its entries with it. The field names the
// connection, so deleting it never deletes a newer one.
//
// A gateway is interested in a topic while a client of its own views it. Who
// publishes reads who is interested and sends each of them one message with all
// there is for it; without an interest nothing is sent. A channel for each topic
// would be simpler, but a PUBLISH in miniredis looks through all of them. An
// interest is renewed while it lasts. What a killed gateway leaves behind reaches
// nobody, since the channel names the incarnation, and ends by itself.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"

	"throng/system/internal/obs"
)

// Config is what a Registry is made from. Zero fields take the default in brackets.
type Config struct {
	Addr string // of Redis; required
	// LeaseTTL is how long the entries of a gateway outlive it, RenewEvery how
	// often it renews its lease. [6 s, 2 s]
	LeaseTTL   time.Duration
	RenewEvery time.Duration
	// Timeout bounds one exchange with Redis. [1 s]
	Timeout time.Duration
	// RegistryQueue bounds the registrations and their ends that wait. Above it
	// a registration is made later, from the list of all; the end of one is
	// lost until the gateway's incarnation changes. [65,536]
	RegistryQueue int
	// EphemeralQueue bounds the events and look-ups that wait. [4,096]
	EphemeralQueue int
	// Topics bounds the topics subscribed to. [262,144]
	Topics int
	// InterestTTL is how long the interest in a topic lasts in Redis; it is
	// renewed after half of it. The clocks of gateways must agree better than
	// that. [10 min]
	InterestTTL time.Duration
	Log         *slog.Logger
	Metrics     prometheus.Registerer
}

const (
	leasePrefix    = "throng:gw:"
	userPrefix     = "throng:s:"
	interestPrefix = "throng:i:"
	channelPrefix  = "throng:c:"
	seenField      = "seen"
	hiddenField    = "hidden"
	// keep is how long after the last connect a user's hash stays: as long as
	// anybody asks when they were last seen.
	keep = 30 * 24 * time.Hour
	// batchOps bounds the operations in one exchange with Redis.
	batchOps = 256
	// exchangeGap and registryGap are the least times between two exchanges with
	// Redis for events, look-ups and interests, and for registrations.
	exchangeGap = 5 * time.Millisecond
	registryGap = 20 * time.Millisecond
	// maxFlushDelay lets commands gather before they are written.
	maxFlushDelay = 2 * time.Millisecond
	// retryDelay is between attempts to reach Redis.
	retryDelay = 200 * time.Millisecond
	// flushTimeout is how long Run goes on after its end to record who left.
	flushTimeout = time.Second
)

// Session is one connection of a user's device.
type Session struct {
	Device      uint32
	Gateway     string
	Incarnation uint64
	Conn        uint64
	Since       time.Time
}

// User is what the registry knows of a user.
type User struct {
	Sessions []Session // those whose gateway holds its lease, in no order
	LastSeen time.Time // when a device was last disconnected; zero when not known
	Hidden   bool      // wants nobody to know any of this
}

// entry is a connection of this gateway.
type entry struct {
	user   uint64
	device uint32
	since  int64 // Unix ms
	hidden bool
}

// Registry is a gateway's client of the registry; others use Lookup alone.
type Registry struct {
	cfg Config
	log *slog.Logger
	m   metrics

	client atomic.Pointer[rueidis.Client] // nil until Redis was reached once

	registry  chan op    // never closed
	ephemeral chan event // never closed

	self string // "<gateway>/<incarnation>", set by Run before its goroutines begin

	mu      sync.Mutex
	entries map[uint64]entry
	resync  atomic.Bool // some of entries may be missing in Redis

	topics topics
}

type metrics struct {
	ops                         *prometheus.CounterVec
	registry, ephemeral, topics *obs.Queue
	failed                      prometheus.Counter
	calls                       *obs.Ops
}

// New returns a registry; it connects when it is first used.
func New(cfg Config) (*Registry, error) {
	if cfg.Addr == "" {
		return nil, errors.New("session: config needs the address of Redis")
	}
	duration := func(p *time.Duration, d time.Duration) {
		if *p <= 0 {
			*p = d
		}
	}
	number := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	duration(&cfg.LeaseTTL, 6*time.Second)
	duration(&cfg.RenewEvery, 2*time.Second)
	duration(&cfg.Timeout, time.Second)
	duration(&cfg.InterestTTL, 10*time.Minute)
	number(&cfg.RegistryQueue, 65_536)
	number(&cfg.EphemeralQueue, 4096)
	number(&cfg.Topics, 262_144)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	r := &Registry{cfg: cfg, log: cfg.Log, entries: make(map[uint64]entry),
		registry: make(chan op, cfg.RegistryQueue), ephemeral: make(chan event, cfg.EphemeralQueue)}
	r.topics.init(cfg.Topics)
	var errs [6]error
	r.m.ops, errs[0] = obs.Register(cfg.Metrics, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_redis_ops_total", Help: "Commands sent to Redis."}, []string{"op"}))
	r.m.failed, errs[1] = obs.Register(cfg.Metrics, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "throng_session_failed_total", Help: "Operations of the session registry that Redis did not answer."}))
	r.m.registry, errs[2] = obs.NewQueue(cfg.Metrics, "session_registry", cfg.RegistryQueue)
	r.m.ephemeral, errs[3] = obs.NewQueue(cfg.Metrics, "session_ephemeral", cfg.EphemeralQueue)
	r.m.topics, errs[4] = obs.NewQueue(cfg.Metrics, "session_topics", cfg.Topics)
	r.m.calls, errs[5] = obs.NewOps(cfg.Metrics)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("session: metrics: %w", err)
	}
	return r, nil
}

// Close releases the connections. Nothing may be called after it.
func (r *Registry) Close() {
	if c := r.client.Load(); c != nil {
		(*c).Close()
	}
}

// redis returns the client, connecting if nobody has yet. Every command is
// pinned: rueidis recycles a command once it is answered, and when a connection
// is lost the answer, an error, can come while its writer still reads the command.
// It may take Config.Timeout.
func (r *Registry) redis(ctx context.Context) (rueidis.Client, error) {
	if c := r.client.Load(); c != nil {
		return *c, nil
	}
	opt := rueidis.ClientOption{
		InitAddress: []string{r.cfg.Addr}, ForceSingleClient: true, DisableCache: true,
		// Nobody waits for these commands; what comes within the delay shares
		// the two system calls and the wake-up that a command alone costs both sides.
		MaxFlushDelay:    maxFlushDelay,
		ConnWriteTimeout: 2 * r.cfg.Timeout, ClientSetInfo: []string{"throng", "1"},
		ReadBufferEachConn: 32 << 10, WriteBufferEachConn: 32 << 10, RingScaleEachConn: 9,
	}
	opt.Dialer.Timeout = r.cfg.Timeout
	c, err := rueidis.NewClient(opt)
	if err != nil {
		return nil, fmt.Errorf("session: connect to redis %s: %w", r.cfg.Addr, err)
	}
	timed := obs.TimedRedis(c, r.m.calls)
	if !r.client.CompareAndSwap(nil, &timed) {
		c.Close()
	}
	return *r.client.Load(), ctx.Err()
}

// Run holds the lease of (gateway, incarnation), does what was queued and
// keeps the subscriptions, until ctx is done; then it records who has left.
// Messages on subscribed topics go to deliver: those of this gateway on one
// goroutine, those of others on another. It returns nil.
func (r *Registry) Run(ctx context.Context, gateway string, incarnation uint64, deliver func(topic string, payload []byte)) error {
	r.self = gateway + "/" + strconv.FormatUint(incarnation, 10)
	var wg sync.WaitGroup
	wg.Go(func() { r.holdLease(ctx, gateway, incarnation) })
	wg.Go(func() { r.work(ctx) })
	wg.Go(func() { r.exchange(ctx, deliver) })
	wg.Go(func() { r.keepSubscribed(ctx, deliver) })
	wg.Wait()
	return nil
}

// holdLease renews the lease. A lease that was not there, or was another's,
// means that Redis may have lost the entries and interests too.
func (r *Registry) holdLease(ctx context.Context, gateway string, incarnation uint64) {
	mine := strconv.FormatUint(incarnation, 10)
	tick := time.NewTicker(r.cfg.RenewEvery)
	defer tick.Stop()
	held, answered := false, true
	for {
		was, err := r.renew(ctx, leasePrefix+gateway, mine)
		if (err == nil) != answered && ctx.Err() == nil {
			answered = err == nil
			if answered {
				r.log.Info("redis answers again")
			} else {
				r.log.Warn("redis does not answer", "err", err)
			}
		}
		if err == nil {
			if held && was != mine {
				r.resync.Store(true)
				r.topics.renew()
			}
			held = true
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// renew sets the lease and returns who held it.
func (r *Registry) renew(ctx context.Context, key, mine string) (was string, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	c, err := r.redis(ctx)
	if err != nil {
		return "", err
	}
	r.m.ops.WithLabelValues("set").Inc()
	was, err = c.Do(ctx, c.B().Set().Key(key).Value(mine).Get().Px(r.cfg.LeaseTTL).Build().Pin()).ToString()
	if rueidis.IsRedisNil(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("session: renew lease %s: %w", key, err)
	}
	return was, nil
}

// Lookup returns what is known of each user; every user asked for has an entry.
// Nothing is cached, least of all that somebody is not there.
func (r *Registry) Lookup(ctx context.Context, users ...uint64) (map[uint64]User, error) {
	if len(users) == 0 {
		return map[uint64]User{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	c, err := r.redis(ctx)
	if err != nil {
		return nil, err
	}
	cmds := make(rueidis.Commands, len(users))
	for i, u := range users {
		cmds[i] = c.B().Hgetall().Key(userKey(u)).Build().Pin()
	}
	r.m.ops.WithLabelValues("hgetall").Add(float64(len(users)))
	hashes := make([]map[string]string, len(users))
	for i, res := range c.DoMulti(ctx, cmds...) {
		if hashes[i], err = res.AsStrMap(); err != nil {
			return nil, fmt.Errorf("session: look up user %d: %w", users[i], err)
		}
	}
	leases, err := r.leases(ctx, c, hashes)
	if err != nil {
		return nil, err
	}
	out := make(map[uint64]User, len(users))
	for i, u := range users {
		out[u] = userOf(hashes[i], leases)
	}
	return out, nil
}

// leases returns the incarnation that holds the lease of each gateway named in
// the hashes.
func (r *Registry) leases(ctx context.Context, c rueidis.Client, hashes []map[string]string) (map[string]uint64, error) {
	leases := make(map[string]uint64)
	var keys []string
	for _, h := range hashes {
		for field := range h {
			if s, ok := parseField(field); ok {
				if _, known := leases[s.Gateway]; !known {
					leases[s.Gateway] = 0
					keys = append(keys, leasePrefix+s.Gateway)
				}
			}
		}
	}
	if len(keys) == 0 {
		return leases, nil
	}
	r.m.ops.WithLabelValues("mget").Inc()
	vals, err := c.Do(ctx, c.B().Mget().Key(keys...).Build().Pin()).ToArray()
	if err != nil {
		return nil, fmt.Errorf("session: read leases: %w", err)
	}
	for i := range min(len(vals), len(keys)) {
		if s, err := vals[i].ToString(); err == nil {
			if inc, err := strconv.ParseUint(s, 10, 64); err == nil {
				leases[strings.TrimPrefix(keys[i], leasePrefix)] = inc
			}
		}
	}
	return leases, nil
}

// userOf reads a user's hash and leaves out what no lease covers.
func userOf(hash map[string]string, leases map[string]uint64) User {
	var u User
	for field, value := range hash {
		if field == hiddenField {
			u.Hidden = true
			continue
		}
		ms, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			continue
		}
		if field == seenField {
			u.LastSeen = time.UnixMilli(ms)
			continue
		}
		if s, ok := parseField(field); ok && s.Incarnation == leases[s.Gateway] {
			s.Since = time.UnixMilli(ms)
			u.Sessions = append(u.Sessions, s)
		}
	}
	return u
}

func userKey(user uint64) string { return userPrefix + strconv.FormatUint(user, 10) }

// parseField reads "<device>@<gateway>/<incarnation>/<conn>". A gateway's name
// may hold any characters.
func parseField(field string) (Session, bool) {
	device, rest, ok := strings.Cut(field, "@")
	c := strings.LastIndexByte(rest, '/')
	if !ok || c < 0 {
		return Session{}, false
	}
	i := strings.LastIndexByte(rest[:c], '/')
	if i < 0 {
		return Session{}, false
	}
	d, err1 := strconv.ParseUint(device, 10, 32)
	inc, err2 := strconv.ParseUint(rest[i+1:c], 10, 64)
	conn, err3 := strconv.ParseUint(rest[c+1:], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return Session{}, false
	}
	return Session{Device: uint32(d), Gateway: rest[:i], Incarnation: inc, Conn: conn}, true
}
