package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/target"
	"throng/sim/workload"
	"throng/system"
)

// The kill test: every role dies by SIGKILL killsOfRole times, each time in the middle
// of a burst.
const (
	killsOfRole     = 5
	burstEvery      = 2500 * time.Millisecond
	spareBursts     = 3 // for kills whose recovery took longer than burstEvery
	killRamp        = 4 * time.Second
	killBurst       = 600 // sends of one instant
	killGroups      = 50
	killGroupSize   = 20
	killOffline     = 2 // members of each group who never open the app
	minUnanswered   = 100
	minDeliveries   = 1000
	killWithin      = 80 * time.Millisecond
	restartAfter    = 300 * time.Millisecond
	killTestSeed    = 20261124
	killTestPush    = time.Second
	killTestSpecFmt = `
name: kills
question: Does anything get lost when processes die?
preset: B
seed: %d
rates: {users: 100000, sends_per_s: 10, logins_per_s: 10, mean_session: 30s}
topology: {gateways: 2, messages: 2, fanouts: 2, groups: 1, inboxes: 2, pushes: 1, partitions: 8}
phases: {provision: 5s, ramp: %s, backlog: 1s, warmup: 1s, steady: %s, settle: 5s, proof: 60s}
push_delay: %s
push_every: 10s
`
)

// killSchedule has all but killOffline members of every group online, and a
// burst of group sends every so often.
func killSchedule(spec *scenario.Spec, pop *population.Population, bursts int, every time.Duration) *workload.Schedule {
	end := time.Duration((spec.Phases.RampS + spec.Phases.BacklogS + spec.Phases.WarmupS + spec.Phases.SteadyS) * float64(time.Second))
	var actions []workload.Action
	var writers [][]uint64
	var groups []uint64
	opened := map[uint64]bool{}
	for g := range killGroups {
		id, members := pop.BigGroup(g, killGroupSize)
		groups, writers = append(groups, id), append(writers, members[killOffline:])
		for _, u := range members[killOffline:] {
			if !opened[u] {
				opened[u] = true
				actions = append(actions, workload.Action{Kind: workload.Open, At: time.Duration(len(opened)) * killRamp / (killGroups * killGroupSize), Until: end,
					User: u, Conv: workload.Conv{Group: id}, ReplyTo: -1, Index: -1, Stratum: -1})
			}
		}
	}
	start := killRamp + 2*time.Second
	for b := range bursts {
		for i := range killBurst {
			g := i % killGroups
			actions = append(actions, workload.Action{Kind: workload.Send, At: start + time.Duration(b)*every,
				User: writers[g][(b+i/killGroups)%len(writers[g])], Conv: workload.Conv{Group: groups[g]},
				BodyLen: 100, ReplyTo: -1, Index: -1, Stratum: -1})
		}
	}
	return workload.Custom(spec, pop, actions)
}

