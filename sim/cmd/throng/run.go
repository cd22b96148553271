package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/population"
	"throng/sim/report"
	"throng/sim/scenario"
	"throng/sim/target"
	"throng/sim/workload"
	"throng/system"
	"throng/system/wire"
)

// runFlags are the settings of `throng run`.
type runFlags struct {
	stack, scale, duration, out, plant, pprof string
	seed                                      uint64
	seedSet                                   bool
}

func (c *cli) runCommand() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:   "run SCENARIO",
		Short: "Runs a scenario and writes its report",
		Long: `run starts the backend, drives the scenario's population at it, proves what was
delivered and writes a run folder: result.json, report.html, report.md,
junit.xml, plots and everything they were made from.

SCENARIO is a file, or the name of one under scenarios/.`,
		Example: "  throng run groups_peak\n  throng run scenarios/smoke.yaml --seed 7 --out /tmp/smoke",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.seedSet = cmd.Flags().Changed("seed")
			return c.runScenario(args[0], f)
		},
	}
	cmd.Flags().StringVar(&f.stack, "stack", "auto", "target: embedded, containers, external or auto")
	cmd.Flags().StringVar(&f.scale, "scale", "", "share of the whole service, as 1/5000 (default: the scenario's)")
	cmd.Flags().StringVar(&f.duration, "duration", "", "length of the steady phase, as 60s (default: the scenario's)")
	cmd.Flags().Uint64Var(&f.seed, "seed", 0, "seed of population and schedule (default: the scenario's)")
	cmd.Flags().StringVar(&f.out, "out", "", "run folder (default: reports/runs/<scenario>/<run id>)")
	cmd.Flags().StringVar(&f.plant, "plant", "", "plants a bug in the backend, to see the audit find it: drop, ack-early, commit-early or ex-member")
	cmd.Flags().StringVar(&f.pprof, "pprof", "", "serves profiles of the generator at this address, as 127.0.0.1:6060")
	return cmd
}

// servePprof serves the generator's own profiles; the roles have debug ports of
// their own.
func (r *runner) servePprof() error {
	if r.flags.pprof == "" {
		return nil
	}
	ln, err := net.Listen("tcp", r.flags.pprof)
	if err != nil {
		return &codedError{exitUsage, fmt.Errorf("--pprof: %w", err)}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(ln) }()
	context.AfterFunc(r.hard, func() { _ = srv.Close() })
	return nil
}

// plants are the bugs that the roles can be started with.
func plants() []string { return []string{"drop", "ack-early", "commit-early", "ex-member"} }

// scenarioPath finds a scenario by file or name.
func scenarioPath(name string) string {
	if strings.ContainsRune(name, os.PathSeparator) || strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml") {
		return name
	}
	return filepath.Join("scenarios", name+".yaml")
}

// loadSpec reads a scenario and applies the flags.
func loadSpec(name string, f *runFlags) (*scenario.Spec, error) {
	spec, err := scenario.Load(scenarioPath(name))
	if err != nil {
		return nil, &codedError{exitUsage, err}
	}
	var scale, steady *float64
	var seed *uint64
	if f.scale != "" {
		v, err := parseRatio(f.scale)
		if err != nil {
			return nil, &codedError{exitUsage, fmt.Errorf("--scale %q: %w", f.scale, err)}
		}
		scale = &v
	}
	if f.duration != "" {
		d, err := time.ParseDuration(f.duration)
		if err != nil || d <= 0 {
			return nil, &codedError{exitUsage, fmt.Errorf("--duration %q is not a length of time; write it as 60s or 2m", f.duration)}
		}
		v := d.Seconds()
		steady = &v
	}
	if f.seedSet {
		seed = &f.seed
	}
	if spec, err = spec.WithOverrides(scale, steady, seed); err != nil {
		return nil, &codedError{exitUsage, err}
	}
	return spec, nil
}

// parseRatio reads 1/5000 or 0.0002.
func parseRatio(s string) (float64, error) {
	a, b, frac := strings.Cut(s, "/")
	x, err := strconv.ParseFloat(strings.TrimSpace(a), 64)
	if err == nil && frac {
		var y float64
		if y, err = strconv.ParseFloat(strings.TrimSpace(b), 64); err == nil {
			x /= y
		}
	}
	if err != nil || !(x > 0) || x > 1 {
		return 0, fmt.Errorf("is not a share between 0 and 1; write it as 1/5000")
	}
	return x, nil
}

// chooseStack says which target the run gets, and why.
func chooseStack(stack string) (name, reason string, err error) {
	switch stack {
	case "embedded":
		return "embedded", "chosen by --stack", nil
	case "auto":
		return "embedded", "auto: this version has no other target", nil
	case "containers", "external":
		return "", "", fmt.Errorf("--stack %s: this version has the embedded target only; use --stack embedded", stack)
	}
	return "", "", fmt.Errorf("--stack %q: allowed are embedded, containers, external, auto", stack)
}

