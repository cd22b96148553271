package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"throng/sim/history"
	"throng/sim/report"
	"throng/sim/scenario"
	"throng/sim/target"
	"throng/sim/target/external"
	"throng/system"
	"throng/system/wire"
)

// externalScenario is a few seconds of everything: groups, members removed and
// a kill.
const externalScenario = `
name: outside
question: Does a deployment that throng has not started carry it?
preset: B
seed: 11
rates: {users: 5000, sends_per_s: 60, logins_per_s: 8, mean_session: 10s, chat_tempo: 40, burst_share: 0.96}
phases: {provision: 3s, ramp: 1s, backlog: 1s, warmup: 1s, steady: 6s, settle: 1s, proof: 4s, report: 2s}
push_delay: 1s
backlog_rows_per_login: 1
reply_hold_limit: 15s
ack_timeout: 3s
%s
gates: {generator_late_p99_ms: 0, fanout_mean_tolerance: 0.6, rate_tolerance: 0.6, min_deliveries: 300}
`

const externalFaults = "membership: {removals_per_s: 1, additions_per_s: 1}\nfaults: [{at: 1s, kill: message/0}]\n"

// somebodys starts a deployment that the command under test knows nothing of.
func somebodys(t *testing.T) (*target.Embedded, wire.Key) {
	t.Helper()
	key := wire.Key(strings.Repeat("x", wire.MinKeyBytes))
	tgt, err := target.NewEmbedded(target.EmbeddedConfig{Key: key, LogDir: t.TempDir(), WorkDir: t.TempDir(),
		Topology: target.Topology{Gateways: 1, Messages: 1, Fanouts: 1, Groups: 1, Inboxes: 1, Pushes: 1, Partitions: 4},
		Settings: system.Settings{PushDelay: system.Duration(time.Second)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tgt.Close(context.Background()); err != nil {
			t.Errorf("close target: %v", err)
		}
	})
	if err := tgt.Start(t.Context(), func(string) {}); err != nil {
		t.Fatal(err)
	}
	return tgt, key
}

// targetFile describes a deployment with all it can.
func targetFile(tgt *target.Embedded) string {
	c := tgt.Config()
	var b strings.Builder
	fmt.Fprintf(&b, "gateways: [%q]\nkey_env: OUTSIDE_KEY\nprovisioning_url: http://%s\npushes_url: %s\npartitions: %d\ncpu: true\nversions: {kafka: kfake}\ninstances:\n",
		tgt.Gateways()[0], c.Groups[0].HTTP, c.Provider.URL, c.Kafka.Partitions)
	pids := map[string]int{}
	for _, r := range tgt.Roles() {
		pids[r.Role] = r.PID
	}
	for role, debug := range map[string]string{"gateway": c.Gateways[0].Debug, "message": c.Messages[0].Debug, "fanout": c.Fanouts[0].Debug,
		"group": c.Groups[0].Debug, "inbox": c.Inboxes[0].Debug, "push": c.Pushes[0].Debug} {
		fmt.Fprintf(&b, "  - {role: %s, metrics: \"http://%s/metrics\"", role, debug)
		if role == "message" { // its supervisor, the embedded target, starts it again
			fmt.Fprintf(&b, ", kill: [kill, \"-KILL\", %q], restart: [\"true\"]", strconv.Itoa(pids[role]))
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// outside runs the scenario with the target file and returns what came of it.
func outside(t *testing.T, scenarioText, targetText string, args ...string) (code int, dir, said string) {
	t.Helper()
	work := t.TempDir()
	dir = filepath.Join(work, "run")
	for name, text := range map[string]string{"outside.yaml": scenarioText, "target.yaml": targetText} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	code = run(append([]string{"run", filepath.Join(work, "outside.yaml"), "--stack", "external", "--target", filepath.Join(work, "target.yaml"), "--out", dir}, args...), &out, &errs)
	return code, dir, errs.String() + out.String()
}

// reasons are those that do not say that the generator had too little of its
// machine, which is true where other tests run beside this one.
func reasons(res *report.Result) []string {
	return slices.DeleteFunc(slices.Clone(res.Reasons), func(why string) bool { return strings.Contains(why, "the generator") })
}

// passed says whether a run passed, or would have on a machine of its own.
func passed(code int, res *report.Result) bool {
	return code == exitPass || code == exitInconclusive && len(res.Reasons) > 0 && len(reasons(res)) == 0
}

// A deployment of somebody else is provisioned, loaded, hurt, measured and
// proved, twice, and is still there afterwards.
func TestExternal(t *testing.T) {
	tgt, key := somebodys(t)
	t.Setenv("OUTSIDE_KEY", key.String())
	file := targetFile(tgt)
	code, dir, said := outside(t, fmt.Sprintf(externalScenario, externalFaults), file)
	res, err := report.Read(dir)
	if err != nil {
		t.Fatalf("exit code %d: %v\n%s", code, err, said)
	}
	if !passed(code, res) || res.Target != "external" || res.Audit.Proved < 300 || res.Audit.Lost != 0 || res.Audit.PushChecked+res.Audit.Live == 0 {
		t.Errorf("exit code %d, target %s, audit %+v\n%s", code, res.Target, res.Audit, said)
	}
	checkStages(t, res, "several")
	h, err := history.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Manifest.Missing) != 0 || h.Manifest.Versions["kafka"] != "kfake" {
		t.Errorf("missing %+v, versions %v", h.Manifest.Missing, h.Manifest.Versions)
	}
	restarted := false
	for _, e := range h.Events {
		restarted = restarted || e.Kind == "restart" && e.Detail == "message/0"
	}
	steady, _ := h.Phase("steady")
	cpu, measured := h.RoleCPU("message", steady.Start, steady.End)
	if !restarted || !measured || cpu <= 0 {
		t.Errorf("message/0 restarted: %v, CPU %g s, known: %v", restarted, cpu, measured)
	}
	// A second run, with users of its own, and a feed of pushes that is none.
	deaf := strings.Replace(file, "pushes_url: "+tgt.Config().Provider.URL, "pushes_url: http://"+tgt.Config().Groups[0].HTTP, 1)
	code, dir, said = outside(t, fmt.Sprintf(externalScenario, ""), deaf)
	if res, err = report.Read(dir); err != nil {
		t.Fatal(err)
	}
	if code != exitInconclusive || len(reasons(res)) != 1 || !strings.Contains(reasons(res)[0], "the feed of accepted pushes ended before the run") || res.Audit.Proved < 300 {
		t.Errorf("second run: exit code %d, reasons %q\n%s", code, res.Reasons, said)
	}
}

// Without metrics the proof waits instead of asking, and without a feed of
// pushes the audit of them is missing, which is no pass.
func TestExternalBlind(t *testing.T) {
	if raceEnabled {
		t.Skip("the same run as TestExternal, with less to see")
	}
	tgt, key := somebodys(t)
	file := fmt.Sprintf("gateways: [%q]\nkey: %s\nprovisioning_url: http://%s\n", tgt.Gateways()[0], key, tgt.Config().Groups[0].HTTP)
	code, dir, said := outside(t, fmt.Sprintf(externalScenario, ""), file)
	res, err := report.Read(dir)
	if err != nil {
		t.Fatalf("exit code %d: %v\n%s", code, err, said)
	}
	if code != exitInconclusive || len(reasons(res)) != 1 || !strings.Contains(reasons(res)[0], "pushes_url in target.yaml") {
		t.Errorf("exit code %d, reasons %q\n%s", code, res.Reasons, said)
	}
	why := res.Estimate.NotUsable
	if res.Audit.Proved < 300 || res.Audit.Lost+res.Audit.Unproved+res.Audit.PushMissing != 0 || !strings.Contains(why, "cpu: true") && !strings.HasPrefix(why, "the generator was the limit") {
		t.Errorf("audit %+v, estimate: %s", res.Audit, why)
	}
}

// What the target does not allow or the scenario cannot do without ends before
// anything is connected.
func TestExternalRefusals(t *testing.T) {
	const gateway = "gateways: [\"ws://127.0.0.1:1\"]\nkey_env: OUTSIDE_KEY\n"
	const groups = "provisioning_url: http://127.0.0.1:1\n"
	t.Setenv("OUTSIDE_KEY", wire.Key(strings.Repeat("x", wire.MinKeyBytes)).String())
	for _, c := range []struct {
		name, extra, file string
		args              []string
		code              int
		want              string
	}{
		{"kill", externalFaults, gateway + groups, nil, exitInconclusive, "the scenario kills message/0, which needs the capability kill: declare kill and restart for it under instances in target.yaml"},
		{"flush", "faults: [{at: 1s, flush: redis/0}]", gateway + groups, nil, exitInconclusive, "the scenario flushes redis/0: declare flush for it under instances in target.yaml"},
		{"members", "membership: {removals_per_s: 1}", gateway + "provisioned: true\n", nil, exitInconclusive, "needs the capability provisioning: declare provisioning_url in target.yaml"},
		{"users", "", gateway, nil, exitInconclusive, "or provisioned: true if they are there"},
		{"rate", "extra: [{name: much, group_size: 100, sends: 600}]", gateway + groups, nil, exitUsage, "plans 160 sends/s in its steady phase"},
		{"rate of the file", "", gateway + groups + "max_sends_per_s: 20\n", nil, exitUsage, "--max-rate 60 allows it"},
		{"rate of the flag", "", gateway + groups, []string{"--max-rate", "30"}, exitUsage, "may get at most 30"},
		{"raised", "extra: [{name: much, group_size: 100, sends: 600}]", gateway + groups, []string{"--max-rate", "160"}, exitUnavailable, "does not answer"},
		{"host", "", strings.Replace(gateway, "127.0.0.1", "chat.example.org", 1) + groups, nil, exitUsage, "target.yaml:1:12: gateways[0]: given \"chat.example.org\""},
		{"plant", "", gateway + groups, []string{"--plant", "drop"}, exitUsage, "--plant is for targets"},
		{"down", "", gateway + groups, nil, exitUnavailable, "does not answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, dir, said := outside(t, fmt.Sprintf(externalScenario, c.extra), c.file, c.args...)
			if code != c.code || !strings.Contains(said, c.want) {
				t.Errorf("exit code %d, want %d and %q:\n%s", code, c.code, c.want, said)
			}
			if c.code != exitInconclusive {
				return
			}
			res, err := report.Read(dir)
			if err != nil || res.Verdict != report.Inconclusive || len(res.Reasons) != 1 || !strings.Contains(res.Reasons[0], c.want) {
				t.Errorf("result: %v, %+v", err, res)
			}
		})
	}
}

func TestExternalIsNamed(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--stack", "external"}, "needs --target FILE"},
		{[]string{"--target", "t.yaml"}, "--target is for --stack external"},
		{[]string{"--max-rate", "5"}, "--max-rate is for --stack external"},
		{[]string{"--stack", "external", "--target", "nonesuch.yaml"}, "nonesuch.yaml"},
	} {
		var out, errs bytes.Buffer
		code := run(append([]string{"run", "../../../scenarios/smoke.yaml"}, c.args...), &out, &errs)
		if code != exitUsage || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: exit code %d, want %d and %q: %s", c.args, code, exitUsage, c.want, errs.String())
		}
	}
}

