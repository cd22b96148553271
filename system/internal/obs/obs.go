// Package obs is what every process of the backend shows to whoever runs it:
// the debug port (/metrics, /healthz, /readyz, /debug/pprof), structured logs,
// counters of RPC bytes, and the shape of the metrics that bounded queues have
// in common. It knows no role and imports nothing of this module.
package obs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry with the process and Go runtime collectors.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(
			// What a collection leaves: the measure of a leak, which the heap's size,
			// swinging between two collections, hides.
			collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile("^/gc/heap/live:bytes$")})),
	)
	return reg
}

// Register registers c, or returns the collector that was registered under the
// same description before, so that two parts of one process can share a metric.
func Register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	if err == nil {
		return c, nil
	}
	var exists prometheus.AlreadyRegisteredError
	if errors.As(err, &exists) {
		if old, ok := exists.ExistingCollector.(C); ok {
			return old, nil
		}
	}
	return c, fmt.Errorf("obs: register: %w", err)
}

// LogConfig says how a process logs.
type LogConfig struct {
	Format string // "text" (default) or "json"
	Level  string // "debug", "info" (default), "warn", "error"
}

// NewLogger returns a logger to w whose every line carries the role and the
// instance. An unknown format or level is an error.
func NewLogger(w io.Writer, cfg LogConfig, role string, instance int) (*slog.Logger, error) {
	var level slog.Level
	if cfg.Level != "" {
		if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
			return nil, fmt.Errorf("obs: log level %q: allowed are debug, info, warn, error", cfg.Level)
		}
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch strings.ToLower(cfg.Format) {
	case "", "text":
		h = slog.NewTextHandler(w, opts)
	case "json":
		h = slog.NewJSONHandler(w, opts)
	default:
		return nil, fmt.Errorf("obs: log format %q: allowed are text, json", cfg.Format)
	}
	return slog.New(h).With("role", role, "instance", instance), nil
}
