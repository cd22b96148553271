package obs

import "github.com/prometheus/client_golang/prometheus"

// Queue is the metrics of one bounded queue: how much is in it, how much may
// be, and how much was turned away at the limit.
type Queue struct {
	Depth   prometheus.Gauge
	Limit   prometheus.Gauge
	Dropped prometheus.Counter
}

// NewQueue registers throng_queue_{depth,limit,dropped_total} for the queue of
// that name and sets its limit.
func NewQueue(reg prometheus.Registerer, name string, limit int) (*Queue, error) {
	depth, err := Register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "throng_queue_depth", Help: "Entries in a bounded queue."}, []string{"queue"}))
	if err != nil {
		return nil, err
	}
	limits, err := Register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "throng_queue_limit", Help: "Most entries that a bounded queue may hold."}, []string{"queue"}))
	if err != nil {
		return nil, err
	}
	dropped, err := Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_queue_dropped_total", Help: "Entries turned away because a bounded queue was full."}, []string{"queue"}))
	if err != nil {
		return nil, err
	}
	q := &Queue{Depth: depth.WithLabelValues(name), Limit: limits.WithLabelValues(name), Dropped: dropped.WithLabelValues(name)}
	q.Limit.Set(float64(limit))
	return q, nil
}