// The rate that counts is the highest of any phase, and the way out is one that
// works.
func TestRateCap(t *testing.T) {
	spec, err := scenario.Load("../../../scenarios/direct_steady.yaml")
	if err != nil {
		t.Fatal(err)
	}
	err = checkRate(spec, &external.File{Path: "t.yaml", MaxSendsPerS: external.DefaultMaxSendsPerS}, 0)
	if err == nil {
		t.Fatal("the scenario is below 100 sends/s: it tests nothing")
	}
	_, rest, ok := strings.Cut(err.Error(), "--scale ")
	share, _, _ := strings.Cut(rest, " ")
	scale, perr := parseRatio(share)
	if !ok || perr != nil {
		t.Fatalf("no scale in %q", err)
	}
	if spec, err = spec.WithOverrides(&scale, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := checkRate(spec, &external.File{MaxSendsPerS: external.DefaultMaxSendsPerS}, 0); err != nil {
		t.Errorf("--scale %s: %v", share, err)
	}
}

// Tokens that were made before must be there for everybody.
func TestExternalTokens(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tokens"), []byte("1 0 x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := "gateways: [\"ws://127.0.0.1:1\"]\nprovisioned: true\ntokens_file: " + filepath.Join(dir, "tokens") + "\n"
	if code, _, said := outside(t, fmt.Sprintf(externalScenario, ""), file); code != exitUsage || !strings.Contains(said, "lacks") {
		t.Errorf("exit code %d: %s", code, said)
	}
}
