package scenario

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const minimal = "name: x\nquestion: what is it like?\n"

func parse(t *testing.T, text string) *Spec {
	t.Helper()
	s, err := Parse("x.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Every scenario of the project parses, says in its first comment what it
// asks, and survives being written out.
func TestScenariosParse(t *testing.T) {
	files, err := filepath.Glob("../../scenarios/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, file := range files {
		s, err := Load(file)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(data), "\nname:")
		for _, want := range []string{"# Question:", "Run time:", "Expected verdict:"} {
			if !strings.Contains(head, want) {
				t.Errorf("%s: the first comment has no %q", file, want)
			}
		}
		if s.Name+".yaml" != filepath.Base(file) {
			t.Errorf("%s: name is %s", file, s.Name)
		}
		again := parse(t, string(s.YAML()))
		if !reflect.DeepEqual(s, again) || s.Hash() != again.Hash() {
			t.Errorf("%s: changed by being written out:\n%s", file, s.YAML())
		}
	}
}

// The scale-down law, against the figures of WORKLOAD.md and ARCHITECTURE.md.
func TestResolvedRates(t *testing.T) {
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 0.02*want {
			t.Errorf("%s: got %.5g, want %.5g within 2 %%", what, got, want)
		}
	}
	r := parse(t, minimal+"scale: 1/5000\n").Resolved()
	near("users", float64(r.Users), 600_000)
	near("sockets", r.Connections, 16_600)
	near("logins/s", r.LoginsPerS, 180)
	near("sends/s", r.SendsPerS, 358)
	near("deliveries/s", r.DeliveriesPerS, 980)
	near("mean session", r.MeanSessionS, 92)
	near("mean gap", r.MeanGapS, 2217)
	milli := parse(t, minimal+"scale: 1/1000\n").Resolved()
	near("milli sends/s", milli.SendsPerS, 1794)
	near("milli deliveries/s", milli.DeliveriesPerS, 4898)
	near("milli logins/s", milli.LoginsPerS, 908)
	whole := parse(t, minimal+"scale: 1\nconnection: legacy\n").Resolved()
	near("legacy sockets", whole.Connections, 948e6)
	near("legacy logins/s", whole.LoginsPerS, 1.48e6)
	over := parse(t, minimal+"rates: {users: 2000, sends_per_s: 10, logins_per_s: 4, mean_session: 50s, chat_tempo: 10}\n").Resolved()
	near("overridden sockets", over.Connections, 200)
	near("overridden gap", over.MeanGapS, 221.7)
}

func TestEveryParameterHasSourceAndConfidence(t *testing.T) {
	for _, preset := range []string{PresetA, PresetB, PresetC, PresetDirect} {
		for _, connection := range []string{Foreground, Legacy} {
			s := parse(t, minimal+"preset: "+preset+"\nconnection: "+connection+"\n")
			for _, p := range s.Params() {
				if p.Name == "" || p.Value == "" || p.Source == "" || strings.Trim(p.Confidence, "PSDA/") != "" || p.Confidence == "" {
					t.Errorf("incomplete parameter %+v", p)
				}
			}
		}
	}
}

// Mistakes are all reported, each with its place and what is allowed.
func TestErrors(t *testing.T) {
	text := `name: x
question: what is it like?
preset: D
sclae: 1/100
seed: -1
phases:
  steady: 60
  spike_factor: 0.5
  warm: 1s
topology: 3
extra:
  - name: big
    group_size: 5000
  - 7
faults:
  - {at: 1s, kill: fanoot/0}
`
	_, err := Parse("bad.yaml", []byte(text))
	want := []string{
		`bad.yaml:3:9: preset: given "D", allowed: one of A, B, C, direct (did you mean A?)`,
		`bad.yaml:4:1: sclae: given an unknown field, allowed: `,
		`(did you mean scale?)`,
		`bad.yaml:5:7: seed: given "-1", allowed: an integer from 0 to `,
		`bad.yaml:7:11: phases.steady: given "60", allowed: a duration with its unit (250ms, 60s, 1m30s) from 1s to 24h0m0s`,
		`bad.yaml:8:17: phases.spike_factor: given "0.5", allowed: a number from 1 to 100`,
		`bad.yaml:9:3: phases.warm: given an unknown field, allowed: provision, ramp, backlog, warmup,`,
		`(did you mean warmup?)`,
		`bad.yaml:10:1: topology: given "3", allowed: a mapping with gateways,`,
		`bad.yaml:13:17: extra[0].group_size: given "5000", allowed: an integer from 3 to 1024`,
		`extra[0].sends: given nothing, allowed: an integer from 1 to 1000000 (required)`,
		`bad.yaml:14:5: extra[1]: given "7", allowed: a mapping`,
		`faults[0].kill: given "fanoot/0", allowed: role/instance`,
	}
	var errs Errors
	if !errors.As(err, &errs) {
		t.Fatalf("got %T %v", err, err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("missing: %s", w)
		}
	}
	if len(errs) != 11 {
		t.Errorf("%d mistakes, want 11", len(errs))
	}
	if t.Failed() {
		t.Logf("\n%v", err)
	}
}

