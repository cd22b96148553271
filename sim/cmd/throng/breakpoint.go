package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"throng/sim/capacity"
	"throng/sim/report"
	"throng/sim/scenario"
)

// breakpointFlags are the settings of `throng breakpoint`.
type breakpointFlags struct {
	stack, from, most, least, duration, out string
	resolution                              float64
	tries                                   int
	noConfirm                               bool
}

// breakpointConfirms bounds the loads that are tried at full length.
const breakpointConfirms = 3

func (c *cli) breakpointCommand() *cobra.Command {
	f := &breakpointFlags{}
	cmd := &cobra.Command{
		Use:   "breakpoint SCENARIO",
		Short: "Finds the largest scale at which a scenario passes on this machine",
		Long: `breakpoint runs a scenario again and again, at twice the load while it passes and
half of it while it does not, and then between the two, until it knows the
largest scale that passes. That one is run once more at the scenario's own
length, and a smaller one where it does not pass then.

Only a pass counts as carried. An inconclusive run is tried again (--tries), and
then counts as not carried: where the generator shares the machine, it is part
of what has to be carried. A lost, duplicated, reordered or foreign message ends
the search with exit code 1: that is a fault, at any load.

Every run has a folder with its own report. breakpoint.md, breakpoint.json and a
plot of latency and CPU against load are written beside them, after each run.

Exit codes: 0 a scale passed and was confirmed, 1 a message was lost, 2 none
passed, or the search was cut short or not confirmed.`,
		Example: "  throng breakpoint milli_whatsapp --from 1/8000 --duration 60s\n  throng breakpoint groups_peak --from 1/20000 --most 1/2500 --resolution 0.2 --no-confirm",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, args []string) error { return c.breakpoint(args[0], f) },
	}
	cmd.Flags().StringVar(&f.stack, "stack", "embedded", "target: embedded or containers")
	cmd.Flags().StringVar(&f.from, "from", "", "scale that is tried first, as 1/8000 (default: the scenario's)")
	cmd.Flags().StringVar(&f.most, "most", "1/1000", "largest scale that is tried")
	cmd.Flags().StringVar(&f.least, "least", "1/100000", "smallest scale that is tried")
	cmd.Flags().StringVar(&f.duration, "duration", "60s", "length of the steady phase while searching")
	cmd.Flags().Float64Var(&f.resolution, "resolution", 0.1, "how far apart what passes and what does not may be in the end; 0.02 to 1")
	cmd.Flags().IntVar(&f.tries, "tries", 2, "runs of a scale at most, while it is inconclusive")
	cmd.Flags().BoolVar(&f.noConfirm, "no-confirm", false, "does not run the result at the scenario's own length")
	cmd.Flags().StringVar(&f.out, "out", "", "folder (default: reports/runs/breakpoint/<scenario>/<time>)")
	return cmd
}

// search checks the flags.
func (f *breakpointFlags) search(spec *scenario.Spec) (*capacity.Search, error) {
	s := &capacity.Search{Start: denominator(spec.Scale), Resolution: f.resolution}
	for _, v := range []struct {
		flag, text string
		to         *uint64
	}{{"from", f.from, &s.Start}, {"most", f.most, &s.Most}, {"least", f.least, &s.Least}} {
		if v.text == "" {
			continue
		}
		share, err := parseRatio(v.text)
		if err != nil {
			return nil, fmt.Errorf("--%s %q: %w", v.flag, v.text, err)
		}
		*v.to = denominator(share)
	}
	switch {
	case f.stack != "embedded" && f.stack != "containers":
		return nil, fmt.Errorf("--stack %q: allowed are embedded and containers", f.stack)
	case s.Most > s.Start || s.Start > s.Least:
		return nil, fmt.Errorf("it starts at 1/%d: that has to be between --least 1/%d and --most 1/%d", s.Start, s.Least, s.Most)
	case f.resolution < 0.02 || f.resolution > 1:
		return nil, fmt.Errorf("--resolution %g: allowed are 0.02 to 1", f.resolution)
	case f.tries < 1:
		return nil, fmt.Errorf("--tries %d: at least 1", f.tries)
	}
	if d, err := time.ParseDuration(f.duration); err != nil || d <= 0 {
		return nil, fmt.Errorf("--duration %q is not a length of time; write it as 60s or 2m", f.duration)
	}
	return s, nil
}

// denominator of a share, rounded.
func denominator(share float64) uint64 { return uint64(math.Round(1 / share)) }

func (c *cli) breakpoint(name string, f *breakpointFlags) error {
	spec, err := scenario.Load(scenarioPath(name))
	if err != nil {
		return &codedError{exitUsage, err}
	}
	search, err := f.search(spec)
	if err != nil {
		return &codedError{exitUsage, err}
	}
	if f.out == "" {
		f.out = filepath.Join("reports", "runs", "breakpoint", spec.Name, time.Now().UTC().Format("20060102-150405"))
	}
	if err := os.MkdirAll(f.out, 0o777); err != nil {
		return &codedError{exitInternal, err}
	}
	exe, err := os.Executable()
	if err != nil {
		return &codedError{exitInternal, fmt.Errorf("find own executable: %w", err)}
	}
	b := &breakpointRun{cli: c, flags: f, progress: newProgress(c.stderr), search: search,
		play: func(args []string) (int, string) { return c.child(exe, args) }, scenario: scenarioPath(name)}
	b.read = b.result.Read
	b.result.Scenario, b.result.Target = spec.Name, f.stack
	b.result.Again = fmt.Sprintf("throng breakpoint %s --stack %s --from 1/%d --most 1/%d --least 1/%d --duration %s --resolution %g --tries %d",
		spec.Name, f.stack, search.Start, search.Most, search.Least, f.duration, f.resolution, f.tries)
	return b.run()
}

