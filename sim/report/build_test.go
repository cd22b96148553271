package report

import (
	"bytes"
	"encoding/xml"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report/runtest"
)

// specYAML is the scenario of the synthetic runs: groups_peak in small.
const specYAML = `name: groups_peak
question: What do group members experience at the diurnal peak?
preset: B
scale: 1/5000
seed: 42
phases: {steady: 60s, spike: 20s, spike_factor: 5}
gates: {p99_sent_ms: 500, p99_deliver_ms: 1000, generator_late_p99_ms: 10}
`

// smallYAML is the same in a quarter of the time and at a quarter of the rate.
const smallYAML = `name: groups_peak
question: What do group members experience at the diurnal peak?
preset: B
scale: 1/20000
seed: 42
phases: {steady: 15s, spike: 3s, spike_factor: 5}
gates: {p99_sent_ms: 500, p99_deliver_ms: 1000, generator_late_p99_ms: 10}
`

func small() runtest.Options {
	return runtest.Options{SendsPerS: 89.7, SteadyS: 15, SpikeS: 3, SpecYAML: smallYAML, Users: 150_000}
}

func smallRun(t *testing.T, change func(*runtest.Options)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	o := small()
	if change != nil {
		change(&o)
	}
	if err := runtest.Write(dir, o); err != nil {
		t.Fatal(err)
	}
	return dir
}

