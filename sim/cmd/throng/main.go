// Command throng is the harness: it runs scenarios against a chat backend and
// makes reports of runs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"throng/sim/target/containers"
	"throng/sim/target/infra"
	"throng/system"
)

// Exit codes. 0 to 2 are the verdict of a run.
const (
	exitPass         = 0
	exitFail         = 1  // a gate or the audit failed
	exitInconclusive = 2  // evidence is missing, or the generator was the limit
	exitUsage        = 64 // wrong arguments or a wrong scenario file
	exitUnavailable  = 69 // this machine cannot carry the run, or the target did not start
	exitInternal     = 70 // throng itself failed
)

func main() {
	args := os.Args[1:]
	// The roles and the embedded infrastructure are this same binary, so that
	// the harness needs no other file.
	if len(args) > 0 {
		switch args[0] {
		case "chatd", "embedded", "containers":
			_ = setNice(niceOf(args)) // the generator's is inherited
			if err := system.RelaxTimers(); err != nil {
				fmt.Fprintf(os.Stderr, "note: this process costs more CPU than it needs to: %v\n", err)
			}
		}
		switch args[0] {
		case "chatd":
			os.Exit(system.Main(context.Background(), args[1:], os.Stdin, os.Stdout, os.Stderr))
		case "embedded":
			os.Exit(infra.Main(context.Background(), args[1:], os.Stdin, os.Stdout, os.Stderr))
		case "containers":
			os.Exit(containers.Main(context.Background(), args[1:], os.Stdin, os.Stdout, os.Stderr))
		}
	}
	os.Exit(run(args, os.Stdout, os.Stderr))
}

// run carries out the command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	// The first Ctrl-C ends the load and still proves and reports; the second
	// one ends everything at once.
	soft, stopSoft := context.WithCancel(context.Background())
	hard, stopHard := context.WithCancel(context.Background())
	defer stopSoft()
	defer stopHard()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	go func() {
		if _, ok := <-signals; !ok {
			return
		}
		fmt.Fprintln(stderr, "\ninterrupted: the load stops, what was sent is proved and reported; once more to stop at once")
		stopSoft()
		<-signals
		stopHard()
	}()

	c := &cli{stdout: stdout, stderr: stderr, soft: soft, hard: hard}
	cmd := c.command()
	cmd.SetArgs(args)
	if err := cmd.Execute(); err != nil {
		var coded *codedError
		if !errors.As(err, &coded) {
			coded = &codedError{exitUsage, err}
		}
		fmt.Fprintf(stderr, "throng: %v\n", coded.err)
		if coded.code == exitUsage {
			fmt.Fprintln(stderr, "Run 'throng --help' for usage.")
		}
		return coded.code
	}
	return c.exit
}

// codedError is an error with the exit code that it leads to.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

type cli struct {
	stdout, stderr io.Writer
	soft, hard     context.Context
	exit           int
}

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "throng",
		Short: "Simulation and load testing of chat systems",
		Long: `throng starts a chat backend, drives a simulated population at it over real
WebSockets, proves what was delivered and says in plots and numbers what it
takes to carry 100 billion messages a day.

Exit codes: 0 pass, 1 a gate or the delivery audit failed, 2 inconclusive
(evidence is missing, or the generator was the limit), 64 wrong arguments or a
wrong scenario, 69 the machine cannot carry the run or the target did not
start, 70 throng itself failed.`,
		SilenceErrors: true, SilenceUsage: true,
	}
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(c.runCommand(), c.breakpointCommand(), c.agentCommand(), c.scenarioCommand(), c.reportCommand(), c.compareCommand(), c.versionCommand())
	return root
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Prints the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all := versions()
			for _, k := range slices.Sorted(maps.Keys(all)) {
				fmt.Fprintf(c.stdout, "%s %s\n", k, all[k])
			}
			return nil
		},
	}
}

// versions of throng, Go and the components that are part of the binary.
func versions() map[string]string {
	out := map[string]string{"throng": "devel"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return out
	}
	out["go"] = info.GoVersion
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			out["throng"] = s.Value
		}
	}
	for _, d := range info.Deps {
		switch d.Path {
		case "github.com/segmentio/kafka-go", "github.com/gorilla/websocket", "github.com/twmb/franz-go/pkg/kfake",
			"github.com/alicebob/miniredis/v2", "github.com/nats-io/nats-server/v2", "modernc.org/sqlite", "google.golang.org/grpc", "github.com/redis/rueidis":
			out[d.Path] = d.Version
		}
	}
	return out
}