// breakpointRun carries out a breakpoint test.
type breakpointRun struct {
	*cli
	flags    *breakpointFlags
	progress *progress
	scenario string
	search   *capacity.Search
	// play is `throng run` with these arguments: its exit code, and the last that
	// it said where it did not come to a report.
	play func(args []string) (code int, said string)
	// read is what there is to know of a run.
	read   func(dir, folder string, n uint64, confirms bool) (*report.BreakpointTry, error)
	result report.Breakpoint
	runs   int
}

// errCut ends a search early; its text says why.
type errCut struct {
	why  string
	code int
}

func (e *errCut) Error() string { return e.why }

func (b *breakpointRun) run() error {
	b.exit = exitInconclusive
	err := b.find()
	if err == nil && !b.flags.noConfirm {
		err = b.confirm()
	}
	var cut *errCut
	switch {
	case errors.As(err, &cut):
		b.result.Ended, b.exit = cut.why, cut.code
	case err != nil:
		return err
	case b.result.Confirmed || b.flags.noConfirm && b.result.Carried > 0:
		b.exit = exitPass
	}
	if err := b.result.Write(b.flags.out); err != nil {
		return &codedError{exitInternal, err}
	}
	if err := b.result.Terminal(b.stdout, isTerminal(b.stdout)); err != nil {
		return &codedError{exitInternal, err}
	}
	fmt.Fprintf(b.stdout, "report: %s\n", relative(filepath.Join(b.flags.out, report.FileBreakpointMarkdown)))
	return nil
}

// find searches with short runs.
func (b *breakpointRun) find() error {
	for {
		n, ok := b.search.Next()
		if !ok {
			return nil
		}
		carried, err := b.try(n, false)
		if err != nil {
			return err
		}
		b.search.Report(n, carried)
		b.result.Carried, b.result.Broken = b.search.Found()
		if err := b.result.Write(b.flags.out); err != nil {
			return &codedError{exitInternal, err}
		}
	}
}

// confirm runs what was found at the scenario's own length.
func (b *breakpointRun) confirm() error {
	n := b.result.Carried
	for range breakpointConfirms {
		if n == 0 {
			return nil
		}
		carried, err := b.try(n, true)
		if err != nil {
			return err
		}
		if carried {
			b.result.Carried, b.result.Confirmed = n, true
			return nil
		}
		b.result.Broken, b.result.Carried = n, 0
		smaller, ok := b.search.Smaller(n)
		if !ok {
			return nil
		}
		n = smaller
	}
	return &errCut{fmt.Sprintf("none of %d scales passed at the scenario's own length", breakpointConfirms), exitInconclusive}
}

// try runs the scenario at 1/n until it is decided.
func (b *breakpointRun) try(n uint64, confirms bool) (carried bool, err error) {
	for try := 1; try <= b.flags.tries; try++ {
		if b.soft.Err() != nil {
			return false, &errCut{"interrupted", exitInconclusive}
		}
		b.runs++
		folder := fmt.Sprintf("%02d-scale-1-%d", b.runs, n)
		args := []string{"run", b.scenario, "--stack", b.flags.stack, "--scale", fmt.Sprintf("1/%d", n), "--out", filepath.Join(b.flags.out, folder)}
		if !confirms {
			args = append(args, "--duration", b.flags.duration)
		}
		b.progress.line("breakpoint: run %d, scale 1/%d", b.runs, n)
		code, said := b.play(args)
		switch code {
		case exitPass, exitFail, exitInconclusive:
		case exitUnavailable:
			b.result.AddRefused(n, said)
			return false, nil
		default:
			return false, &codedError{code, fmt.Errorf("run %d ended with code %d: %s", b.runs, code, said)}
		}
		t, err := b.read(b.flags.out, folder, n, confirms)
		if err != nil {
			return false, &codedError{exitInternal, err}
		}
		b.result.Tries = append(b.result.Tries, *t)
		b.progress.line("breakpoint: run %d, scale 1/%d: %s", b.runs, n, t.Verdict)
		switch {
		case t.Lost():
			return false, &errCut{fmt.Sprintf("the audit of 1/%d found messages lost, duplicated, reordered or foreign, see %s", n, folder), exitFail}
		case b.soft.Err() != nil:
			return false, &errCut{"interrupted", exitInconclusive}
		case code != exitInconclusive:
			return code == exitPass, nil
		}
	}
	return false, nil
}

// child runs this binary. What it says goes on to the terminal, and so do
// interrupts: it has a process group of its own, so that it gets each once.
func (c *cli) child(exe string, args []string) (code int, said string) {
	cmd := exec.Command(exe, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var last tail
	cmd.Stdout, cmd.Stderr = io.MultiWriter(c.stdout, &last), io.MultiWriter(c.stderr, &last)
	if err := cmd.Start(); err != nil {
		return exitInternal, err.Error()
	}
	for _, ctx := range []context.Context{c.soft, c.hard} {
		defer context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(os.Interrupt) })()
	}
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() < 0 {
		return exitInternal, err.Error()
	}
	return cmd.ProcessState.ExitCode(), last.line()
}

// tail keeps the last line that was written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if i := bytes.LastIndexByte(bytes.TrimRight(t.b, "\n"), '\n'); i >= 0 {
		t.b = append(t.b[:0], t.b[i+1:]...)
	}
	return len(p), nil
}

func (t *tail) line() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimPrefix(strings.TrimSpace(string(t.b)), "throng: ")
}
