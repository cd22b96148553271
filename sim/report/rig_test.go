package report

import (
	"math"
	"path/filepath"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report/runtest"
)

// Whatever limited the harness makes the run inconclusive, also one that is slow
// or lossless otherwise, gives no plan, and is named with who it was.
func TestRigThatWasTheLimit(t *testing.T) {
	whole := Rig{Instance: 2, Seconds: 60, OwnCores: 0.4, Cores: 2, Busy: 0.7, Segments: 1_000_000, GCPauseMs: 3}
	for _, c := range []struct {
		name  string
		spoil func(*facts, *Rig)
		says  string // "" for a pass
	}{
		{"nothing", func(*facts, *Rig) {}, ""},
		{"open files", func(_ *facts, r *Rig) { r.NoFiles = 3 }, "agent 2 ran out of open files: 3 connects"},
		{"ports", func(_ *facts, r *Rig) { r.NoPorts = 4 }, "agent 2 ran out of local ports: 4 connects"},
		{"own CPU", func(_ *facts, r *Rig) { r.OwnCores = 1.9 }, "agent 2 used 95% of the 2 cores"},
		{"busy machine of its own", func(_ *facts, r *Rig) { r.Busy = 0.99 }, "the machine of agent 2 was busy for 99%"},
		{"busy machine that carries the target", func(f *facts, r *Rig) { f.shared, r.Busy = true, 0.99 }, ""},
		{"late on a busy machine", func(f *facts, r *Rig) { f.shared, r.Busy, r.Instance, f.late.value = true, 0.99, 1, 40 }, "late at p99, limit 10 ms; agent 1 2 ms, agent 2 38 ms, the machine of agent 1 was busy for 99%"},
		{"drops where the target drops too", func(f *facts, r *Rig) { f.shared, r.Drops = true, 200 }, ""},
		{"steal", func(_ *facts, r *Rig) { r.Steal = 0.2 }, "the hypervisor gave 20% of the CPU time of agent 2's machine"},
		{"one long pause", func(_ *facts, r *Rig) { r.GCPauseMs, r.GCPauses, r.Seconds = 400, 1, 120 }, ""},
		{"long pauses", func(_ *facts, r *Rig) { r.GCPauseMs, r.GCPauses = 400, 6 }, "garbage collection stopped agent 2 for up to 400 ms, too long in 10% of the seconds"},
		{"clock step", func(_ *facts, r *Rig) { r.ClockStepMs = -2000 }, "the clock of agent 2's machine jumped by 2 s"},
		{"retransmits", func(_ *facts, r *Rig) { r.Retransmits = 30_000 }, "sent 3% of its TCP segments again"},
		{"drops", func(_ *facts, r *Rig) { r.Drops = 200 }, "dropped 200 segments and connections"},
		{"clock of another machine", func(f *facts, _ *Rig) { f.agents[1].SameClock, f.agents[1].ClockErrorMs = false, 25 }, "the clock of agent 2 (b) is known within 25 ms only"},
		{"the harness alone", func(f *facts, r *Rig) { f.agents, r.Instance, r.NoFiles = nil, 0, 1 }, "the generator ran out of open files"},
	} {
		f := good()
		r := whole
		f.agents = []Agent{{Number: 1, Host: "a", SameClock: true, LateP99Ms: 2}, {Number: 2, Host: "b", SameClock: true, LateP99Ms: 38}}
		c.spoil(&f, &r)
		f.rigs = []Rig{r}
		j := judge(f)
		if c.says == "" {
			if j.verdict != Pass {
				t.Errorf("%s: %s %q", c.name, j.verdict, j.reasons)
			}
			continue
		}
		if j.verdict != Inconclusive || !strings.Contains(strings.Join(j.reasons, "\n"), c.says) || j.generatorLimit == "" {
			t.Errorf("%s: %s, limit %q, reasons %q; want %q", c.name, j.verdict, j.generatorLimit, j.reasons, c.says)
		}
		f.deliver.value = 99_000
		if j := judge(f); j.verdict != Inconclusive {
			t.Errorf("%s, and slow: %s %q", c.name, j.verdict, j.reasons)
		}
	}
}

// An agent that died makes everything that was found out doubtful.
func TestDeadAgent(t *testing.T) {
	f := good()
	f.agents = []Agent{{Number: 1}, {Number: 2, Host: "b", Died: "its process ended: signal: killed"}}
	f.audit.Lost, f.deliver.value = 5, 99_000
	j := judge(f)
	if j.verdict != Inconclusive || len(j.reasons) != 1 || j.reasons[0] != "agent 2 (b) died: its process ended: signal: killed" || j.generatorLimit != "agent 2 died" {
		t.Errorf("%s %q, limit %q", j.verdict, j.reasons, j.generatorLimit)
	}
}

// What was watched in the gated phase is added up; what failed counts always.
func TestRigOfARun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	err := runtest.Write(dir, runtest.Options{NoLatency: true, Edit: func(m *history.Manifest, _ *history.Audit) bool {
		m.Agents = []history.Agent{{Number: 1, Host: "a", SameClock: true, LateP99Ms: 1.5, Actions: 10}}
		return true
	}})
	if err != nil {
		t.Fatal(err)
	}
	run, err := history.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := gatedPhase(run)
	run.Rig = []history.Rig{
		{T: p.Start, Instance: 1, Cores: 2, Busy: 1, NoFiles: 2, ClockStepUs: 9e6},
		{T: p.Start + 1, Instance: 1, Busy: 0.2, OwnCPU: 0.5, GCPauseUs: 61_000, ClockStepUs: 100, Drops: 1},
		{T: p.End, Instance: 1, Busy: 0.6, OwnCPU: 1.5, GCPauseUs: 500, ClockStepUs: -2000, Segments: 7},
		{T: p.End + 1, Instance: 1, NoPorts: 1, Drops: 100},
	}
	terms := readTerms(&run.Manifest)
	r := evaluate(run, terms)
	got := r.Generator.Rig
	if len(got) != 1 {
		t.Fatalf("rigs %+v", got)
	}
	x := got[0]
	if x.Seconds != 2 || math.Abs(float64(x.Busy)-0.4) > 1e-9 || x.OwnCores != 1 || x.GCPauses != 1 || x.GCPauseMs != 61 || x.ClockStepMs != -2 || x.Drops != 1 || x.Segments != 7 || x.NoFiles != 2 || x.NoPorts != 1 {
		t.Errorf("rig %+v", x)
	}
	rows := r.agentTable().Rows
	if len(rows) != 1 || rows[0][1] != "a" || rows[0][4] != "the leader's" || rows[0][5] != "1" {
		t.Errorf("agents %q", rows)
	}
}
