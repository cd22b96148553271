package system

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRelaxTimers: the process goes on as the one it was, with the slack in
// threads that the runtime makes, or leaves alone what somebody has set.
func TestRelaxTimers(t *testing.T) {
	const env = "THRONG_TEST_SLACK"
	if os.Getenv(env) != "" {
		if err := RelaxTimers(); err != nil {
			t.Fatal(err)
		}
		slack := make(chan int)
		go func() { // in another thread than the first
			n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
			if err != nil {
				t.Error(err)
			}
			slack <- n
		}()
		name, err := os.ReadFile("/proc/self/comm")
		if err != nil {
			t.Error(err)
		}
		_, err = os.Stdout.WriteString("pid " + strconv.Itoa(os.Getpid()) + " slack " + time.Duration(<-slack).String() + " " + string(name))
		if err != nil {
			t.Error(err)
		}
		return
	}
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := time.Duration(before)
	if want == timerSlackDefault {
		want = timerSlack
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRelaxTimers$")
	cmd.Env = append(os.Environ(), env+"=1")
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	name := filepath.Base(os.Args[0])
	if line := "pid " + strconv.Itoa(cmd.Process.Pid) + " slack " + want.String() + " " + name[:min(len(name), 15)]; !strings.Contains(out.String(), line) {
		t.Errorf("no %q in\n%s", line, out.String())
	}
}
