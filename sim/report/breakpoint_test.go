package report

import (
	"path/filepath"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report/runtest"
)

// TestBreakpointRead looks at what a breakpoint test takes from a run folder.
func TestBreakpointRead(t *testing.T) {
	computes(t)
	dir := smallRun(t, func(o *runtest.Options) {
		o.Edit = func(_ *history.Manifest, a *history.Audit) bool {
			a.Proved--
			a.Lost++
			return true
		}
	})
	b := &Breakpoint{}
	y, err := b.Read(filepath.Dir(dir), filepath.Base(dir), 20000, true)
	if err != nil {
		t.Fatal(err)
	}
	if y.Verdict != Fail || !y.Lost() || y.Proved != y.Expected-1 || len(y.Reasons) == 0 {
		t.Errorf("%+v: a message is lost", y)
	}
	if y.Offered < 60 || y.Offered > 120 || y.P99Ms <= 0 || y.LateMs <= 0 || y.Cores <= 0 || y.CPUUs <= 0 || y.RSSBytes <= 0 || y.Sockets <= 0 || y.SteadyS != 15 {
		t.Errorf("%+v: figures are missing", y)
	}
	if b.Scenario != "groups_peak" || b.Target == "" {
		t.Errorf("%q on %q", b.Scenario, b.Target)
	}
	b.Tries = append(b.Tries, *y)
	if h := b.Headline(); !strings.Contains(h, "no scale passed") {
		t.Errorf("a run that lost a message was carried: %s", h)
	}
	if _, err := b.Read(t.TempDir(), "nothing", 1, false); err == nil {
		t.Error("a folder without a run was read")
	}
}