func build(t *testing.T, dir string) *Result {
	t.Helper()
	r, err := Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// recorded is a copy of the committed run folder.
func recorded(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "synthetic")
	if err := os.CopyFS(dir, os.DirFS("../../testdata/runs/synthetic")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// computes marks a test that only computes, in one goroutine: it has nothing for
// the race detector, under which it takes ten times as long (make test-race is
// -short).
func computes(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("short")
	}
}

// TestBuild looks at one report from all sides: drawing it is most of the time.
func TestBuild(t *testing.T) {
	computes(t)
	dir := recorded(t)
	r := build(t, dir)
	t.Run("passes", func(t *testing.T) { reportPasses(t, dir, r) })
	t.Run("the page is one file", func(t *testing.T) { pageIsOneFile(t, dir) })
	t.Run("the result follows its schema", func(t *testing.T) { resultFollowsItsSchema(t, dir) })
	t.Run("is repeatable", func(t *testing.T) { buildIsRepeatable(t, dir) })
}

func reportPasses(t *testing.T, dir string, r *Result) {
	if r.Verdict != Pass || r.ExitCode() != 0 || len(r.Reasons) > 0 {
		t.Fatalf("%s (exit %d): %s %q", r.Verdict, r.ExitCode(), r.Summary, r.Reasons)
	}
	for _, name := range []string{FileResult, FileHTML, FileMarkdown, FileJUnit, "plots/spectrum.svg", "plots/spectrum-dark.svg", "plots/capacity.png", "plots/cpu-dark.png"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	back, err := Read(dir)
	if err != nil || back.Verdict != Pass || back.Audit.Proved != r.Audit.Proved {
		t.Errorf("read back: %v", err)
	}
	if len(r.Capacity) < 30 {
		t.Errorf("%d rows of capacity", len(r.Capacity))
	}
	if l := r.LatencyMs[history.KindDeliverGroup]; !l.P50.Known() || l.P50 > l.P90 {
		t.Errorf("group latency %+v", l)
	}
	if l := r.LatencyMs[history.KindSent]; l.P999.Known() {
		t.Errorf("p99.9 of %d samples is %v", l.Count, l.P999)
	}
}

// buildIsRepeatable: a second report of the folder is the same bytes.
func buildIsRepeatable(t *testing.T, dir string) {
	files := func() map[string][]byte {
		out := map[string][]byte{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				out[path], err = os.ReadFile(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	a := files()
	build(t, dir)
	b := files()
	if len(a) < 25 || len(a) != len(b) {
		t.Fatalf("%d and %d files", len(a), len(b))
	}
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			t.Errorf("%s differs", filepath.Base(name))
		}
	}
}

// pageIsOneFile: nothing in the page comes from anywhere else.
func pageIsOneFile(t *testing.T, dir string) {
	data, err := os.ReadFile(filepath.Join(dir, FileHTML))
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	for _, bad := range []string{"<script", "<link", "@import", "src=", "url(", "ZgotmplZ", "NaN", "&lt;nil", "%!"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	page = strings.ReplaceAll(page, "http://www.w3.org/2000/svg", "")
	if i := strings.Index(page, "http"); i >= 0 {
		t.Errorf("the page refers to %q", page[i:i+40])
	}
	for _, want := range []string{"prefers-color-scheme", "Pass: every one of", "SEED=42", `class="fig narrow"`, "WORKLOAD.md 6"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if n := strings.Count(page, "<svg"); n != 16 {
		t.Errorf("%d drawings, want eight in two layouts", n)
	}
}

// judged is the result of a run folder without files.
func judged(t *testing.T, dir string) *Result {
	t.Helper()
	run, err := history.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return evaluate(run, readTerms(&run.Manifest))
}

// brief is a run of a few seconds whose only fault is what change does to it.
func brief(t *testing.T, change func(*runtest.Options)) string {
	return smallRun(t, func(o *runtest.Options) {
		o.SendsPerS, o.SteadyS, o.SpikeS = 120, 8, 1
		o.SpecYAML = "name: brief\nquestion: Does it work?\nrates: {sends_per_s: 120, logins_per_s: 60.7, mean_session: 91.7s}\nphases: {steady: 8s, spike: 1s}\ngates: {generator_late_p99_ms: 10, rate_tolerance: 0.1}\n"
		change(o)
	})
}

func TestAbsentEvidenceIsInconclusive(t *testing.T) {
	computes(t)
	whole, err := history.Open(brief(t, func(*runtest.Options) {}))
	if err != nil {
		t.Fatal(err)
	}
	// A run with a fault in what was read.
	edit := func(f func(r *history.Run)) *Result {
		r := *whole
		audit := *whole.Audit
		r.Audit, r.Seconds = &audit, slices.Clone(whole.Seconds)
		f(&r)
		return evaluate(&r, readTerms(&r.Manifest))
	}
	for name, c := range map[string]struct {
		r    *Result
		want string
	}{
		"no audit":     {edit(func(r *history.Run) { r.Audit = nil }), "delivery proof is missing"},
		"interrupted":  {edit(func(r *history.Run) { r.Manifest.Interrupted = true }), "interrupted"},
		"no steady":    {edit(func(r *history.Run) { r.Manifest.Phases = r.Manifest.Phases[:4] }), "never came to its gated phase"},
		"empty audit":  {edit(func(r *history.Run) { *r.Audit = history.Audit{} }), "covers 0 pairs"},
		"unknown spec": {edit(func(r *history.Run) { r.Manifest.SpecYAML = "name: x\nwarp: 9\n" }), "cannot be read"},
		"no writes": {edit(func(r *history.Run) {
			for i := range r.Seconds {
				r.Seconds[i].Written /= 2
			}
		}), "were written"},
		"short steady": {judged(t, brief(t, func(o *runtest.Options) { o.SteadyS = 6 })), "interrupted in its gated phase"},
		"late":         {judged(t, brief(t, func(o *runtest.Options) { o.LateUs = 9000 })), "late at p99"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.r.Verdict != Inconclusive || c.r.ExitCode() != 2 {
				t.Errorf("%s: %s", c.r.Verdict, c.r.Summary)
			}
			if !strings.Contains(strings.Join(c.r.Reasons, "\n"), c.want) {
				t.Errorf("reasons %q do not say %q", c.r.Reasons, c.want)
			}
			if name == "late" && (c.r.Estimate.NotUsable == "" || len(c.r.Capacity) > 0) {
				t.Errorf("a plan of %d rows from a run limited by its generator", len(c.r.Capacity))
			}
		})
	}
	if r := edit(func(*history.Run) {}); r.Verdict != Pass {
		t.Errorf("unspoilt it is %s: %q", r.Verdict, r.Reasons)
	}
}

// TestEveryVerdictHasAPage: a report is made whatever is missing. The drawings
// of its page are those of the files.
func TestEveryVerdictHasAPage(t *testing.T) {
	computes(t)
	for _, change := range []func(*history.Manifest, *history.Audit) bool{
		func(m *history.Manifest, _ *history.Audit) bool {
			m.Phases, m.Interrupted = m.Phases[:2], true
			return false
		},
		func(m *history.Manifest, _ *history.Audit) bool { m.Phases = nil; return true },
		func(m *history.Manifest, _ *history.Audit) bool { m.SpecYAML = "?"; return true },
	} {
		dir := brief(t, func(o *runtest.Options) { o.Edit = change })
		run, err := history.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		r := evaluate(run, readTerms(&run.Manifest))
		if err := writeAll(dir, r, figuresOf(run, r)); err != nil {
			t.Fatal(err)
		}
		if r.Verdict != Inconclusive {
			t.Errorf("%s: %s", r.Verdict, r.Summary)
		}
		validate(t, dir)
	}
}

// TestNoPlanFromAFailingSystem: what is used without doing the work is no cost.
func TestNoPlanFromAFailingSystem(t *testing.T) {
	computes(t)
	r := judged(t, brief(t, func(o *runtest.Options) { o.Row = func(s *history.Second) { s.Accepted /= 3 } }))
	if r.Estimate.NotUsable == "" || len(r.Capacity) > 0 {
		t.Errorf("a plan of %d rows", len(r.Capacity))
	}
}

func TestLossFails(t *testing.T) {
	computes(t)
	r := judged(t, brief(t, func(o *runtest.Options) {
		o.Edit = func(_ *history.Manifest, a *history.Audit) bool {
			a.Lost, a.Proved = 3, a.Proved-3
			a.Examples = []string{"message <b>1</b> to user 7 device 0"}
			return true
		}
	}))
	if r.Verdict != Fail || r.ExitCode() != 1 || !strings.Contains(r.Summary, "3 acknowledged deliveries were lost") {
		t.Errorf("%s: %s", r.Verdict, r.Summary)
	}
}

// TestEveryRoleIsInTheStack: CPU that is not drawn would be hidden.
func TestEveryRoleIsInTheStack(t *testing.T) {
	computes(t)
	run, err := history.Open(recorded(t))
	if err != nil {
		t.Fatal(err)
	}
	r := evaluate(run, readTerms(&run.Manifest))
	p := &plotter{run: run, r: r, spans: timeSpans(run, r.spec)}
	drawn := 0.0
	for _, l := range p.layers() {
		for _, q := range l.Points {
			drawn += q.Y
		}
	}
	used := 0.0
	for _, role := range run.RoleNames() {
		cpu, _ := run.RoleCPU(role, p.spans[0].Start, p.spans[len(p.spans)-1].End)
		used += cpu
	}
	if drawn < used*0.99 || drawn > used*1.01 {
		t.Errorf("%.3f CPU-seconds are drawn, %.3f were used", drawn, used)
	}
}

func TestJUnit(t *testing.T) {
	computes(t)
	r := judged(t, brief(t, func(o *runtest.Options) {
		o.Edit = func(_ *history.Manifest, a *history.Audit) bool { a.Duplicated, a.Unproved = 1, 2; return true }
	}))
	data, err := r.junit()
	if err != nil {
		t.Fatal(err)
	}
	var s junitSuite
	if err := xml.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	if s.Failures != 1 || s.Errors != 1 || s.Tests != len(r.Gates)+len(r.Phases) || len(s.Cases) != s.Tests {
		t.Errorf("%d failures, %d errors, %d tests, %d cases; %d gates, %d phases", s.Failures, s.Errors, s.Tests, len(s.Cases), len(r.Gates), len(r.Phases))
	}
}

// A report says how exact its times were meant to be, where they were not.
func TestResolutionIsSaid(t *testing.T) {
	for _, resolution := range []string{"", "resolution: 4ms\n"} {
		r := build(t, smallRun(t, func(o *runtest.Options) { o.SpecYAML += resolution }))
		said := slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "every 4 ms") })
		if said != (resolution != "") {
			t.Errorf("with %q: notes %q", resolution, r.Notes)
		}
	}
}

// TestWriteRun writes the run that people look at: set RUN to a folder.
func TestWriteRun(t *testing.T) {
	dir := os.Getenv("RUN")
	if dir == "" {
		t.Skip("RUN is not set")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	o := runtest.Options{SpecYAML: specYAML}
	if os.Getenv("SMALL") != "" { // how testdata/runs/synthetic was made
		o = small()
	}
	if err := runtest.Write(dir, o); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("SMALL") != "" {
		return
	}
	r := build(t, dir)
	if err := r.Terminal(os.Stdout, false); err != nil {
		t.Fatal(err)
	}
}
