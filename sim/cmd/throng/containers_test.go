package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report"
	"throng/sim/scenario"
	"throng/sim/target/containers"
)

// What the embedded target ignores is a note; what it cannot do ends the run
// before it starts.
func TestEmbeddedSaysWhatItIsNot(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "outside.yaml")
	text := fmt.Sprintf(externalScenario, "infrastructure: {brokers: 3}\nlimits: {push: {cpus: 1}}\nfaults: [{at: 1s, kill: mysql/0}, {at: 2s, kill: kafka/1}, {at: 2s, flush: redis/0}]\n")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code := run([]string{"run", file, "--stack", "embedded", "--out", filepath.Join(dir, "run")}, &out, &errs)
	const note = "infrastructure and limits of the scenario are for containers; the embedded target ignores them"
	if code != exitInconclusive || !strings.Contains(errs.String(), "note: "+note) {
		t.Errorf("exit code %d, said\n%s", code, &errs)
	}
	res, err := report.Read(filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	const reason = "the scenario kills mysql/0 and kafka/1, which only containers have: make images, then --stack containers"
	if len(res.Reasons) != 1 || !strings.Contains(res.Reasons[0], reason) || !strings.Contains(strings.Join(res.Notes, "\n"), note) {
		t.Errorf("reasons %q, notes %q", res.Reasons, res.Notes)
	}
}

// What the embedded target can have: a flush, and zones for everything but SQL.
func TestEmbeddedFlushAndZones(t *testing.T) {
	if raceEnabled {
		t.Skip("a run of the whole backend under the race detector is the kill test's")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "outside.yaml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(externalScenario, "faults: [{at: 2s, flush: redis/0}]\ntopology: {gateways: 2}\n"+
		"zones: [{name: home, region: eu}, {name: away, region: us, has: [gateway/1]}]\nlinks: [{between: away, and: home, latency: 15ms}]\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code := run([]string{"run", file, "--stack", "embedded", "--out", filepath.Join(dir, "run")}, &out, &errs)
	if code != exitPass {
		t.Errorf("exit code %d\n%s%s", code, &errs, &out)
	}
	res, err := report.Read(filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	checkStages(t, res, "one")
	h, err := history.Open(filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Manifest.Links) != 1 || h.Manifest.Links[0].LatencyMs != 15 || len(h.Manifest.Zones) != 2 || len(h.Manifest.Missing) != 0 {
		t.Errorf("the manifest has %+v %+v, missing %+v", h.Manifest.Zones, h.Manifest.Links, h.Manifest.Missing)
	}
	if z := res.Zones; z == nil || z.Links[0].Bytes <= 0 || z.Zones[1].LatencyMs[history.ZoneSentDirect].P50 < 30 {
		t.Errorf("zones %+v", z)
	}
	keys := 0
	for _, e := range h.Events {
		_, _ = fmt.Sscanf(e.Detail, "flush redis/0, %d keys", &keys)
	}
	if keys == 0 {
		t.Errorf("no keys were flushed: %+v", h.Events)
	}
}

// What a target cannot impose is said, and makes the run inconclusive.
func TestZonesThatCannotBe(t *testing.T) {
	spec, err := scenario.Load("../../../scenarios/far_replicas.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for stack, want := range map[string][]string{"containers": nil, "external": {"zones"}, "embedded": {"latency to SQL", "replicas"}} {
		r := &runner{spec: spec}
		r.checkZones(stack)
		var got []string
		for _, m := range r.missing {
			got = append(got, m.Needs)
			if m.Refused {
				t.Errorf("%s: not played for %s", stack, m.Needs)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s lacks %q, want %q", stack, got, want)
		}
	}
	if z := zones(spec); z.Of("mysql", 2).Name != "far" || z.Of("redis", 0).Name != "home" || z.Links[0].Delay != spec.Links[0].Latency {
		t.Errorf("%+v", z)
	}
}

func TestImageNames(t *testing.T) {
	t.Setenv(containers.EnvImageKafka, "kafka-of-env")
	t.Setenv(containers.EnvImageRedis, "redis-of-env")
	t.Setenv(containers.EnvImageMySQL, "")
	f := &runFlags{stack: "containers", images: map[string]string{"redis": "valkey:8", "mysql": "mysql:8.4", "s3": "s3:1"}}
	got, err := f.imageNames()
	if want := (containers.Images{Kafka: "kafka-of-env", MySQL: "mysql:8.4", Redis: "valkey:8", S3: "s3:1"}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--stack", "containers", "--image", "postgres=x"}, "allowed are kafka=NAME, mysql=NAME, redis=NAME and s3=NAME"},
		{[]string{"--stack", "containers", "--image", "kafka="}, "allowed are kafka=NAME"},
		{[]string{"--stack", "embedded", "--image", "kafka=x"}, "--image is for --stack containers, not for --stack embedded"},
		{[]string{"--stack", "containers", "--image", "kafka"}, "must be formatted as key=value"},
	} {
		var out, errs bytes.Buffer
		code := run(append([]string{"run", "../../../scenarios/smoke.yaml"}, c.args...), &out, &errs)
		if code != exitUsage || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: exit code %d, want %d and %q: %s", c.args, code, exitUsage, c.want, &errs)
		}
	}
}

func TestLimitsOfTheScenario(t *testing.T) {
	spec, err := scenario.Parse("x", []byte("name: x\nquestion: what is it like?\nlimits: {gateway: {cpus: 0.5, cpuset: 1, memory: 256MiB}, mysql: {cpuset: 0-1}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]containers.Limits{"gateway": {CPUSet: "1", CPUs: 0.5, MemBytes: 256 << 20}, "mysql": {CPUSet: "0-1"}}
	if got := limits(spec); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
