package message

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/obs"
	"throng/system/wire"
)

type metrics struct {
	acceptedDirect, acceptedGroup prometheus.Counter
	refusals                      *prometheus.CounterVec
	duplicates, resent            prometheus.Counter
	inFlight, conversations       *obs.Queue
	direct, group                 *obs.Op
}

func (m *metrics) register(reg prometheus.Registerer, inFlight, conversations int) error {
	accepted, err := obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_sends_accepted_total", Help: "Messages made durable."}, []string{"kind"}))
	if err != nil {
		return err
	}
	m.acceptedDirect, m.acceptedGroup = accepted.WithLabelValues("direct"), accepted.WithLabelValues("group")
	if m.refusals, err = obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_sends_refused_total", Help: "Submissions answered with an error."}, []string{"code"})); err != nil {
		return err
	}
	if m.duplicates, err = obs.Register(reg, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "throng_sends_duplicate_total", Help: "Submissions of what was durable or in flight already."})); err != nil {
		return err
	}
	if m.resent, err = obs.Register(reg, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "throng_message_resent_total", Help: "Direct messages sent to an inbox again after its stream broke."})); err != nil {
		return err
	}
	if m.inFlight, err = obs.NewQueue(reg, "message_inflight", inFlight); err != nil {
		return err
	}
	if m.conversations, err = obs.NewQueue(reg, "message_conversations", conversations); err != nil {
		return err
	}
	ops, err := obs.NewOps(reg)
	m.direct, m.group = ops.Op("message.direct"), ops.Op("message.group")
	return err
}

func (m *metrics) accepted(group bool) prometheus.Counter {
	if group {
		return m.acceptedGroup
	}
	return m.acceptedDirect
}

// codeLabel is "retry" for CODE_RETRY.
func codeLabel(c wire.Code) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "CODE_"))
}
