package load

import (
	"encoding/binary"
	"math"
	"time"

	"throng/sim/history"
	"throng/sim/metrics"
	"throng/system/wire"
)

// stages records where the deliveries went that the system has stamped.
type stages struct {
	direct, group staged
	from          time.Duration // of the interval at hand; the sampler's own
}

// staged is one kind: what it adds up to by latency, and each stage alone.
type staged struct {
	sums  *metrics.Stages
	kinds []metrics.Kind
}

func newStages(r *metrics.Recorder) stages {
	of := func(kind string) staged {
		s := staged{sums: metrics.NewStages(kind)}
		for _, name := range history.StagesOf(kind) {
			s.kinds = append(s.kinds, r.Kind(history.KindStage+kind+"."+name))
		}
		return s
	}
	return stages{direct: of(history.KindDeliverDirect), group: of(history.KindDeliverGroup)}
}

// recordStages cuts the latency of a stamped delivery into its stages. The
// stamps are by the clocks of other processes, so that the run's own times are
// told by this machine's, too.
func (e *Engine) recordStages(m *wire.Deliver, intended, received time.Duration) {
	s := m.Stamps
	to := &e.stages.direct
	first := []int64{e.wall(intended), e.wall(intended + writtenAfter(m.Body)), s.GatewayInUs, s.MessageInUs}
	last := []int64{s.InboxInUs, s.InboxOutUs, s.GatewayOutUs, e.wall(received)}
	if m.Group != 0 {
		to = &e.stages.group
		first = append(first, s.LoggedUs, s.FanoutInUs)
	}
	at := append(first, last...)
	for _, us := range at {
		if us == 0 {
			to.sums.Partial()
			return
		}
	}
	to.sums.Record(at)
	for i, k := range to.kinds {
		e.rec.Record(k, max(at[i+1]-at[i], 0))
	}
}

// wall returns a time of the run in microseconds since 1970.
func (e *Engine) wall(t time.Duration) int64 {
	now := time.Now()
	return now.Add(t - now.Sub(e.start)).UnixMicro()
}

// swapStages writes what was recorded since the last call.
func (e *Engine) swapStages(to time.Duration) {
	from := e.stages.from
	e.stages.from = to
	for _, s := range []*staged{&e.stages.direct, &e.stages.group} {
		e.record(e.cfg.History.Stages(s.sums.Swap(from.Seconds(), to.Seconds())))
	}
}

// The header of a body says how long after its intended time the message was
// first written to a socket, in microseconds, at most an hour.
const bodyWritten = 12

func setWritten(body []byte, after time.Duration) {
	us := min(max(after.Microseconds(), 0), math.MaxUint32)
	binary.LittleEndian.PutUint32(body[bodyWritten:], uint32(us))
}

func writtenAfter(body []byte) time.Duration {
	return time.Duration(binary.LittleEndian.Uint32(body[bodyWritten:])) * time.Microsecond
}
