package obs

import (
	"log/slog"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
)

// TestSampledAsOpenTelemetryDoes: anybody with the ratio and the SDK's own sampler
// comes to the same decision about a message.
func TestSampledAsOpenTelemetryDoes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, ratio := range []float64{0.001, 0.3, 1} {
		tr, err := NewTracer(TraceConfig{Endpoint: "http://127.0.0.1:1", SampleRatio: ratio}, "gateway", 0, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		theirs := sdktrace.TraceIDRatioBased(ratio)
		sampled := 0
		for range 20_000 {
			var id [16]byte
			for i := range id {
				id[i] = byte(rng.Uint32())
			}
			want := theirs.ShouldSample(sdktrace.SamplingParameters{TraceID: trace.TraceID(id)}).Decision == sdktrace.RecordAndSample
			if tr.Sampled(id) != want {
				t.Fatalf("ratio %v: %x is sampled: %v, want %v", ratio, id, !want, want)
			}
			if want {
				sampled++
			}
		}
		if sampled == 0 {
			t.Errorf("ratio %v: nothing was sampled", ratio)
		}
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestNoTracerCostsNothing: without an endpoint there is no tracer, and what the
// roles ask of it allocates nothing.
func TestNoTracerCostsNothing(t *testing.T) {
	tr, err := NewTracer(TraceConfig{}, "gateway", 0, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if tr != nil || err != nil {
		t.Fatalf("%v, %v", tr, err)
	}
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		var s *Span
		if tr.Sampled([16]byte{}) {
			s = tr.Root([16]byte{}, "send", now)
		}
		s = tr.Child(s.Traceparent(""), "message", now)
		s.Event("handed on")
		s.End("")
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestCloseGivesUp: an endpoint that accepts, as the kernel does, and never answers
// holds nothing back once the tracer is closed, not even a goroutine.
func TestCloseGivesUp(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	reg := prometheus.NewRegistry()
	tr, err := NewTracer(TraceConfig{Endpoint: "http://" + ln.Addr().String(), SampleRatio: 1}, "gateway", 0, reg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before := goleak.IgnoreCurrent()
	const spans = traceBatch + 1 // one batch under way, one that waits
	for i := range spans {
		tr.Root([16]byte{byte(i), byte(i >> 8), 1}, "send", time.Now()).End("")
	}
	if tr.Close() == nil {
		t.Error("spans were lost and Close does not say so")
	}
	goleak.VerifyNone(t, before)
	metrics, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	failed := 0.0
	for _, f := range metrics {
		for _, m := range f.GetMetric() {
			if f.GetName() == "throng_trace_spans_total" && m.GetLabel()[0].GetValue() == "failed" {
				failed = m.GetCounter().GetValue()
			}
		}
	}
	if failed != spans {
		t.Errorf("%v spans were counted as failed, want %d", failed, spans)
	}
}

func TestTraceConfig(t *testing.T) {
	for _, bad := range []TraceConfig{
		{Endpoint: "collector:4317"}, {Endpoint: "http://"}, {Endpoint: "http://c:4317/v1/traces"}, {Endpoint: "http://c:4317", CAFile: "ca.pem"},
		{Endpoint: "http://c:4317", SampleRatio: 1.5}, {Endpoint: "http://c:4317", SampleRatio: -1}, {Endpoint: "http://c:4317", Queue: -1},
	} {
		if bad.Check() == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	for _, good := range []TraceConfig{{}, {Endpoint: "http://c:4317"}, {Endpoint: "https://c:4317", CAFile: "ca.pem", SampleRatio: 1, Queue: 1}} {
		if err := good.Check(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}
