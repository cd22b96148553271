// Package media is the media role: what clients upload for their messages and
// what addressees fetch, over HTTP next to the gateways. The bytes are opaque
// to it, for clients encrypt them. It owns the tus endpoint, signed URLs, who
// may fetch what, quotas, limits and expiry; bytes and what is known of them are
// kept by a Blobs and a Store, which it is given. It may import wire, placement,
// rpc, limit and obs, and no other role or adapter.
//
// An upload is a row of parts, each a blob that is there as a whole or not at
// all. The row that says that a part belongs to the object is written after the
// blob, and carries the state of the hash: so a process can be killed at any
// moment, any instance can go on, and nothing is ever read again to be hashed.
//
// Nobody tells this role which messages there are. Whoever knows who is
// addressed, the message service or the fan-out, signs a grant that travels with
// the message (wire.MediaGrant), which costs the way of a message one HMAC and
// no call. An addressee shows it here with their own token, and for a group the
// members of that version are asked for once. A sender who refers to what
// somebody else has uploaded gets a grant that is worth nothing: its sender is
// not the owner.
package media

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/limit"
	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// Config of a media instance.
type Config struct {
	Key    wire.Key // verifies tokens and grants, signs URLs
	Store  Store
	Blobs  Blobs
	Groups []string // addresses of all group instances, by index
	// AllowedOrigins are the values of the Origin header that browsers may come
	// from, "*" for any; none: browsers of other origins get no answer.
	AllowedOrigins []string
	// Sources says whose address counts; the zero value, every peer's own.
	Sources limit.Sources
	Limits  Limits
	// OldKeys verify beside Key, while the signing key changes.
	OldKeys wire.Keys
	// Identity is shown to the other roles; nil: they speak without TLS.
	Identity *rpc.Identity
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

// Service is one media instance.
type Service struct {
	cfg     Config
	keys    wire.Keys // that verify
	limits  Limits
	log     *slog.Logger
	m       *metrics
	members *members
	rates   *rates
	origins map[string]bool

	uploads, downloads *slots
	handler            http.Handler

	serving atomic.Bool
	gate    sync.Mutex // held to admit a request, and to begin stopping
	stopped bool       // by gate
	active  sync.WaitGroup
}

// New checks cfg. Nothing runs before Run.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Blobs == nil || len(cfg.Groups) == 0 {
		return nil, errors.New("media: config needs a store, blobs and group addresses")
	}
	if len(cfg.Key) < wire.MinKeyBytes {
		return nil, fmt.Errorf("media: key has %d bytes, needs %d", len(cfg.Key), wire.MinKeyBytes)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	s := &Service{cfg: cfg, keys: append(wire.Keys{cfg.Key}, cfg.OldKeys...), limits: cfg.Limits.withDefaults(), log: cfg.Log, origins: map[string]bool{}}
	for _, o := range cfg.AllowedOrigins {
		s.origins[o] = true
	}
	var err error
	if s.m, err = newMetrics(cfg.Metrics, s.limits); err != nil {
		return nil, fmt.Errorf("media: metrics: %w", err)
	}
	s.rates = newRates(cfg.Sources, &s.limits, s.m)
	ops, err := obs.NewOps(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("media: metrics: %w", err)
	}
	s.cfg.Blobs = timed(cfg.Blobs, ops)
	s.uploads = newSlots(s.limits.Uploads, s.limits.UserUploads, s.m.uploads)
	s.downloads = newSlots(s.limits.Downloads, s.limits.UserDownloads, s.m.downloads)
	if s.handler, err = s.routes(); err != nil {
		return nil, fmt.Errorf("media: %w", err)
	}
	if s.members, err = newMembers(cfg, s.limits.CachedMembers, s.m.members); err != nil {
		return nil, err
	}
	return s, nil
}

const (
	// stopGrace is how long what is under way may go on after a stop, before
	// uploads are interrupted; they keep what they have received.
	stopGrace = 2 * time.Second
	stopLimit = 2 * time.Second // and for the answers after that
	// maxHeaderBytes bounds a request's header: the longest is a token and a grant.
	maxHeaderBytes = 16 << 10
)

