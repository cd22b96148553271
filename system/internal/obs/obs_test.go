package obs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDebugPort(t *testing.T) {
	reg := NewRegistry()
	q, err := NewQueue(reg, "test", 7)
	if err != nil {
		t.Fatal(err)
	}
	q.Depth.Set(3)
	missing := errors.New("inbox/1 is not connected")
	ready := missing
	log := slog.New(slog.DiscardHandler)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, Handler(reg, func() error { return ready }, log), log) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := client.Get("http://" + ln.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, missing.Error()) {
		t.Errorf("readyz while something is missing: %d %q", code, body)
	}
	ready = nil
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("readyz when ready: %d", code)
	}
	_, metrics := get("/metrics")
	for _, want := range []string{`throng_queue_depth{queue="test"} 3`, `throng_queue_limit{queue="test"} 7`,
		`throng_queue_dropped_total{queue="test"} 0`, "process_cpu_seconds_total", "go_goroutines", "go_gc_heap_live_bytes"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if code, body := get("/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("pprof: %d", code)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve after a stop: %v", err)
	}
}

func TestRPCStatsCountsByService(t *testing.T) {
	reg := prometheus.NewRegistry()
	var handlers []stats.Handler
	for range 2 { // a server and a client of one process share the counters
		h, err := RPCStats(reg)
		if err != nil {
			t.Fatal(err)
		}
		handlers = append(handlers, h)
	}
	for _, h := range handlers {
		ctx := h.TagRPC(t.Context(), &stats.RPCTagInfo{FullMethodName: "/throng.rpc.Inbox/Append"})
		h.HandleRPC(ctx, &stats.InPayload{WireLength: 10})
		h.HandleRPC(ctx, &stats.OutPayload{WireLength: 4})
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, f := range families {
		for _, m := range f.Metric {
			got += fmt.Sprintf("%s{%s} %v\n", f.GetName(), m.Label[0].GetValue(), m.Counter.GetValue())
		}
	}
	if want := "throng_rpc_rx_bytes_total{Inbox} 20\nthrong_rpc_tx_bytes_total{Inbox} 8\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestLoggerCarriesRoleAndInstance(t *testing.T) {
	var buf bytes.Buffer
	log, err := NewLogger(&buf, LogConfig{Format: "json", Level: "warn"}, "inbox", 2)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not this")
	log.Warn("this")
	if s := buf.String(); strings.Contains(s, "not this") || !strings.Contains(s, `"role":"inbox","instance":2`) {
		t.Errorf("got %s", s)
	}
	for _, cfg := range []LogConfig{{Level: "loud"}, {Format: "xml"}} {
		if _, err := NewLogger(io.Discard, cfg, "inbox", 0); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func TestRegisterRefusesAnotherShape(t *testing.T) {
	reg := prometheus.NewRegistry()
	if _, err := Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x", Help: "h"}, []string{"a"})); err != nil {
		t.Fatal(err)
	}
	if _, err := Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x", Help: "h"}, []string{"b"})); err == nil {
		t.Error("the same name with other labels was accepted")
	}
}

// TestRPCStatsTimesCalls: calls are timed by method and answer; streams, which last
// as long as their processes, are not.
func TestRPCStatsTimesCalls(t *testing.T) {
	reg := prometheus.NewRegistry()
	h, err := RPCStats(reg)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Unix(1_700_000_000, 0)
	for _, stream := range []bool{false, true} {
		ctx := h.TagRPC(t.Context(), &stats.RPCTagInfo{FullMethodName: "/throng.rpc.Group/Check"})
		h.HandleRPC(ctx, &stats.Begin{Client: true, BeginTime: began, IsServerStream: stream})
		h.HandleRPC(ctx, &stats.End{Client: true, BeginTime: began, EndTime: began.Add(20 * time.Millisecond), Error: status.Error(codes.Unavailable, "no")})
	}
	want := `# HELP throng_rpc_seconds Duration of RPC calls that are no streams, by side (client or server), method and code of the answer.
# TYPE throng_rpc_seconds histogram
`
	for i, le := range []string{"0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1", "3", "10", "+Inf"} {
		n := 0
		if i >= 5 {
			n = 1
		}
		want += fmt.Sprintf("throng_rpc_seconds_bucket{code=\"Unavailable\",method=\"Group/Check\",side=\"client\",le=\"%s\"} %d\n", le, n)
	}
	want += `throng_rpc_seconds_sum{code="Unavailable",method="Group/Check",side="client"} 0.02
throng_rpc_seconds_count{code="Unavailable",method="Group/Check",side="client"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "throng_rpc_seconds"); err != nil {
		t.Error(err)
	}
}
