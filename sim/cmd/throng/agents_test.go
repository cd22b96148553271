package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"throng/sim/history"
	"throng/sim/report"
)

// A short run whose messages go from agent to agent. Its gates are those of a
// machine that is busy with other tests.
const crewSpec = `name: crew
question: Does a run of several agents prove what it delivers?
seed: 11
rates: {users: 4000, sends_per_s: 120, logins_per_s: 10, mean_session: 20s, chat_tempo: 40, burst_share: 0.9}
topology: {gateways: 2}
phases: {provision: 2s, ramp: 1s, backlog: 1s, warmup: 1s, steady: %s, settle: 500ms, proof: 4s}
membership: {removals_per_s: 1, additions_per_s: 1, creates_per_s: 1}
push_delay: 2s
gates: {generator_late_p99_ms: 0, fanout_mean_tolerance: 0, rate_tolerance: 0}
`

// crewRun starts a run of agents; what it said and its exit code come through the
// channel.
func crewRun(t *testing.T, steady string, args ...string) (dir string, done <-chan string, code *int) {
	t.Helper()
	return crewRunOf(t, fmt.Sprintf(crewSpec, steady), args...)
}

func crewRunOf(t *testing.T, spec string, args ...string) (dir string, done <-chan string, code *int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "crew.yaml")
	if err := os.WriteFile(file, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "run")
	said := make(chan string, 1)
	code = new(int)
	go func() {
		var out, errs bytes.Buffer
		*code = run(append([]string{"run", file, "--stack", "embedded", "--out", dir}, args...), &out, &errs)
		said <- errs.String() + out.String()
	}()
	return dir, said, code
}

// awaitPhase waits until the run folder has a second of a phase.
func awaitPhase(t *testing.T, dir, phase string) {
	t.Helper()
	if !poll(t, 2*time.Minute, func() bool {
		b, err := os.ReadFile(filepath.Join(dir, history.FileSeries))
		return err == nil && strings.Contains(string(b), ","+phase+",")
	}) {
		t.Fatalf("the run never came to its %s phase", phase)
	}
}

// Sender and receiver with different agents: everything is proved, counts and
// histograms are those of all agents together, and the report names them.
func TestAgentsProveWhatTheyDeliver(t *testing.T) {
	if raceEnabled {
		t.Skip("the roles under the race detector are the kill test's")
	}
	dir, done, code := crewRun(t, "3s", "--agents", "2")
	said := <-done
	res, err := report.Read(dir)
	if err != nil {
		t.Fatalf("no result: %v\n%s", err, said)
	}
	a := res.Audit
	if *code != exitPass || a.Proved == 0 || a.Proved != a.Expected || a.Foreign+a.Reordered+a.Duplicated != 0 {
		t.Fatalf("exit code %d, audit %+v, reasons %q\n%s", *code, a, res.Reasons, said)
	}
	h, err := history.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var sum history.Second
	for _, s := range h.Seconds {
		sum = sum.Plus(s)
	}
	if sum.Accepted != a.Acknowledged || sum.Live+sum.Drained+sum.Transition+sum.Proof != a.Live+a.Drain+a.Transition+a.Proof {
		t.Errorf("the series has %+v, the audit %+v", sum, a)
	}
	if n := h.MergedAll(history.KindSent).TotalCount(); n != a.Acknowledged {
		t.Errorf("%d latencies of %d sends", n, a.Acknowledged)
	}
	agents := res.Generator.Agents
	if len(agents) != 2 || agents[0].Actions == 0 || agents[1].Actions == 0 || !agents[0].SameClock {
		t.Errorf("agents: %+v", agents)
	}
	if n := len(res.Generator.Rig); n != 2 {
		t.Errorf("%d rigs were watched, want those of 2 agents", n)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "audit*.spool")); len(left) != 0 {
		t.Errorf("spools of a clean run are left: %v", left)
	}
}

