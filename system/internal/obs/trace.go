package obs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"
)

// Defaults and bounds of tracing.
const (
	DefaultSampleRatio = 0.001
	DefaultTraceQueue  = 8192
	// A batch goes out when it is full or has waited so long.
	traceBatch      = 512
	traceBatchDelay = time.Second
	// One export, its retries included. What is not taken by then is dropped.
	traceExportTimeout = 5 * time.Second
	traceStopTimeout   = time.Second
)

// TraceConfig says where the spans of a process go and how many there are.
type TraceConfig struct {
	// Endpoint takes OTLP over gRPC: http://host:port, or https://host:port with
	// TLS. Empty: nothing is traced.
	Endpoint string
	// CAFile names a PEM file with who signs the endpoint's certificate; empty:
	// the system knows.
	CAFile string
	// SampleRatio is the share of messages that are traced, above 0 to 1.
	SampleRatio float64
	// Queue bounds the spans that wait for the endpoint or are on their way; one
	// more is dropped, and counted. Nobody waits for room.
	Queue int
}

// Check says what is wrong with the configuration.
func (c *TraceConfig) Check() error {
	if c.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "":
		return fmt.Errorf("endpoint %q: write it like http://host:4317, or https:// with TLS", c.Endpoint)
	case c.CAFile != "" && u.Scheme != "https":
		return errors.New("ca_file is for an https endpoint")
	case c.SampleRatio < 0 || c.SampleRatio > 1:
		return fmt.Errorf("sample_ratio %v: allowed are 0 to 1", c.SampleRatio)
	case c.Queue < 0:
		return fmt.Errorf("queue %d: allowed are 1 and more", c.Queue)
	}
	return nil
}

// Tracer makes the spans of one role instance. A nil Tracer makes none; so does
// a nil Span nothing, so that callers need not ask.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	below    uint64
}

// NewTracer returns a tracer whose spans go to cfg.Endpoint, nil if there is
// none. It waits for nobody: an endpoint that does not answer costs the spans.
// Close it.
func NewTracer(cfg TraceConfig, role string, instance int, reg prometheus.Registerer, log *slog.Logger) (*Tracer, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("obs: tracing: %w", err)
	}
	if cfg.SampleRatio == 0 {
		cfg.SampleRatio = DefaultSampleRatio
	}
	if cfg.Queue == 0 {
		cfg.Queue = DefaultTraceQueue
	}
	opts := []otlptracegrpc.Option{otlptracegrpc.WithEndpointURL(cfg.Endpoint), otlptracegrpc.WithTimeout(traceExportTimeout)}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("obs: tracing: ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("obs: tracing: ca_file %s holds no certificate", cfg.CAFile)
		}
		opts = append(opts, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})))
	}
	exporter, err := otlptracegrpc.New(context.Background(), opts...)
	if err != nil {
		return nil, fmt.Errorf("obs: tracing: %w", err)
	}
	q, err := newSpanQueue(exporter, cfg.Queue, reg, log)
	if err != nil {
		return nil, errors.Join(err, exporter.Shutdown(context.Background()))
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(q),
		sdktrace.WithIDGenerator(messageIDs{}),
		// Who starts a span has decided already, see Sampled.
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.namespace", "throng"), attribute.String("service.name", "throng-"+role),
			attribute.Int("service.instance.id", instance))),
	)
	return &Tracer{provider: provider, tracer: provider.Tracer("throng"), below: uint64(cfg.SampleRatio * (1 << 63))}, nil
}

// Close sends what is waiting, for a second at most.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), traceStopTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("obs: tracing: the last spans were dropped: %w", err)
	}
	return nil
}

// Sampled says whether the message of that id is traced: by the id alone, which
// is a hash, so that whoever asks again, as for a repeated send, gets the same
// answer. The rule is that of OpenTelemetry's TraceIDRatioBased.
func (t *Tracer) Sampled(message [16]byte) bool {
	return t != nil && binary.BigEndian.Uint64(message[8:])>>1 < t.below
}

// Root begins the trace of a message, whose id is that of the trace.
func (t *Tracer) Root(message [16]byte, name string, at time.Time, attrs ...attribute.KeyValue) *Span {
	if t == nil {
		return nil
	}
	return t.begin(context.WithValue(context.Background(), traceIDKey{}, trace.TraceID(message)), name, trace.SpanKindServer, at, attrs)
}

// Child begins a span under that of another process, or of this one. nil where
// traceparent is empty, which says that the message is not traced.
func (t *Tracer) Child(traceparent, name string, at time.Time, attrs ...attribute.KeyValue) *Span {
	if t == nil || traceparent == "" {
		return nil
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), &carrier{traceparent})
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	return t.begin(ctx, name, trace.SpanKindConsumer, at, attrs)
}

func (t *Tracer) begin(ctx context.Context, name string, kind trace.SpanKind, at time.Time, attrs []attribute.KeyValue) *Span {
	ctx, span := t.tracer.Start(ctx, name, trace.WithTimestamp(at), trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
	c := new(carrier)
	propagation.TraceContext{}.Inject(ctx, c)
	return &Span{span: span, traceparent: c.traceparent}
}

// Span is one stage of a message's way. Its methods may be called at once by
// several goroutines.
type Span struct {
	span        trace.Span
	traceparent string
}

// Traceparent is what the next stage is given: the context of s in the form of
// the W3C. Without a span it is what this stage was given, so that the trace goes
// on past a process that does not trace.
func (s *Span) Traceparent(given string) string {
	if s == nil {
		return given
	}
	return s.traceparent
}

// Event notes that something was reached.
func (s *Span) Event(name string, attrs ...attribute.KeyValue) {
	if s != nil {
		s.span.AddEvent(name, trace.WithAttributes(attrs...))
	}
}

// End ends the stage; why is empty when it did what it should.
func (s *Span) End(why string, attrs ...attribute.KeyValue) {
	if s == nil {
		return
	}
	if why != "" {
		s.span.SetStatus(codes.Error, why)
	}
	s.span.SetAttributes(attrs...)
	s.span.End()
}

type traceIDKey struct{}

// messageIDs gives a root the trace id that its context has.
type messageIDs struct{}

// NewIDs implements sdktrace.IDGenerator.
func (g messageIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	id, _ := ctx.Value(traceIDKey{}).(trace.TraceID)
	return id, g.NewSpanID(ctx, id)
}

// NewSpanID implements sdktrace.IDGenerator.
func (messageIDs) NewSpanID(context.Context, trace.TraceID) (id trace.SpanID) {
	binary.BigEndian.PutUint64(id[:], rand.Uint64N(1<<64-1)+1) // 0 is none
	return id
}

// carrier is the one header of a trace context that is passed on.
type carrier struct{ traceparent string }

// Get implements propagation.TextMapCarrier.
func (c *carrier) Get(key string) string {
	if key == "traceparent" {
		return c.traceparent
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c *carrier) Set(key, value string) {
	if key == "traceparent" {
		c.traceparent = value
	}
}

// Keys implements propagation.TextMapCarrier.
func (c *carrier) Keys() []string { return []string{"traceparent"} }