// Run serves clients on ln until ctx is done.
func (s *Service) Run(ctx context.Context, ln net.Listener) error {
	defer s.members.close()
	// Not a child of ctx: what is under way goes on for a while.
	requests, interrupt := context.WithCancel(context.WithoutCancel(ctx))
	defer interrupt()
	srv := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: s.limits.NetworkTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // of clients: they could fill a log
		BaseContext: func(net.Listener) context.Context { return requests },
	}
	loops, stopLoops := context.WithCancel(ctx)
	var sweeping sync.WaitGroup
	sweeping.Go(func() { s.sweepLoop(loops) })
	served := make(chan error, 1)
	go func() { served <- srv.Serve(newListener(ln, s.limits, s.cfg.Sources, s.m)) }()
	s.serving.Store(true)
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	s.serving.Store(false)
	stopLoops()
	sweeping.Wait()
	shutdown := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		return srv.Shutdown(ctx)
	}
	if shutdown(stopGrace) != nil {
		interrupt()
		if shutdown(stopLimit) != nil {
			srv.Close()
		}
	}
	s.gate.Lock()
	s.stopped = true
	s.gate.Unlock()
	s.active.Wait()
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("media: serve: %w", err)
	}
	return nil
}

// Ready returns nil while clients are served.
func (s *Service) Ready() error {
	if !s.serving.Load() {
		return errors.New("media: not serving")
	}
	return nil
}

// routes returns the endpoints.
func (s *Service) routes() (http.Handler, error) {
	tus, err := s.tus()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(wire.MediaUploadsPath, s.timed("upload", http.StripPrefix(wire.MediaUploadsPath, s.upload(tus))))
	mux.Handle("GET "+wire.MediaPath+"{id}", s.timed("download", http.HandlerFunc(s.download)))
	mux.Handle("POST "+wire.MediaPath+"{id}"+wire.MediaLink, s.timed("link", http.HandlerFunc(s.link)))
	mux.Handle("POST "+wire.MediaPath+"{id}"+wire.MediaFetched, s.timed("fetched", http.HandlerFunc(s.fetched)))
	return s.admit(mux), nil
}

// admit lets a request in unless the service has stopped, gives it deadlines,
// and answers browsers' questions about origins.
func (s *Service) admit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.gate.Lock()
		if s.stopped {
			s.gate.Unlock()
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		s.active.Add(1)
		s.gate.Unlock()
		defer s.active.Done()
		s.extend(http.NewResponseController(w))
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if origin := r.Header.Get("Origin"); origin != "" {
			if !s.origins[origin] && !s.origins["*"] && r.Header.Get("Sec-Fetch-Site") != "same-origin" {
				http.Error(w, "origin not allowed", http.StatusForbidden)
				return
			}
			allowOrigin(w.Header(), origin)
			if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func allowOrigin(h http.Header, origin string) {
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Vary", "Origin")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PATCH, DELETE")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Range, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata, "+wire.MediaGrantHeader)
	h.Set("Access-Control-Expose-Headers", "Location, Upload-Offset, Upload-Length, Content-Range, Repr-Digest")
	h.Set("Access-Control-Max-Age", "86400")
}

// extend gives the client NetworkTimeout for its next read or write.
func (s *Service) extend(rc *http.ResponseController) {
	at := time.Now().Add(s.limits.NetworkTimeout)
	// An error means that the connection is gone, which the next read or write tells.
	_ = rc.SetReadDeadline(at)
	_ = rc.SetWriteDeadline(at)
}

// claims returns who makes a request, or answers it with 401.
func (s *Service) claims(w http.ResponseWriter, r *http.Request) (wire.Claims, bool) {
	c, err := s.keys.Verify(bearer(r))
	if err != nil || c.User == 0 {
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "a valid bearer token is needed", http.StatusUnauthorized)
		return wire.Claims{}, false
	}
	return c, true
}

var errBusy = errors.New("too many requests at a time")

// take takes a slot for user, or answers with 429 or 503.
func take(w http.ResponseWriter, of *slots, user uint64) (release func(), ok bool) {
	code, release := of.take(user)
	if code == 0 {
		return release, true
	}
	w.Header().Set("Retry-After", "1")
	http.Error(w, errBusy.Error(), code)
	return nil, false
}

// timed counts requests of an operation, by outcome and duration.
func (s *Service) timed(op string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &statusWriter{ResponseWriter: w}
		next.ServeHTTP(rec, r)
		s.m.request(op, rec.code, time.Since(start))
	})
}

// statusWriter notes the status code of an answer.
type statusWriter struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
