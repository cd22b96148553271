package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"throng/sim/crew"
	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/target"
	"throng/sim/target/external"
	"throng/system/wire"
)

// agentFlags are the settings of a run that several processes play.
type agentFlags struct {
	agents    int    // in all, 0: what the scenario says
	elsewhere int    // of them started by somebody else
	listen    string // where they join
}

func (f *agentFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&f.agents, "agents", 0, "processes that play the users; 1: this one (default: the scenario's, or as many as the sockets need)")
	cmd.Flags().IntVar(&f.elsewhere, "agents-elsewhere", 0, "so many of the agents are started by you, with throng agent --join, on other machines")
	cmd.Flags().StringVar(&f.listen, "listen", "", "host:port where agents from elsewhere join (default: this machine alone)")
}

func (f *agentFlags) check() error {
	switch {
	case f.agents < 0:
		return fmt.Errorf("--agents %d is no number of processes", f.agents)
	case f.elsewhere < 0 || f.elsewhere > 0 && f.elsewhere > f.agents:
		return fmt.Errorf("--agents-elsewhere %d: --agents says how many there are in all", f.elsewhere)
	case f.elsewhere > 0 && f.listen == "":
		return errors.New("--agents-elsewhere needs --listen host:port, where they join")
	}
	return nil
}

// assemble starts the crew of a run and makes cfg that of its leader. It returns
// nil where this process plays all users itself.
func (r *runner) assemble(ctx context.Context, cfg *load.Config, onDeath func(string)) (*crew.Lead, error) {
	n := r.spec.Needs()
	if n.Agents == 1 {
		return nil, nil
	}
	keyed, ok := r.target.(interface{ Key() wire.Key })
	if !ok || keyed.Key() == nil {
		return nil, errors.New("several agents sign their tokens themselves: the target file has to name the key (key, key_env or key_file)")
	}
	if r.flags.elsewhere > 0 && slices.ContainsFunc(r.target.Gateways(), loopback) {
		return nil, errors.New("agents from elsewhere cannot reach the gateways of this target, which are at loopback addresses: take --stack external")
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own executable: %w", err)
	}
	terms := crew.Terms{RunID: r.manifest.RunID, Spec: r.spec.YAML(), Generation: r.generation, Start: r.start, Nonce: uint32(r.start.UnixNano()),
		Gateways: r.target.Gateways(), Key: keyed.Key(), Offers: cfg.Target.Offers()}
	if x, ok := r.target.(*external.Target); ok {
		terms.CA = x.File().CAPEM
	}
	lead, err := crew.Assemble(ctx, crew.LeadConfig{Agents: n.Agents, Local: n.Agents - r.flags.elsewhere, Exe: exe, Listen: r.flags.listen, Token: os.Getenv(crew.TokenEnv),
		Dir: r.dir, LogDir: filepath.Join(r.dir, "logs"), Sockets: uint64(n.AgentFiles), Terms: terms, Schedule: crew.Describe(r.sched),
		Writer: r.writer, Progress: r.progress.update, OnDeath: onDeath}, func(s string) { r.progress.line("%s", s) })
	if err != nil {
		return nil, err
	}
	record := lead.Record()
	cfg.Crew, cfg.History, cfg.Nonce = lead, record, terms.Nonce
	cfg.Progress = func(p load.Progress) {
		lead.Proof(p)
		if err := record.Tick(); err != nil {
			r.progress.line("the run's record: %v", err)
		}
	}
	return lead, nil
}

func loopback(gateway string) bool {
	u, err := url.Parse(gateway)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return err == nil && a.IsLoopback()
}

// dismiss ends the crew and notes in the manifest who it was.
func (r *runner) dismiss(lead *crew.Lead) {
	if lead == nil {
		return
	}
	r.manifest.Agents = lead.Finish(context.WithoutCancel(r.hard))
	for _, a := range r.manifest.Agents {
		r.manifest.Roles = append(r.manifest.Roles, history.RoleInstance{Role: history.RoleGenerator, Instance: a.Number, PID: a.PID, Infra: true})
	}
	lead.Close()
}

func (c *cli) agentCommand() *cobra.Command {
	var join, token, folder string
	var withParent bool
	cmd := &cobra.Command{
		Use:   "agent --join nats://HOST:PORT",
		Short: "Plays a part of the users of a run",
		Long: `agent joins a run that throng run leads, on this machine or another one, and plays
a part of its users. throng run starts agents on its own machine by itself; this
command is for other machines, or for the pods of a Kubernetes Job.

The leader has the scenario, the seed and the signing key and tells them to every
agent that has the token, unencrypted: use it in a network that you trust.`,
		Example: "  throng run milli_whatsapp --stack external --target t.yaml --agents 4 --agents-elsewhere 4 --listen 0.0.0.0:4222\n  " + crew.TokenEnv + "=... throng agent --join nats://10.0.0.5:4222",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if join == "" {
				return errors.New("--join nats://HOST:PORT is needed: throng run prints it")
			}
			if token == "" {
				token = os.Getenv(crew.TokenEnv)
			}
			return c.runAgent(crew.JoinConfig{URL: join, Token: token, Folder: folder}, withParent)
		},
	}
	cmd.Flags().StringVar(&join, "join", "", "address of the leader")
	cmd.Flags().StringVar(&token, "token", "", "what the leader calls the token (default: the environment variable "+crew.TokenEnv+")")
	cmd.Flags().BoolVar(&withParent, "exit-with-parent", false, "ends when standard input does")
	cmd.Flags().StringVar(&folder, "folder", "", "run folder of a leader on this machine")
	_ = cmd.Flags().MarkHidden("exit-with-parent")
	_ = cmd.Flags().MarkHidden("folder")
	return cmd
}

func (c *cli) runAgent(cfg crew.JoinConfig, withParent bool) error {
	debug.SetGCPercent(gcPercent)
	if err := setNice(niceGenerator); err != nil {
		fmt.Fprintf(c.stderr, "note: the agent runs at default priority, its lateness may be higher: %v\n", err)
	}
	ctx := c.soft
	if withParent {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(c.soft)
		defer cancel(nil)
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel(errors.New("its leader is gone"))
			time.AfterFunc(parentGrace, func() { os.Exit(exitInternal) })
		}()
	}
	cfg.Files, cfg.Sample, cfg.Log = openFiles(), target.OwnSample, slog.New(slog.NewTextHandler(c.stderr, nil))
	if err := crew.Join(ctx, cfg); err != nil {
		return &codedError{exitUnavailable, err}
	}
	return nil
}

// parentGrace is how long an agent has to end after its leader.
const parentGrace = 5 * time.Second