func TestMistakesOfSeveralFields(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "no mapping",
		"name: [1\n":                    "x.yaml:",
		"name: x\nname: y\n":            "x.yaml:2:1: ",
		"question: long enough":         "name: given nothing",
		minimal + "scale: 1/0\n":        `scale: given "1/0"`,
		minimal + "scale: .nan\n":       `scale: given ".nan"`,
		minimal + "scale: 1/90000000\n": "at least 100 users",
		minimal + "faults: [{at: 60s, kill: push/0}]":                                                    "faults[0].at: given 1m0s, allowed: less than phases.steady",
		minimal + "faults: [{at: 6s, kill: push/1}]":                                                     "faults[0].kill: given push/1, allowed: an instance below 1",
		minimal + "extra: [{name: a, group_size: 1000, sends: 2}]\nrates: {users: 200, logins_per_s: 1}": "at most the 200 users",
		minimal + "extra: [{name: a, group_size: 10, sends: 2, phase: spike}]":                           "a phase that lasts",
		minimal + "rates: {users: 200}":                                                                  "sockets for 200 users",
		minimal + "rates: {chat_tempo: *x}":                                                              "x.yaml:",
	} {
		_, err := Parse("x.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestOverridesMakeACopy(t *testing.T) {
	s := parse(t, minimal)
	scale, steady, seed := 1.0/50_000, 5.0, uint64(9)
	c, err := s.WithOverrides(&scale, &steady, &seed)
	if err != nil {
		t.Fatal(err)
	}
	if c.Scale != scale || c.Phases.SteadyS != 5 || c.Seed != 9 || c.Name != "x" || s.Seed != 1 || s.Phases.SteadyS != 60 {
		t.Errorf("got %+v from %+v", c, s)
	}
	if c.Hash() == s.Hash() {
		t.Error("the hash did not change")
	}
	steady = -1
	if _, err := s.WithOverrides(nil, &steady, nil); err == nil {
		t.Error("a negative duration was taken")
	}
}

func TestDescribe(t *testing.T) {
	s, err := Load("../../scenarios/groups_peak.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	s.Describe(&b)
	for _, want := range []string{"600,000", "3,000,000,000", "358.8", "1,793,981", "1,794", "16,64", "979.5", "spike", "groups of 1,024", "[P]", "3m"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q", want)
		}
	}
	if t.Failed() {
		t.Log("\n" + b.String())
	}
	if s.Phases.TotalS() > 240 {
		t.Errorf("budget %v s is over 4 minutes", s.Phases.TotalS())
	}
}

func TestFits(t *testing.T) {
	s := parse(t, minimal)
	if problems, _ := s.Fits(1<<20, 24<<30); len(problems) != 0 {
		t.Errorf("does not fit a 2-core machine: %v", problems)
	}
	problems, fitting := s.Fits(4096, 24<<30)
	if len(problems) != 2 || fitting <= 0 || fitting >= s.Scale { // agent and gateway
		t.Fatalf("got %v, scale %v", problems, fitting)
	}
	smaller, err := s.WithOverrides(&fitting, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if problems, _ := smaller.Fits(4096, 24<<30); len(problems) != 0 {
		t.Errorf("the scale that should fit does not: %v", problems)
	}
}

// More processes need fewer files each; how many agents there are follows from
// the sockets where nobody says it.
func TestManySocketsTakeSeveralProcesses(t *testing.T) {
	const large = "scale: 1/2000\ntopology: {gateways: 3}\n"
	s := parse(t, minimal+large)
	n := s.Needs()
	if n.Agents != 3 || n.AgentFiles > 20_000 || n.GatewayFiles > 20_000 {
		t.Errorf("41,600 sockets need %+v", n)
	}
	if problems, _ := s.Fits(20_000, 24<<30); len(problems) != 0 {
		t.Errorf("they do not fit: %v", problems)
	}
	one, err := s.WithAgents(1)
	if err != nil {
		t.Fatal(err)
	}
	problems, _ := one.Fits(20_000, 24<<30)
	if len(problems) != 1 || !strings.Contains(problems[0], "more agents") {
		t.Errorf("one agent for all of them: %v", problems)
	}
	if _, err := s.WithAgents(1000); err == nil {
		t.Error("1,000 agents were taken")
	}
}
