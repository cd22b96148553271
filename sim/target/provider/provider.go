// Package provider is a simulated push provider of the APNs/FCM shape, for the
// embedded target: an HTTP/2 server with latency, a quota, devices that are
// gone and faults, all derived from a seed. It runs as a process of its own and
// tells the harness what it has accepted. It imports nothing of this module.
//
//	POST /v1/devices/{token}   JSON {collapse_key, message_id, waiting, user, device}
//	                           200 accepted, 410 unknown device, 429 with
//	                           Retry-After over the quota, 503 a fault
//	GET  /v1/devices/{token}   what the device shows: one notification for each
//	                           collapse key
//	GET  /feed                 pushes answered as they happen, one JSON object a line:
//	                           accepted, or why not
//	GET  /stats                counts, as JSON
//	GET  /metrics              the same for Prometheus
package provider

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Latency is a lognormal distribution of the time to an answer.
type Latency struct {
	Median time.Duration // 0: answer at once
	Sigma  float64       // of the logarithm
}

// Config of the provider. Zero means none, or the default where there is one.
type Config struct {
	Latency Latency
	// QuotaPerMinute: more requests than this, spread over each second, are
	// answered 429. 0: no quota.
	QuotaPerMinute int
	// DeadShare of the tokens is unknown; which ones, the seed decides.
	DeadShare float64
	// ErrorShare of the requests fails with 503; which ones, the seed decides.
	ErrorShare float64
	Seed       uint64
	// Devices bounds the devices whose notifications are kept; beyond it the
	// oldest half is forgotten. Default 1,000,000.
	Devices int
	// FeedBuffer bounds the pushes that wait for one reader of the feed. What
	// does not fit is lost to that reader, who is told how many. Default 100,000.
	FeedBuffer int
	Log        *slog.Logger
}

// What became of a push, in the feed. Accepted stands for nothing else.
const (
	Accepted  = ""
	Dead      = "dead"      // 410
	Failed    = "failed"    // 503
	Throttled = "throttled" // 429
)

// Push is a line of the feed: either an answered push, or Lost.
type Push struct {
	Outcome   string `json:"outcome,omitempty"`
	Token     string `json:"token,omitempty"`
	User      uint64 `json:"user,string,omitempty"`
	Device    uint32 `json:"device"`
	MessageID string `json:"message_id,omitempty"` // hex
	AtUnixUS  int64  `json:"at_unix_us"`
	// Lost: so many pushes were not written to this reader since the line
	// before, because it did not keep up. The other fields are empty.
	Lost uint64 `json:"lost,omitempty"`
}

// Stats counts requests by answer, and readers' losses.
type Stats struct {
	Requests  uint64 `json:"requests"`
	Accepted  uint64 `json:"accepted"`
	Collapsed uint64 `json:"collapsed"` // accepted, replacing a notification
	Dead      uint64 `json:"dead"`
	Throttled uint64 `json:"throttled"`
	Failed    uint64 `json:"failed"`
	Invalid   uint64 `json:"invalid"`
	FeedLost  uint64 `json:"feed_lost"`
	Devices   int    `json:"devices"` // with notifications
	Readers   int    `json:"readers"`
}

// Provider is a server.
type Provider struct {
	cfg Config
	reg *prometheus.Registry

	requests, accepted, collapsed, dead, throttled, failed, invalid, feedLost atomic.Uint64

	mu      sync.Mutex
	shown   map[string]map[string]Notification // by token, by collapse key
	old     map[string]map[string]Notification // the generation before
	free    time.Time                          // of the quota: when the next token is free
	readers map[*reader]struct{}
}

// Notification is what a device shows.
type Notification struct {
	CollapseKey string `json:"collapse_key"`
	MessageID   string `json:"message_id"`
	Waiting     uint32 `json:"waiting"`
	User        uint64 `json:"user,string"`
	Device      uint32 `json:"device"`
}

