package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"throng/sim/report"
)

func TestMain(m *testing.M) {
	if os.Getenv(acceptServer) != "" {
		serveAccepts()
		return
	}
	// The target starts the roles by executing this binary again.
	if len(os.Args) > 1 && slices.Contains([]string{"chatd", "embedded", "containers", "agent"}, os.Args[1]) {
		main()
	}
	os.Exit(m.Run())
}

// smoke runs the smoke scenario with further arguments and returns its exit
// code, its result and what it said.
func smoke(t *testing.T, args ...string) (int, *report.Result, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	var out, errs bytes.Buffer
	code := run(append([]string{"run", filepath.Join("..", "..", "..", "scenarios", "smoke.yaml"), "--stack", "embedded", "--out", dir}, args...), &out, &errs)
	res, err := report.Read(dir)
	if err != nil {
		t.Fatalf("exit code %d, no result: %v\n%s\n%s", code, err, errs.String(), out.String())
	}
	return code, res, errs.String() + out.String()
}

// Each planted bug must be found by the audit, or a clean audit means nothing.
func TestPlantedBugsFailSmoke(t *testing.T) {
	if raceEnabled {
		t.Skip("a run of the whole backend under the race detector is the kill test's; this one proves the audit")
	}
	for _, plant := range []struct {
		name  string
		found func(*report.Result) int64
		what  string
	}{
		{"drop", func(r *report.Result) int64 { return r.Audit.Lost }, "lost"},
		{"ack-early", func(r *report.Result) int64 { return r.Audit.Lost }, "lost"},
		{"commit-early", func(r *report.Result) int64 { return r.Audit.Lost }, "lost"},
		{"ex-member", func(r *report.Result) int64 { return r.Audit.Foreign }, "foreign"},
	} {
		t.Run(plant.name, func(t *testing.T) {
			t.Parallel() // late or not, what is lost is lost
			code, res, said := smoke(t, "--plant", plant.name)
			if code != exitFail || plant.found(res) == 0 {
				t.Errorf("exit code %d, %d %s: want %d and some\n%s", code, plant.found(res), plant.what, exitFail, said)
			}
		})
	}
}

// A wrong command line says what to do and exits with 64.
func TestUsageErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"run"}, "accepts 1 arg"},
		{[]string{"run", "nonesuch"}, "nonesuch.yaml"},
		{[]string{"run", "smoke", "--stack", "moon"}, "embedded, containers, external, auto"},
		{[]string{"run", "smoke", "--stack", "external"}, "--target FILE"},
		{[]string{"run", "../../../scenarios/smoke.yaml", "--scale", "7"}, "1/5000"},
		{[]string{"run", "../../../scenarios/smoke.yaml", "--duration", "soon"}, "60s"},
		{[]string{"run", "../../../scenarios/smoke.yaml", "--plant", "roses"}, "commit-early"},
		{[]string{"report", "nowhere"}, "nowhere"},
		{[]string{"compare", "nowhere"}, "accepts 2 arg"},
		{[]string{"compare", "../../../testdata/runs/synthetic", "nowhere"}, "not a run folder"},
		{[]string{"compare", "../../../testdata/runs/synthetic", "../../../testdata/runs/synthetic", "--json", "--md"}, "one of them"},
		{[]string{"run", "smoke", "--agents", "2", "--agents-elsewhere", "1"}, "--listen host:port"},
		{[]string{"run", "../../../scenarios/smoke.yaml", "--agents", "500"}, `agents: given "500"`},
		{[]string{"agent"}, "--join nats://HOST:PORT"},
		{[]string{"fly"}, "unknown command"},
	} {
		var out, errs bytes.Buffer
		if code := run(c.args, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: exit code %d, said %q; want %d and %q", c.args, code, errs.String(), exitUsage, c.want)
		}
	}
}

func TestHelpNamesEveryVerb(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"--help"}, &out, &errs); code != exitPass {
		t.Fatalf("exit code %d: %s", code, errs.String())
	}
	for _, verb := range []string{"run", "agent", "scenario", "report", "compare", "version", "Exit codes"} {
		if !strings.Contains(out.String(), verb) {
			t.Errorf("--help does not mention %q", verb)
		}
	}
}

func TestDescribe(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"scenario", "describe", "../../../scenarios/groups_peak.yaml"}, &out, &errs); code != exitPass {
		t.Fatalf("exit code %d: %s", code, errs.String())
	}
	for _, want := range []string{"358.8", "979.5", "16,647", "100e9"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("describe does not print %s", want)
		}
	}
}

// The three forms of a comparison; what a run and itself differ in is nothing.
func TestCompare(t *testing.T) {
	const recorded = "../../../testdata/runs/synthetic"
	for flag, want := range map[string]string{"": "A: embedded", "--json": `"schema_version": 1`, "--md": "| A: embedded | B: embedded |"} {
		args := []string{"compare", recorded, recorded}
		if flag != "" {
			args = append(args, flag)
		}
		var out, errs bytes.Buffer
		if code := run(args, &out, &errs); code != exitPass || !strings.Contains(out.String(), want) {
			t.Errorf("%q: exit code %d, no %q in %s%s", flag, code, want, out.String(), errs.String())
		}
	}
}

// What is said to be at a relative path is there for who reads it.
func TestRelative(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for path, want := range map[string]string{filepath.Join(dir, "a", "report.html"): filepath.Join("a", "report.html"), "/elsewhere/report.html": "/elsewhere/report.html"} {
		if got := relative(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	t.Chdir("/")
	if got := relative("/a/report.html"); got != "/a/report.html" {
		t.Errorf("from the root, as in a container: %s", got)
	}
}

// The inbox comes before the other processes of a backend.
func TestPriorities(t *testing.T) {
	for _, x := range []struct {
		args []string
		want int
	}{{[]string{"chatd", "inbox", "--topology", "x"}, niceInbox}, {[]string{"chatd", "gateway"}, niceDefault}, {[]string{"embedded", "redis"}, niceDefault}, {[]string{"chatd"}, niceDefault}} {
		if got := niceOf(x.args); got != x.want {
			t.Errorf("%q runs at %d, want %d", x.args, got, x.want)
		}
	}
}
