// Package infra is the infrastructure that the embedded target runs as child
// processes: a Kafka broker, a Redis, a push provider and the latency between
// zones, which need nothing but this binary. Main is their command line. The roles of the backend cannot tell
// them from the real ones.
package infra

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kfake"

	"throng/system"
)

// bindRetry is how long a server waits for its address: one that is restarted
// at once can meet the last moments of its predecessor.
const bindRetry = 5 * time.Second

// Main runs `embedded kafka|redis|provider|wan` and returns the exit code: those
// of system.Main.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use: "embedded", Short: "Infrastructure for the embedded target, as child processes of the harness",
		SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return errors.New("which server?") },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	log := slog.New(slog.NewTextHandler(stderr, nil))
	exitWithParent := root.PersistentFlags().Bool("exit-with-parent", false, "exit at once when standard input ends")
	server := func(use, short string, flags func(*cobra.Command) func(context.Context) error) {
		cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
		run := flags(cmd)
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			return system.RunCommand(cmd.Context(), stdin, *exitWithParent, run)
		}
		root.AddCommand(cmd)
	}
	server("kafka", "A Kafka broker (kfake) that keeps its data in a folder", func(cmd *cobra.Command) func(context.Context) error {
		var k Kafka
		cmd.Flags().StringVar(&k.Listen, "listen", "127.0.0.1:9092", "host:port; the host must be 127.0.0.1")
		cmd.Flags().StringVar(&k.Data, "data", "", "folder of the log; empty: memory")
		cmd.Flags().StringVar(&k.Topic, "topic", "throng-groups", "topic that exists from the start")
		cmd.Flags().IntVar(&k.Partitions, "partitions", 16, "partitions of the topic")
		return func(ctx context.Context) error { return k.Run(ctx, stderr) }
	})
	server("redis", "A Redis (miniredis), in memory", func(cmd *cobra.Command) func(context.Context) error {
		listen := cmd.Flags().String("listen", "127.0.0.1:6379", "host:port")
		return func(ctx context.Context) error { return RunRedis(ctx, *listen) }
	})
	server("provider", "A push provider of APNs/FCM shape", func(cmd *cobra.Command) func(context.Context) error {
		return providerFlags(cmd, log)
	})
	server("wan", "The latency between zones, as TCP proxies", func(cmd *cobra.Command) func(context.Context) error {
		config := cmd.Flags().String("config", "", "file with the links (JSON)")
		return func(ctx context.Context) error { return RunWAN(ctx, *config) }
	})
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return system.ExitCode(root.ExecuteContext(ctx), stderr)
}

// Kafka is a broker in this process.
type Kafka struct {
	Listen     string // host:port; host must be 127.0.0.1
	Data       string // folder; what was acknowledged survives kill -9. Empty: memory
	Topic      string // exists from the start
	Partitions int
}

// Run serves until ctx is done.
func (k Kafka) Run(ctx context.Context, logTo io.Writer) error {
	host, portText, err := net.SplitHostPort(k.Listen)
	port, convErr := strconv.Atoi(portText)
	if err != nil || convErr != nil || host != "127.0.0.1" {
		return fmt.Errorf("infra: kafka: listen on %q: must be 127.0.0.1:port", k.Listen)
	}
	opts := []kfake.Opt{
		kfake.Ports(port),
		kfake.ListenFn(func(network, addr string) (net.Listener, error) {
			return listenRetry(ctx, addr, func() (net.Listener, error) { return net.Listen(network, addr) })
		}),
		kfake.SeedTopics(int32(k.Partitions), k.Topic),
		kfake.WithLogger(kfake.BasicLogger(logTo, kfake.LogLevelWarn)),
	}
	if k.Data != "" {
		opts = append(opts, kfake.DataDir(k.Data))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return fmt.Errorf("infra: kafka: %w", err)
	}
	<-ctx.Done()
	cluster.Close()
	return nil
}

// listenRetry calls listen until it succeeds, waiting while the address is in use.
func listenRetry[T any](ctx context.Context, addr string, listen func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, bindRetry)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		v, err := listen()
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, err
		case <-tick.C:
		}
	}
}
