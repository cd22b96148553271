package system

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"throng/system/internal/blob"
	"throng/system/wire"
)

// Exit codes of Main.
const (
	ExitOK         = 0  // stopped as asked
	ExitFailed     = 1  // could not start, or a part failed
	ExitOrphaned   = 3  // --exit-with-parent and standard input ended
	ExitUsage      = 64 // wrong arguments
	ExitConfig     = 78 // the topology is wrong
	ExitSecondStop = 130
)

// Main is the command line of the backend: args are those after the program's
// name, such as "gateway --topology t.json --instance 0". It returns the exit
// code. The first SIGTERM or SIGINT stops gracefully, the second at once.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cli := &cli{stdin: stdin, stderr: stderr}
	root := cli.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return ExitCode(root.ExecuteContext(ctx), stderr)
}

// ExitCode returns the exit code for what a command returned, and says on
// stderr what there is to say. An error that RunCommand did not make is about
// the arguments.
func ExitCode(err error, stderr io.Writer) int {
	if err == nil {
		return ExitOK
	}
	var coded *codedError
	if !errors.As(err, &coded) {
		fmt.Fprintf(stderr, "%v\nSee --help.\n", err)
		return ExitUsage
	}
	if coded.err != nil {
		fmt.Fprintln(stderr, coded.err)
	}
	return coded.code
}

// codedError carries an exit code through cobra.
type codedError struct {
	code int
	err  error // nil: say nothing more
}

func (e *codedError) Error() string { return fmt.Sprintf("exit code %d: %v", e.code, e.err) }

// cli holds the values of the flags.
type cli struct {
	stdin          io.Reader
	stderr         io.Writer
	topology       string
	instance       int
	id             string
	exitWithParent bool
	single         SingleNode
}

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "chatd",
		Short: "A chat backend: one process of it, or all of it",
		Long: `chatd runs one role of a chat backend, or all of them in one process.

A deployment is described by a topology file (JSON) that every process is given;
instance i of a role is element i of its list there. 'chatd all' can do without
one: it then needs a Kafka broker, a Redis and a push provider, keeps its tables
in SQLite under --data, and listens on --listen.

Every process serves /metrics, /healthz, /readyz and /debug/pprof on its debug
port. The first SIGTERM or SIGINT stops it gracefully, the second at once.

Exit codes: 0 stopped as asked, 1 failed, 3 parent gone (--exit-with-parent),
64 wrong arguments, 78 wrong topology, 130 stopped at once.`,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return errors.New("which role?") },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	for _, d := range []struct {
		role  Role
		short string
	}{
		{Gateway, "Holds the WebSocket sessions of clients"},
		{Message, "Accepts messages: checks, orders, makes durable"},
		{Fanout, "Delivers group messages from the log to the members' inboxes"},
		{Group, "Groups, their members, and the provisioning API"},
		{Inbox, "Mailboxes: what is stored, who is live, what is in flight"},
		{Push, "Sends notifications for devices that are offline"},
		{Media, "Takes what clients upload for their messages, and lets addressees fetch it"},
		{All, "Every instance of every role of the topology, in one process"},
	} {
		root.AddCommand(c.roleCommand(d.role, d.short))
	}
	root.AddCommand(certificatesCommand())
	return root
}

func (c *cli) roleCommand(role Role, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: string(role), Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context(), role) },
	}
	f := cmd.Flags()
	f.StringVar(&c.topology, "topology", os.Getenv("CHATD_TOPOLOGY"), "topology file [env CHATD_TOPOLOGY]")
	f.BoolVar(&c.exitWithParent, "exit-with-parent", false, "exit at once when standard input ends")
	if role != All {
		instance, err := strconv.Atoi(os.Getenv("CHATD_INSTANCE"))
		if err != nil {
			instance = 0
		}
		f.IntVar(&c.instance, "instance", instance, "which instance of the role this is, from 0 [env CHATD_INSTANCE]")
		if role == Gateway {
			f.StringVar(&c.id, "id", os.Getenv("CHATD_ID"), "its name in the registry, where several gateways share an entry of the topology [env CHATD_ID]")
		}
		return cmd
	}
	f.StringVar(&c.single.Listen, "listen", envOr("CHATD_LISTEN", "127.0.0.1:8080"), "without a topology: where clients connect [env CHATD_LISTEN]")
	f.StringVar(&c.single.Admin, "admin", envOr("CHATD_ADMIN", "127.0.0.1:8081"), "without a topology: the provisioning API [env CHATD_ADMIN]")
	f.StringVar(&c.single.Media, "media", envOr("CHATD_MEDIA", "127.0.0.1:8083"), "without a topology: where clients upload and fetch media [env CHATD_MEDIA]")
	f.StringVar(&c.single.Debug, "debug", envOr("CHATD_DEBUG", "127.0.0.1:8082"), "without a topology: the gateway's debug port; the other roles take free ports and log them [env CHATD_DEBUG]")
	f.StringVar(&c.single.Data, "data", os.Getenv("CHATD_DATA"), "without a topology: folder of the SQLite files and of the media [env CHATD_DATA]")
	f.StringVar(&c.single.Kafka, "kafka", os.Getenv("CHATD_KAFKA"), "without a topology: broker host:port [env CHATD_KAFKA]")
	f.StringVar(&c.single.Redis, "redis", os.Getenv("CHATD_REDIS"), "without a topology: Redis host:port [env CHATD_REDIS]")
	f.StringVar(&c.single.Provider, "provider", os.Getenv("CHATD_PROVIDER"), "without a topology: push provider's URL [env CHATD_PROVIDER]")
	f.StringVar(&c.single.Key, "key", os.Getenv("CHATD_KEY"), "without a topology: base64 signing key; made and kept under --data when empty [env CHATD_KEY]")
	return cmd
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// run runs a role until it is told to stop.
func (c *cli) run(ctx context.Context, role Role) error {
	cfg, err := c.config(role)
	if err != nil {
		return &codedError{ExitConfig, err}
	}
	if c.id != "" && c.instance >= 0 && c.instance < len(cfg.Gateways) {
		cfg.Gateways[c.instance].ID = c.id
	}
	return RunCommand(ctx, c.stdin, c.exitWithParent, func(ctx context.Context) error {
		p, err := Start(ctx, cfg, role, c.instance, c.stderr)
		if err != nil {
			return err
		}
		return p.Wait()
	})
}

