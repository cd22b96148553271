package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/target"
	"throng/sim/workload"
)

// benchRun plays a schedule against a fresh embedded target and returns what
// was recorded.
func benchRun(b *testing.B, specYAML string, schedule func(*scenario.Spec, *population.Population) *workload.Schedule) (*history.Run, history.Audit) {
	b.Helper()
	spec, err := scenario.Parse("bench", []byte(specYAML))
	if err != nil {
		b.Fatal(err)
	}
	pop := population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices)
	dir := b.TempDir()
	start := time.Now()
	m := &history.Manifest{FormatVersion: history.FormatVersion, Scenario: spec.Name, Start: start, Target: "embedded"}
	w, err := history.Create(dir, m)
	if err != nil {
		b.Fatal(err)
	}
	tgt, err := target.NewEmbedded(target.EmbeddedConfig{LogDir: filepath.Join(dir, "logs"),
		Topology: target.Topology{Gateways: 1, Messages: 1, Fanouts: 1, Groups: 1, Inboxes: 1, Pushes: 1, Partitions: 16}})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = tgt.Close(context.WithoutCancel(b.Context())) }()
	if err := tgt.Start(b.Context(), func(string) {}); err != nil {
		b.Fatal(err)
	}
	spool, err := createSpool(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer spool.Close()
	m.Roles = tgt.Roles()
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	debug.FreeOSMemory() // what building the schedule took is not the users'
	engine, err := load.New(load.Config{Spec: spec, Population: pop, Schedule: schedule(spec, pop), Target: engineTarget{tgt}, History: w, Spool: spool, Start: start})
	if err != nil {
		b.Fatal(err)
	}
	out, err := engine.Run(b.Context(), b.Context())
	if err != nil {
		b.Fatal(err)
	}
	m.Phases = out.Phases
	if err := w.Audit(&out.Audit); err != nil {
		b.Fatal(err)
	}
	if err := w.Finish(m); err != nil {
		b.Fatal(err)
	}
	run, err := history.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	return run, out.Audit
}

// openAll opens every device of the members of groups of the given size,
// spread over the ramp, until the end.
func openAll(spec *scenario.Spec, pop *population.Population, groups, size int) (actions []workload.Action, ids []uint64, members [][]uint64) {
	end := time.Duration((spec.Phases.RampS + spec.Phases.BacklogS + spec.Phases.WarmupS + spec.Phases.SteadyS + spec.Phases.SettleS) * float64(time.Second))
	opened := map[uint64]bool{}
	for g := range groups {
		id, m := pop.BigGroup(g, size)
		ids, members = append(ids, id), append(members, m)
		for _, u := range m {
			if opened[u] {
				continue
			}
			opened[u] = true
			for d := range pop.Devices(u) {
				actions = append(actions, workload.Action{Kind: workload.Open, User: u, Device: uint32(d), Until: end,
					At: time.Duration(float64(len(opened)) / float64(groups*size) * spec.Phases.RampS * float64(time.Second)), ReplyTo: -1, Index: -1, Stratum: -1})
			}
		}
	}
	return actions, ids, members
}

// The whole backend, embedded infrastructure included, on groups of 100 with
// everybody online and every delivery acknowledged: deliveries for each
// CPU-second of all processes but the generator, and where the CPU goes. At 18
// thousand deliveries a second nothing is saturated.
func BenchmarkBackendGroup100(b *testing.B) { backendGroup100(b, 10, 150) }

// At 33 thousand a second two cores, with the generator on them, are nearly full.
func BenchmarkBackendGroup100Busy(b *testing.B) { backendGroup100(b, 10, 280) }

// The same in a single group: what its members get comes close together.
func BenchmarkBackendGroup100Single(b *testing.B) { backendGroup100(b, 1, 280) }

