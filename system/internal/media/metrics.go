package media

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/obs"
)

type metrics struct {
	requests                                 *prometheus.CounterVec   // op, code
	seconds                                  *prometheus.HistogramVec // op
	received, sent                           prometheus.Counter
	finished, mismatched                     prometheus.Counter
	refused                                  *prometheus.CounterVec // why
	fetched, expired                         prometheus.Counter
	objects, bytes                           prometheus.Gauge
	lookups                                  prometheus.Counter
	uploads, downloads, connections, members *obs.Queue
	users, addresses                         *obs.Queue
}

// newMetrics registers what a media instance counts.
func newMetrics(reg prometheus.Registerer, l Limits) (*metrics, error) {
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "throng_media_bytes_total", Help: "Bytes of media received from clients and sent to them."}, []string{"direction"})
	uploads := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "throng_media_uploads_total", Help: "Uploads that were finished, by what became of them."}, []string{"outcome"})
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "throng_media_requests_total", Help: "Requests by operation and status code."}, []string{"op", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "throng_media_request_seconds", Help: "How long requests took, by operation.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}, []string{"op"}),
		received: bytes.WithLabelValues("in"), sent: bytes.WithLabelValues("out"),
		finished: uploads.WithLabelValues("finished"), mismatched: uploads.WithLabelValues("hash_mismatch"),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "throng_media_refused_total", Help: "Uploads and fetches refused, by reason."}, []string{"reason"}),
		fetched: prometheus.NewCounter(prometheus.CounterOpts{Name: "throng_media_fetched_by_all_total", Help: "Objects that all addressees have fetched."}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{Name: "throng_media_expired_total", Help: "Objects removed because their time was over."}),
		objects: prometheus.NewGauge(prometheus.GaugeOpts{Name: "throng_media_objects", Help: "Objects in the store, unfinished ones included; as of the last sweep."}),
		bytes:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "throng_media_stored_bytes", Help: "Bytes of the objects in the store; as of the last sweep."}),
		lookups: prometheus.NewCounter(prometheus.CounterOpts{Name: "throng_media_member_lookups_total", Help: "Questions to the group service about the members of a version."}),
	}
	for _, c := range []prometheus.Collector{bytes, uploads, m.requests, m.seconds, m.refused, m.fetched, m.expired, m.objects, m.bytes, m.lookups} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	for _, q := range []struct {
		to    **obs.Queue
		name  string
		limit int
	}{
		{&m.uploads, "media_uploads", l.Uploads}, {&m.downloads, "media_downloads", l.Downloads},
		{&m.connections, "media_connections", l.Connections}, {&m.members, "media_members", l.CachedMembers},
		{&m.users, "media_users", remembered}, {&m.addresses, "media_addresses", remembered},
	} {
		var err error
		if *q.to, err = obs.NewQueue(reg, q.name, q.limit); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// request counts one that was answered; code 0: the client went before that.
func (m *metrics) request(op string, code int, took time.Duration) {
	m.requests.WithLabelValues(op, strconv.Itoa(code)).Inc()
	m.seconds.WithLabelValues(op).Observe(took.Seconds())
}