// New checks cfg.
func New(cfg Config) (*Provider, error) {
	for name, share := range map[string]float64{"dead share": cfg.DeadShare, "error share": cfg.ErrorShare} {
		if !(share >= 0 && share <= 1) {
			return nil, fmt.Errorf("provider: %s %v is not in 0..1", name, share)
		}
	}
	if cfg.Latency.Median < 0 || !(cfg.Latency.Sigma >= 0) || cfg.QuotaPerMinute < 0 {
		return nil, fmt.Errorf("provider: negative latency or quota: %+v", cfg)
	}
	if cfg.Devices == 0 {
		cfg.Devices = 1_000_000
	}
	if cfg.FeedBuffer == 0 {
		cfg.FeedBuffer = 100_000
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Provider{cfg: cfg, reg: prometheus.NewRegistry(), shown: make(map[string]map[string]Notification),
		readers: make(map[*reader]struct{})}
	for _, x := range []struct {
		outcome string
		n       *atomic.Uint64
	}{{"accepted", &p.accepted}, {"dead", &p.dead}, {"throttled", &p.throttled}, {"failed", &p.failed}, {"invalid", &p.invalid}} {
		if err := p.counter("throng_provider_requests_total", "Requests by answer.", prometheus.Labels{"outcome": x.outcome}, x.n); err != nil {
			return nil, err
		}
	}
	if err := p.counter("throng_provider_collapsed_total", "Accepted pushes that replaced a notification.", nil, &p.collapsed); err != nil {
		return nil, err
	}
	if err := p.counter("throng_provider_feed_lost_total", "Pushes that a reader of the feed did not take in time.", nil, &p.feedLost); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Provider) counter(name, help string, labels prometheus.Labels, n *atomic.Uint64) error {
	err := p.reg.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
		func() float64 { return float64(n.Load()) }))
	if err != nil {
		return fmt.Errorf("provider: metric %s: %w", name, err)
	}
	return nil
}

// Run serves HTTP/1.1 and HTTP/2 (without TLS, prior knowledge) until ctx is done.
func (p *Provider) Run(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/devices/{token}", p.push)
	mux.HandleFunc("GET /v1/devices/{token}", p.device)
	mux.HandleFunc("GET /feed", p.feed)
	mux.HandleFunc("GET /stats", p.stats)
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.reg, promhttp.HandlerOpts{}))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: 5 * time.Second,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: 1000},
		BaseContext: func(net.Listener) context.Context { return ctx }, // ends the feeds
		ErrorLog:    slog.NewLogLogger(p.cfg.Log.Handler(), slog.LevelWarn)}
	var wg sync.WaitGroup
	stop, cancel := context.WithCancel(ctx)
	wg.Go(func() {
		<-stop.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	cancel()
	wg.Wait()
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("provider: %w", err)
	}
	return nil
}

// uniform returns a number in [0, 1) that the seed and the parts decide.
func (p *Provider) uniform(what string, n uint64) float64 {
	h := fnv.New64a()
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], p.cfg.Seed)
	binary.LittleEndian.PutUint64(b[8:], n)
	h.Write(b[:])
	h.Write([]byte(what))
	x := h.Sum64()
	// FNV mixes its last bytes badly; this is the finaliser of MurmurHash3.
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return float64((x^x>>33)>>11) / (1 << 53)
}

// Dead reports whether the provider does not know the token.
func (p *Provider) Dead(token string) bool {
	return p.cfg.DeadShare > 0 && p.uniform("dead "+token, 0) < p.cfg.DeadShare
}

// delay returns the time to the answer of request n: Box and Muller's
// transformation of two uniform numbers.
func (p *Provider) delay(n uint64) time.Duration {
	if p.cfg.Latency.Median == 0 {
		return 0
	}
	z := math.Sqrt(-2*math.Log(1-p.uniform("radius", n))) * math.Cos(2*math.Pi*p.uniform("angle", n))
	return min(time.Duration(float64(p.cfg.Latency.Median)*math.Exp(p.cfg.Latency.Sigma*z)), 30*time.Second)
}

