package gateway

import (
	"time"

	"go.opentelemetry.io/otel/attribute"

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// maxTraced bounds the deliveries of a connection that are traced and not
// acknowledged; the inbox has about as many in flight. One more gets no span.
const maxTraced = 512

// traceSend begins the trace of a send, if it is one of those that have one.
func (g *Gateway) traceSend(c *conn, s *wire.Send) *obs.Span {
	if g.cfg.Tracer == nil {
		return nil
	}
	id := wire.IDOf(c.user, c.device, s.GetClientMsgId())
	if !g.cfg.Tracer.Sampled(id) {
		return nil
	}
	return g.cfg.Tracer.Root(id, "send", time.Now(), attribute.String("throng.gateway", g.cfg.ID),
		attribute.Bool("throng.group", s.GetGroup() != 0), attribute.Int("throng.body_bytes", len(s.GetBody())))
}

// whyRefused is "" for what was sent.
func whyRefused(r *rpc.SubmitResult) string {
	switch {
	case r.GetSent() != nil:
		return ""
	case r.GetError() != nil:
		return r.GetError().GetCode().String()
	}
	return wire.Code_CODE_INTERNAL.String()
}

// tracedDelivery is a Deliver of a connection whose acknowledgement ends a span.
type tracedDelivery struct {
	number uint64 // as Ack counts
	span   *obs.Span
}

// traceLocked begins the span of the Deliver that was counted last.
func (c *conn) traceLocked(traceparent string) {
	if c.traced == nil {
		c.traced = new([]tracedDelivery)
	}
	if len(*c.traced) >= maxTraced {
		return
	}
	span := c.g.cfg.Tracer.Child(traceparent, "deliver", time.Now(), attribute.String("throng.gateway", c.g.cfg.ID),
		attribute.Int64("throng.user", int64(c.user)), attribute.Int64("throng.device", int64(c.device)))
	if span != nil {
		*c.traced = append(*c.traced, tracedDelivery{c.delivered, span})
	}
}

// endTracesLocked ends the spans of the Delivers up to a number.
func (c *conn) endTracesLocked(upto uint64, why string) {
	if c.traced == nil {
		return
	}
	all := *c.traced
	n := 0
	for n < len(all) && all[n].number <= upto {
		all[n].span.End(why)
		n++
	}
	if *c.traced = all[n:]; n == len(all) {
		c.traced = nil
	}
}
