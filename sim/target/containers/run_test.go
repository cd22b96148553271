package containers

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"throng/sim/history"
)

// besideScenario is a small run that is interrupted. Its gateway is limited.
const besideScenario = `
name: beside
question: Does a run beside another one get in its way?
seed: 3
rates: {users: 5000, sends_per_s: 30, logins_per_s: 5, mean_session: 20s, chat_tempo: 40, burst_share: 0.96}
limits: {gateway: {cpus: 0.75, memory: 256MiB}}
phases: {provision: 3s, ramp: 1s, backlog: 1s, warmup: 1s, steady: 300s, settle: 1s, proof: 10s, report: 2s}
`

// throngRun is a `throng run` on containers, as a person starts it.
type throngRun struct {
	cmd     *exec.Cmd
	out     *watched
	tmp     string // its folder for temporary files, by which its containers are found
	dir     string // the run folder
	started time.Time
}

func startRun(t *testing.T, exe, scenario, at string, args ...string) *throngRun {
	t.Helper()
	r := &throngRun{out: watch(at), tmp: t.TempDir(), dir: filepath.Join(t.TempDir(), "run"), started: time.Now()}
	r.cmd = exec.Command(exe, append([]string{"run", scenario, "--stack", "containers", "--out", r.dir}, args...)...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.tmp)
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // nothing happens to one that has ended
		_ = r.cmd.Process.Kill()
	})
	return r
}

// wait returns the exit code, and the run that was recorded.
func (r *throngRun) wait(t *testing.T, limit time.Duration) (int, *history.Run) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- r.cmd.Wait() }()
	select {
	case err := <-ended:
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
	case <-time.After(limit):
		_ = r.cmd.Process.Kill()
		<-ended
		t.Fatalf("it has not ended after %s:\n%s", limit, r.out)
	}
	run, err := history.Open(r.dir)
	if err != nil {
		t.Fatalf("exit code %d, %v\n%s", r.cmd.ProcessState.ExitCode(), err, r.out)
	}
	return r.cmd.ProcessState.ExitCode(), run
}

// own calls f for each container of the run, running or not.
func (r *throngRun) own(t *testing.T, f func(api client.APIClient, id, role string)) {
	t.Helper()
	p, err := connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Client().Close()
	list, err := p.Client().ContainerList(t.Context(), client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", labelRun)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Items {
		if strings.HasPrefix(c.Labels[labelLock], r.tmp) {
			f(p.Client(), c.ID, c.Labels[labelRole])
		}
	}
}

