package fanout

import (
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
)

// parts is the span of a record, which ends when every inbox instance has
// answered. That of a record whose partition is taken away never ends, and is not
// seen; the next owner makes another one.
type parts struct {
	span *obs.Span
	left atomic.Int64
}

// trace begins the span of a message of the log, nil if it has none, and names it
// to the inboxes.
func (w *worker) trace(m *rpc.Envelope) *parts {
	span := w.f.cfg.Tracer.Child(m.Traceparent, "fan-out", w.fetchAt, attribute.Int("throng.instance", w.f.cfg.Instance),
		attribute.String("throng.partition", w.part.Name()), attribute.Int64("throng.offset", m.Offset))
	if span == nil {
		return nil
	}
	m.Traceparent = span.Traceparent("")
	return &parts{span: span}
}

// expect says how many answers there will be, before the first one.
func (p *parts) expect(answers, recipients int) {
	if p == nil {
		return
	}
	p.span.Event("members known", attribute.Int("throng.recipients", recipients))
	p.left.Store(int64(answers))
	if answers == 0 {
		p.span.End("")
	}
}

func (p *parts) answered() {
	if p != nil && p.left.Add(-1) == 0 {
		p.span.End("")
	}
}
