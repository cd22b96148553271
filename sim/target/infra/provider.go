package infra

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"throng/sim/target/provider"
)

// providerFlags adds the flags of the push provider and returns what runs it.
func providerFlags(cmd *cobra.Command, log *slog.Logger) func(context.Context) error {
	f := cmd.Flags()
	listen := f.String("listen", "127.0.0.1:9000", "host:port")
	cfg := provider.Config{Log: log}
	f.DurationVar(&cfg.Latency.Median, "latency-median", 30*time.Millisecond, "median time to an answer")
	f.Float64Var(&cfg.Latency.Sigma, "latency-sigma", 0.5, "spread of the time to an answer (lognormal)")
	f.IntVar(&cfg.QuotaPerMinute, "quota-per-minute", 0, "requests a minute, above it 429; 0: no quota")
	f.Float64Var(&cfg.DeadShare, "dead-share", 0, "share of the devices that are gone (410)")
	f.Float64Var(&cfg.ErrorShare, "error-share", 0, "share of the requests that fail (503)")
	f.Uint64Var(&cfg.Seed, "seed", 1, "decides which ones")
	return func(ctx context.Context) error {
		p, err := provider.New(cfg)
		if err != nil {
			return err
		}
		ln, err := listenRetry(ctx, *listen, func() (net.Listener, error) { return net.Listen("tcp", *listen) })
		if err != nil {
			return fmt.Errorf("infra: provider: %w", err)
		}
		return p.Run(ctx, ln)
	}
}
