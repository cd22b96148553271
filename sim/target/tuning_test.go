package target

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"throng/system"
)

// What processes are started with: their part of the cores, and less collection
// than Go's default, unless the deployment or the environment says otherwise.
func TestTuning(t *testing.T) {
	roles := []string{roleRedis, string(system.Inbox), string(system.Gateway), string(system.Message)}
	for len(roles) < 8*runtime.NumCPU() {
		roles = append(roles, string(system.Push))
	}
	start := func(tuned map[string]Tuning) map[string][]string {
		e := &Embedded{cfg: EmbeddedConfig{Tuning: tuned}}
		for _, role := range roles {
			e.add(&child{role: role, infra: role == roleRedis})
		}
		e.shareCores()
		env := map[string][]string{}
		for _, c := range e.children {
			env[c.role] = c.env
		}
		return env
	}
	check := func(env map[string][]string, role string, want ...string) {
		t.Helper()
		if !slices.Equal(env[role], want) {
			t.Errorf("%s starts with %q, want %q", role, env[role], want)
		}
	}
	t.Setenv("GOMAXPROCS", "")
	t.Setenv("GOGC", "")
	inbox := []string{"GOGC=400"}
	if runtime.NumCPU() > inboxLoops { // else the default is as many
		inbox = append(inbox, fmt.Sprintf("GOMAXPROCS=%d", inboxLoops))
	}
	env := start(map[string]Tuning{string(system.Message): {GOGC: 50, GOMAXPROCS: 3}})
	check(env, string(system.Inbox), inbox...)
	check(env, string(system.Message), "GOGC=50", "GOMAXPROCS=3")
	if runtime.NumCPU() > 1 {
		check(env, roleRedis, "GOGC=400", "GOMAXPROCS=1")
		check(env, string(system.Gateway), "GOGC=200", "GOMAXPROCS=1")
	}
	t.Setenv("GOMAXPROCS", "7")
	t.Setenv("GOGC", "30")
	env = start(nil)
	check(env, roleRedis)
	check(env, string(system.Gateway))
}