func (r *throngRun) leftNothing(t *testing.T) {
	t.Helper()
	r.own(t, func(_ client.APIClient, id, role string) { t.Errorf("container %s of %s is left", id[:12], role) })
	left, err := filepath.Glob(filepath.Join(r.tmp, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

// TestFaultsUnderLoad runs the scenario of the infrastructure's faults with the
// real command, and beside it another run, which is interrupted.
func TestFaultsUnderLoad(t *testing.T) {
	needDocker(t)
	exe := filepath.Join(t.TempDir(), "throng")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", exe, "./sim/cmd/throng")
	build.Dir, build.Env = filepath.Join("..", "..", ".."), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	beside := filepath.Join(t.TempDir(), "beside.yaml")
	if err := os.WriteFile(beside, []byte(besideScenario), 0o600); err != nil {
		t.Fatal(err)
	}
	a := startRun(t, exe, filepath.Join("..", "..", "..", "scenarios", "infra_faults.yaml"), ` *\d+s steady`)
	b := startRun(t, exe, beside, ` *\d+s steady`, "--image", "redis="+redisImage(t))

	select {
	case <-b.out.seen:
	case <-time.After(3 * time.Minute):
		t.Fatalf("the run beside never came to its steady phase:\n%s\n%s", b.out, a.out)
	}
	t.Logf("the run beside carries load after %s", time.Since(b.started))
	resourcesAreAsSaid(t, b)
	if err := b.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	code, run := b.wait(t, time.Minute)
	if code != 2 || !run.Manifest.Interrupted || run.Audit == nil || run.Audit.Lost+run.Audit.Duplicated+run.Audit.Foreign != 0 || run.Audit.Expected == 0 {
		t.Errorf("interrupted: exit code %d, audit %+v\n%s", code, run.Audit, b.out)
	}
	if v := run.Manifest.Versions["image.redis"]; !strings.HasPrefix(v, redisImage(t)+" ") {
		t.Errorf("image of Redis: %q", v)
	}
	b.leftNothing(t)

	code, run = a.wait(t, 4*time.Minute)
	if code != 0 {
		t.Errorf("exit code %d\n%s", code, a.out)
	}
	t.Logf("the run took %s: %+v", time.Since(a.started), run.Audit)
	nothingWrong(t, run)
	faultsHappened(t, run)
	a.leftNothing(t)
}

func redisImage(t *testing.T) string {
	t.Helper()
	p, err := connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Client().Close()
	r, err := ImagesFromEnv(os.Getenv).resolve(t.Context(), p.Client())
	if err != nil {
		t.Fatal(err)
	}
	return r.redis
}

// resourcesAreAsSaid demands the limits of the scenario for the gateway
// and for nobody else, and for the generator alone more of the CPU than the rest have.
func resourcesAreAsSaid(t *testing.T, r *throngRun) {
	t.Helper()
	seen := map[string]int{}
	r.own(t, func(api client.APIClient, id, role string) {
		info, err := api.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		seen[role]++
		h := info.Container.HostConfig
		cpus, mem, shares := int64(0), int64(0), int64(0)
		switch role {
		case "gateway":
			cpus, mem = 75e7, 256<<20
		case RoleGenerator:
			shares = generatorShares
		}
		if h.NanoCPUs != cpus || h.Memory != mem || h.CPUShares != shares {
			t.Errorf("limits of %s: %+v", role, h.Resources)
		}
	})
	if seen["gateway"] != 1 || seen[RoleGenerator] != 1 {
		t.Errorf("containers by role: %v", seen)
	}
}

// nothingWrong demands a clean audit of a load worth the name.
func nothingWrong(t *testing.T, run *history.Run) {
	t.Helper()
	a := run.Audit
	if a == nil {
		t.Fatal("no audit")
	}
	if a.Lost+a.Duplicated+a.Reordered+a.Foreign+a.Unproved+a.Unanswered != 0 || a.Expected != a.Proved {
		t.Errorf("audit %+v", a)
	}
	if a.Redelivered == 0 {
		t.Error("nothing was redelivered: the faults interrupted nothing")
	}
	i := slices.IndexFunc(run.Manifest.Phases, func(p history.Phase) bool { return p.Name == "steady" })
	if i < 0 {
		t.Fatal("no steady phase")
	}
	steady := run.Manifest.Phases[i]
	accepted := int64(0)
	for _, s := range run.Seconds {
		if s.T > steady.Start && s.T <= steady.End {
			accepted += s.Accepted
		}
	}
	if rate := float64(accepted) / (steady.End - steady.Start); rate < 100 {
		t.Errorf("%.0f sends/s were accepted in the steady phase, want 100", rate)
	}
}

// faultsHappened demands that each fault hit a system at work, and that it was
// felt where it must be.
func faultsHappened(t *testing.T, run *history.Run) {
	t.Helper()
	at := map[string]float64{}
	keys := 0
	for _, e := range run.Events {
		if e.Kind == "fault" || e.Kind == "restart" {
			what, _, _ := strings.Cut(e.Detail, ",")
			at[e.Kind+" "+what] = e.T
			t.Logf("%5.1f s  %s %s", e.T, e.Kind, e.Detail)
		}
		_, _ = fmt.Sscanf(e.Detail, "flush redis/0, %d keys", &keys)
	}
	if keys < 100 {
		t.Errorf("Redis had %d keys when it was emptied", keys)
	}
	for _, what := range []string{"fault flush redis/0", "fault kill mysql/1", "fault kill mysql/0", "restart mysql/0", "fault kill kafka/0", "restart kafka/0"} {
		if at[what] == 0 {
			t.Fatalf("no %s in %v", what, at)
		}
		if n := writtenAround(run, at[what]); n < 20 {
			t.Errorf("%s: %d sends were written around it", what, n)
		}
	}
	for _, what := range []string{"mysql/0", "kafka/0"} {
		down, up := at["fault kill "+what], at["restart "+what]
		before, most := inFlight(run, down-2, down), inFlight(run, down, up+3)
		t.Logf("%s: away for %.1f s, sends in flight %d before, at most %d", what, up-down, before, most)
		if most < before+25 {
			t.Errorf("%s: sends in flight went from %d to %d: nobody missed it", what, before, most)
		}
		if running, _ := ran(run, what, down, up+1); running {
			t.Errorf("%s was not away between %.1f and %.1f s", what, down, up)
		}
		if _, last := ran(run, what, up, math.Inf(1)); !last {
			t.Errorf("%s did not come back", what)
		}
	}
	lost := at["fault kill mysql/1"]
	if before, _ := ran(run, "mysql/1", 0, lost-1); !before {
		t.Errorf("the replica was not there until %.1f s", lost)
	}
	if _, last := ran(run, "mysql/1", lost, math.Inf(1)); last {
		t.Error("the replica is there again")
	}
}

func writtenAround(run *history.Run, at float64) (n int64) {
	for _, s := range run.Seconds {
		if s.T > at-1 && s.T < at+2 {
			n += s.Written
		}
	}
	return n
}

// inFlight is the most sends that were written and not answered.
func inFlight(run *history.Run, from, to float64) (most int64) {
	for _, s := range run.Seconds {
		if s.T > from && s.T <= to {
			most = max(most, s.InFlight)
		}
	}
	return most
}

// ran says whether every sample of a container in that time, and whether the
// last one, shows that it runs.
func ran(run *history.Run, name string, from, to float64) (always, last bool) {
	always = true
	for _, s := range run.Roles {
		if fmt.Sprintf("%s/%d", s.Role, s.Instance) == name && s.T > from && s.T <= to {
			last = s.RSSBytes > 0
			always = always && last
		}
	}
	return always, last
}
