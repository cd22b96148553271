package report

import (
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report/runtest"
)

// TestGrowth: a process that keeps memory and goroutines fails the run, flat
// ones pass, and without samples nobody knows.
func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*runtest.Options)
		want   Verdict
		says   []string
	}{
		{"flat", func(*runtest.Options) {}, Pass, nil},
		{"a leak in a role", func(o *runtest.Options) { o.Leak = "inbox" }, Fail, []string{"the resident memory grew: inbox/0 +", "the number of goroutines grew: inbox/0 +"}},
		{"a leak in the generator", func(o *runtest.Options) { o.Leak = "generator" }, Fail, []string{"grew: generator/0 +"}},
		{"a leak in infrastructure", func(o *runtest.Options) { o.Leak = "kafka" }, Pass, nil},
		{"no gauges", func(o *runtest.Options) { o.NoGauges = true }, Inconclusive, []string{"whether the number of goroutines grew cannot be told", "too few samples"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run, err := history.Open(smallRun(t, func(o *runtest.Options) {
				o.NoLatency, o.ScrapeEveryS = true, 1
				c.change(o)
			}))
			if err != nil {
				t.Fatal(err)
			}
			phase, gated := gatedPhase(run)
			f := good()
			f.gates.RSSGrowthMax, f.gates.GoroutineGrowthMax = 0.1, 0.1
			f.processes = (&evaluator{run: run, phase: phase, gated: gated}).processes()
			j := judge(f)
			if j.verdict != c.want {
				t.Errorf("%s, want %s: %v", j.verdict, c.want, j.reasons)
			}
			for _, says := range c.says {
				if !strings.Contains(strings.Join(j.reasons, "\n"), says) {
					t.Errorf("no reason says %q: %q", says, j.reasons)
				}
			}
		})
	}
}

// TestGrowthGate is the rule: surely above fails, perhaps above is
// inconclusive.
func TestGrowthGate(t *testing.T) {
	level := func(g, lo, hi float64) Growth {
		return Growth{Blocks: 10, Mean: 100 << 20, Growth: Number(g), Low: Number(lo), High: Number(hi)}
	}
	flat := level(0.01, -0.02, 0.04)
	for _, c := range []struct {
		name string
		p    Process
		want Verdict
		says string
	}{
		{"flat", Process{Gated: true, RSS: flat}, Pass, ""},
		{"shrinks", Process{Gated: true, RSS: level(-0.5, -0.6, -0.4)}, Pass, ""},
		{"grows a little", Process{Gated: true, RSS: level(0.06, 0.05, 0.07)}, Pass, ""},
		{"surely above", Process{Gated: true, RSS: level(0.2, 0.11, 0.3)}, Fail, "inbox/1 +20% (+11% to +30%), limit 10% over steady"},
		{"perhaps above", Process{Gated: true, RSS: level(0.08, 0.02, 0.14)}, Inconclusive, "cannot be told: inbox/1 +8%"},
		{"much of very little", Process{Gated: true, RSS: Growth{Blocks: 10, Mean: 4 << 20, Growth: 0.5, Low: 0.4, High: 0.6}}, Pass, ""},
		{"restarted", Process{Gated: true, Restarted: true, RSS: growthUnknown()}, Inconclusive, "inbox/1 was restarted"},
		{"nothing to gate", Process{RSS: flat}, Inconclusive, "of no process is known"},
	} {
		c.p.Role, c.p.Instance = "inbox", 1
		f := good()
		f.gates.RSSGrowthMax = 0.1
		f.processes = []Process{c.p}
		j := judge(f)
		if j.verdict != c.want || !strings.Contains(strings.Join(j.reasons, "\n"), c.says) {
			t.Errorf("%s: %s %q, want %s %q", c.name, j.verdict, j.reasons, c.want, c.says)
		}
	}
}

func growthUnknown() Growth { return Growth{Growth: nan(), Low: nan(), High: nan()} }
