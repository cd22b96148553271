package obs

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Ops are the kinds of work of one role instance, each with its rate, its errors
// and its duration: throng_op_seconds{op, outcome}, outcome ok or error. A nil
// *Ops, and a nil *Op, count nothing.
type Ops struct {
	seconds *prometheus.HistogramVec
	known   sync.Map // *Op by name
}

// NewOps registers the metric, once for each registry.
func NewOps(reg prometheus.Registerer) (*Ops, error) {
	seconds, err := Register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "throng_op_seconds", Help: "How long a piece of work took, by what it was and whether it failed.",
		Buckets: []float64{0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10},
	}, []string{"op", "outcome"}))
	if err != nil {
		return nil, err
	}
	return &Ops{seconds: seconds}, nil
}

// Op returns the kind of work of that name, of which there are few: never a name
// that grows with users. What is done often keeps it.
func (o *Ops) Op(name string) *Op {
	if o == nil {
		return nil
	}
	if op, ok := o.known.Load(name); ok {
		return op.(*Op)
	}
	op, _ := o.known.LoadOrStore(name, &Op{ok: o.seconds.WithLabelValues(name, "ok"), failed: o.seconds.WithLabelValues(name, "error")})
	return op.(*Op)
}

// Op is one kind of work.
type Op struct{ ok, failed prometheus.Observer }

// Done counts one that has ended.
func (o *Op) Done(took time.Duration, failed bool) {
	switch {
	case o == nil:
	case failed:
		o.failed.Observe(took.Seconds())
	default:
		o.ok.Observe(took.Seconds())
	}
}
