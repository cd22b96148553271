package fanout

import (
	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/obs"
)

type metrics struct {
	records, recipients, redelivered, poison, lookups, groupErrors prometheus.Counter
	lag, inFlight, partitions                                      prometheus.Gauge
	cached, queue                                                  *obs.Queue
	resolve, record                                                *obs.Op
}

func (m *metrics) register(reg prometheus.Registerer, cached int) error {
	for _, c := range []struct {
		to         *prometheus.Counter
		name, help string
	}{
		{&m.records, "throng_fanout_records_total", "Records read from the log."},
		{&m.recipients, "throng_fanout_recipients_total", "Addressees of the messages read, users not devices."},
		{&m.redelivered, "throng_fanout_redelivered_total", "Deliveries to an inbox instance sent again, because it had not answered."},
		{&m.poison, "throng_fanout_poison_total", "Records, or their deliveries, skipped because they can never be handled."},
		{&m.lookups, "throng_fanout_lookups_total", "Members asked from the group service."},
		{&m.groupErrors, "throng_fanout_group_errors_total", "Calls to the group service that failed and were tried again."},
	} {
		got, err := obs.Register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: c.name, Help: c.help}))
		if err != nil {
			return err
		}
		*c.to = got
	}
	var err error
	if m.lag, err = obs.Register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "throng_fanout_lag", Help: "Records of the assigned partitions that are not resolved, fetched or not."})); err != nil {
		return err
	}
	if m.inFlight, err = obs.Register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "throng_fanout_inflight", Help: "Records read and not resolved."})); err != nil {
		return err
	}
	if m.partitions, err = obs.Register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "throng_fanout_partitions", Help: "Partitions assigned to this instance."})); err != nil {
		return err
	}
	// Its limit is that of a partition, for each that is assigned.
	if m.queue, err = obs.NewQueue(reg, "fanout_inflight", 0); err != nil {
		return err
	}
	if m.cached, err = obs.NewQueue(reg, "fanout_cached_members", cached); err != nil {
		return err
	}
	ops, err := obs.NewOps(reg)
	m.resolve, m.record = ops.Op("fanout.resolve"), ops.Op("fanout.record")
	return err
}
