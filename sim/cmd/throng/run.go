package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/population"
	"throng/sim/report"
	"throng/sim/scenario"
	"throng/sim/target"
	"throng/sim/target/containers"
	"throng/sim/target/external"
	"throng/sim/workload"
	"throng/system"
)

// runFlags are the settings of `throng run`.
type runFlags struct {
	stack, scale, duration, out, plant, pprof string
	target                                    string  // file of an external target
	maxRate                                   float64 // sends a second, 0: what that file says
	// attach and reason are set for the generator that runs as a container.
	attach, reason string
	seed           uint64
	seedSet        bool
	rpcTLS         bool
	agentFlags
	images map[string]string // of infrastructure in containers, by role
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
	cmd.Flags().BoolVar(&f.rpcTLS, "rpc-tls", false, "the roles speak to each other by mutual TLS (embedded and containers)")
	cmd.Flags().StringVar(&f.target, "target", "", "file that describes the deployment, for --stack external")
	cmd.Flags().Float64Var(&f.maxRate, "max-rate", 0, "most sends a second that an external target may get (default: its file's max_sends_per_s, or 100)")
	cmd.Flags().StringToStringVar(&f.images, "image", nil, "image of infrastructure in containers, as kafka=NAME, mysql=NAME or redis=NAME, once for each; before THRONG_IMAGE_KAFKA and so on")
	cmd.Flags().StringVar(&f.pprof, "pprof", "", "serves profiles of the generator at this address, as 127.0.0.1:6060")
	f.agentFlags.add(cmd)
	cmd.Flags().StringVar(&f.attach, "attach", "", "file that describes a running target, for the generator in a container")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why the target was chosen, for --attach")
	_ = cmd.Flags().MarkHidden("attach")
	_ = cmd.Flags().MarkHidden("reason")
	return cmd
}

// plants are the bugs that the roles can be started with.
func plants() []string { return []string{"drop", "ack-early", "commit-early", "ex-member"} }

func (c *cli) runScenario(name string, f *runFlags) error {
	stack, reason, err := c.chooseStack(f)
	if err != nil {
		return &codedError{exitUsage, err}
	}
	if f.rpcTLS && stack == "external" {
		return &codedError{exitUsage, errors.New("--rpc-tls: how the roles of an external deployment speak is not for throng to say")}
	}
	if err := f.agentFlags.check(); err != nil {
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
	if f.attach == "" {
		p.line("%s: %s", spec.Name, spec.Question)
		p.line("target %s (%s)", stack, reason)
		p.line("%s", budget(spec.Phases))
	}
	r := &runner{cli: c, spec: spec, flags: f, progress: p, start: time.Now()}
	if err := r.checkMachine(); err != nil {
		return &codedError{exitUnavailable, err}
	}
	if err := r.plan(stack); err != nil {
		return &codedError{exitUsage, err}
	}
	if err := r.ready(); err != nil {
		return err
	}
	r.start = time.Now()
	if r.dir, err = r.folder(); err != nil {
		return &codedError{exitInternal, err}
	}
	if stack == "containers" && f.attach == "" {
		return r.runContainers(scenarioPath(name), reason)
	}
	if err := r.prepare(stack, reason); err != nil {
		return &codedError{exitInternal, err}
	}
	if r.refused() {
		return r.refuse()
	}
	return r.run()
}

// plan makes the population and the schedule, and checks that an external
// target allows them.
func (r *runner) plan(stack string) (err error) {
	r.pop = population.New(r.spec.Seed, r.spec.Resolved().Users, r.spec.Preset, r.spec.Rates.Devices)
	if stack == "external" {
		if err := r.openExternal(); err != nil {
			return err
		}
	}
	r.checkContainers(stack)
	r.checkZones(stack)
	if r.sched, err = workload.Build(r.spec, r.pop); err != nil {
		return err
	}
	if r.flags.attach == "" {
		for _, w := range r.sched.Stats.Warnings {
			r.progress.line("note: %s", w)
		}
	}
	return r.checkTokens()
}

// ready makes this process ready for the run.
func (r *runner) ready() error {
	if err := r.servePprof(); err != nil {
		return err
	}
	debug.SetGCPercent(gcPercent)
	if err := setNice(niceGenerator); err != nil {
		r.progress.line("note: the generator runs at default priority, its lateness may be higher: %v", err)
	}
	return nil
}

// budget says how long each phase is planned to take.
func budget(p scenario.Phases) string {
	return fmt.Sprintf("budget: provision %gs, ramp %gs, backlog %gs, warm-up %gs, steady %gs, spike %gs, settle %gs, proof %gs, report %gs; %s in all",
		p.ProvisionS, p.RampS, p.BacklogS, p.WarmupS, p.SteadyS, p.SpikeS, p.SettleS, p.ProofS, p.ReportS,
		seconds(p.TotalS()).Round(time.Second))
}

// seconds is a length of time of a scenario.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

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
	missing  []history.Missing // what the target does not declare
	notes    []string          // for the manifest

	generation uint64 // of the population
}

