package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	images, err := f.imageNames()
	if err != nil {
		return "", "", err
	}
	switch f.stack {
	case "embedded", "containers":
		return f.stack, "chosen by --stack", nil
	case "auto":
		if len(f.images) > 0 {
			return "containers", "auto: --image names images for containers", nil
		}
		ctx, cancel := context.WithTimeout(c.soft, 5*time.Second)
		defer cancel()
		if err := containers.Available(ctx, images); err != nil {
			return "embedded", "auto: no Docker daemon with the images; make images, then --stack containers gets the other", nil
		}
		return "containers", "auto: a Docker daemon has the images; --stack embedded gets the other", nil
	case "external":
		return "external", "named by --target " + f.target, nil
	}
	return "", "", fmt.Errorf("--stack %q: allowed are embedded, containers, external, auto", f.stack)
}

// imageNames returns the images that the flags name, and otherwise those of the
// environment.
func (f *runFlags) imageNames() (containers.Images, error) {
	images := containers.ImagesFromEnv(os.Getenv)
	if len(f.images) > 0 && f.stack != "containers" && f.stack != "auto" {
		return images, fmt.Errorf("--image is for --stack containers, not for --stack %s", f.stack)
	}
	names := map[string]*string{containers.RoleKafka: &images.Kafka, containers.RoleMySQL: &images.MySQL, containers.RoleRedis: &images.Redis, containers.RoleS3: &images.S3}
	for role, name := range f.images {
		if names[role] == nil || name == "" {
			return images, fmt.Errorf("--image %s=%s: allowed are kafka=NAME, mysql=NAME, redis=NAME and s3=NAME", role, name)
		}
		*names[role] = name
	}
	return images, nil
}

// checkContainers says what of the scenario only containers could do. What is
// ignored is a note; a fault that the embedded target cannot have makes the run
// inconclusive before it starts.
func (r *runner) checkContainers(stack string) {
	if stack == "containers" {
		return
	}
	if r.spec.UsesContainers() {
		note := fmt.Sprintf("infrastructure and limits of the scenario are for containers; the %s target ignores them", stack)
		r.notes = append(r.notes, note)
		r.progress.line("note: %s", note)
	}
	if stack != "embedded" {
		return
	}
	canKill := func(role string, instance int) bool {
		return role != containers.RoleMySQL && role != containers.RoleS3 && (role != containers.RoleKafka || instance == 0)
	}
	if kills, _ := impossible(r.spec, canKill, func(string, int) bool { return true }); kills != "" {
		r.missing = append(r.missing, history.Missing{Needs: "faults", Refused: true,
			Text: fmt.Sprintf("the scenario kills %s, which only containers have: make images, then --stack containers", kills)})
	}
}

// impossible lists what a scenario kills and flushes and cannot, "" for nothing.
func impossible(spec *scenario.Spec, canKill, canFlush func(role string, instance int) bool) (kills, flushes string) {
	var k, f []string
	for _, fault := range spec.Faults {
		role, instance := fault.Target()
		switch {
		case fault.Kill != "" && !canKill(role, instance) && !slices.Contains(k, fault.Kill):
			k = append(k, fault.Kill)
		case fault.Flush != "" && !canFlush(role, instance) && !slices.Contains(f, fault.Flush):
			f = append(f, fault.Flush)
		}
	}
	return strings.Join(k, " and "), strings.Join(f, " and ")
}

// limits are those of the scenario, as the containers take them.
func limits(spec *scenario.Spec) map[string]containers.Limits {
	out := map[string]containers.Limits{}
	for _, l := range spec.Limits.All() {
		out[l.Role] = containers.Limits{CPUSet: l.CPUSet, CPUs: l.CPUs, MemBytes: l.MemoryBytes}
	}
	return out
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
	if err != nil || wd == "/" { // where the generator in a container is, and its user is not
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
	images, err := r.flags.imageNames()
	if err != nil {
		return &codedError{exitUsage, err}
	}
	infra := r.spec.Infrastructure
	d, err := containers.New(containers.Config{Topology: r.topology(), Zones: zones(r.spec), Images: images, Exe: exe,
		Brokers: infra.Brokers, Replicas: infra.Replicas, Limits: limits(r.spec),
		LogDir: filepath.Join(r.dir, "logs"), Plant: r.flags.plant, Settings: r.settings(), ProviderArgs: providerArgs(r.spec)})
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
			for role, name := range r.flags.images { // for the manifest
				args = append(args, "--image", role+"="+name)
			}
			if r.flags.rpcTLS { // for the manifest
				args = append(args, "--rpc-tls")
			}
			if r.flags.agents > 0 {
				args = append(args, "--agents", strconv.Itoa(r.flags.agents))
			}
			if r.spec.Rates == scenario.ProfileRates() {
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
