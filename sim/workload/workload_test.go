package workload

import (
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"sort"
	"sync"
	"testing"
	"time"

	"throng/sim/population"
	"throng/sim/scenario"
)

func load(t testing.TB, name string) *scenario.Spec {
	t.Helper()
	spec, err := scenario.Load("../../scenarios/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func build(t testing.TB, spec *scenario.Spec) *Schedule {
	t.Helper()
	s, err := Build(spec, population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// suite builds the schedule of groups_peak once for all tests of it.
type suite struct {
	spec *scenario.Spec
	s    *Schedule
}

func TestGroupsPeak(t *testing.T) {
	computes(t)
	spec := load(t, "groups_peak")
	x := suite{spec, build(t, spec)}
	t.Logf("%+v", x.s.Stats)
	t.Run("rates", x.rates)
	t.Run("fan-out", x.fanOut)
	t.Run("sessions", x.sessionsCoverSends)
	t.Run("spike", x.spike)
	t.Run("backlog", x.backlog)
	t.Run("replies", x.replies)
	t.Run("bodies", x.bodies)
	t.Run("kinds", x.kinds)
	t.Run("strata", x.strata)
	t.Run("membership", x.membership)
	t.Run("touched", x.touched)
	t.Run("reads", x.reads)
	t.Run("pushes", x.pushes)
	t.Run("typing", x.typing)
}

func hash(s *Schedule) string {
	h := fnv.New64a()
	for i := range s.Actions {
		fmt.Fprintln(h, s.Actions[i])
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// The golden value holds on every machine and architecture: a change of it
// means that runs before and after it are not of the same schedule.
func TestScheduleIsTheSameEverywhere(t *testing.T) {
	computes(t)
	spec, err := scenario.Parse("golden", []byte("name: golden\nquestion: is it the same everywhere?\nscale: 1/50000\nseed: 3\nphases: {spike: 5s}\nmembership: {removals_per_s: 0.2, additions_per_s: 0.2}\nextra: [{name: big, group_size: 300, sends: 5}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	first := build(t, spec)
	if got, want := hash(first), "e62c2c36fa390d1c"; got != want {
		t.Errorf("hash %s of %d actions, want %s", got, len(first.Actions), want)
	}
	if again := build(t, spec); hash(again) != hash(first) || fmt.Sprint(again.Stats) != fmt.Sprint(first.Stats) {
		t.Error("two schedules of one seed differ")
	}
	seed := uint64(4)
	other, err := spec.WithOverrides(nil, nil, &seed)
	if err != nil {
		t.Fatal(err)
	}
	if hash(build(t, other)) == hash(first) {
		t.Error("schedules of two seeds are equal")
	}
}

func (x suite) rates(t *testing.T) {
	st, r := x.s.Stats, x.spec.Resolved()
	within(t, "sends/s", st.SteadySendsPerS, r.SendsPerS, 0.05)
	within(t, "logins/s", st.LoginsPerS+st.PushLoginsPerS, r.LoginsPerS, 0.05)
	within(t, "connected", st.MeanConnected, r.Connections, 0.05)
	within(t, "connected, scheduled alone", st.MeanConnectedSched, r.Connections, 0.05)
	within(t, "initial opens", float64(st.InitialOpens), r.Connections, 0.05)
	for _, w := range st.Warnings {
		t.Error(w)
	}
	if !slices.IsSortedFunc(x.s.Actions, func(a, b Action) int { return int(a.At - b.At) }) {
		t.Error("actions are not in order of time")
	}
	// Stationary: the second half of steady is like the first.
	var opens, sends [2]float64
	steady := x.s.Phases[3]
	for _, a := range x.s.Actions {
		if a.At < steady.Start || a.At >= steady.End {
			continue
		}
		half := int(2 * (a.At - steady.Start) / (steady.End - steady.Start))
		switch a.Kind {
		case Open:
			opens[half]++
		case Send:
			sends[half]++
		}
	}
	within(t, "opens of the halves", opens[1], opens[0], 0.06)
	within(t, "sends of the halves", sends[1], sends[0], 0.06)
}

// members of the conversation of a send.
func (x suite) members(a *Action) int {
	if a.Conv.Group == 0 {
		return 2
	}
	return len(x.s.pop.GroupMembers(a.Conv.Group))
}

func (x suite) fanOut(t *testing.T) {
	r := x.spec.Resolved()
	for phase, tolerance := range map[int]float64{3: 0.02, 4: 0.15} { // steady, spike
		recipients, sends, groups, over := 0.0, 0.0, 0.0, 0.0
		for i := range x.s.Actions {
			a := &x.s.Actions[i]
			if a.Kind != Send || int(a.Phase) != phase || a.Stratum >= 0 {
				continue
			}
			sends++
			n := x.members(a)
			recipients += float64(n) - 1
			if n > 2 {
				groups++
			}
			if n > 6 {
				over++
			}
		}
		name := x.s.Phases[phase].Name
		within(t, "fan-out in "+name, recipients/sends, r.FanOut, tolerance)
		within(t, "share of groups in "+name, groups/sends, r.GroupShare, tolerance)
		// No size bias: large groups have the law's share of the messages.
		want := r.GroupShare * (0.9705*math.Exp(-0.508*4) + 0.0295)
		within(t, "share of groups of 7 and more in "+name, over/sends, want, tolerance)
	}
}

// Fan-out holds for any seed, not just the committed one.
func TestFanOutOfManySeeds(t *testing.T) {
	computes(t)
	for seed := range uint64(5) {
		scale := 1.0 / 20_000
		spec, err := load(t, "groups_peak").WithOverrides(&scale, nil, &seed)
		if err != nil {
			t.Fatal(err)
		}
		st := build(t, spec).Stats
		within(t, fmt.Sprintf("seed %d: fan-out", seed), st.SteadyFanOut, 2.73, 0.02)
		within(t, fmt.Sprintf("seed %d: logins", seed), st.LoginsPerS+st.PushLoginsPerS, spec.Resolved().LoginsPerS, 0.10)
		within(t, fmt.Sprintf("seed %d: connected", seed), st.MeanConnected, spec.Resolved().Connections, 0.05)
	}
}

type device struct {
	user   uint64
	device uint32
}

// sessionsOf replays opens and closes.
func sessionsOf(t *testing.T, s *Schedule) map[device][][2]time.Duration {
	t.Helper()
	out := map[device][][2]time.Duration{}
	closes := map[device][]time.Duration{}
	over := s.Phases[len(s.Phases)-1].End
	for i := range s.Actions {
		a := &s.Actions[i]
		d := device{a.User, a.Device}
		switch a.Kind {
		case Open:
			out[d] = append(out[d], [2]time.Duration{a.At, a.Until})
		case Close:
			closes[d] = append(closes[d], a.At)
		}
	}
	for d, list := range out {
		var ends []time.Duration
		for i, x := range list {
			if x[1] <= x[0] || i > 0 && x[0] < list[i-1][1] {
				t.Fatalf("%v: session %v overlaps or is empty", d, x)
			}
			if x[1] <= over {
				ends = append(ends, x[1])
			}
		}
		if !slices.Equal(ends, closes[d]) {
			t.Fatalf("%v: sessions end at %v, closed at %v", d, ends, closes[d])
		}
	}
	return out
}

func (x suite) sessionsCoverSends(t *testing.T) {
	sessions := sessionsOf(t, x.s)
	index := int32(0)
	for i := range x.s.Actions {
		a := &x.s.Actions[i]
		if a.Kind == Open || a.Kind == Close || a.Kind == MemberAdd || a.Kind == MemberRemove {
			continue
		}
		lead := time.Duration(0)
		if a.Kind == Send {
			lead = 1400 * time.Millisecond
			if a.Index != index || x.s.Sends[index] != int32(i) {
				t.Fatalf("send %d has Index %d", index, a.Index)
			}
			index++
		}
		if (a.Conv.Group == 0) == (a.Conv.Peer == 0) || a.Conv.Peer == a.User {
			t.Fatalf("conversation of %+v", *a)
		}
		if !slices.ContainsFunc(sessions[device{a.User, a.Device}], func(s [2]time.Duration) bool { return s[0]+lead <= a.At && a.At < s[1] }) {
			t.Fatalf("no session covers %+v: %v", *a, sessions[device{a.User, a.Device}])
		}
	}
	if int(index) != x.s.Stats.Sends || len(x.s.Sends) != int(index) {
		t.Errorf("%d sends, stats say %d", index, x.s.Stats.Sends)
	}
	linked, all := 0.0, 0.0
	for i := range x.s.Actions {
		if a := &x.s.Actions[i]; a.Kind == Open && a.Cause == Background {
			all++
			if a.Device > 0 {
				linked++
				if int(a.Device) >= x.s.pop.Devices(a.User) {
					t.Fatalf("user %d has no device %d", a.User, a.Device)
				}
			}
		}
	}
	within(t, "background opens on linked devices", linked/all, 0.10, 0.25)
}

func (x suite) spike(t *testing.T) {
	st, r := x.s.Stats, x.spec.Resolved()
	within(t, "sends/s", st.SpikeSendsPerS, 5*r.SendsPerS, 0.05)
	logins := 0.0
	for i := range x.s.Actions {
		if a := &x.s.Actions[i]; a.Kind == Open && a.Phase == 4 {
			logins++
		}
	}
	within(t, "logins/s", logins/x.spec.Phases.SpikeS, st.LoginsPerS, 0.05)
}

func (x suite) backlog(t *testing.T) {
	rows := map[uint64]int{}
	users := map[uint64]bool{}
	initial := map[uint64]bool{}
	for i := range x.s.Actions {
		a := &x.s.Actions[i]
		switch {
		case a.Kind == Open && a.Cause == Initial:
			initial[a.User] = true
			if a.Phase != 0 {
				t.Fatalf("initial open outside the ramp: %+v", *a)
			}
		case a.Kind == Open:
			users[a.User] = true
			if a.Phase < 2 || a.Phase > 4 {
				t.Fatalf("open outside warm-up, steady and spike: %+v", *a)
			}
		case a.Kind == Send && a.Backlog != (a.Phase == 1):
			t.Fatalf("a backlog send outside its phase, or another in it: %+v", *a)
		case a.Kind == Send && a.Backlog:
			rows[a.Conv.Peer]++
		}
	}
	later, total := 0.0, 0.0
	for u := range users {
		if !initial[u] {
			later++
			total += float64(rows[u])
		}
	}
	for u := range rows {
		if initial[u] || !users[u] {
			t.Fatalf("backlog for user %d, who does not open later or has been online", u)
		}
	}
	within(t, "rows a user", total/later, 2.7, 0.03)
}

func (x suite) replies(t *testing.T) {
	replies, sends := 0.0, 0.0
	for i := range x.s.Actions {
		a := &x.s.Actions[i]
		if a.Kind != Send || a.Backlog || a.Phase == 4 {
			continue
		}
		sends++
		if a.ReplyTo < 0 {
			continue
		}
		replies++
		o := &x.s.Actions[x.s.Sends[a.ReplyTo]]
		same := a.Conv.Group != 0 && o.Conv == a.Conv || a.Conv.Peer == o.User && o.Conv.Peer == a.User
		if !same || o.User == a.User || o.At >= a.At || a.At-o.At > 100*time.Second {
			t.Fatalf("%+v\nis no answer to\n%+v", *a, *o)
		}
	}
	// 0.747 of the gaps are of the burst branch, about 0.57 of these change writer.
	if share := replies / sends; share < 0.3 || share > 0.55 {
		t.Errorf("%.2f of the sends are replies", share)
	}
}

func (x suite) bodies(t *testing.T) {
	var kinds [11]float64
	var texts []float64
	for i := range x.s.Actions {
		a := &x.s.Actions[i]
		if a.Kind != Send {
			continue
		}
		kinds[a.MsgKind]++
		if a.BodyLen < MinBody || a.BodyLen > 65_536 {
			t.Fatalf("body of %d bytes", a.BodyLen)
		}
		if a.MsgKind == 0 {
			texts = append(texts, float64(a.BodyLen))
		} else if a.MsgKind < kindHangUp && a.BodyLen < 600 {
			t.Fatalf("pointer of %d bytes", a.BodyLen)
		}
	}
	content, shares := 0.0, scenario.KindShares()
	for _, n := range kinds[:len(shares)] {
		content += n
	}
	for k, share := range shares {
		within(t, fmt.Sprint("kind ", k), kinds[k]/content, share, 0.08)
	}
	sort.Float64s(texts) // published: p90 67, p99 176 characters; the fit is heavier at p99
	within(t, "p90 text", texts[len(texts)*90/100], 1.33*67, 0.15)
	within(t, "p99 text", texts[len(texts)*99/100], 1.33*220, 0.10)
}

func (x suite) strata(t *testing.T) {
	groups, n := map[uint64]int{}, 0
	for i := range x.s.Actions {
		a := &x.s.Actions[i]
		if a.Kind == Send && a.Stratum >= 0 {
			groups[a.Conv.Group]++
			n++
			if members := x.s.pop.GroupMembers(a.Conv.Group); len(members) != 1024 || !slices.Contains(members, a.User) || a.Phase != 3 {
				t.Fatalf("%+v: %d members", *a, len(members))
			}
			if !x.s.Online(a.User, a.Device, x.s.Phases[2].Start) {
				t.Errorf("the writer is not online before warm-up: %+v", *a)
			}
		}
	}
	if n != x.spec.Extra[0].Sends || len(groups) != 4 {
		t.Errorf("%d sends to %v", n, groups)
	}
}

func (x suite) membership(t *testing.T) {
	type boundary struct{ before, after bool }
	changes := map[uint64]*Action{}
	seen := map[uint64]*boundary{}
	for i := range x.s.Actions {
		if a := &x.s.Actions[i]; a.Kind == MemberAdd || a.Kind == MemberRemove {
			members := x.s.pop.GroupMembers(a.Conv.Group)
			if a.Phase != 3 || changes[a.Conv.Group] != nil || slices.Contains(members, a.User) == (a.Kind == MemberAdd) || a.User == members[0] {
				t.Fatalf("%+v", *a)
			}
			changes[a.Conv.Group], seen[a.Conv.Group] = a, &boundary{}
		}
	}
	for i := range x.s.Actions {
		a := &x.s.Actions[i]
		c := changes[a.Conv.Group]
		if a.Kind != Send || c == nil {
			continue
		}
		if a.User == c.User {
			t.Errorf("user %d writes in group %d", a.User, a.Conv.Group)
		}
		b := seen[a.Conv.Group]
		b.before = b.before || a.At < c.At
		b.after = b.after || a.At > c.At
	}
	for g, b := range seen {
		if !b.before || !b.after {
			t.Errorf("group %d: messages before %v, after %v", g, b.before, b.after)
		}
	}
	if st := x.s.Stats; st.Removals != 30 || st.Additions != 30 || len(changes) != 60 {
		t.Errorf("%d removals, %d additions", st.Removals, st.Additions)
	}
}

func (x suite) touched(t *testing.T) {
	users, groups := x.s.Touched()
	known := map[uint64]bool{}
	last := uint64(0)
	for u := range users {
		if u <= last {
			t.Fatalf("user %d after %d", u, last)
		}
		last = u
		known[u] = true
	}
	exists := map[uint64]bool{}
	for g, members := range groups {
		exists[g] = true
		for _, u := range members {
			if !known[u] {
				t.Fatalf("member %d of %d is no user", u, g)
			}
		}
	}
	for i := range x.s.Actions {
		a := &x.s.Actions[i]
		if !known[a.User] || a.Conv.Peer != 0 && !known[a.Conv.Peer] || a.Conv.Group != 0 && !exists[a.Conv.Group] {
			t.Fatalf("not provisioned: %+v", *a)
		}
	}
	if len(known) != x.s.Stats.TouchedUsers || len(exists) != x.s.Stats.TouchedGroups {
		t.Errorf("%d users, %d groups, stats say %d, %d", len(known), len(exists), x.s.Stats.TouchedUsers, x.s.Stats.TouchedGroups)
	}
}

func (x suite) reads(t *testing.T) {
	reads, all := 0.0, 0.0
	var fast, slow []float64
	for i := range x.s.Actions {
		a := &x.s.Actions[i]
		if a.Kind != Send || a.Backlog || a.Conv.Peer == 0 {
			continue
		}
		all++
		read, d := x.s.ReadDelay(a.Conv.Peer, a.Index, Conv{Peer: a.User}, a.At)
		if !read {
			continue
		}
		reads++
		if x.s.onScreen(a.Conv.Peer, Conv{Peer: a.User}, a.At) {
			fast = append(fast, d.Seconds())
		} else {
			slow = append(slow, d.Seconds())
		}
	}
	sort.Float64s(fast)
	sort.Float64s(slow)
	within(t, "share read", reads/all, 0.8, 0.02)
	within(t, "median with the chat on the screen", fast[len(fast)/2], 5, 0.05)
	within(t, "median otherwise", slow[len(slow)/2], 60, 0.07)
	if share := float64(len(fast)) / reads; share < 0.3 {
		t.Errorf("only %.2f of the readers of direct messages are in the conversation", share)
	}
}

func (x suite) pushes(t *testing.T) {
	st := x.s.Stats
	opens, atSpike, delays, n := 0.0, 0.0, 0.0, 200_000.0
	for u := range uint64(n) {
		open, delay, length := x.s.PushOpen(u+1, u%5)
		if open {
			opens++
			delays += delay.Seconds()
			if length < 3*time.Second || length > 20*time.Minute || delay > 30*time.Second {
				t.Fatalf("delay %v, length %v", delay, length)
			}
		}
		if open, _, _ := x.s.PushOpenAt(u+1, u%5, x.s.Phases[4].Start); open {
			atSpike++
		}
		if open, _, _ := x.s.PushOpenAt(u+1, u%5, x.s.Phases[5].Start); open {
			t.Fatal("a push after the load causes an open")
		}
	}
	within(t, "share of pushes that open", opens/n, st.PushOpenProbability, 0.10)
	within(t, "the same in the spike", atSpike/n, st.PushOpenProbability/5, 0.20)
	within(t, "pushes/s x probability", st.PushesPerS*st.PushOpenProbability, st.PushLoginsPerS, 1e-9)
	if st.OfflineShare < 0.3 || st.OfflineShare > 0.9 {
		t.Errorf("offline share %.2f", st.OfflineShare)
	}
	for i := range x.s.Actions {
		if a := &x.s.Actions[i]; a.Kind == Open && a.Cause == Background {
			if at, ok := x.s.NextOpen(a.User, a.Device, a.At-1); !ok || at != a.At {
				t.Fatalf("NextOpen before %+v is %v, %v", *a, at, ok)
			}
			return
		}
	}
	t.Error("no background open")
}

func (x suite) typing(t *testing.T) {
	n := 0.0
	for i := range x.s.Actions {
		if x.s.Actions[i].Kind == Typing {
			n++
		}
	}
	within(t, "typing frames a send", n/float64(x.s.Stats.Sends-x.s.Stats.BacklogSends), 1.5, 0.01)
}

// Every scenario of the project has a schedule, with nothing to complain of.
func TestScenariosBuild(t *testing.T) {
	computes(t)
	for _, name := range []string{"groups_peak", "smoke", "direct_steady", "new_years_eve", "celebrity_groups", "reconnect_storm", "diurnal_day"} {
		s := build(t, load(t, name))
		for _, w := range s.Stats.Warnings {
			t.Errorf("%s: %s", name, w)
		}
		if name == "groups_peak" || name == "diurnal_day" {
			continue
		}
		t.Logf("%s: %+v", name, s.Stats)
		sessionsOf(t, s)
		r := load(t, name).Resolved()
		within(t, name+" sends/s", s.Stats.SteadySendsPerS, r.SendsPerS, 0.10)
		within(t, name+" logins/s", s.Stats.LoginsPerS+s.Stats.PushLoginsPerS, r.LoginsPerS, 0.10)
		within(t, name+" connected", s.Stats.MeanConnected, r.Connections, 0.05)
	}
}

// smoke has enough deliveries, and membership changes to be caught by.
func TestSmokeIsEnough(t *testing.T) {
	computes(t)
	spec := load(t, "smoke")
	s := build(t, spec)
	deliveries := 0
	for i := range s.Actions {
		if a := &s.Actions[i]; a.Kind == Send {
			deliveries += suite{spec, s}.members(a) - 1
		}
	}
	if deliveries < 11_000 {
		t.Errorf("%d deliveries", deliveries)
	}
	if s.Stats.Removals < 10 || s.Stats.Additions < 5 || spec.Phases.TotalS() > 30 {
		t.Errorf("%d removals, %d additions, %.0f s", s.Stats.Removals, s.Stats.Additions, spec.Phases.TotalS())
	}
}

// A schedule is read by many goroutines at once.
func TestScheduleIsSafeForConcurrentUse(t *testing.T) {
	s := build(t, load(t, "smoke"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range int32(200) {
				s.ReadDelay(uint64(i+1), i, Conv{Peer: 1}, time.Second)
				s.PushOpen(uint64(i+1), 0)
				s.NextOpen(uint64(i+1), 0, 0)
			}
		})
	}
	wg.Wait()
}

func TestBuildRefusesAnotherPopulation(t *testing.T) {
	if _, err := Build(load(t, "smoke"), population.New(1, 5, "B", 1.2)); err == nil {
		t.Error("a population of 5 users was taken")
	}
}

func BenchmarkBuildGroupsPeak(b *testing.B) {
	spec := load(b, "groups_peak")
	for b.Loop() {
		build(b, spec)
	}
}
