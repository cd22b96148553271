// Package push is the push role: it takes requests to wake devices from the
// inbox instances and puts them to a provider of the APNs/FCM shape over
// HTTP/2. It owns the quota, the retries and the dead letters; it keeps nothing
// across a restart but the dead letters, because who asks does. It may import rpc and obs, and no
// other role.
package push

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
)

const stopGrace = 3 * time.Second

// Config of a push instance. Zero means the default.
type Config struct {
	// Provider is its URL, such as http://127.0.0.1:9999. With http the
	// connection is HTTP/2 without TLS.
	Provider string
	// Concurrency bounds the requests to the provider at once. Default 64.
	Concurrency int
	// Queue bounds the requests that wait. What comes when it is full is answered
	// at once with the outcome "unspecified": whoever asked asks again later, if
	// there is still a reason to. Default 32,768.
	Queue int
	// QuotaPerMinute is what the provider allows this instance; 0: no bound. Up
	// to a second of it gathers in quiet times.
	QuotaPerMinute int
	// Attempts is how often a request is tried before it is a dead letter. An
	// answer of 429 is not an attempt. Default 6.
	Attempts int
	// Backoff is the most that the first retry waits; each next one waits up to
	// twice as long, at most MaxBackoff. A Retry-After of the provider is the
	// least. Default 200 ms and 10 s.
	Backoff, MaxBackoff time.Duration
	// Timeout bounds one request. Default 5 s.
	Timeout time.Duration
	// DeadLetters is the file in which dead letters are kept; beside it there may
	// be one of that name with ".old". Empty: none are kept. At most
	// DeadLetterBytes of them are, none for longer than DeadLetterAge. Default
	// 64 MiB and 30 days.
	DeadLetters     string
	DeadLetterBytes int64
	DeadLetterAge   time.Duration
	// Identity is shown to the other roles; nil: they speak without TLS.
	Identity *rpc.Identity
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

func (c *Config) defaults() {
	set(&c.Concurrency, 64)
	set(&c.Queue, 32_768)
	set(&c.Attempts, 6)
	set(&c.Backoff, 200*time.Millisecond)
	set(&c.MaxBackoff, 10*time.Second)
	set(&c.Timeout, 5*time.Second)
	set(&c.DeadLetterBytes, 64<<20)
	set(&c.DeadLetterAge, 30*24*time.Hour)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
}

func set[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Push is one instance.
type Push struct {
	cfg    Config
	url    *url.URL
	client *http.Transport // not a Client: a redirect would carry tokens to somewhere else
	header http.Header     // of each request
	m      *metrics
	queue  chan *job
	bucket *bucket
	recvs  sync.WaitGroup
	// letters is nil where none are kept.
	letters *letters

	mu     sync.Mutex
	logged time.Time // when a dead letter was last logged
	unsaid int       // dead letters since
}

// New checks cfg and opens the file of the dead letters, which Close closes.
func New(cfg Config) (*Push, error) {
	cfg.defaults()
	u, err := url.Parse(cfg.Provider)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("push: provider %q is not an http or https URL", cfg.Provider)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	header := http.Header{"Content-Type": {"application/json"}}
	if name := u.User.Username(); name != "" {
		password, _ := u.User.Password()
		(&http.Request{Header: header}).SetBasicAuth(name, password)
	}
	m, err := newMetrics(cfg.Metrics, cfg.Queue)
	if err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	p := &Push{cfg: cfg, url: u, m: m, client: newClient(), header: header, queue: make(chan *job, cfg.Queue),
		bucket: newBucket(cfg.QuotaPerMinute)}
	if cfg.DeadLetters != "" {
		if p.letters, err = openLetters(cfg.DeadLetters, cfg.DeadLetterBytes, cfg.DeadLetterAge, m.kept); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Close closes the file of the dead letters. Call it after Run has returned.
func (p *Push) Close() error {
	if p.letters == nil {
		return nil
	}
	return p.letters.close()
}

// newClient speaks HTTP/2 only, over one connection or a few: a provider
// throttles connections that come and go.
func newClient() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{Protocols: protocols, IdleConnTimeout: 5 * time.Minute, DialContext: dialGathered,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second}}
}

// Run serves until ctx is done, then stops: requests without an answer stay
// unanswered, and whoever asked asks again.
func (p *Push) Run(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer p.client.CloseIdleConnections()
	stats, err := obs.RPCStats(p.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("push: %w", err)
	}
	srv := rpc.NewServer(append(p.cfg.Identity.Serving(), grpc.StatsHandler(stats))...)
	rpc.RegisterPushServer(srv, server{p: p, run: ctx})
	var wg sync.WaitGroup
	for range p.cfg.Concurrency {
		wg.Go(func() { p.work(ctx) })
	}
	if p.letters != nil {
		wg.Go(func() { p.pruneLetters(ctx) })
	}
	wg.Go(func() {
		if err := srv.Serve(ln); err != nil {
			cancel(fmt.Errorf("push: serve: %w", err))
		}
	})
	<-ctx.Done()
	obs.StopGRPC(srv, stopGrace)
	wg.Wait()
	p.recvs.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Ready returns nil: the role can serve as soon as it runs. A provider that is
// down is retried, so it does not make the instance unready.
func (p *Push) Ready() error { return nil }

// pruneEvery is the time between two looks for letters that are too old.
const pruneEvery = time.Hour

func (p *Push) pruneLetters(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			p.letters.prune(now)
		}
	}
}

// logEvery is the least time between two log lines about dead letters.
const logEvery = 5 * time.Second

func (p *Push) deadLetter(j *job, reason string) {
	l := DeadLetter{At: time.Now(), User: j.req.User, Device: j.req.Device, CollapseKey: j.req.CollapseKey,
		MessageID: hex.EncodeToString(j.req.MessageId), Reason: reason}
	p.m.deadLetters.Inc()
	var err error
	if p.letters != nil {
		if err = p.letters.add(l); err != nil {
			p.m.unkept.Inc()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unsaid++
	if l.At.Sub(p.logged) >= logEvery {
		p.cfg.Log.Warn("push: given up", "user", l.User, "device", l.Device, "reason", reason, "since_last_line", p.unsaid, "not_kept", err)
		p.logged, p.unsaid = l.At, 0
	}
}

type metrics struct {
	attempts                         *prometheus.CounterVec
	accepted, deadLetters, throttled prometheus.Counter
	dead, cancelled, unkept          prometheus.Counter
	kept                             prometheus.Gauge
	seconds                          prometheus.Histogram
	queue                            *obs.Queue
	attempt                          *obs.Op
}

func newMetrics(reg prometheus.Registerer, limit int) (*metrics, error) {
	m := &metrics{}
	var errs []error
	counter := func(name, help string) prometheus.Counter {
		c, err := obs.Register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
		errs = append(errs, err)
		return c
	}
	var err error
	m.attempts, err = obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_push_attempts_total", Help: "Requests to the provider, by what came of them."}, []string{"outcome"}))
	errs = append(errs, err)
	m.accepted = counter("throng_push_accepted_total", "Pushes that the provider accepted.")
	m.deadLetters = counter("throng_push_dead_letters_total", "Pushes given up.")
	m.unkept = counter("throng_push_dead_letters_unkept_total", "Dead letters that could not be written to their file.")
	m.kept, err = obs.Register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "throng_push_dead_letters_kept", Help: "Dead letters in the file, to be read at /dead-letters."}))
	errs = append(errs, err)
	m.throttled = counter("throng_push_throttled_total", "Answers of the provider that said to wait.")
	m.dead = counter("throng_push_dead_tokens_total", "Tokens that the provider does not know any more.")
	m.cancelled = counter("throng_push_cancelled_total", "Requests taken back because the messages had been acknowledged.")
	m.seconds, err = obs.Register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "throng_push_seconds", Help: "From the request of the inbox to the answer, retries included.",
		Buckets: prometheus.ExponentialBuckets(0.002, 2, 16)}))
	errs = append(errs, err)
	m.queue, err = obs.NewQueue(reg, "push_requests", limit)
	errs = append(errs, err)
	ops, err := obs.NewOps(reg)
	errs = append(errs, err)
	m.attempt = ops.Op("push.attempt")
	return m, errors.Join(errs...)
}
