package system_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"throng/system"
	"throng/system/wire"
)

// span is one that came to the collector, with who sent it.
type span struct {
	*tracepb.Span
	service string
}

// spans is a collector: the service of OTLP over gRPC, on a real socket.
type spans struct {
	collector.UnimplementedTraceServiceServer
	at string

	mu      sync.Mutex
	byTrace map[wire.MessageID][]span
	changed chan struct{}
}

func startCollector(t *testing.T) *spans {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &spans{at: "http://" + ln.Addr().String(), byTrace: map[wire.MessageID][]span{}, changed: make(chan struct{})}
	srv := grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, c)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Errorf("collector: %v", err)
		}
	})
	return c
}

// Export implements collector.TraceServiceServer.
func (c *spans) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		service := attribute(rs.Resource.Attributes, "service.name").GetStringValue()
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				id := wire.MessageID(s.TraceId)
				c.byTrace[id] = append(c.byTrace[id], span{s, service})
			}
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return &collector.ExportTraceServiceResponse{}, nil
}

func attribute(all []*commonpb.KeyValue, key string) *commonpb.AnyValue {
	for _, a := range all {
		if a.Key == key {
			return a.Value
		}
	}
	return nil
}

// await returns the spans of a trace once enough says that they are all.
func (c *spans) await(t *testing.T, id wire.MessageID, enough func([]span) bool) []span {
	t.Helper()
	limit := time.NewTimer(60 * time.Second)
	defer limit.Stop()
	for {
		c.mu.Lock()
		got, changed := slices.Clone(c.byTrace[id]), c.changed
		c.mu.Unlock()
		if enough(got) {
			return got
		}
		select {
		case <-changed:
		case <-limit.C:
			t.Fatalf("trace %x is not whole: %s", id, describeSpans(got))
		}
	}
}

func describeSpans(all []span) string {
	s := fmt.Sprintf("%d spans", len(all))
	for _, x := range all {
		s += fmt.Sprintf("\n%s %s %x parent %x %v", x.service, x.Name, x.SpanId, x.ParentSpanId, x.Status)
	}
	return s
}

func spansOf(all []span, name string) (out []span) {
	for _, s := range all {
		if s.Name == name {
			out = append(out, s)
		}
	}
	return out
}

// checkTree checks that each span's parent is one of those that its stage may
// have, that children begin after their parents, and that there is one root.
func checkTree(t *testing.T, all []span, parents map[string]string) {
	t.Helper()
	byID := map[string]span{}
	for _, s := range all {
		byID[string(s.SpanId)] = s
	}
	roots := 0
	for _, s := range all {
		if len(s.ParentSpanId) == 0 {
			roots++
			if s.Name != "send" || s.service != "throng-gateway" {
				t.Errorf("the root is %s of %s", s.Name, s.service)
			}
			continue
		}
		p, ok := byID[string(s.ParentSpanId)]
		if !ok || p.Name != parents[s.Name] {
			t.Errorf("%s is under %q, want %q", s.Name, p.Name, parents[s.Name])
		}
		if s.StartTimeUnixNano < p.StartTimeUnixNano || s.EndTimeUnixNano < s.StartTimeUnixNano {
			t.Errorf("%s began before %s, or ended before it began", s.Name, p.Name)
		}
		if s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			t.Errorf("%s failed: %s", s.Name, s.Status.Message)
		}
	}
	if roots != 1 {
		t.Errorf("%d roots, want 1: %s", roots, describeSpans(all))
	}
}

// TestTraceOfGroupMessage: a message to the members of a group on three gateways
// and two inboxes is one trace, with a span for the delivery to each device.
func TestTraceOfGroupMessage(t *testing.T) {
	c := startCollector(t)
	d := startAll(t, counts{gateways: 3, messages: 2, fanouts: 1, groups: 1, inboxes: 2, pushes: 1},
		func(cfg *system.Config) { cfg.Tracing = system.Tracing{Endpoint: c.at, SampleRatio: 1} })
	const n = 7
	d.provision(n, 1, map[uint64][]uint64{100: {1, 2, 3, 4, 5, 6, 7}})
	var members []*device
	gateways := d.gateways()
	for u := range uint64(n) {
		m := dial(t, gateways[u%3:u%3+1], d.key, u+1, 0)
		m.awaitCurrent()
		members = append(members, m)
	}
	members[0].send(group(100), "hello all")
	members[0].awaitSent()
	for _, m := range members[1:] {
		m.awaitBodies(1, 100, "hello all")
	}
	all := c.await(t, wire.IDOf(1, 0, 1), func(s []span) bool {
		return len(spansOf(s, "send")) == 1 && len(spansOf(s, "message")) == 1 && len(spansOf(s, "fan-out")) == 1 &&
			len(spansOf(s, "inbox")) == 2 && len(spansOf(s, "deliver")) == n-1
	})
	checkTree(t, all, map[string]string{"message": "send", "fan-out": "message", "inbox": "fan-out", "deliver": "inbox"})
	users, at := map[int64]bool{}, map[string]bool{}
	for _, s := range spansOf(all, "deliver") {
		users[attribute(s.Attributes, "throng.user").GetIntValue()] = true
		at[attribute(s.Attributes, "throng.gateway").GetStringValue()] = true
	}
	if len(users) != n-1 || users[1] || len(at) != 3 {
		t.Errorf("delivered to users %v by gateways %v, want 2 to 7 by three", users, at)
	}
}