// quota takes a token, or returns how long until there is one.
func (p *Provider) quota(now time.Time) time.Duration {
	if p.cfg.QuotaPerMinute == 0 {
		return 0
	}
	gap := time.Minute / time.Duration(p.cfg.QuotaPerMinute)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free.Before(now.Add(-time.Second)) {
		p.free = now.Add(-time.Second)
	}
	if next := p.free.Add(gap); next.After(now) {
		return next.Sub(now)
	}
	p.free = p.free.Add(gap)
	return 0
}

func (p *Provider) push(w http.ResponseWriter, r *http.Request) {
	n := p.requests.Add(1)
	token := r.PathValue("token")
	var note Notification
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&note); err != nil || note.CollapseKey == "" {
		p.invalid.Add(1)
		http.Error(w, "want a JSON object with a collapse_key", http.StatusBadRequest)
		return
	}
	if wait := p.quota(time.Now()); wait > 0 {
		p.throttled.Add(1)
		p.tell(Throttled, token, note)
		w.Header().Set("Retry-After", fmt.Sprint(max(1, int(math.Ceil(wait.Seconds())))))
		http.Error(w, "over the quota", http.StatusTooManyRequests)
		return
	}
	if d := p.delay(n); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case p.uniform("fault", n) < p.cfg.ErrorShare:
		p.failed.Add(1)
		p.tell(Failed, token, note)
		http.Error(w, "try again", http.StatusServiceUnavailable)
	case p.Dead(token):
		p.dead.Add(1)
		p.tell(Dead, token, note)
		http.Error(w, "no such device", http.StatusGone)
	default:
		p.accept(token, note)
	}
}

// accept shows the notification on the device.
func (p *Provider) accept(token string, note Notification) {
	p.accepted.Add(1)
	p.mu.Lock()
	if p.show(token, note) {
		p.collapsed.Add(1)
	}
	p.mu.Unlock()
	p.tell(Accepted, token, note)
}

// tell writes a line to the feeds.
func (p *Provider) tell(outcome, token string, note Notification) {
	line := Push{Outcome: outcome, Token: token, User: note.User, Device: note.Device, MessageID: note.MessageID, AtUnixUS: time.Now().UnixMicro()}
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.readers {
		if !r.put(line) {
			p.feedLost.Add(1)
		}
	}
}

// show keeps one notification for each collapse key, and reports whether it
// replaced one. When there are too many devices the older generation goes.
func (p *Provider) show(token string, note Notification) (replaced bool) {
	keys := p.shown[token]
	if keys == nil {
		if keys = p.old[token]; keys == nil {
			keys = make(map[string]Notification, 1)
		} else {
			delete(p.old, token)
		}
		if len(p.shown) >= (p.cfg.Devices+1)/2 {
			p.old, p.shown = p.shown, make(map[string]map[string]Notification)
		}
		p.shown[token] = keys
	}
	_, replaced = keys[note.CollapseKey]
	keys[note.CollapseKey] = note
	return replaced
}

func (p *Provider) device(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	keys := p.shown[r.PathValue("token")]
	if keys == nil {
		keys = p.old[r.PathValue("token")]
	}
	out := make([]Notification, 0, len(keys))
	for _, n := range keys {
		out = append(out, n)
	}
	p.mu.Unlock()
	writeJSON(w, out)
}

// Stats returns the counts so far.
func (p *Provider) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{Requests: p.requests.Load(), Accepted: p.accepted.Load(), Collapsed: p.collapsed.Load(), Dead: p.dead.Load(),
		Throttled: p.throttled.Load(), Failed: p.failed.Load(), Invalid: p.invalid.Load(), FeedLost: p.feedLost.Load(),
		Devices: len(p.shown) + len(p.old), Readers: len(p.readers)}
}

func (p *Provider) stats(w http.ResponseWriter, _ *http.Request) { writeJSON(w, p.Stats()) }

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the reader has gone: nobody to tell
}