func (c *cli) runScenario(name string, f *runFlags) error {
	stack, reason, err := chooseStack(f.stack)
	if err != nil {
		return &codedError{exitUsage, err}
	}
	spec, err := loadSpec(name, f)
	if err != nil {
		return err
	}
	if f.plant != "" && !slices.Contains(plants(), f.plant) {
		return &codedError{exitUsage, fmt.Errorf("--plant %q: allowed are %s", f.plant, strings.Join(plants(), ", "))}
	}
	p := newProgress(c.stderr)
	p.line("%s: %s", spec.Name, spec.Question)
	p.line("target %s (%s)", stack, reason)
	r := &runner{cli: c, spec: spec, flags: f, progress: p, start: time.Now()}
	r.pop = population.New(spec.Seed, spec.Resolved().Users, spec.Preset)
	if r.sched, err = workload.Build(spec, r.pop); err != nil {
		return &codedError{exitUsage, err}
	}
	for _, w := range r.sched.Stats.Warnings {
		p.line("note: %s", w)
	}
	if err := r.checkMachine(); err != nil {
		return &codedError{exitUnavailable, err}
	}
	if err := r.servePprof(); err != nil {
		return err
	}
	if err := setNice(niceGenerator); err != nil {
		p.line("note: the generator runs at default priority, its lateness may be higher: %v", err)
	}
	r.start = time.Now()
	if err := r.prepare(stack, reason); err != nil {
		return &codedError{exitInternal, err}
	}
	return r.run()
}

// runner carries out one run.
type runner struct {
	*cli
	spec     *scenario.Spec
	flags    *runFlags
	progress *progress
	pop      *population.Population
	sched    *workload.Schedule

	start    time.Time
	dir      string
	manifest *history.Manifest
	writer   *history.Writer
	target   target.Target
}

// prepare makes the run folder and the target.
func (r *runner) prepare(stack, reason string) error {
	id := history.NewRunID(r.start, r.spec.Hash())
	r.dir = r.flags.out
	if r.dir == "" {
		r.dir = filepath.Join("reports", "runs", r.spec.Name, id)
	}
	r.manifest = &history.Manifest{
		FormatVersion: history.FormatVersion, RunID: id, Scenario: r.spec.Name, Question: r.spec.Question,
		Target: stack, TargetReason: reason, Versions: versions(), Machine: thisMachine(),
		Seed: r.spec.Seed, SpecHash: r.spec.Hash(), SpecYAML: string(r.spec.YAML()), Replay: r.replay(), Start: r.start,
		Users: r.pop.Users(),
	}
	var err error
	if r.writer, err = history.Create(r.dir, r.manifest); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	t := r.spec.Topology
	r.target, err = target.NewEmbedded(target.EmbeddedConfig{
		Topology: target.Topology{Gateways: t.Gateways, Messages: t.Messages, Fanouts: t.Fanouts, Groups: t.Groups,
			Inboxes: t.Inboxes, Pushes: t.Pushes, Partitions: t.Partitions},
		Exe: exe, LogDir: filepath.Join(r.dir, "logs"), Plant: r.flags.plant,
		Settings: system.Settings{PushDelay: system.Duration(r.spec.PushDelayS * float64(time.Second))},
		OnEvent: func(e history.Event) {
			e.T = time.Since(r.start).Seconds()
			_ = r.writer.Event(e)
		},
	})
	return err
}

func (r *runner) replay() string {
	return fmt.Sprintf("throng run %s --stack embedded --seed %d --scale %g --duration %gs",
		r.spec.Name, r.spec.Seed, r.spec.Scale, r.spec.Phases.SteadyS)
}

// run starts the target, plays the scenario and reports. The target is gone
// when it returns.
func (r *runner) run() error {
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := r.target.Close(ctx); err != nil {
			r.progress.line("stopping the target: %v", err)
		}
	}()
	if err := r.target.Start(r.soft, func(s string) { r.progress.line("%s", s) }); err != nil {
		_ = r.writer.Close()
		return &codedError{exitUnavailable, fmt.Errorf("the target did not start: %w", err)}
	}
	r.manifest.Roles = r.target.Roles()
	engine, err := load.New(load.Config{Spec: r.spec, Population: r.pop, Schedule: r.sched,
		Target: engineTarget{r.target}, History: r.writer, Start: r.start, Progress: r.progress.update})
	if err != nil {
		return &codedError{exitInternal, err}
	}
	out, err := engine.Run(r.soft, r.hard)
	if out != nil {
		r.manifest.Phases, r.manifest.Interrupted = out.Phases, out.Interrupted
		if err := r.writer.Audit(&out.Audit); err != nil {
			r.progress.line("audit: %v", err)
		}
	}
	r.manifest.Interrupted = r.manifest.Interrupted || err != nil
	r.manifest.End = time.Now()
	if ferr := r.writer.Finish(r.manifest); ferr != nil {
		r.progress.line("the run's record is incomplete: %v", ferr)
	}
	if err != nil {
		return &codedError{exitUnavailable, err}
	}
	res, err := report.Build(r.dir)
	if err != nil {
		return &codedError{exitInternal, fmt.Errorf("report: %w", err)}
	}
	r.progress.line("")
	if err := res.Terminal(r.stdout, isTerminal(r.stdout)); err != nil {
		return &codedError{exitInternal, err}
	}
	fmt.Fprintf(r.stdout, "report: %s\n", filepath.Join(r.dir, "report.html"))
	r.exit = res.ExitCode()
	return nil
}

// engineTarget gives the engine what it needs of a target.
type engineTarget struct{ target.Target }

func (t engineTarget) Pushes(ctx context.Context, f func(user uint64, device uint32, id wire.MessageID, at time.Time)) error {
	return t.Target.Pushes(ctx, func(p target.Push) { f(p.User, p.Device, p.MessageID, p.At) })
}
