package inbox

import (
	"time"

	"go.opentelemetry.io/otel/attribute"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// trace begins the span of an item that is traced, which ends with its answer,
// and names it to the deliveries: those of this moment, and those that come out of
// rows later.
func (in *Inbox) trace(c *call, m *rpc.Envelope) {
	if m.GetTraceparent() == "" {
		return
	}
	c.span = in.cfg.Tracer.Child(m.Traceparent, "inbox", time.Now(), attribute.Int("throng.instance", in.cfg.Instance))
	m.Traceparent = c.span.Traceparent(m.Traceparent)
}

func (c *call) endTrace() {
	if c.span == nil {
		return
	}
	why := ""
	if code := wire.Code(c.code.Load()); code != 0 {
		why = code.String()
	}
	c.span.End(why, attribute.Int64("throng.live", int64(c.live.Load())), attribute.Int64("throng.stored", int64(c.stored.Load())))
}