// TestTraceOfMessageToOfflineDevice: the context waits in the row of a device that
// is away, and its delivery, whenever that is, belongs to the same trace. A
// traced message says so to its receiver.
func TestTraceOfMessageToOfflineDevice(t *testing.T) {
	c := startCollector(t)
	d := startAll(t, counts{gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1},
		func(cfg *system.Config) { cfg.Tracing = system.Tracing{Endpoint: c.at, SampleRatio: 1} })
	d.provision(2, 1, nil)
	a := d.dial(1, 0)
	a.awaitCurrent()
	a.send(direct(2), "for later")
	a.awaitSent()
	id := wire.IDOf(1, 0, 1)
	// One span of the inbox for the addressee, one for the sender's own devices.
	c.await(t, id, func(s []span) bool { return len(spansOf(s, "inbox")) == 2 })
	b := d.dial(2, 0)
	b.awaitBodies(1, 0, "for later")
	all := c.await(t, id, func(s []span) bool {
		return len(spansOf(s, "send")) == 1 && len(spansOf(s, "message")) == 1 && len(spansOf(s, "deliver")) == 1
	})
	checkTree(t, all, map[string]string{"message": "send", "inbox": "message", "deliver": "inbox"})
	b.update(func() {
		if p := b.got[0].Traceparent; len(p) != 55 || p[:36] != "00-"+hex.EncodeToString(id[:])+"-" {
			t.Errorf("the receiver is told the trace context %q", p)
		}
	})
}

// TestTracesAreSampledByMessageID: which messages have a trace is a function of
// their ids and the ratio; the others carry nothing.
func TestTracesAreSampledByMessageID(t *testing.T) {
	c := startCollector(t)
	d := startAll(t, counts{gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1},
		func(cfg *system.Config) { cfg.Tracing = system.Tracing{Endpoint: c.at, SampleRatio: 0.25} })
	d.provision(2, 1, nil)
	a, b := d.dial(1, 0), d.dial(2, 0)
	a.awaitCurrent()
	b.awaitCurrent()
	const n = 64
	bodies := numbered("m", n)
	for _, body := range bodies {
		a.send(direct(2), body)
	}
	b.awaitBodies(1, 0, bodies...)
	sampled := map[wire.MessageID]bool{}
	for i := range uint64(n) {
		if id := wire.IDOf(1, 0, i+1); id[8]>>6 == 0 { // of the 64 bits that decide, the first two
			sampled[id] = true
			c.await(t, id, func(s []span) bool { return len(spansOf(s, "deliver")) == 1 })
		}
	}
	if len(sampled) == 0 || len(sampled) == n {
		t.Fatalf("%d of %d ids are below the ratio: choose others", len(sampled), n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.byTrace {
		if !sampled[id] {
			t.Errorf("message %x has a trace", id)
		}
	}
	b.update(func() {
		for _, m := range b.got {
			if (m.Traceparent != "") != sampled[wire.MessageID(m.MessageId)] {
				t.Errorf("message %x has the trace context %q", m.MessageId, m.Traceparent)
			}
		}
	})
}

// TestDeadCollectorCostsNoMessage: with an endpoint that nobody answers and room
// for few spans every message arrives, and what was dropped is counted.
func TestDeadCollectorCostsNoMessage(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts, as the kernel does, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := startAll(t, counts{gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1},
		func(cfg *system.Config) {
			cfg.Tracing = system.Tracing{Endpoint: "http://" + ln.Addr().String(), SampleRatio: 1, Queue: 8}
		})
	d.provision(3, 1, map[uint64][]uint64{100: {1, 2, 3}})
	a, b := d.dial(1, 0), d.dial(2, 0)
	a.awaitCurrent()
	b.awaitCurrent()
	bodies := numbered("m", 100)
	for _, body := range bodies {
		a.send(direct(2), body)
		a.send(group(100), body)
	}
	a.awaitSent()
	b.awaitBodies(1, 0, bodies...)
	b.awaitBodies(1, 100, bodies...)
	for r, i := range map[system.Role]int{system.Gateway: 0, system.Message: 0, system.Inbox: 0, system.Fanout: 0} {
		m := d.metrics(r, i)
		if m.value("throng_queue_dropped_total", `queue="trace_spans"`) == 0 {
			t.Errorf("%s has dropped no span", r)
		}
		if depth := m.value("throng_queue_depth", `queue="trace_spans"`); depth > 8 {
			t.Errorf("%s has %v spans waiting, want 8 at most", r, depth)
		}
	}
}
