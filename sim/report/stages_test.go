package report

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report/runtest"
)

// TestP99WentIntoTheInbox: the synthetic run's slow deliveries are slow in the
// inbox, and the report says so; what it says adds up.
func TestP99WentIntoTheInbox(t *testing.T) {
	r := judged(t, smallRun(t, func(o *runtest.Options) { o.SteadyS = 60 }))
	if len(r.Stages) != 2 {
		t.Fatalf("stages of %d kinds, want 2", len(r.Stages))
	}
	for kind, b := range r.Stages {
		names := history.StagesOf(kind)
		if len(b.Stages) != len(names)+1 || b.Clocks != "one" || b.LeftOut != "" || b.Count < 1000 {
			t.Fatalf("%s: %+v", kind, b)
		}
		for _, column := range []func(Stage) Number{func(s Stage) Number { return s.MeanMs }, func(s Stage) Number { return s.MedianMs }, func(s Stage) Number { return s.P99Ms }} {
			sum := 0.0
			for _, s := range b.Stages {
				sum += float64(column(s))
			}
			if total := float64(column(b.Total)); !(math.Abs(sum-total) < 0.01*total) {
				t.Errorf("%s: the stages add up to %v ms, the latency is %v ms", kind, sum, total)
			}
		}
		inbox, _ := b.find(history.StageInbox)
		if usual := runtest.StageUs / 1000; math.Abs(float64(inbox.P99Ms)-runtest.SlowInboxUs/1000) > 3 || float64(inbox.MedianMs) > 2*usual {
			t.Errorf("%s: the inbox took %v ms at the median and %v ms at p99", kind, inbox.MedianMs, inbox.P99Ms)
		}
		if inbox.Alone.Count != b.Count || float64(inbox.Alone.P99) < 59 {
			t.Errorf("%s: the inbox alone: %+v", kind, inbox.Alone)
		}
		if !strings.Contains(b.Answer, ": inbox 60") {
			t.Errorf("%s: %q does not name the inbox first, and alone", kind, b.Answer)
		}
		if rest, _ := b.find(stageResidual); rest.P99Ms != 0 || rest.MeanMs != 0 {
			t.Errorf("%s: %v ms are not accounted for", kind, rest.P99Ms)
		}
	}
	for k := range r.LatencyMs {
		if strings.HasPrefix(k, history.KindStage) {
			t.Errorf("%s is among the latencies", k)
		}
	}
}

// rewriteStages changes every line of stages.jsonl.
func rewriteStages(t *testing.T, dir string, change func(string) string) {
	t.Helper()
	path := filepath.Join(dir, history.FileStages)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(change(string(data))), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestClocksThatDisagree: a deployment whose clocks show that they disagree has
// no stages, and says why; a little of it is counted and labelled.
func TestClocksThatDisagree(t *testing.T) {
	external := func(o *runtest.Options) {
		o.Edit = func(m *history.Manifest, _ *history.Audit) bool { m.Target, m.StampEvery = "external", 0; return true }
	}
	dir := smallRun(t, external)
	rewriteStages(t, dir, func(s string) string {
		return strings.ReplaceAll(s, `"cells"`, `"negative":5,"cells"`)
	})
	r := judged(t, dir)
	b := r.Stages[history.KindDeliverGroup]
	if b.Clocks != "several" || len(b.Stages) != 0 || !strings.Contains(b.LeftOut, "clocks") || b.Total.P99Ms.Known() {
		t.Errorf("clocks that disagree: %+v", b)
	}
	if len(r.stageTable().Rows) != 0 || !strings.Contains(r.markdown(), b.Answer) {
		t.Error("the report shows stages, or does not say why not")
	}

	dir = smallRun(t, external)
	rewriteStages(t, dir, func(s string) string {
		return strings.Replace(s, `"start_s":20,`, `"start_s":20,"negative":1,"partial":2,`, 1)
	})
	r = judged(t, dir)
	if note := r.StageNote(); len(r.stageTable().Rows) == 0 || !strings.Contains(note, "target's machines") || !strings.Contains(note, "1 had a stage below zero") ||
		!strings.Contains(note, "2 more lacked a stamp") {
		t.Errorf("note: %q", note)
	}
}

// TestTooFewStamps: no p99 from a few hundred deliveries, but a median.
func TestTooFewStamps(t *testing.T) {
	b := judged(t, smallRun(t, nil)).Stages[history.KindDeliverDirect]
	if b.Count == 0 || b.Count >= minP99 {
		t.Fatalf("%d deliveries: the test is of no use", b.Count)
	}
	if b.Total.P99Ms.Known() || !b.Total.MedianMs.Known() || !strings.Contains(b.Answer, "cannot be told") {
		t.Errorf("%+v", b)
	}
}

// TestRunWithoutStages: a run of an older version has a report that says so.
func TestRunWithoutStages(t *testing.T) {
	dir := smallRun(t, nil)
	if err := os.Remove(filepath.Join(dir, history.FileStages)); err != nil {
		t.Fatal(err)
	}
	r := build(t, dir)
	validate(t, dir)
	if r.Verdict != Pass || len(r.Stages) != 0 || strings.Contains(r.markdown(), "did the p99 go") {
		t.Errorf("%s, stages %v", r.Verdict, r.Stages)
	}
	page, err := os.ReadFile(filepath.Join(dir, FileHTML))
	if err != nil || !strings.Contains(string(page), "None of the deliveries was stamped") {
		t.Errorf("the page does not say that there are no stages (%v)", err)
	}
	compare(t, dir, "../../testdata/runs/synthetic")
}

// TestCompareStages: the stage that became slower is shown with an interval.
func TestCompareStages(t *testing.T) {
	slow := smallRun(t, nil)
	rewriteStages(t, slow, func(s string) string {
		return strings.ReplaceAll(s, `"n":`, `"n":1`) // ten times as many, or more, in the same sums
	})
	c := compare(t, slow, "../../testdata/runs/synthetic")
	row := find(t, c, "group: Kafka, mean")
	if row.Unit != "ms" || !(float64(row.A) < float64(row.B)) || !row.Shown {
		t.Errorf("%+v", row)
	}
	if row := find(t, c, "group: inbox, at p99"); !row.B.Known() || row.Shown {
		t.Errorf("%+v", row)
	}
	if same := find(t, compare(t, "../../testdata/runs/synthetic", "../../testdata/runs/synthetic"), "group: Kafka, mean"); same.Shown || same.A != same.B {
		t.Errorf("a run differs from itself: %+v", same)
	}
}
