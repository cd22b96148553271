package wan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// Config of the proxies of a deployment, as it stands in their file.
type Config struct {
	Debug string `json:"debug"` // host:port of /readyz and /metrics
	Links []Link `json:"links"`
}

const debugStop = time.Second

// Run carries all links until ctx is done. /readyz answers once everybody
// listens. listen is how an address is bound.
func Run(ctx context.Context, cfg Config, listen func(addr string) (net.Listener, error)) (err error) {
	var bound []net.Listener
	defer func() {
		if err != nil {
			for _, ln := range bound {
				ln.Close()
			}
		}
	}()
	bind := func(addr string) (net.Listener, error) {
		ln, err := listen(addr)
		if err != nil {
			return nil, fmt.Errorf("wan: listen on %s: %w", addr, err)
		}
		bound = append(bound, ln)
		return ln, nil
	}
	reg := prometheus.NewRegistry()
	m, err := newMeter(reg)
	if err != nil {
		return err
	}
	if err := reg.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})); err != nil {
		return fmt.Errorf("wan: %w", err)
	}
	for _, l := range cfg.Links {
		if _, err := bind(l.Listen); err != nil {
			return err
		}
		if l.Delay < 0 || l.Jitter < 0 {
			return fmt.Errorf("wan: %s to %s: a negative delay", l.From, l.To)
		}
	}
	debug, err := bind(cfg.Debug)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for i, l := range cfg.Links {
		g.Go(func() error { return newLine(l, m).serve(ctx, bound[i]) })
	}
	g.Go(func() error { return serveDebug(ctx, debug, reg) })
	return g.Wait()
}

// serveDebug serves until ctx is done.
func serveDebug(ctx context.Context, ln net.Listener, reg prometheus.Gatherer) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ready") })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("wan: debug port: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), debugStop)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("wan: debug port: %w", err)
	}
	return nil
}
