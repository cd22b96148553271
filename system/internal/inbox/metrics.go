package inbox

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/obs"
)

// metrics of an instance. Loops add to them once a turn.
type metrics struct {
	direct, group, own          prometheus.Counter
	live, stored                prometheus.Counter
	appended, rowBytes, deleted prometheus.Counter
	rows, gateways              prometheus.Gauge
	demTimeout, demOver, demEnd prometheus.Counter
	opens, receipts, unknown    prometheus.Counter
	fenced                      prometheus.Counter
	full, expired, restarts     prometheus.Counter
	pushesPostponed, planted    prometheus.Counter
	pushesCancelled, unanswered prometheus.Counter
	aggregated, queriesDropped  prometheus.Counter
	queues                      []*obs.Queue // one for each loop
	gatewayQueue, peerQueue     *obs.Queue
	pushQueue, marks, users     *obs.Queue
	ahead                       *obs.Queue
	ops
}

// ops are what an instance does.
type ops struct{ turn, load, commit, appendDirect, appendGroup, page *obs.Op }

// ops registers them.
func (k *maker) ops() ops {
	o, err := obs.NewOps(k.reg)
	k.note(err)
	return ops{turn: o.Op("inbox.turn"), load: o.Op("inbox.load"), commit: o.Op("inbox.commit"),
		appendDirect: o.Op("inbox.append_direct"), appendGroup: o.Op("inbox.append_group"), page: o.Op("inbox.page")}
}

// maker registers metrics and keeps the first error.
type maker struct {
	reg prometheus.Registerer
	err error
}

func (k *maker) counter(name, help string) prometheus.Counter {
	c, err := obs.Register(k.reg, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
	k.note(err)
	return c
}

func (k *maker) vec(name, help, label string) *prometheus.CounterVec {
	c, err := obs.Register(k.reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label}))
	k.note(err)
	return c
}

func (k *maker) gauge(name, help string) prometheus.Gauge {
	g, err := obs.Register(k.reg, prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help}))
	k.note(err)
	return g
}

func (k *maker) queue(name string, limit int) *obs.Queue {
	q, err := obs.NewQueue(k.reg, name, limit)
	k.note(err)
	return q
}

func (k *maker) note(err error) {
	if k.err == nil {
		k.err = err
	}
}

func newMetrics(reg prometheus.Registerer, loops int, lim Limits) (*metrics, error) {
	k := &maker{reg: reg}
	items := k.vec("throng_inbox_items_total", "Messages appended, counted once for each loop involved.", "kind")
	devices := k.vec("throng_inbox_devices_total", "Addressee devices of appended messages, by how they were resolved.", "how")
	demotions := k.vec("throng_inbox_demotions_total", "Live devices that became stored with deliveries in flight.", "reason")
	m := &metrics{
		direct: items.WithLabelValues("direct"), group: items.WithLabelValues("group"),
		own:  items.WithLabelValues("own"),
		live: devices.WithLabelValues("live"), stored: devices.WithLabelValues("stored"),
		demTimeout: demotions.WithLabelValues("timeout"), demOver: demotions.WithLabelValues("overflow"),
		demEnd:   demotions.WithLabelValues("end"),
		appended: k.counter("throng_inbox_rows_appended_total", "Inbox rows stored."),
		rowBytes: k.counter("throng_inbox_row_bytes_total", "Bytes of message bodies stored."),
		deleted:  k.counter("throng_inbox_rows_deleted_total", "Inbox rows deleted."),
		rows:     k.gauge("throng_inbox_rows", "Inbox rows stored now."),
		gateways: k.gauge("throng_inbox_gateways", "Gateway streams open."),
		opens:    k.counter("throng_inbox_opens_total", "Sessions opened."),
		fenced:   k.counter("throng_inbox_fenced_total", "Sessions that a gateway opened again and that had been replaced by newer ones."),
		receipts: k.counter("throng_inbox_receipts_total", "Receipt watermarks merged for senders."),
		unknown:  k.counter("throng_inbox_unknown_members_total", "Group addressees that are not provisioned, skipped."),
		aggregated: k.counter("throng_inbox_receipts_aggregated_total",
			"Receipts of group members that were counted towards one for all of them."),
		queriesDropped: k.counter("throng_inbox_receipt_queries_dropped_total", "Requests for a list of receipts beyond what a session may have waiting."),
		full:           k.counter("throng_inbox_full_total", "Direct messages refused because an inbox was full."),
		expired:        k.counter("throng_inbox_expired_total", "Rows deleted because their time was over."),
		restarts:       k.counter("throng_inbox_loop_restarts_total", "Loops that started over after a failure of their store."),
		pushesPostponed: k.counter("throng_inbox_pushes_postponed_total",
			"Pushes put off because a session was emptying the inbox or too many were unanswered."),
		pushesCancelled: k.counter("throng_inbox_pushes_cancelled_total", "Pushes taken back because the device had acknowledged rows."),
		unanswered: k.counter("throng_inbox_push_cancels_unanswered_total",
			"Pushes taken back without an answer in time; the acknowledgement was recorded all the same."),
		planted:      k.counter("throng_inbox_planted_total", "Deliveries dropped by the planted bug."),
		gatewayQueue: k.queue("inbox_gateway_frames", outLimit),
		peerQueue:    k.queue("inbox_peer_receipts", peerLimit),
		pushQueue:    k.queue("inbox_pushes", loops*lim.Pushes),
		users:        k.queue("inbox_users", loops*lim.Users),
		marks:        k.queue("inbox_receipt_marks", loops*lim.Receipts),
		ahead:        k.queue("inbox_look_ahead", loops*lim.Ahead),
		ops:          k.ops(),
	}
	for i := range loops {
		m.queues = append(m.queues, k.queue("inbox_loop_"+strconv.Itoa(i), queueLimit))
	}
	return m, k.err
}

func (m *metrics) committed(r *Result) {
	if r.Inserted > 0 {
		m.appended.Add(float64(r.Inserted))
	}
	if r.Deleted > 0 {
		m.deleted.Add(float64(r.Deleted))
	}
	m.rows.Add(float64(r.Inserted - r.Deleted))
}

// add publishes what a core has counted. Most turns touch few of them.
func (m *metrics) add(s Stats) {
	for _, ns := range s.Pages {
		m.page.Done(time.Duration(ns), false)
	}
	for _, x := range [...]struct {
		c prometheus.Counter
		n uint64
	}{
		{m.direct, s.Direct}, {m.group, s.Group}, {m.own, s.Own}, {m.live, s.Live}, {m.stored, s.Stored}, {m.rowBytes, s.RowBytes},
		{m.demTimeout, s.DemotedTimeout}, {m.demOver, s.DemotedOverflow}, {m.demEnd, s.DemotedEnd},
		{m.opens, s.Opens}, {m.fenced, s.Fenced}, {m.receipts, s.Receipts}, {m.marks.Dropped, s.ReceiptsDropped},
		{m.aggregated, s.Aggregated}, {m.queriesDropped, s.QueriesDropped},
		{m.unknown, s.UnknownMembers}, {m.full, s.Full}, {m.expired, s.Expired},
		{m.pushesPostponed, s.PushesPostponed},
		{m.pushesCancelled, s.PushesCancelled}, {m.unanswered, s.CancelsUnanswered}, {m.planted, s.Planted},
	} {
		if x.n > 0 {
			x.c.Add(float64(x.n))
		}
	}
}
