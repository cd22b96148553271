package scenario

import (
	"reflect"
	"strings"
	"testing"
)

const contained = minimal + `
topology: {fanouts: 2}
infrastructure: {brokers: 3, replicas: 2}
limits:
  gateway: {cpus: 1.5, cpuset: 0, memory: 1GiB}
  kafka:
    cpuset: 0-1,3
    memory: 1.5GiB
faults:
  - {at: 1s, kill: kafka/2}
  - {at: 2s, kill: mysql/0, restart_after: 3s}
  - {at: 3s, kill: mysql/2, restart_after: never}
  - {at: 4s, flush: redis/0}
`

func TestContainers(t *testing.T) {
	s := parse(t, contained)
	want := []RoleLimit{{"gateway", Limit{CPUs: 1.5, CPUSet: "0", MemoryBytes: 1 << 30}}, {"kafka", Limit{CPUSet: "0-1,3", MemoryBytes: 1536 << 20}}}
	if got := s.Limits.All(); !reflect.DeepEqual(got, want) || s.Infrastructure != (Infrastructure{3, 2}) {
		t.Errorf("limits %+v, infrastructure %+v", got, s.Infrastructure)
	}
	if f := s.Faults[2]; f.RestartAfter != Never || f.What() != "kill mysql/2" {
		t.Errorf("fault %+v", f)
	}
	role, instance := s.Faults[3].Target()
	if s.Faults[3].What() != "flush redis/0" || role != "redis" || instance != 0 {
		t.Errorf("fault %+v", s.Faults[3])
	}
	again := parse(t, string(s.YAML()))
	if !reflect.DeepEqual(s, again) || s.Hash() != again.Hash() {
		t.Errorf("changed by being written out:\n%s", s.YAML())
	}
	var b strings.Builder
	s.Describe(&b)
	for _, line := range []string{
		"In containers: Kafka of 3 brokers, MySQL with a primary and 2 replicas, Redis, push provider\n",
		"each gateway is limited to 1.5 CPUs, cores 0, 1GiB of memory\n", "each kafka is limited to cores 0-1,3, 1536MiB of memory\n",
		"the other targets ignore infrastructure and limits\n",
		"fault: kill mysql/0, 2s into steady; started again 3s later\n", "fault: kill mysql/2, 3s into steady; it stays dead\n",
		"fault: flush redis/0, 4s into steady; it goes on empty\n",
	} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("describe has no %q:\n%s", line, &b)
		}
	}
}

// What nobody has set is not written, so that runs of before these fields
// existed still have the hash of the same scenario.
func TestContainersLeaveNoTrace(t *testing.T) {
	s := parse(t, minimal)
	text := string(s.YAML())
	if s.UsesContainers() || strings.Contains(text, "infrastructure") || strings.Contains(text, "limits") {
		t.Errorf("uses containers: %v\n%s", s.UsesContainers(), text)
	}
	if s := parse(t, minimal+"infrastructure: {brokers: 1}\n"); s.Hash() != parse(t, minimal).Hash() {
		t.Error("a default that is written out changes the hash")
	}
	if !parse(t, minimal+"limits: {push: {memory: 64MiB}}\n").UsesContainers() {
		t.Error("a limit is not seen")
	}
}

func TestContainersErrors(t *testing.T) {
	for text, want := range map[string]string{
		"infrastructure: {brokers: 2}\n":                               `x.yaml:3:18: infrastructure.brokers: given 2, allowed: 1 or 3`,
		"infrastructure: {brokers: 5}\n":                               `x.yaml:3:27: infrastructure.brokers: given "5", allowed: an integer from 1 to 3`,
		"infrastructure: {replicas: 0}\n":                              `x.yaml:3:28: infrastructure.replicas: given "0", allowed: an integer from 1 to 8`,
		"infrastructure: {mysql: 1}\n":                                 `x.yaml:3:18: infrastructure.mysql: given an unknown field, allowed: brokers, replicas`,
		"limits: {gatewy: {cpus: 1}}\n":                                `x.yaml:3:10: limits.gatewy: given an unknown field, allowed: gateway, message, `,
		"limits: {gateway: 2}\n":                                       `x.yaml:3:10: limits.gateway: given "2", allowed: a mapping with cpus, cpuset, memory`,
		"limits:\n  gateway:\n    cpus: 0\n":                           `x.yaml:5:11: limits.gateway.cpus: given "0", allowed: a number from 0.01 to 1024`,
		"limits: {push: {cpuset: 0-}}\n":                               `limits.push.cpuset: given "0-", allowed: cores and ranges of them, as in 0-1,3`,
		"limits: {push: {cpuset: 1-0}}\n":                              `limits.push.cpuset: given "1-0"`,
		"limits: {kafka: {memory: 100MiB}}\n":                          `limits.kafka.memory: given "100MiB", allowed: a size with its unit (512MiB, 1.5GiB) from 640MiB to 16384GiB`,
		"limits: {redis: {memory: 1000000000}}\n":                      `limits.redis.memory: given "1000000000", allowed: a size with its unit`,
		"limits: {redis: {memory: NaNMiB}}\n":                          `limits.redis.memory: given "NaNMiB"`,
		"faults: [{at: 1s, kill: kafka/1}]\n":                          `x.yaml:3:19: faults[0].kill: given kafka/1, allowed: an instance below 1, see topology and infrastructure`,
		"faults: [{at: 1s, kill: mysql/2}]\n":                          `faults[0].kill: given mysql/2, allowed: an instance below 2`,
		"faults: [{at: 1s, flush: mysql/0}]\n":                         `faults[0].flush: given "mysql/0", allowed: role/instance, as in redis/0, with a role of redis`,
		"faults: [{at: 1s, flush: redis/1}]\n":                         `faults[0].flush: given redis/1, allowed: an instance below 1`,
		"faults: [{at: 1s}]\n":                                         `x.yaml:3:10: faults[0]: given neither kill nor flush, allowed: one of kill, flush`,
		"faults: [{at: 1s, kill: push/0, flush: redis/0}]\n":           `faults[0]: given both kill and flush`,
		"faults: [{at: 1s, kill: push/0, restart_after: sometimes}]\n": `faults[0].restart_after: given "sometimes", allowed: a duration with its unit (250ms, 60s, 1m30s) from 0s to 10m0s, or never`,
	} {
		_, err := Parse("x.yaml", []byte(minimal+text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}
