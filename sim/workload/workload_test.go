package workload

import (
	"testing"

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
	s, err := Build(spec, population.New(spec.Seed, spec.Resolved().Users, spec.Preset))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Every scenario of the project has a schedule, with nothing to complain of.
func TestScenariosBuild(t *testing.T) {
	for _, name := range []string{"groups_peak", "smoke", "direct_steady"} {
		s := build(t, load(t, name))
		t.Logf("%s: %+v", name, s.Stats)
		for _, w := range s.Stats.Warnings {
			t.Errorf("%s: %s", name, w)
		}
	}
}
