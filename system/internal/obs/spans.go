package obs

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// spanQueue is the SDK's batch processor with a bound that is counted: what it
// drops by itself it tells nobody.
type spanQueue struct {
	sdktrace.SpanProcessor
	limit   int64
	waiting atomic.Int64 // ended, and not taken or given up yet
	metric  *Queue
	giveUp  context.CancelFunc // ends the export under way, and those after it
	stopped chan struct{}      // closed when the exporter is
}

func newSpanQueue(to sdktrace.SpanExporter, limit int, reg prometheus.Registerer, log *slog.Logger) (*spanQueue, error) {
	metric, err := NewQueue(reg, "trace_spans", limit)
	if err != nil {
		return nil, err
	}
	spans, err := Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_trace_spans_total", Help: "Spans by what became of them: exported, or failed to be. Those dropped for want of room are throng_queue_dropped_total{queue=\"trace_spans\"}."},
		[]string{"outcome"}))
	if err != nil {
		return nil, err
	}
	q := &spanQueue{limit: int64(limit), metric: metric, stopped: make(chan struct{})}
	e := &spanExporter{SpanExporter: to, q: q, log: log, exported: spans.WithLabelValues("exported"), failed: spans.WithLabelValues("failed")}
	e.given, q.giveUp = context.WithCancel(context.Background())
	q.SpanProcessor = sdktrace.NewBatchSpanProcessor(e,
		sdktrace.WithMaxQueueSize(limit), sdktrace.WithMaxExportBatchSize(min(limit, traceBatch)),
		sdktrace.WithBatchTimeout(traceBatchDelay), sdktrace.WithExportTimeout(traceExportTimeout))
	return q, nil
}

// OnEnd implements sdktrace.SpanProcessor. It never waits.
func (q *spanQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	if q.waiting.Add(1) > q.limit {
		q.waiting.Add(-1)
		q.metric.Dropped.Inc()
		return
	}
	q.metric.Depth.Inc()
	q.SpanProcessor.OnEnd(s)
}

// Shutdown implements sdktrace.SpanProcessor. Unlike the SDK's it leaves nothing
// running: what is not taken when ctx ends is given up.
func (q *spanQueue) Shutdown(ctx context.Context) error {
	err := q.SpanProcessor.Shutdown(ctx)
	q.giveUp()
	<-q.stopped
	if err != nil {
		return fmt.Errorf("obs: span queue: %w", err)
	}
	return nil
}

// spanExporter counts what an exporter does.
type spanExporter struct {
	sdktrace.SpanExporter
	q                *spanQueue
	given            context.Context // ends when no export is waited for any more
	log              *slog.Logger
	exported, failed prometheus.Counter
	failing          bool // of the batch processor's goroutine
}

// ExportSpans implements sdktrace.SpanExporter. It returns no error: the SDK would
// tell its global handler, and each batch again.
func (e *spanExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.given, cancel)()
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.q.waiting.Add(-int64(len(spans)))
	e.q.metric.Depth.Sub(float64(len(spans)))
	if err == nil {
		e.exported.Add(float64(len(spans)))
	} else {
		e.failed.Add(float64(len(spans)))
	}
	if (err != nil) != e.failing {
		e.failing = err != nil
		if e.failing {
			e.log.Warn("spans are not taken, will go on trying with new ones", "err", err)
		} else {
			e.log.Info("spans are taken again")
		}
	}
	return nil
}

// Shutdown implements sdktrace.SpanExporter.
func (e *spanExporter) Shutdown(ctx context.Context) error {
	defer close(e.q.stopped)
	if err := e.SpanExporter.Shutdown(ctx); err != nil {
		return fmt.Errorf("obs: span exporter: %w", err)
	}
	return nil
}