// prepare makes the run folder and the target.
func (r *runner) prepare(stack, reason string) error {
	if err := r.open(stack, reason); err != nil {
		return err
	}
	if r.target != nil {
		return nil // external
	}
	onEvent := func(e history.Event) {
		e.T = time.Since(r.start).Seconds()
		_ = r.writer.Event(e)
	}
	if r.flags.attach != "" {
		t, err := containers.Attach(r.flags.attach, onEvent)
		if err != nil {
			return err
		}
		r.target = t
		maps.Copy(r.manifest.Versions, t.Versions())
		if r.spec.Medias() > 0 && r.manifest.Versions[containers.VersionS3] == "" {
			r.manifest.Notes = append(r.manifest.Notes, "Blobs of media are on a volume that the media instances share: there is no image of an S3-compatible server.")
		}
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	r.target, err = target.NewEmbedded(target.EmbeddedConfig{Topology: r.topology(), Zones: zones(r.spec), Exe: exe,
		LogDir: filepath.Join(r.dir, "logs"), Plant: r.flags.plant, Settings: r.settings(), ProviderArgs: providerArgs(r.spec), OnEvent: onEvent})
	return err
}

// open starts the run folder.
func (r *runner) open(stack, reason string) (err error) {
	r.manifest = &history.Manifest{
		FormatVersion: history.FormatVersion, RunID: history.NewRunID(r.start, r.spec.Hash()), Scenario: r.spec.Name, Question: r.spec.Question,
		Target: stack, TargetReason: reason, Versions: versions(), Machine: thisMachine(),
		Seed: r.spec.Seed, SpecHash: r.spec.Hash(), SpecYAML: string(r.spec.YAML()), Replay: r.replay(stack), Start: r.start,
		Users: r.pop.Users(), Missing: r.missing, Notes: r.notes,
	}
	if t, ok := r.target.(*external.Target); ok {
		describeExternal(r.manifest, t.File())
	} else {
		r.manifest.StampEvery = stampEvery(r.spec)
		r.manifest.Zones, r.manifest.Links = imposedZones(r.spec)
	}
	if note := r.spec.Media.Note(); note != "" {
		r.manifest.Notes = append(r.manifest.Notes, note)
	}
	if r.flags.rpcTLS {
		r.manifest.Notes = append(r.manifest.Notes, "The roles spoke to each other by mutual TLS.")
	}
	r.writer, err = history.Create(r.dir, r.manifest)
	return err
}

func (r *runner) topology() target.Topology {
	t := r.spec.Topology
	return target.Topology{Medias: r.spec.Medias(), Gateways: t.Gateways, Messages: t.Messages, Fanouts: t.Fanouts, Groups: t.Groups,
		Inboxes: t.Inboxes, Pushes: t.Pushes, Partitions: t.Partitions, TopicLayout: t.TopicLayout, RPCTLS: r.flags.rpcTLS}
}

func (r *runner) settings() system.Settings {
	return system.Settings{ExemptAddresses: []string{"0.0.0.0/0", "::/0"}, // one address plays everybody
		PushDelay: system.Duration(seconds(r.spec.PushDelayS)), PushEvery: system.Duration(seconds(r.spec.PushEveryS)), StampEvery: stampEvery(r.spec),
		MediaFetchedGrace: system.Duration(seconds(r.spec.Media.FetchedGraceS)), MediaSweepEvery: system.Duration(5 * time.Second)}
}

// stampEvery says of how many sends one is stamped on its way: so many that the
// p99 of direct messages has its samples, and no more, since stamps are bytes
// that the plan counts.
func stampEvery(spec *scenario.Spec) int {
	const enough = 6000 // sends, of which a fifth go to a device that is online
	return min(max(int(spec.Resolved().SendsPerS*spec.Phases.SteadyS/enough), 1), 16)
}

// providerArgs are flags for `embedded provider`: how the scenario wants it.
func providerArgs(s *scenario.Spec) []string {
	p := s.Provider
	return []string{"--latency-median", seconds(p.LatencyMedianS).String(), fmt.Sprintf("--latency-sigma=%g", p.LatencySigma),
		fmt.Sprintf("--quota-per-minute=%d", p.QuotaPerMinute), fmt.Sprintf("--error-share=%g", p.ErrorShare),
		fmt.Sprintf("--dead-share=%g", p.DeadShare), fmt.Sprintf("--seed=%d", s.Seed)}
}

func (r *runner) replay(stack string) string {
	more := ""
	if r.flags.target != "" {
		more = " --target " + r.flags.target
	}
	if r.flags.maxRate > 0 {
		more += fmt.Sprintf(" --max-rate %g", r.flags.maxRate)
	}
	if r.flags.rpcTLS {
		more += " --rpc-tls"
	}
	for _, role := range slices.Sorted(maps.Keys(r.flags.images)) {
		more += fmt.Sprintf(" --image %s=%s", role, r.flags.images[role])
	}
	if n := r.spec.Needs().Agents; n > 1 {
		more += fmt.Sprintf(" --agents %d", n)
	}
	return fmt.Sprintf("throng run %s --stack %s%s --seed %d --scale %g --duration %gs",
		r.spec.Name, stack, more, r.spec.Seed, r.spec.Scale, r.spec.Phases.SteadyS)
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
	spool, err := createSpool(r.dir)
	if err != nil {
		return &codedError{exitInternal, err}
	}
	defer spool.Close()
	r.manifest.Roles = r.target.Roles()
	cfg := load.Config{Spec: r.spec, Population: r.pop, Schedule: r.sched,
		Target: engineTarget{r.target}, History: r.writer, Spool: spool, Start: r.start, Progress: r.progress.update}
	if x, ok := r.target.(*external.Target); ok {
		cfg.TLS = x.TLS()
	}
	out, err := r.play(cfg)
	if out != nil {
		r.manifest.Phases, r.manifest.Interrupted = out.Phases, out.Interrupted
		if out.FeedEnded != nil {
			r.manifest.Missing = append(r.manifest.Missing, history.Missing{Needs: "push audit", Text: "the feed of accepted pushes ended before the run: " + out.FeedEnded.Error()})
		}
		if err := r.writer.Audit(&out.Audit); err != nil {
			r.progress.line("audit: %v", err)
		}
		if clean(&out.Audit) {
			removeSpools(r.dir) // else they are evidence
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
	return r.report()
}

// createSpool makes the file for what the audit is told.
func createSpool(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, load.SpoolFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	return f, nil
}

// removeSpools removes the spools of all engines.
func removeSpools(dir string) {
	all, _ := filepath.Glob(filepath.Join(dir, "audit*.spool")) // the pattern is a good one
	for _, name := range all {
		_ = os.Remove(name)
	}
}

// clean says that everything was proved.
func clean(a *history.Audit) bool {
	return a.Proved == a.Expected && a.Foreign+a.Duplicated+a.Reordered == 0 && len(a.Problems) == 0
}

// play carries out the load, in this process or led by it.
func (r *runner) play(cfg load.Config) (*load.Outcome, error) {
	soft, stop := context.WithCancel(r.soft)
	defer stop()
	lead, err := r.assemble(soft, &cfg, func(who string) {
		r.progress.line("%s; the load stops", who)
		stop()
	})
	if err != nil {
		return nil, err
	}
	defer r.dismiss(lead)
	engine, err := load.New(cfg)
	if err != nil {
		return nil, err
	}
	return engine.Run(soft, r.hard)
}

// report makes the report of the finished run folder and prints it.
func (r *runner) report() error {
	res, err := report.Build(r.dir)
	if err != nil {
		return &codedError{exitInternal, fmt.Errorf("report: %w", err)}
	}
	r.progress.line("")
	if err := res.Terminal(r.stdout, isTerminal(r.stdout)); err != nil {
		return &codedError{exitInternal, err}
	}
	fmt.Fprintf(r.stdout, "report: %s\n", relative(filepath.Join(r.dir, "report.html")))
	r.exit = res.ExitCode()
	return nil
}

// engineTarget gives the engine what it needs of a target.
type engineTarget struct{ target.Target }

// Offers says what the target has besides carrying messages.
func (t engineTarget) Offers() load.Offers {
	c := t.Capabilities()
	o := load.Offers{Log: c.Metrics, Pushes: c.Pushes}
	if m, ok := t.Target.(interface{ Medias() []string }); ok {
		o.Medias = m.Medias()
	}
	if x, ok := t.Target.(*external.Target); ok {
		o.Log, o.Partitions = x.Log()
	}
	return o
}

func (t engineTarget) Pushes(ctx context.Context, f func(load.Push)) error {
	return t.Target.Pushes(ctx, func(p target.Push) {
		f(load.Push{User: p.User, Device: p.Device, ID: p.MessageID, At: p.At, Outcome: load.PushOutcome(p.Outcome)})
	})
}