func backendGroup100(b *testing.B, groups, rate int) {
	const size = 100
	for b.Loop() {
		run, audit := benchRun(b, `
name: bench_group100
question: How many deliveries does a CPU-second of the whole backend carry?
preset: B
rates: {users: 100000, sends_per_s: 10, logins_per_s: 10, mean_session: 30s}
phases: {provision: 5s, ramp: 3s, backlog: 1s, warmup: 3s, steady: 15s, settle: 3s, proof: 30s}
`, func(spec *scenario.Spec, pop *population.Population) *workload.Schedule {
			actions, ids, members := openAll(spec, pop, groups, size)
			start := seconds(spec.Phases.RampS + spec.Phases.BacklogS)
			n := int((spec.Phases.WarmupS + spec.Phases.SteadyS) * float64(rate))
			for i := range n {
				g := i % groups
				actions = append(actions, workload.Action{Kind: workload.Send, At: start + time.Duration(i)*time.Second/time.Duration(rate),
					User: members[g][i/groups%size], Conv: workload.Conv{Group: ids[g]}, BodyLen: 100, ReplyTo: -1, Index: -1, Stratum: -1})
			}
			return workload.Custom(spec, pop, actions)
		})
		mustBeClean(b, audit)
		reportBackend(b, run)
	}
}

func mustBeClean(b *testing.B, a history.Audit) {
	b.Helper()
	if a.Lost+a.Duplicated+a.Reordered+a.Foreign+a.Unproved != 0 {
		b.Fatalf("the audit is not clean: %+v", a)
	}
}

// reportBackend prints CPU by role for each delivery in the steady phase.
func reportBackend(b *testing.B, run *history.Run) {
	b.Helper()
	p, ok := run.Phase("steady")
	if !ok {
		b.Fatal("no steady phase")
	}
	var deliveries, backend float64
	for _, s := range run.Seconds {
		if s.Phase == "steady" {
			deliveries += float64(s.Live)
		}
	}
	for _, role := range run.RoleNames() {
		cpu, _ := run.RoleCPU(role, p.Start, p.End)
		b.ReportMetric(cpu/deliveries*1e6, role+"-us/delivery")
		if role != "generator" {
			backend += cpu
		}
	}
	b.ReportMetric(deliveries/backend, "deliveries/backend-CPU-s")
	b.ReportMetric(deliveries/(p.End-p.Start), "deliveries/s")
	b.ReportMetric(0, "ns/op")
}

// Memory of an online, idle user at the generator and at the gateway.
func BenchmarkIdleUsers(b *testing.B) {
	const groups, size = 80, 100
	for b.Loop() {
		run, _ := benchRun(b, `
name: bench_idle
question: What does an idle user cost?
preset: B
rates: {users: 100000, sends_per_s: 10, logins_per_s: 10, mean_session: 30s}
phases: {provision: 10s, ramp: 16s, backlog: 1s, warmup: 1s, steady: 5s, settle: 1s, proof: 30s}
`, func(spec *scenario.Spec, pop *population.Population) *workload.Schedule {
			actions, _, _ := openAll(spec, pop, groups, size)
			return workload.Custom(spec, pop, actions)
		})
		var users float64
		for _, s := range run.Seconds {
			users = max(users, float64(s.Connected))
		}
		ramp, _ := run.Phase("ramp")
		steady, ok := run.Phase("steady")
		if !ok || users == 0 {
			b.Fatal("nobody was online in steady")
		}
		for _, role := range []string{"generator", "gateway"} {
			before, after := rss(run, role, ramp.Start), rss(run, role, steady.End)
			b.ReportMetric((after-before)/users, fmt.Sprintf("%s-RSS-B/user", role))
		}
		b.ReportMetric(0, "ns/op")
	}
}

// rss returns the memory of a role at the last sample before t.
func rss(run *history.Run, role string, t float64) (bytes float64) {
	for _, s := range run.Roles {
		if s.Role == role && s.T <= t+0.5 {
			bytes = float64(s.RSSBytes)
		}
	}
	return bytes
}