// Rules 1 to 9 under real kills: nothing acknowledged is lost, doubled or
// reordered, and the kills did interrupt something.
func TestKillEveryRole(t *testing.T) {
	roles := []string{"gateway", "message", "fanout", "group", "inbox", "push"}
	kills := killsOfRole * len(roles)
	every := burstEvery
	if raceEnabled { // the roles run under the detector too, many times slower
		kills, every = len(roles), 2*burstEvery
	}
	bursts := kills + spareBursts
	steady := time.Duration(bursts+1) * every
	spec, err := scenario.Parse("kills", fmt.Appendf(nil, killTestSpecFmt, killTestSeed, killRamp, steady, killTestPush))
	if err != nil {
		t.Fatal(err)
	}
	pop := population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices)
	dir := t.TempDir()
	start := time.Now()
	w, err := history.Create(dir, &history.Manifest{FormatVersion: history.FormatVersion, Scenario: spec.Name, Start: start})
	if err != nil {
		t.Fatal(err)
	}
	tgt, err := target.NewEmbedded(target.EmbeddedConfig{
		Topology: target.Topology{Gateways: 2, Messages: 2, Fanouts: 2, Groups: 1, Inboxes: 2, Pushes: 1, Partitions: 8},
		LogDir:   filepath.Join(dir, "logs"), Settings: system.Settings{PushDelay: system.Duration(killTestPush), PushEvery: system.Duration(10 * time.Second)}, KeepDead: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tgt.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("close target: %v", err)
		}
	}()
	if err := tgt.Start(t.Context(), func(string) {}); err != nil {
		t.Fatal(err)
	}
	spool, err := createSpool(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	engine, err := load.New(load.Config{Spec: spec, Population: pop, Schedule: killSchedule(spec, pop, bursts, every), Target: engineTarget{tgt}, History: w, Spool: spool, Start: start})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	killed := 0
	go func() {
		defer close(done)
		rng := rand.New(rand.NewPCG(killTestSeed, 1))
		for k := range kills {
			role := roles[k%len(roles)]
			instance := (k / len(roles)) % map[string]int{"gateway": 2, "message": 2, "fanout": 2, "group": 1, "inbox": 2, "push": 1}[role]
			if !killInBurst(t, engine, tgt, role, instance, rng) {
				return
			}
			killed++
		}
	}()
	out, err := engine.Run(t.Context(), t.Context())
	<-done
	if err != nil {
		t.Fatal(err)
	}
	// A machine that takes longer to recover than from one burst to the next has
	// fewer bursts than kills.
	if killed < len(roles) {
		t.Errorf("%d kills, want each role at least once", killed)
	}
	a := out.Audit
	t.Logf("%d of %d kills, audit: %+v", killed, kills, a)
	if a.Lost+a.Duplicated+a.Reordered+a.Foreign+a.Unproved != 0 {
		t.Errorf("lost %d, duplicated %d, reordered %d, foreign %d, unproved %d; examples: %q",
			a.Lost, a.Duplicated, a.Reordered, a.Foreign, a.Unproved, a.Examples)
	}
	if a.Acknowledged != int64(bursts*killBurst) || a.Proved < int64(bursts*killBurst*(killGroupSize-1)) {
		t.Errorf("%d sends acknowledged, %d pairs proved: want %d and at least %d",
			a.Acknowledged, a.Proved, bursts*killBurst, bursts*killBurst*(killGroupSize-1))
	}
	// One kill of each role may miss the moment between a delivery and the record
	// of its acknowledgement; five of each do not.
	if a.Redelivered == 0 && !raceEnabled {
		t.Error("nothing was redelivered: the kills interrupted nothing")
	}
	if a.Push.Checked == 0 || a.Push.Missing != 0 {
		t.Errorf("push audit: %d rows checked, %d without a push, a dead letter or an acknowledgement", a.Push.Checked, a.Push.Missing)
	}
}

// killInBurst waits for enough to be on its way, a seeded moment more, so that
// kills come in the beginning of a burst and in the midst of its deliveries, and
// kills; then it restarts what it killed and waits for the burst to be over. It
// returns false when there is no burst left.
func killInBurst(t *testing.T, e *load.Engine, tgt target.Target, role string, instance int, rng *rand.Rand) bool {
	delay := time.Duration(rng.Int64N(int64(killWithin)))
	enough := func() bool {
		sends, deliveries := e.InFlight()
		return sends >= minUnanswered && deliveries >= minDeliveries
	}
	if !poll(t, time.Minute, enough) {
		t.Logf("never again %d sends unanswered and %d deliveries in flight to kill %s/%d at", minUnanswered, minDeliveries, role, instance)
		return false
	}
	busy := func() bool {
		_, deliveries := e.InFlight()
		return deliveries >= minDeliveries
	}
	for end := time.Now().Add(delay); time.Now().Before(end) && busy(); {
	}
	for !busy() { // the moment has passed: the next one
		if !poll(t, time.Minute, enough) {
			t.Log("no second moment")
			return false
		}
	}
	sends, deliveries := e.InFlight()
	if err := tgt.Kill(role, instance); err != nil {
		t.Errorf("kill %s/%d: %v", role, instance, err)
	}
	t.Logf("killed %s/%d with %d sends unanswered and %d deliveries in flight", role, instance, sends, deliveries)
	if !poll(t, restartAfter, func() bool { return false }) {
		if err := tgt.Restart(role, instance); err != nil {
			t.Errorf("restart %s/%d: %v", role, instance, err)
		}
	}
	poll(t, 30*time.Second, func() bool { sends, _ := e.InFlight(); return sends == 0 })
	return true
}

// poll waits for a condition, and says whether it came.
func poll(t *testing.T, limit time.Duration, ok func() bool) bool {
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if ok() {
			return true
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			return false
		}
	}
	return false
}