// What the users of one agent upload those of the other fetch too: the audit and
// the latencies, the whole way among them, are those of both.
func TestAgentsTransferMedia(t *testing.T) {
	if raceEnabled {
		t.Skip("the roles under the race detector are the kill test's")
	}
	dir, done, code := crewRunOf(t, fmt.Sprintf(crewSpec, "3s")+"media: {share: 1, byte_scale: 0.02, interrupt_share: 0.2}\n", "--agents", "2")
	said := <-done
	res, err := report.Read(dir)
	if err != nil {
		t.Fatalf("no result: %v\n%s", err, said)
	}
	m := res.Audit.Media
	if *code != exitPass || m == nil || m.Uploads < 20 || m.Resumed == 0 || m.Pairs < 20 || m.Proved != m.Pairs || m.UploadsFailed+m.Corrupt+m.Missing != 0 {
		t.Fatalf("exit code %d, media %+v, reasons %q\n%s", *code, m, res.Reasons, said)
	}
	h, err := history.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	uploads, fetches := int64(0), int64(0)
	for _, c := range history.MediaClasses {
		uploads += h.MergedAll(history.KindMediaUploadOf + c.Name).TotalCount()
		fetches += h.MergedAll(history.KindMediaFetchOf + c.Name).TotalCount()
	}
	whole := h.MergedAll(history.KindMediaWhole)
	if n := h.MergedAll(history.KindMediaUpload).TotalCount(); n != m.Uploads || uploads != n {
		t.Errorf("%d latencies of %d uploads, %d by size", n, m.Uploads, uploads)
	}
	if n := h.MergedAll(history.KindMediaFetch).TotalCount(); n == 0 || n > m.Pairs || fetches != n {
		t.Errorf("%d latencies of %d fetches, %d by size", n, m.Pairs, fetches)
	}
	if whole.TotalCount() == 0 || whole.Max() > 5*60*1e6 {
		t.Errorf("%d fetches by who was online, the longest took %d us the whole way", whole.TotalCount(), whole.Max())
	}
	for _, a := range res.Generator.Agents {
		if a.Actions == 0 {
			t.Errorf("agent %d played nothing", a.Number)
		}
	}
	if !strings.Contains(said, "Media: ") || !strings.Contains(said, "p99 of uploads: ") {
		t.Errorf("nothing is said of media:\n%s", said)
	}
}

// agentPID finds a process that this one started as an agent.
func agentPID(t *testing.T) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(all) == 0 {
		t.Skip("no /proc")
	}
	for _, file := range all {
		b, _ := os.ReadFile(file) // it may have ended
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "stat"))
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		if bytes.Contains(b, []byte("\x00agent\x00--join\x00")) && len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no agent runs")
	return 0
}

// An agent that is killed takes what it knows with it: the run ends early, says
// nothing about the system, and names it.
func TestKilledAgentIsNamed(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("starts a whole run")
	}
	dir, done, code := crewRun(t, "60s", "--agents", "2")
	awaitPhase(t, dir, "steady")
	if err := syscall.Kill(agentPID(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	said := <-done
	res, err := report.Read(dir)
	if err != nil {
		t.Fatalf("no result: %v\n%s", err, said)
	}
	if *code != exitInconclusive || len(res.Reasons) != 1 || !strings.Contains(res.Reasons[0], "died: its process ended: signal: killed") || !strings.HasPrefix(res.Reasons[0], "agent ") {
		t.Errorf("exit code %d, reasons %q\n%s", *code, res.Reasons, said)
	}
	if res.Estimate.NotUsable == "" {
		t.Error("there is a plan of a run whose agent died")
	}
}

// Ctrl-C ends the load of all agents; what was sent is proved.
func TestInterruptedAgentsStillProve(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("starts a whole run")
	}
	dir, done, code := crewRun(t, "60s", "--agents", "2")
	awaitPhase(t, dir, "steady")
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	said := <-done
	res, err := report.Read(dir)
	if err != nil {
		t.Fatalf("no result: %v\n%s", err, said)
	}
	if a := res.Audit; *code != exitInconclusive || a == nil || a.Proved == 0 || a.Proved != a.Expected || !strings.Contains(strings.Join(res.Reasons, " "), "interrupted") {
		t.Errorf("exit code %d, audit %+v, reasons %q\n%s", *code, a, res.Reasons, said)
	}
	for _, x := range res.Generator.Agents {
		if x.Died != "" {
			t.Errorf("agent %d died of it: %s", x.Number, x.Died)
		}
	}
}
