package workload

import (
	"testing"

	"throng/sim/population"
)

// The schedule of another generation is the same people doing the same.
func TestScheduleOfAnotherGeneration(t *testing.T) {
	computes(t)
	spec := load(t, "smoke")
	a := build(t, spec)
	b, err := Build(spec, population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices).Generation(77))
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Actions) != len(b.Actions) {
		t.Fatalf("%d actions, %d in generation 0", len(b.Actions), len(a.Actions))
	}
	const low = 1<<40 - 1
	for i, x := range a.Actions {
		y := b.Actions[i]
		if y.User == x.User || y.Conv == x.Conv && x.Conv != (Conv{}) {
			t.Fatalf("action %d has an id of generation 0: %+v", i, y)
		}
		p, q := a.PushOpen, b.PushOpen
		if open, delay, length := p(x.User, 1); true {
			if o, d, l := q(y.User, 1); o != open || d != delay || l != length {
				t.Fatalf("user %d opens the app for another push than in generation 0", x.User)
			}
		}
		x.User, y.User, x.Conv.Peer, y.Conv.Peer = x.User&low, y.User&low, x.Conv.Peer&low, y.Conv.Peer&low
		if x.Conv.Group != 0 && y.Conv.Group != 0 {
			x.Conv.Group, y.Conv.Group = 0, 0
		}
		if x != y {
			t.Fatalf("action %d is %+v, %+v in generation 0", i, y, x)
		}
	}
}
