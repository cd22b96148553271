package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"throng/sim/history"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/target/external"
)

// externalFlags checks the flags that only an external target has. Load goes
// to somebody's deployment only when the command line says both that it is one
// and which.
func externalFlags(f *runFlags) error {
	isExternal := f.stack == "external"
	switch {
	case isExternal && f.target == "":
		return errors.New("--stack external needs --target FILE, the file that describes the deployment (make sim STACK=external TARGET=target.yaml)")
	case !isExternal && f.target != "":
		return fmt.Errorf("--target is for --stack external, not for --stack %s", f.stack)
	case !isExternal && f.maxRate != 0:
		return fmt.Errorf("--max-rate is for --stack external, not for --stack %s", f.stack)
	case f.maxRate < 0:
		return fmt.Errorf("--max-rate %g is no rate", f.maxRate)
	case isExternal && f.plant != "":
		return errors.New("--plant is for targets that throng starts itself")
	}
	return nil
}

// generationS is how often there are new users, seconds: they come back after
// eight months.
const generationS = 10

// openExternal reads the target file and refuses what it does not allow.
// Nothing is connected yet.
func (r *runner) openExternal() error {
	f, err := external.Load(r.flags.target, os.Getenv)
	if err != nil {
		return err
	}
	if err := checkRate(r.spec, f, r.flags.maxRate); err != nil {
		return err
	}
	generation := uint64(f.Generation)
	if f.Generation < 0 {
		generation = uint64(r.start.Unix()/generationS) % population.Generations
	}
	r.pop, r.generation = r.pop.Generation(generation), generation
	t := external.New(f)
	r.target, r.missing = t, undeclared(r.spec, t)
	for _, m := range r.missing {
		r.progress.line("note: %s", m.Text)
	}
	return nil
}

// checkRate refuses a scenario that plans more sends a second than the target
// may get.
func checkRate(spec *scenario.Spec, f *external.File, maxRate float64) error {
	most := f.MaxSendsPerS
	if maxRate > 0 {
		most = maxRate
	}
	peak, phase := peakSends(spec)
	if peak <= most {
		return nil
	}
	way := fmt.Sprintf("--max-rate %.0f allows it", math.Ceil(peak))
	if spec.Rates == scenario.ProfileRates() && len(spec.Extra) == 0 {
		way = fmt.Sprintf("--scale 1/%.0f stays below it, ", math.Ceil(peak/most/spec.Scale)) + way
	}
	return fmt.Errorf("the scenario plans %.0f sends/s in its %s phase and %s may get at most %g (max_sends_per_s): %s", peak, phase, f.Path, most, way)
}

// peakSends is the highest planned rate of sends of a phase.
func peakSends(spec *scenario.Spec) (perS float64, phase string) {
	rates := spec.Resolved()
	for _, p := range []struct {
		name         string
		sends, spanS float64
	}{
		{"backlog", rates.BacklogSends, spec.Phases.BacklogS}, {"warmup", rates.SendsPerS * spec.Phases.WarmupS, spec.Phases.WarmupS},
		{"steady", rates.SendsPerS * spec.Phases.SteadyS, spec.Phases.SteadyS}, {"spike", rates.SpikeSendsPerS * spec.Phases.SpikeS, spec.Phases.SpikeS},
	} {
		for _, x := range spec.Extra {
			if x.Phase == p.name {
				p.sends += float64(x.Sends)
			}
		}
		if p.spanS > 0 && p.sends/p.spanS > perS {
			perS, phase = p.sends/p.spanS, p.name
		}
	}
	return perS, phase
}

// checkTokens refuses a run for which tokens that were made before are missing.
func (r *runner) checkTokens() error {
	t, ok := r.target.(*external.Target)
	if !ok || t.File().Tokens == nil {
		return nil
	}
	f := t.File()
	users, _ := r.sched.Touched()
	missing, devices, first := 0, 0, ""
	for u := range users {
		for d := range r.pop.Devices(u) {
			devices++
			if _, ok := f.Tokens[external.Device{User: u, Device: uint32(d)}]; !ok {
				if missing++; first == "" {
					first = fmt.Sprintf("user %d device %d", u, d)
				}
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("tokens_file of %s lacks %d of the %d devices of this scenario and seed, %s first; key, key_env or key_file makes them as needed", f.Path, missing, devices, first)
	}
	return nil
}

// undeclared lists what the scenario needs and the target does not declare.
func undeclared(spec *scenario.Spec, t *external.Target) []history.Missing {
	f, c := t.File(), t.Capabilities()
	file := filepath.Base(f.Path)
	var out []history.Missing
	add := func(needs string, refused bool, format string, args ...any) {
		out = append(out, history.Missing{Needs: needs, Refused: refused, Text: fmt.Sprintf(format, args...)})
	}
	if kills, flushes := impossible(spec, t.CanKill, t.CanFlush); kills != "" {
		add("faults", true, "the scenario kills %s, which needs the capability kill: declare kill and restart for it under instances in %s", kills, file)
	} else if flushes != "" {
		add("faults", true, "the scenario flushes %s: declare flush for it under instances in %s", flushes, file)
	}
	if f.Provisioning == "" {
		switch m := spec.Membership; {
		case m.RemovalsPerS > 0 || m.AdditionsPerS > 0:
			add("membership changes", true, "the scenario changes members of groups, which needs the capability provisioning: declare provisioning_url in %s", file)
		case !f.Provisioned:
			add("users and groups", true, "the scenario's users and groups have to be created, which needs the capability provisioning: declare provisioning_url in %s, or provisioned: true if they are there", file)
		}
	}
	if spec.Provider.Faulty() {
		add("faults of the push provider", true, "the scenario throttles or breaks the push provider, which only the embedded target and containers can: that of %s is somebody else's", file)
	}
	if !c.Pushes {
		add("push audit", false, "the push audit needs the capability pushes: declare pushes_url in %s", file)
	}
	var lacks []string
	if !c.Metrics {
		lacks = append(lacks, "metrics (metrics under instances)")
	}
	if !c.CPU {
		lacks = append(lacks, "cpu (cpu: true, where the metrics have process_cpu_seconds_total)")
	}
	if len(lacks) > 0 {
		add(history.NeedsCapacity, false, "the capacity estimate needs the capability %s: declare it in %s", strings.Join(lacks, " and "), file)
	}
	return out
}

// refused says whether the target lacks something without which the load is
// not started.
func (r *runner) refused() bool {
	return slices.ContainsFunc(r.missing, func(m history.Missing) bool { return m.Refused })
}

// refuse reports that the run could say nothing, without any load.
func (r *runner) refuse() error {
	r.manifest.End = time.Now()
	if err := r.writer.Finish(r.manifest); err != nil {
		return &codedError{exitInternal, err}
	}
	return r.report()
}

// describeExternal says in the manifest what is known of the deployment. The
// components that are part of this binary are not its.
func describeExternal(m *history.Manifest, f *external.File) {
	for component := range m.Versions {
		if component != "throng" && component != "go" {
			delete(m.Versions, component)
		}
	}
	for component, version := range f.Versions {
		m.Versions[component] = version
	}
	m.Notes = append(m.Notes, fmt.Sprintf("the deployment is %s, with %d gateways; the machine described is the generator's", f.Name, len(f.Gateways)))
}
