package obs

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// rpcStats counts the bytes of RPC messages by service and times the calls. It
// keeps the counters of an RPC in its context, so that a message costs one addition.
type rpcStats struct {
	tx, rx  *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

type rpcKey struct{}

type rpcCall struct {
	tx, rx prometheus.Counter
	method string // "Group/Check"
	stream bool
}

// RPCStats returns a stats handler, for servers (grpc.StatsHandler) and
// clients (grpc.WithStatsHandler), with
// throng_rpc_{tx,rx}_bytes_total{service}, bytes of RPC messages with their
// framing, without HTTP/2 headers, and throng_rpc_seconds{side,method,code}, how
// long calls took, streams left out, which last as long as their processes. It can
// be called more than once with the same registry; the handlers then share the metrics.
func RPCStats(reg prometheus.Registerer) (stats.Handler, error) {
	tx, err := Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_rpc_tx_bytes_total", Help: "Bytes of RPC messages sent."}, []string{"service"}))
	if err != nil {
		return nil, err
	}
	rx, err := Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_rpc_rx_bytes_total", Help: "Bytes of RPC messages received."}, []string{"service"}))
	if err != nil {
		return nil, err
	}
	seconds, err := Register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "throng_rpc_seconds", Help: "Duration of RPC calls that are no streams, by side (client or server), method and code of the answer.",
		Buckets: []float64{0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10},
	}, []string{"side", "method", "code"}))
	if err != nil {
		return nil, err
	}
	return &rpcStats{tx: tx, rx: rx, seconds: seconds}, nil
}

func (s *rpcStats) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	service, method := nameOf(info.FullMethodName)
	return context.WithValue(ctx, rpcKey{},
		&rpcCall{tx: s.tx.WithLabelValues(service), rx: s.rx.WithLabelValues(service), method: service + "/" + method})
}

func (s *rpcStats) HandleRPC(ctx context.Context, ev stats.RPCStats) {
	c, ok := ctx.Value(rpcKey{}).(*rpcCall)
	if !ok {
		return
	}
	switch ev := ev.(type) {
	case *stats.Begin:
		c.stream = ev.IsClientStream || ev.IsServerStream
	case *stats.InPayload:
		c.rx.Add(float64(ev.WireLength))
	case *stats.OutPayload:
		c.tx.Add(float64(ev.WireLength))
	case *stats.End:
		if c.stream {
			return
		}
		side := "server"
		if ev.IsClient() {
			side = "client"
		}
		s.seconds.WithLabelValues(side, c.method, status.Code(ev.Error).String()).Observe(ev.EndTime.Sub(ev.BeginTime).Seconds())
	}
}

func (s *rpcStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (s *rpcStats) HandleConn(context.Context, stats.ConnStats)                       {}

// nameOf returns "Inbox" and "Append" of "/throng.rpc.Inbox/Append".
func nameOf(full string) (service, method string) {
	service, method, _ = strings.Cut(strings.TrimPrefix(full, "/"), "/")
	return service[strings.LastIndexByte(service, '.')+1:], method
}

// StopGRPC stops srv gracefully and, when streams are still open after
// timeout, at once. It returns when the server has stopped.
func StopGRPC(srv *grpc.Server, timeout time.Duration) {
	done := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(done)
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		srv.Stop()
		<-done
	}
}
