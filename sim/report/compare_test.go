package report

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report/runtest"
)

// other is the recorded run on another target, with another seed, another
// machine, an inbox that costs twice as much for a row, and a lost delivery.
func other(t *testing.T) string {
	return smallRun(t, func(o *runtest.Options) {
		o.Seed, o.Cost = 5, runtest.DefaultCost()
		o.Cost.Row *= 2
		o.SpecYAML = strings.Replace(smallYAML, "scale: 1/20000", "scale: 1/15000", 1)
		o.SpecYAML = strings.Replace(o.SpecYAML, "seed: 42", "seed: 5", 1)
		o.Edit = func(m *history.Manifest, a *history.Audit) bool {
			m.RunID, m.Target, m.Seed, m.SpecHash = "20260304T060000Z-0000aa", "containers", 5, "6f6f6f6f6f6f6f6f"
			m.Machine.Cores = 4
			m.Versions = map[string]string{"throng": "v0.0.0-test", "go": "go1.26", "kafka": "4.1.0", "mysql": "9.4"}
			a.Lost, a.Proved = 1, a.Proved-1
			return true
		}
	})
}

func compare(t *testing.T, a, b string) *Comparison {
	t.Helper()
	c, err := Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCompareWithAnother(t *testing.T) {
	computes(t)
	c := compare(t, "../../testdata/runs/synthetic", other(t))
	t.Run("golden", func(t *testing.T) { compareGolden(t, c) })
	t.Run("finds what differs", func(t *testing.T) { findsWhatDiffers(t, c) })
}

func compareGolden(t *testing.T, c *Comparison) {
	var plain bytes.Buffer
	if err := c.Terminal(&plain, false); err != nil {
		t.Fatal(err)
	}
	data, err := c.JSON()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "compare.golden", plain.String())
	golden(t, "compare.md.golden", c.Markdown())
	golden(t, "compare.json.golden", string(data))
}

// find returns a row.
func find(t *testing.T, c *Comparison, name string) CompareRow {
	t.Helper()
	for _, table := range c.Tables {
		for _, r := range table.Rows {
			if r.Name == name {
				return r
			}
		}
	}
	t.Fatalf("no row %q", name)
	return CompareRow{}
}

func findsWhatDiffers(t *testing.T, c *Comparison) {
	if r := find(t, c, "inbox, for a send"); !r.Shown || r.Difference <= 0 || r.Low <= 0 || r.A >= r.B {
		t.Errorf("an inbox that costs more: %+v", r)
	}
	if r := find(t, c, "message, for a send"); r.Shown || math.Abs(float64(r.A-r.B)) > 5 {
		t.Errorf("a message service that costs the same: %+v", r)
	}
	if r := find(t, c, "lost"); r.A != 0 || r.B != 1 || r.Shown {
		t.Errorf("lost: %+v", r)
	}
	said := strings.Join(c.Warnings, "\n")
	for _, want := range []string{"the targets differ, embedded and containers", "the scales differ, 1/20000 and 1/15000", "the seeds differ", "the machines differ", "run B did not pass"} {
		if !strings.Contains(said, want) {
			t.Errorf("no warning has %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, "run A") {
		t.Errorf("run A passed: %s", said)
	}
}

// A run and itself: nothing differs, and no difference is shown.
func TestCompareWithItself(t *testing.T) {
	computes(t)
	c := compare(t, "../../testdata/runs/synthetic", "../../testdata/runs/synthetic")
	if len(c.Differs)+len(c.Warnings) > 0 {
		t.Errorf("differs %v, warnings %q", c.Differs, c.Warnings)
	}
	n := 0
	for _, table := range c.Tables {
		for _, r := range table.Rows {
			n++
			if r.Shown {
				t.Errorf("shown: %+v", r)
			}
		}
	}
	if n < 50 {
		t.Errorf("%d rows", n)
	}
	var b bytes.Buffer
	if err := c.Terminal(&b, true); err != nil || !strings.Contains(b.String(), "nothing else differs") {
		t.Errorf("%v: %s", err, b.String())
	}
}

// What a deployment of somebody else does not tell is not zero.
func TestCompareWithoutFigures(t *testing.T) {
	computes(t)
	blind := smallRun(t, func(o *runtest.Options) {
		o.NoLatency = true
		o.Edit = func(m *history.Manifest, _ *history.Audit) bool { m.Target = "external"; return false }
	})
	c := compare(t, blind, "../../testdata/runs/synthetic")
	for _, name := range []string{"send to sent, p50", "lost"} {
		if r := find(t, c, name); r.A.Known() || !r.B.Known() || r.Shown {
			t.Errorf("%+v", r)
		}
	}
	data, err := c.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var back Comparison
	if err := json.Unmarshal(data, &back); err != nil || find(t, &back, "lost").A.Known() {
		t.Errorf("read back: %v", err)
	}
}

func TestCompareRefuses(t *testing.T) {
	computes(t)
	short := brief(t, func(o *runtest.Options) {
		o.Edit = func(m *history.Manifest, _ *history.Audit) bool { m.Phases = m.Phases[:3]; return false }
	})
	for dir, want := range map[string]string{t.TempDir(): "not a run folder", short: "never came to its gated phase"} {
		if _, err := Compare("../../testdata/runs/synthetic", dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestSettings(t *testing.T) {
	got := settings([]byte("name: \"a: b\"\ntopology:\n  gateways: 2\nextra:\n  - name: x\n    sends: 3\n  - name: y\npush_delay: 3s\n"))
	for key, want := range map[string]string{"name": "\"a: b\"", "topology.gateways": "2", "extra[0].sends": "3", "extra[1].name": "y", "push_delay": "3s"} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if len(got) != 6 {
		t.Errorf("%v", got)
	}
}
