package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"throng/sim/capacity"
	"throng/sim/report"
)

// flagOf returns the value after a flag.
func flagOf(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 {
		return args[i+1]
	}
	return ""
}

// breakpointOf is a breakpoint test of runs that play makes up: it changes what
// a run that passes has, or says why there is none.
func breakpointOf(t *testing.T, play func(n uint64, y *report.BreakpointTry) (refused string)) (*breakpointRun, *bytes.Buffer) {
	t.Helper()
	if testing.Short() {
		t.Skip("it draws, in one goroutine: there is nothing to race")
	}
	var out bytes.Buffer
	c := &cli{stdout: &out, stderr: &bytes.Buffer{}, soft: context.Background(), hard: context.Background()}
	b := &breakpointRun{cli: c, progress: newProgress(c.stderr), scenario: "groups_peak", search: &capacity.Search{Start: 8000, Most: 1000, Least: 20000, Resolution: 0.1},
		flags: &breakpointFlags{stack: "embedded", duration: "60s", tries: 2, out: t.TempDir()}}
	var last report.BreakpointTry
	b.play = func(args []string) (int, string) {
		share, err := parseRatio(flagOf(args, "--scale"))
		if err != nil {
			t.Fatal(err)
		}
		n := denominator(share)
		last = report.BreakpointTry{Verdict: report.Pass, Scale: n, Confirms: flagOf(args, "--duration") == "", Offered: report.Number(1.8e6 / float64(n)), P99Ms: 40, LateMs: 2, Cores: 1}
		if said := play(n, &last); said != "" {
			return exitUnavailable, said
		}
		return last.Verdict.ExitCode(), ""
	}
	b.read = func(_, folder string, n uint64, confirms bool) (*report.BreakpointTry, error) {
		if last.Scale != n || last.Confirms != confirms {
			t.Errorf("1/%d was played with %+v", n, last)
		}
		last.Folder = folder
		return &last, nil
	}
	return b, &out
}

// late makes the generator too late in loads above 1/n.
func late(n uint64) func(uint64, *report.BreakpointTry) string {
	return func(tried uint64, y *report.BreakpointTry) string {
		if tried < n {
			y.Verdict, y.Reasons = report.Inconclusive, []string{"the generator was late"}
		}
		return ""
	}
}

func TestBreakpoint(t *testing.T) {
	b, out := breakpointOf(t, late(3000))
	if err := b.run(); err != nil || b.exit != exitPass {
		t.Fatalf("exit code %d, %v: %s", b.exit, err, out)
	}
	r := b.result
	if r.Carried < 3000 || r.Carried > 3300 || r.Broken >= 3000 || !r.Confirmed {
		t.Errorf("carried 1/%d, broken 1/%d, confirmed %v", r.Carried, r.Broken, r.Confirmed)
	}
	var first, repeated []uint64
	for _, y := range r.Tries {
		if n := len(first); n > 0 && first[n-1] == y.Scale && !y.Confirms {
			repeated = append(repeated, y.Scale)
		}
		first = append(first, y.Scale)
		if (y.Verdict == report.Pass) != (y.Scale >= 3000) {
			t.Errorf("1/%d: %s", y.Scale, y.Verdict)
		}
	}
	if !slices.Equal(first[:2], []uint64{8000, 4000}) || len(repeated) == 0 || slices.Max(repeated) >= 3000 {
		t.Errorf("tried %v, repeated %v: what is inconclusive is tried again, what passes is not", first, repeated)
	}
	data, err := os.ReadFile(filepath.Join(b.flags.out, report.FileBreakpoint))
	if err != nil {
		t.Fatal(err)
	}
	var written report.Breakpoint
	if err := json.Unmarshal(data, &written); err != nil || written.Carried != r.Carried || len(written.Tries) != len(r.Tries) {
		t.Errorf("%v: %s", err, data)
	}
	page, err := os.ReadFile(filepath.Join(b.flags.out, report.FileBreakpointMarkdown))
	if err != nil || !strings.Contains(string(page), "the largest scale that passes is 1/") || !strings.Contains(string(page), "the generator was late") {
		t.Errorf("%v: %s", err, page)
	}
	if _, err := os.Stat(filepath.Join(b.flags.out, "plots", "breakpoint.png")); err != nil {
		t.Error(err)
	}
}

// What passes for a minute and not for longer is not the result.
func TestBreakpointConfirms(t *testing.T) {
	b, out := breakpointOf(t, func(n uint64, y *report.BreakpointTry) string {
		if y.Confirms {
			return late(4300)(n, y)
		}
		return late(4000)(n, y)
	})
	if err := b.run(); err != nil || b.exit != exitPass {
		t.Fatalf("exit code %d, %v: %s", b.exit, err, out)
	}
	if r := b.result; r.Carried < 4300 || r.Carried > 4900 || !r.Confirmed {
		t.Errorf("carried 1/%d, confirmed %v", r.Carried, r.Confirmed)
	}
}

func TestBreakpointEnds(t *testing.T) {
	lost := func(_ uint64, y *report.BreakpointTry) string {
		y.Verdict, y.Wrong = report.Fail, 1
		return ""
	}
	refused := func(n uint64, _ *report.BreakpointTry) string {
		if n != 8000 {
			return "this machine cannot carry the run: open files"
		}
		return ""
	}
	for name, c := range map[string]struct {
		play    func(uint64, *report.BreakpointTry) string
		exit    int
		carried uint64
		says    string
	}{
		"a message is lost":        {lost, exitFail, 0, "found messages lost"},
		"nothing passes":           {late(1 << 20), exitInconclusive, 0, "no scale passed"},
		"the machine is too small": {refused, exitPass, 8000, "open files"},
	} {
		t.Run(name, func(t *testing.T) {
			b, out := breakpointOf(t, c.play)
			b.search.Resolution = 1
			if err := b.run(); err != nil || b.exit != c.exit || b.result.Carried != c.carried || !strings.Contains(out.String(), c.says) {
				t.Errorf("exit code %d, %v, carried 1/%d: %s", b.exit, err, b.result.Carried, out)
			}
		})
	}
	b, out := breakpointOf(t, late(3000))
	soft, stop := context.WithCancel(context.Background())
	b.soft = soft
	play := b.play
	b.play = func(args []string) (int, string) { stop(); return play(args) }
	if err := b.run(); err != nil || b.exit != exitInconclusive || b.runs != 1 || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("exit code %d after %d runs, %v: %s", b.exit, b.runs, err, out)
	}
}

func TestBreakpointUsage(t *testing.T) {
	for _, c := range [][]string{{"--from", "2"}, {"--from", "1/500"}, {"--stack", "external"}, {"--resolution", "0"}, {"--tries", "0"}, {"--duration", "x"}} {
		var out, errs bytes.Buffer
		args := append([]string{"breakpoint", "../../../scenarios/groups_peak.yaml", "--out", t.TempDir()}, c...)
		if code := run(args, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), strings.TrimPrefix(c[0], "--")) && c[0] != "--from" {
			t.Errorf("%v: exit code %d, %s", c, code, errs.String())
		}
	}
}
