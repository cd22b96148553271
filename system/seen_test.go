package system_test

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"throng/system"
	"throng/system/wire"
)

// seen is what the tables of ARCHITECTURE.md promise of a role.
type seen struct {
	work   []string // metrics with a label, each counted by a little traffic
	queues []string // all of them, digits at their end written as *
}

// promised reads the two tables: lines that begin with "| work |" or "| queues |"
// and the name of a role, with metrics in backticks.
func promised(t *testing.T) map[system.Role]*seen {
	t.Helper()
	doc, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[system.Role]*seen{}
	quoted := regexp.MustCompile("`([^`]+)`")
	for _, line := range strings.Split(string(doc), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || cells[1] != " work " && cells[1] != " queues " {
			continue
		}
		role := system.Role(strings.TrimSpace(cells[2]))
		if out[role] == nil {
			out[role] = &seen{}
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[3], -1) {
			if cells[1] == " work " {
				out[role].work = append(out[role].work, m[1])
			} else {
				out[role].queues = append(out[role].queues, m[1])
			}
		}
	}
	return out
}

// TestMetricsOfEveryRole: after a little of each kind of traffic every metric of
// the tables is there and has counted, and there is no queue beside those named.
func TestMetricsOfEveryRole(t *testing.T) {
	c := startCollector(t)
	n := counts{gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1}
	d := startAll(t, n, withMedia(t, anyPort, 1), func(cfg *system.Config) {
		cfg.Tracing = system.Tracing{Endpoint: c.at, SampleRatio: 1} // its queue is one of them
	})
	littleTraffic(t, d)
	tables := promised(t)
	for _, r := range system.Roles() {
		p := tables[r]
		if p == nil || len(p.work) == 0 || len(p.queues) == 0 {
			t.Errorf("%s: not in the tables", r)
			continue
		}
		for _, metric := range p.work {
			d.awaitCounted(r, metric)
		}
		d.metrics(r, 0).checkQueues(r, p.queues)
	}
}

// awaitCounted waits until a metric, written name{label="value"}, is above 0:
// some are counted after what their clients have seen.
func (d *deployment) awaitCounted(r system.Role, metric string) {
	d.t.Helper()
	name, label, _ := strings.Cut(strings.TrimSuffix(metric, "}"), "{")
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		s := d.metrics(r, 0)
		if s.value(name, label) > 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			d.t.Errorf("%s: %s has counted nothing", r, metric)
			return
		}
	}
}

// checkQueues checks that the queues of an instance are those of want, and that
// each has a depth, a limit and a count of what was turned away.
func (s samples) checkQueues(r system.Role, want []string) {
	s.t.Helper()
	number := regexp.MustCompile(`\d+$`)
	var got []string
	for _, m := range s.find("throng_queue_limit", "") {
		queue := m.Label[0].GetValue()
		label := `queue="` + queue + `"`
		if m.GetGauge().GetValue() < 1 || len(s.find("throng_queue_depth", label)) != 1 || len(s.find("throng_queue_dropped_total", label)) != 1 {
			s.t.Errorf("%s: queue %s has no limit, no depth or no count of drops", r, queue)
		}
		got = append(got, number.ReplaceAllString(queue, "*"))
	}
	slices.Sort(got)
	slices.Sort(want)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		s.t.Errorf("%s has the queues %q, the table of ARCHITECTURE.md %q", r, got, want)
	}
}

// littleTraffic does each kind of thing once or twice.
func littleTraffic(t *testing.T, d *deployment) {
	t.Helper()
	d.provision(6, 1, map[uint64][]uint64{100: {1, 2, 3}})
	ws, resp, err := (&websocket.Dialer{Subprotocols: []string{wire.SubprotocolProto}}).Dial("ws://"+d.gateways()[0]+wire.Path, nil)
	if err == nil {
		ws.Close()
		t.Error("connected without a token")
	}
	if resp != nil {
		resp.Body.Close()
	}
	a, b := d.dial(1, 0), d.dial(2, 0)
	a.awaitCurrent()
	b.awaitCurrent()
	a.do(&wire.Frame{Kind: &wire.Frame_View{View: &wire.View{User: 2}}})
	b.do(&wire.Frame{Kind: &wire.Frame_Presence{Presence: &wire.Presence{Available: true}}})
	a.send(direct(2), "hello")
	b.awaitBodies(1, 0, "hello")
	a.send(group(100), "hello all")
	b.awaitBodies(1, 100, "hello all")
	// A device that is away: a push, and a page when it comes.
	a.send(direct(3), "wake up")
	a.awaitSent()
	d.in.provider.await(t, "token-3")
	away := d.dial(3, 0)
	away.awaitBodies(1, 0, "wake up")
	away.hangUp()
	// A group that a client makes, and a change by the administrator.
	made := a.asked(wire.GroupRequest_ACTION_CREATE, 0, []uint64{2}, named("made"))
	a.asked(wire.GroupRequest_ACTION_ADD, made.Group, []uint64{4})
	d.changeMembers(100, []uint64{5}, []uint64{3})
	a.send(direct(999), "to nobody")
	a.await("a refusal", func() bool { return len(a.refused) > 0 })
	// Media: one that is fetched, one that is given up.
	u := d.mediaUser(1)
	content := random(10_000)
	id := u.upload(content)
	if _, got := u.do("GET", mediaPath(id), nil); !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back of %d", len(got), len(content))
	}
	u.do("DELETE", u.begin(content), nil)
}
