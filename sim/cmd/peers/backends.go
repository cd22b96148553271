package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/gorilla/websocket"
)

// The work of BenchmarkBackendGroup100: each message goes to all of a group.
const (
	groups, members = 10, 100
	rate            = 150 // messages a second, in all groups together
	warmup          = 3 * time.Second
	bodyLen         = 100
	configOfCentri  = "testdata/peers/centrifugo.json"
	readyWithin     = time.Minute
)

// backend is one run of a backend with groups of 100.
type backend struct {
	Name       string    `json:"name"`
	PerCPUS    float64   `json:"deliveries_per_cpu_s"` // of the process tree; throng: of all roles and the infrastructure
	PerS       float64   `json:"deliveries_per_s"`
	Expected   float64   `json:"expected_per_s,omitempty"`               // Centrifugo
	Gateway    float64   `json:"deliveries_per_gateway_cpu_s,omitempty"` // throng
	Latency    []float64 `json:"latency_ms,omitempty"`                   // by quantile, from the intended time
	RSSPerConn float64   `json:"rss_bytes_per_connection"`
	OtherCores float64   `json:"other_cores"`
}

// backends runs ours and Centrifugo in turns.
func (c *comparison) backends(ctx context.Context, s settings, path string, say func(string, ...any)) error {
	for round := range s.rounds {
		for _, b := range []struct {
			name string
			run  func(context.Context) (*backend, error)
		}{
			{"throng", benchmarkOurs},
			{"centrifugo", func(ctx context.Context) (*backend, error) {
				return centrifugo(ctx, path, time.Duration(s.steadyS)*time.Second)
			}},
		} {
			say("round %d of %d: %s, %d groups of %d, %d messages a second", round+1, s.rounds, b.name, groups, members, rate)
			got, err := b.run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", b.name, err)
			}
			got.Name = b.name
			say("    %.0f deliveries for each CPU-second, %.0f a second, %.1f KB a connection", got.PerCPUS, got.PerS, got.RSSPerConn/1000)
			c.Backends = append(c.Backends, *got)
		}
	}
	return nil
}

// benchmarkOurs runs the benchmarks that the project has.
func benchmarkOurs(ctx context.Context) (*backend, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^(BenchmarkBackendGroup100|BenchmarkIdleUsers)$", "-benchtime", "1x", "./sim/cmd/throng")
	cmd.Stderr = os.Stderr
	before, err := look()
	if err != nil {
		return nil, err
	}
	said, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, said)
	}
	after, err := look()
	if err != nil {
		return nil, err
	}
	m := metricsOf(said)
	b := &backend{PerCPUS: m["deliveries/backend-CPU-s"], PerS: m["deliveries/s"], RSSPerConn: m["gateway-RSS-B/user"],
		OtherCores: before.others(after)}
	if us := m["gateway-us/delivery"]; us > 0 {
		b.Gateway = 1e6 / us
	}
	if b.PerCPUS == 0 || b.RSSPerConn == 0 {
		return nil, fmt.Errorf("the benchmarks said nothing: %s", said)
	}
	return b, nil
}

// metricsOf reads the values and units in the output of benchmarks.
func metricsOf(said []byte) map[string]float64 {
	out := map[string]float64{}
	for line := range strings.Lines(string(said)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				out[f[i+1]] = v
			}
		}
	}
	return out
}

