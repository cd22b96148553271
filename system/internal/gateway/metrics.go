package gateway

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"google.golang.org/protobuf/reflect/protoreflect"

	"throng/system/internal/obs"
	"throng/system/wire"
)

// Kinds of frames, for metrics: the field numbers in wire.Frame, and the
// control messages of WebSocket.
const (
	kindOther         = 0
	kindSync          = 1
	kindSend          = 2
	kindAck           = 3
	kindRead          = 4
	kindTyping        = 5
	kindPresence      = 6
	kindView          = 7
	kindPing          = 8
	kindGroupRequest  = 9
	kindListRequest   = 10
	kindPrivacy       = 11
	kindSent          = 16
	kindCurrent       = 18
	kindTypingEvent   = 20
	kindPresenceEvent = 21
	kindError         = 22
	kindDrain         = 23
	kindPong          = 24
	kindGroupResult   = 25
	kindReceiptList   = 26
	kindWSPing        = 28
	kindWSPong        = 29
	kindWSClose       = 30
	kinds             = 32
)

// kindName returns the label of a kind, "" for numbers that are none.
func kindName(kind int) string {
	switch kind {
	case kindOther:
		return "other"
	case kindWSPing:
		return "ws_ping"
	case kindWSPong:
		return "ws_pong"
	case kindWSClose:
		return "ws_close"
	}
	if f := (*wire.Frame)(nil).ProtoReflect().Descriptor().Fields().ByNumber(protoreflect.FieldNumber(kind)); f != nil {
		return strings.ToLower(string(f.Name()))
	}
	return ""
}

// frameKind returns the kind of an encoded Frame, whose first bytes are the
// tag of its only field.
func frameKind(b []byte) int {
	if len(b) == 0 {
		return kindOther
	}
	n := int(b[0]&0x7f) >> 3
	if b[0]&0x80 != 0 {
		if len(b) < 2 || b[1] > 1 {
			return kindOther
		}
		n |= int(b[1]) << 4
	}
	if n > kindReceiptList {
		return kindOther
	}
	return n
}

// metrics are the gateway's own; counters of hot paths are resolved once.
type metrics struct {
	connections prometheus.Gauge
	open        prometheus.Gauge // the same, as a queue with its limit
	logins      prometheus.Counter
	refused     *prometheus.CounterVec
	rx, tx      [kinds]prometheus.Counter
	rxBytes     prometheus.Counter
	txBytes     prometheus.Counter
	writes      prometheus.Counter
	blocked     prometheus.Gauge
	closedVec   *prometheus.CounterVec
	typing      outcomes
	presence    outcomes

	limited limited

	submitQueue, readQueue, closeQueue, queryQueue, groupCalls, addresses, users *obs.Queue
	login, send, deliver                                                         *obs.Op
}

// outcomes count what became of typing or presence events.
type outcomes struct{ published, delivered, dropped, shed prometheus.Counter }

// limited count what was refused, by the limit.
type limited struct{ inFlight, sends, bytes, groups prometheus.Counter }

func outcomesOf(vec *prometheus.CounterVec, what string) outcomes {
	return outcomes{
		published: vec.WithLabelValues(what, "published"), delivered: vec.WithLabelValues(what, "delivered"),
		dropped: vec.WithLabelValues(what, "dropped"), shed: vec.WithLabelValues(what, "shed"),
	}
}

func newMetrics(reg prometheus.Registerer, l Limits) (*metrics, error) {
	m := &metrics{}
	var errs []error
	counter := func(name, help string) prometheus.Counter {
		c, err := obs.Register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
		errs = append(errs, err)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		c, err := obs.Register(reg, prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help}))
		errs = append(errs, err)
		return c
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c, err := obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels))
		errs = append(errs, err)
		return c
	}
	queue := func(name string, limit int) *obs.Queue {
		q, err := obs.NewQueue(reg, name, limit)
		errs = append(errs, err)
		return q
	}
	sockets, err := obs.NewQueue(reg, "gateway_connections", l.MaxConnections)
	errs = append(errs, err)
	if err == nil {
		m.open = sockets.Depth
	}
	m.connections = gauge("throng_ws_connections", "WebSockets open.")
	m.logins = counter("throng_logins_total", "Sessions begun (Sync received).")
	m.refused = vec("throng_ws_refused_total", "Upgrade requests refused.", "why")
	rx := vec("throng_ws_rx_frames_total", "Frames from clients.", "kind")
	tx := vec("throng_ws_tx_frames_total", "Frames to clients.", "kind")
	m.rxBytes = counter("throng_ws_rx_bytes_total", "Bytes from clients after the upgrade.")
	m.txBytes = counter("throng_ws_tx_bytes_total", "Bytes to clients after the upgrade.")
	m.writes = counter("throng_ws_writes_total", "Write system calls to clients.")
	m.blocked = gauge("throng_ws_blocked", "Connections whose socket does not take what there is.")
	m.closedVec = vec("throng_ws_closed_total", "WebSockets closed.", "reason")
	ephemeral := vec("throng_ephemeral_total", "Typing and presence events; shed: given up because the gateway is behind with messages, dropped: because the client is.", "what", "outcome")
	m.submitQueue = queue("gateway_submit", l.SubmitQueue)
	m.readQueue = queue("gateway_reads", l.ReadQueue)
	m.queryQueue = queue("gateway_receipt_requests", maxQueries)
	m.closeQueue = queue("gateway_closes", maxCloses)
	m.groupCalls = queue("gateway_group_calls", l.GroupCalls)
	m.addresses = queue("gateway_addresses", remembered)
	m.users = queue("gateway_users", remembered)
	over := vec("throng_ws_limited_total", "Requests of clients answered with CODE_RATE_LIMITED, by the limit that they were over.", "limit")
	ops, err := obs.NewOps(reg)
	errs = append(errs, err)
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	m.limited = limited{inFlight: over.WithLabelValues("in_flight"), sends: over.WithLabelValues("user_sends"),
		bytes: over.WithLabelValues("user_bytes"), groups: over.WithLabelValues("group_requests")}
	m.login, m.send, m.deliver = ops.Op("gateway.login"), ops.Op("gateway.send"), ops.Op("gateway.deliver")
	m.typing, m.presence = outcomesOf(ephemeral, "typing"), outcomesOf(ephemeral, "presence")
	for k := range kinds {
		name := kindName(k)
		if name == "" {
			name = kindName(kindOther)
		}
		m.rx[k], m.tx[k] = rx.WithLabelValues(name), tx.WithLabelValues(name)
	}
	return m, nil
}

func (m *metrics) closed(reason string) { m.closedVec.WithLabelValues(reason).Inc() }

// event returns the outcomes of an event of that kind.
func (m *metrics) event(kind int) *outcomes {
	if kind == kindPresenceEvent {
		return &m.presence
	}
	return &m.typing
}
