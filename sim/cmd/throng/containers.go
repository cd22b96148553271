package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"throng/sim/history"
	"throng/sim/scenario"
	"throng/sim/target/containers"
)

// chooseStack says which target the run gets, and why. auto takes containers
// where a Docker daemon answers and has the images already; it never pulls.
func (c *cli) chooseStack(f *runFlags) (name, reason string, err error) {
	if f.attach != "" {
		return "containers", f.reason, nil
	}
	if err := externalFlags(f); err != nil {
		return "", "", err
	}
	switch f.stack {
	case "embedded", "containers":
		return f.stack, "chosen by --stack", nil
	case "auto":
		ctx, cancel := context.WithTimeout(c.soft, 5*time.Second)
		defer cancel()
		if err := containers.Available(ctx, containers.ImagesFromEnv(os.Getenv)); err != nil {
			return "embedded", "auto: no Docker daemon with the images; make images, then --stack containers gets the other", nil
		}
		return "containers", "auto: a Docker daemon has the images; --stack embedded gets the other", nil
	case "external":
		return "external", "named by --target " + f.target, nil
	}
	return "", "", fmt.Errorf("--stack %q: allowed are embedded, containers, external, auto", f.stack)
}

// folder returns the absolute path of the run folder.
func (r *runner) folder() (string, error) {
	dir := r.flags.out
	if dir == "" {
		dir = filepath.Join("reports", "runs", r.spec.Name, history.NewRunID(r.start, r.spec.Hash()))
	}
	return filepath.Abs(dir)
}

// relative shortens a path for people.
func relative(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(wd, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

// runContainers starts the target in containers and the generator as one more
// on their network, so that no port proxy stands in the measured path. The
// generator makes the run folder and the report.
func (r *runner) runContainers(file, reason string) error {
	exe, err := os.Executable()
	if err != nil {
		return &codedError{exitInternal, fmt.Errorf("find own executable: %w", err)}
	}
	if file, err = filepath.Abs(file); err != nil {
		return &codedError{exitInternal, err}
	}
	if err := os.MkdirAll(filepath.Dir(r.dir), 0o755); err != nil {
		return &codedError{exitInternal, fmt.Errorf("run folder: %w", err)}
	}
	d, err := containers.New(containers.Config{Topology: r.topology(), Images: containers.ImagesFromEnv(os.Getenv), Exe: exe,
		LogDir: filepath.Join(r.dir, "logs"), Plant: r.flags.plant, Settings: r.settings()})
	if err != nil {
		return &codedError{exitInternal, err}
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
		defer cancel()
		if err := d.Close(ctx); err != nil {
			r.progress.line("stopping the target: %v", err)
		}
	}()
	if err := d.Start(r.soft, func(s string) { r.progress.line("%s", s) }); err != nil {
		return &codedError{exitUnavailable, fmt.Errorf("the target did not start: %w", err)}
	}
	r.exit, err = d.RunGenerator(r.soft, r.hard, containers.GeneratorConfig{
		Args: func(attachment string) []string {
			args := []string{"run", file, "--attach", attachment, "--reason", reason, "--out", r.dir,
				"--seed", strconv.FormatUint(r.spec.Seed, 10), "--duration", fmt.Sprintf("%gs", r.spec.Phases.SteadyS)}
			if r.spec.Rates == (scenario.Overrides{}) {
				args = append(args, "--scale", strconv.FormatFloat(r.spec.Scale, 'g', -1, 64))
			}
			return args
		},
		Writable: []string{filepath.Dir(r.dir)}, ReadOnly: []string{file},
		Stdout: r.stdout, Stderr: r.stderr,
	})
	if err != nil {
		return &codedError{exitInternal, err}
	}
	return nil
}
