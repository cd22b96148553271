package obs

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// rpcStats counts the bytes of RPC messages by service. It keeps the counters
// of an RPC in its context, so that a message costs one addition.
type rpcStats struct {
	tx, rx *prometheus.CounterVec
}

type rpcCountersKey struct{}

type rpcCounters struct{ tx, rx prometheus.Counter }

// RPCStats returns a stats handler, for servers (grpc.StatsHandler) and
// clients (grpc.WithStatsHandler), that counts
// throng_rpc_{tx,rx}_bytes_total{service}: bytes of RPC messages with their
// framing, without HTTP/2 headers. It can be called more than once with the
// same registry; the handlers then share the counters.
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
	return &rpcStats{tx: tx, rx: rx}, nil
}

func (s *rpcStats) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	service := serviceOf(info.FullMethodName)
	return context.WithValue(ctx, rpcCountersKey{},
		rpcCounters{tx: s.tx.WithLabelValues(service), rx: s.rx.WithLabelValues(service)})
}

func (s *rpcStats) HandleRPC(ctx context.Context, ev stats.RPCStats) {
	c, ok := ctx.Value(rpcCountersKey{}).(rpcCounters)
	if !ok {
		return
	}
	switch ev := ev.(type) {
	case *stats.InPayload:
		c.rx.Add(float64(ev.WireLength))
	case *stats.OutPayload:
		c.tx.Add(float64(ev.WireLength))
	}
}

func (s *rpcStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (s *rpcStats) HandleConn(context.Context, stats.ConnStats)                       {}

// serviceOf returns "Inbox" of "/throng.rpc.Inbox/Append".
func serviceOf(method string) string {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return service[strings.LastIndexByte(service, '.')+1:]
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
