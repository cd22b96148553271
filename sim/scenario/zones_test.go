package scenario

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const zoned = minimal + `
topology: {gateways: 2, groups: 2}
infrastructure: {replicas: 2}
zones:
  - {name: near, region: eu, has: [redis]}
  - name: far
    region: us
    has: [gateway/1, group/1, mysql/2]
  - {name: hub, region: eu, has: [push, kafka]}
links:
  - {between: near, and: far, latency: 40ms, jitter: 4ms}
  - {between: hub, and: near, latency: 1ms}
  - {between: hub, and: far, latency: 45ms}
`

func TestZones(t *testing.T) {
	s := parse(t, zoned)
	for _, want := range []struct {
		role     string
		instance int
		zone     string
	}{{"gateway", 0, "near"}, {"gateway", 1, "far"}, {"group", 1, "far"}, {"mysql", 0, "near"}, {"mysql", 2, "far"}, {"push", 0, "hub"}, {"redis", 0, "near"}} {
		if got := s.ZoneOf(want.role, want.instance); got != want.zone {
			t.Errorf("%s/%d is in %q, want %q", want.role, want.instance, got, want.zone)
		}
	}
	if got := s.Placed("far"); !slices.Equal(got, []string{"gateway/1", "group/1", "mysql/2"}) {
		t.Errorf("far has %v", got)
	}
	if l := s.Links[0]; l != (Link{"near", "far", 40 * time.Millisecond, 4 * time.Millisecond}) {
		t.Errorf("link %+v", l)
	}
	again := parse(t, string(s.YAML()))
	if !reflect.DeepEqual(s, again) || s.Hash() != again.Hash() {
		t.Errorf("changed by being written out:\n%s", s.YAML())
	}
	var b strings.Builder
	s.Describe(&b)
	for _, line := range []string{
		"far, region us: gateway/1, group/1, mysql/2\n", "hub, region eu: push/0, kafka/0\n",
		"between near and far: 40ms one way and up to 4ms more\n", "between hub and far: 45ms one way\n",
	} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("describe has no %q:\n%s", line, &b)
		}
	}
}

// A scenario without zones is what it was before there were any.
func TestZonesLeaveNoTrace(t *testing.T) {
	s := parse(t, minimal)
	if text := string(s.YAML()); strings.Contains(text, "zones") || strings.Contains(text, "links") || s.ZoneOf("gateway", 0) != "" {
		t.Errorf("zones in\n%s", text)
	}
}

func TestZonesErrors(t *testing.T) {
	two := "zones:\n  - {name: a, region: eu}\n  - {name: b, region: us, has: [%]}\nlinks:\n  - {between: a, and: b, latency: 40ms}\n"
	has := func(places string) string { return strings.Replace(two, "%", places, 1) }
	for text, want := range map[string]string{
		has("gatewy/0"):     `x.yaml:5:33: zones[1].has[0]: given "gatewy/0", allowed: a list of role/instance, as in gateway/0, or role, with a role of gateway, message,`,
		has("provider"):     `zones[1].has[0]: given "provider", allowed: a list of role/instance`,
		has("gateway/x"):    `x.yaml:5:33: zones[1].has[0]: given "gateway/x", allowed: a list`,
		has("gateway/3"):    `x.yaml:5:33: zones[1].has[0]: given gateway/3, allowed: an instance below 1, see topology and infrastructure`,
		has("mysql/2"):      `x.yaml:5:33: zones[1].has[0]: given mysql/2, allowed: an instance below 2`,
		has("push, push/0"): `x.yaml:5:39: zones[1].has[1]: given push/0, allowed: what is in no zone yet (push/0 is in b)`,
		"infrastructure: {brokers: 3}\n" + has("kafka/1"):                `x.yaml:6:33: zones[1].has[0]: given kafka/1, allowed: kafka, all brokers in one zone: what they say to each other cannot be delayed`,
		strings.Replace(two, "[%]", "gateway", 1):                        `x.yaml:5:32: zones[1].has: given "gateway", allowed: a list of role/instance`,
		"zones:\n  - {name: a, region: eu}\n":                            `x.yaml:3:1: zones: given 1 zone, allowed: 2 to 8 of them`,
		"zones:\n  - {name: a}\n":                                        `x.yaml:4:5: zones[0].region: given nothing, allowed: text of 1 to 20 characters (required)`,
		"zones:\n  - {name: a, region: eu}\n  - {name: a, region: us}\n": `x.yaml:5:6: zones[1].name: given a, allowed: a name for each zone`,
		"zones:\n  - {name: a, region: eu}\n  - {name: b, region: us}\n": `links: given nothing between a and b, allowed: a link for each pair of zones`,
		"links:\n  - {between: a, and: b, latency: 1ms}\n":               `x.yaml:3:1: links: given no zones, allowed: links between zones, see zones`,
		"zones:\n  - {name: A b, region: eu}\n":                          `zones[0].name: given "A b", allowed: small letters, digits and hyphens`,
		strings.Replace(has("push"), "and: b", "and: c", 1):              `x.yaml:7:18: links[0].and: given c, allowed: a zone, see zones`,
		strings.Replace(has("push"), "and: b", "and: a", 1):              `x.yaml:7:5: links[0]: given a and a, allowed: two zones that have no link yet`,
		has("push") + "  - {between: b, and: a, latency: 1ms}\n":         `x.yaml:8:5: links[1]: given b and a, allowed: two zones that have no link yet`,
		strings.Replace(has("push"), "40ms", "40", 1):                    `x.yaml:7:35: links[0].latency: given "40", allowed: a duration with its unit (250ms, 60s, 1m30s) from 0s to 500ms`,
		strings.Replace(has("push"), ", latency: 40ms", "", 1):           `x.yaml:7:5: links[0].latency: given nothing`,
		strings.Replace(has("push"), "latency", "latncy", 1):             `links[0].latncy: given an unknown field, allowed: between, and, latency, jitter (did you mean latency?)`,
	} {
		_, err := Parse("x.yaml", []byte(minimal+text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n  got  %v\n  want %s", text, err, want)
		}
	}
}