func (c *cli) config(role Role) (Config, error) {
	if c.topology != "" {
		return LoadConfig(c.topology)
	}
	if role != All {
		return Config{}, errors.New("--topology is needed")
	}
	return c.single.Config()
}

// RunCommand runs f as the body of a command: the first SIGINT or SIGTERM ends
// its context, the second makes RunCommand return without waiting for it, as
// does, with exitWithParent, the end of stdin. The error, if any, carries the
// exit code; see ExitCode.
func RunCommand(ctx context.Context, stdin io.Reader, exitWithParent bool, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	var orphaned chan struct{}
	if exitWithParent {
		orphaned = make(chan struct{})
		go func() {
			// Whatever the reason that nothing can be read any more, nobody
			// holds the other end.
			_, _ = io.Copy(io.Discard, stdin)
			close(orphaned)
		}()
	}
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stopping := false
	for {
		select {
		case err := <-done:
			if err != nil {
				return &codedError{ExitFailed, err}
			}
			return nil
		case <-orphaned:
			return &codedError{ExitOrphaned, nil}
		case <-signals:
			if stopping {
				return &codedError{ExitSecondStop, nil}
			}
			stopping = true
			cancel()
		}
	}
}

// SingleNode is a deployment of one instance of each role in one process, with
// SQLite under Data.
type SingleNode struct {
	Listen   string // clients connect here
	Admin    string // provisioning API
	Media    string // clients upload and fetch media here; "": there is no media service
	Debug    string // debug port of the gateway; the other roles take free ports
	Data     string // folder, made if missing
	Kafka    string // broker host:port
	Redis    string // host:port
	Provider string // push provider's URL
	Key      string // base64; empty: made once and kept in Data
}

// singlePartitions is the number of partitions of a single node's topic.
const singlePartitions = 16

// Config returns the topology of the single node. It makes the data folder and
// the key where they are missing.
func (s SingleNode) Config() (Config, error) {
	for _, need := range []struct{ flag, value string }{
		{"data", s.Data}, {"kafka", s.Kafka}, {"redis", s.Redis}, {"provider", s.Provider},
	} {
		if need.value == "" {
			return Config{}, fmt.Errorf("--%s is needed where there is no --topology", need.flag)
		}
	}
	if err := os.MkdirAll(s.Data, 0o700); err != nil {
		return Config{}, fmt.Errorf("data folder: %w", err)
	}
	key := s.Key
	if key == "" {
		var err error
		if key, err = keptKey(filepath.Join(s.Data, "key")); err != nil {
			return Config{}, err
		}
	}
	const free = "127.0.0.1:0"
	cfg := Config{
		Gateways: []GatewayInstance{{ID: "gateway-0", Listen: s.Listen, Debug: s.Debug}},
		Messages: []RPCInstance{{RPC: free, Debug: free}},
		Fanouts:  []FanoutInstance{{Debug: free}},
		Groups:   []GroupInstance{{RPC: free, HTTP: s.Admin, Debug: free}},
		Inboxes:  []InboxInstance{{RPC: free, Debug: free, SQL: SQL{Driver: "sqlite", DSN: filepath.Join(s.Data, "inbox.db")}}},
		Pushes:   []RPCInstance{{RPC: free, Debug: free}},
		Kafka:    Kafka{Brokers: []string{s.Kafka}, Topic: "throng-groups", Partitions: singlePartitions},
		Redis:    Redis{Addr: s.Redis},
		GroupSQL: GroupSQL{SQL: SQL{Driver: "sqlite", DSN: filepath.Join(s.Data, "groups.db")}},
		Provider: Provider{URL: s.Provider},
		Key:      key,
	}
	if s.Media != "" {
		folder, err := filepath.Abs(filepath.Join(s.Data, "media"))
		if err != nil {
			return Config{}, fmt.Errorf("data folder: %w", err)
		}
		cfg.Medias = []MediaInstance{{Listen: s.Media, Debug: free}}
		cfg.MediaStore = MediaStore{SQL: SQL{Driver: "sqlite", DSN: filepath.Join(s.Data, "media.db")},
			Blobs: (&url.URL{Scheme: blob.File, Path: filepath.ToSlash(folder)}).String()}
	}
	return cfg, cfg.Check()
}

// keptKey reads the signing key at path, or makes one and writes it there.
func keptKey(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err == nil {
		return string(data), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("key: %w", err)
	}
	raw := make(wire.Key, wire.MinKeyBytes)
	rand.Read(raw) // never fails
	key := raw.String()
	if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
		return "", fmt.Errorf("key: %w", err)
	}
	return key, nil
}