// centrifugo runs Centrifugo with its memory engine: channels in the place of
// groups, to which their members publish.
func centrifugo(ctx context.Context, path string, steady time.Duration) (*backend, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "--config", configOfCentri)
	cmd.Env = append(os.Environ(), "CENTRIFUGO_HTTP_SERVER_PORT="+strconv.Itoa(port))
	p, err := start(cmd)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if err := ready(ctx, p, addr); err != nil {
		return nil, err
	}
	if err := wait(ctx, time.Second); err != nil {
		return nil, err
	}
	empty, err := p.usage()
	if err != nil {
		return nil, err
	}
	hall, err := enter(ctx, "ws://"+addr+"/connection/websocket")
	if err != nil {
		return nil, err
	}
	defer hall.leave()
	if err := wait(ctx, 2*time.Second); err != nil {
		return nil, err
	}
	full, err := p.usage()
	if err != nil {
		return nil, err
	}
	b, err := hall.measure(ctx, p, steady)
	if err != nil {
		return nil, err
	}
	b.RSSPerConn = float64(full.rss-empty.rss) / float64(len(hall.members))
	return b, nil
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// ready waits until the process takes connections.
func ready(ctx context.Context, p *process, addr string) error {
	for deadline := time.Now().Add(readyWithin); ; {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if err := p.ended(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %w", errTooLong, err)
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// hall is everybody who is connected to Centrifugo.
type hall struct {
	members []*member // group after group
	begin   time.Time // of the times in messages
	readers sync.WaitGroup

	deliveries atomic.Int64
	measuring  atomic.Bool
}

type member struct {
	ws      *websocket.Conn
	mu      sync.Mutex              // writes
	latency *hdrhistogram.Histogram // of its reader, µs
	err     error                   // of its reader, once that has ended
}

// mark is before the intended time of a message, in its data.
const mark = `"due":`

// enter connects everybody and lets them subscribe to their channel.
func enter(ctx context.Context, url string) (*hall, error) {
	h := &hall{begin: time.Now()}
	for i := range groups * members {
		ws, resp, err := websocket.DefaultDialer.DialContext(ctx, url, nil)
		if err != nil {
			h.leave()
			return nil, err
		}
		_ = resp.Body.Close()
		m := &member{ws: ws, latency: hdrhistogram.New(1, 60_000_000, 3)}
		h.members = append(h.members, m)
		for _, ask := range []string{`{"id":1,"connect":{}}`, fmt.Sprintf(`{"id":2,"subscribe":{"channel":"group%d"}}`, i/members)} {
			if err := m.ask(ask); err != nil {
				h.leave()
				return nil, err
			}
		}
		h.readers.Go(func() { m.err = h.read(m) })
	}
	return h, nil
}

func (h *hall) leave() {
	for _, m := range h.members {
		_ = m.ws.Close()
	}
	h.readers.Wait()
}

// ask writes a command and reads its reply, before the reader of m has begun.
func (m *member) ask(command string) error {
	if err := m.write(command); err != nil {
		return err
	}
	_, b, err := m.ws.ReadMessage()
	if err != nil {
		return err
	}
	if bytes.Contains(b, []byte(`"error"`)) {
		return fmt.Errorf("%s: %s", command, b)
	}
	return nil
}

func (m *member) write(command string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ws.WriteMessage(websocket.TextMessage, []byte(command))
}

// read counts what m is delivered until its socket is closed. One message may
// carry several replies, one a line.
func (h *hall) read(m *member) error {
	for {
		_, b, err := m.ws.ReadMessage()
		if err != nil {
			return err
		}
		now := time.Since(h.begin).Microseconds()
		for line := range bytes.Lines(b) {
			line = bytes.TrimSpace(line)
			if string(line) == "{}" { // a ping
				if err := m.write("{}"); err != nil {
					return err
				}
				continue
			}
			_, rest, ok := bytes.Cut(line, []byte(mark))
			if !ok {
				if bytes.Contains(line, []byte(`"error"`)) {
					return errors.New(string(line))
				}
				continue
			}
			h.deliveries.Add(1)
			end := bytes.IndexByte(rest, ',')
			if !h.measuring.Load() || end < 0 {
				continue
			}
			due, err := strconv.ParseInt(string(rest[:end]), 10, 64)
			if err != nil {
				return err
			}
			_ = m.latency.RecordValue(min(max(now-due, 1), m.latency.HighestTrackableValue()))
		}
	}
}

// measure lets members publish at the rate and measures after the warm-up.
func (h *hall) measure(ctx context.Context, p *process, steady time.Duration) (*backend, error) {
	failed := make(chan error, 1)
	go func() { failed <- h.publish(ctx, int((warmup+steady+time.Second).Seconds()*rate)) }()
	if err := wait(ctx, warmup); err != nil {
		return nil, err
	}
	h.measuring.Store(true)
	before, n := usage{}, h.deliveries.Load()
	began, err := look()
	if err != nil {
		return nil, err
	}
	if before, err = p.usage(); err != nil {
		return nil, err
	}
	if err := wait(ctx, steady); err != nil {
		return nil, err
	}
	got := float64(h.deliveries.Load() - n)
	after, err := p.usage()
	if err != nil {
		return nil, err
	}
	ended, err := look()
	if err != nil {
		return nil, err
	}
	h.measuring.Store(false)
	if err := <-failed; err != nil {
		return nil, err
	}
	h.leave() // ends the readers: their histograms are nobody's then
	all := hdrhistogram.New(1, 60_000_000, 3)
	for _, m := range h.members {
		all.Merge(m.latency)
	}
	if got == 0 || all.TotalCount() == 0 {
		return nil, errors.New("nothing was delivered")
	}
	b := &backend{PerCPUS: got / (after.cpu - before.cpu).Seconds(), PerS: got / ended.time.Sub(began.time).Seconds(), Expected: rate * members,
		OtherCores: began.others(ended)}
	for _, q := range quantiles() {
		b.Latency = append(b.Latency, float64(all.ValueAtQuantile(q))/1000)
	}
	return b, nil
}

// publish sends n messages at the rate, each by another member.
func (h *hall) publish(ctx context.Context, n int) error {
	body, err := json.Marshal(strings.Repeat("x", bodyLen))
	if err != nil {
		return err
	}
	first := time.Now()
	for i := range n {
		due := first.Add(time.Duration(i) * time.Second / rate)
		if err := wait(ctx, time.Until(due)); err != nil {
			return err
		}
		g := i % groups
		command := fmt.Sprintf(`{"id":%d,"publish":{"channel":"group%d","data":{%s%d,"body":%s}}}`, i+3, g, mark, due.Sub(h.begin).Microseconds(), body)
		if err := h.members[g*members+i/groups%members].write(command); err != nil {
			return err
		}
	}
	return nil
}
