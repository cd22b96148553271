package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"throng/sim/load/roundtrip"
	"throng/system/wire"
)

const (
	scriptOfK6 = "testdata/peers/k6.js"
	// connectWithin is until every user has written: k6 makes its users first.
	connectWithin = 5 * time.Minute
	endWithin     = 3 * time.Minute
)

// quantiles that are reported and compared, in percent.
func quantiles() []float64 {
	return []float64{1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9, 99.99}
}

// generation is one run of a generator.
type generation struct {
	Name        string    `json:"name"`
	CPUPer1000  float64   `json:"cpu_s_per_1000_round_trips"` // of the process tree
	PerS        float64   `json:"round_trips_per_s"`
	RSSPerUser  float64   `json:"rss_bytes_per_user"` // the whole process
	Trips       int64     `json:"round_trips"`
	Reported    []float64 `json:"reported_ms"` // by quantile, as the generator says
	FromSend    []float64 `json:"from_send_ms,omitempty"`
	Whole       []float64 `json:"whole_run_from_send_ms,omitempty"`
	LateP99     float64   `json:"late_p99_ms,omitempty"` // of its own schedule
	Truth       []float64 `json:"truth_ms"`              // by the probe beside it
	Probed      int64     `json:"probed"`
	ServeP99    float64   `json:"serve_p99_ms"` // in the gateway: read to written
	OtherCores  float64   `json:"other_cores"`  // what was used by processes that are not of this comparison
	GatewayCPUs float64   `json:"gateway_cores"`
}

// reported is what a generator says at its end.
type reported struct {
	Reported []float64 `json:"reported_ms"`
	FromSend []float64 `json:"from_send_ms"`
	Whole    []float64 `json:"whole_run_from_send_ms"`
	LateP99  float64   `json:"late_p99_ms"`
}

// frame is the Send that everybody writes.
func frame() ([]byte, error) {
	return (&wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{ClientMsgId: 1, Seq: 1, Body: make([]byte, 100)}}}).MarshalVT()
}

// serveGateway is the gateway with nothing behind it, as a process of its own;
// it says its address and ends with its standard input.
func serveGateway(in io.Reader, out io.Writer) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, in)
		_ = ln.Close()
	}()
	server := &http.Server{Handler: roundtrip.NewGateway(), ReadHeaderTimeout: time.Minute}
	if err := server.Serve(ln); err != nil && !strings.Contains(err.Error(), "closed") {
		return err
	}
	return nil
}

// playOurs is our generator as a process of its own; it says what it measured.
func playOurs(ctx context.Context, args []string, out io.Writer) error {
	var w roundtrip.Work
	set := flag.NewFlagSet("generator", flag.ContinueOnError)
	set.StringVar(&w.Gateway, "gateway", "", "ws://host:port")
	set.IntVar(&w.Users, "users", 0, "")
	set.IntVar(&w.SteadyS, "steady", 0, "seconds")
	if err := set.Parse(args); err != nil {
		return err
	}
	spool, err := os.CreateTemp("", "peers-*.spool")
	if err != nil {
		return err
	}
	w.Spool = spool
	played, err := roundtrip.Play(ctx, w)
	if err := errors.Join(err, spool.Close(), os.Remove(spool.Name())); err != nil {
		return err
	}
	r := reported{LateP99: float64(played.Late.ValueAtQuantile(99)) / 1000}
	for _, q := range quantiles() {
		r.Reported = append(r.Reported, float64(played.Sent.ValueAtQuantile(q))/1000)
	}
	return json.NewEncoder(out).Encode(r)
}

// ours starts our generator; the result is written to the file at its end.
func ours(s settings, gateway, result string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f, err := os.Create(result)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the child has its own
	cmd := exec.Command(self, "generator", "-gateway", "ws://"+gateway, "-users", strconv.Itoa(s.users), "-steady", strconv.Itoa(s.steadyS))
	cmd.Stdout = f
	return start(cmd)
}

// k6 starts k6 with the script.
func k6(s settings, path, gateway, result string) (*process, error) {
	b, err := frame()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, q := range quantiles() {
		names = append(names, quantileOfK6(q))
	}
	cmd := exec.Command(path, "run", "--quiet", "--no-usage-report", "--no-color", scriptOfK6)
	for k, v := range map[string]string{"USERS": strconv.Itoa(s.users), "RAMP_S": strconv.Itoa(roundtrip.RampS), "WARMUP_S": strconv.Itoa(roundtrip.WarmupS),
		"STEADY_S": strconv.Itoa(s.steadyS), "GATEWAY": "ws://" + gateway + wire.Path, "FRAME": hex.EncodeToString(b), "QUANTILES": strings.Join(names, ","), "SUMMARY": result} {
		cmd.Args = append(cmd.Args, "-e", k+"="+v)
	}
	return start(cmd)
}

func quantileOfK6(q float64) string { return "p(" + strconv.FormatFloat(q, 'f', -1, 64) + ")" }

// readK6 reads what the script's summary says.
func readK6(data []byte) (reported, error) {
	var metrics map[string]struct {
		Values map[string]float64 `json:"values"`
	}
	if err := json.Unmarshal(data, &metrics); err != nil {
		return reported{}, fmt.Errorf("summary of k6: %w", err)
	}
	if n := metrics["failed"].Values["count"]; n > 0 {
		return reported{}, fmt.Errorf("k6: %.0f sockets failed", n)
	}
	var r reported
	for name, to := range map[string]*[]float64{"from_intended": &r.Reported, "from_send": &r.FromSend, "whole_run": &r.Whole} {
		for _, q := range quantiles() {
			v, ok := metrics[name].Values[quantileOfK6(q)]
			if !ok {
				return reported{}, fmt.Errorf("summary of k6: %s has no %s", name, quantileOfK6(q))
			}
			*to = append(*to, v)
		}
	}
	return r, nil
}

func readOurs(data []byte) (r reported, err error) { return r, json.Unmarshal(data, &r) }

// generators runs ours and k6 in turns.
func (c *comparison) generators(ctx context.Context, s settings, pathOfK6 string, say func(string, ...any)) (err error) {
	dir, err := os.MkdirTemp("", "peers")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	result := filepath.Join(dir, "result.json")
	for round := range s.rounds {
		for _, g := range []struct {
			name  string
			start func(gateway string) (*process, error)
			read  func([]byte) (reported, error)
		}{
			{"throng", func(gateway string) (*process, error) { return ours(s, gateway, result) }, readOurs},
			{"k6", func(gateway string) (*process, error) { return k6(s, pathOfK6, gateway, result) }, readK6},
		} {
			say("round %d of %d: %s, %d users with a message a second", round+1, s.rounds, g.name, s.users)
			got, err := generate(ctx, s, g.start)
			// Whoever is late by seconds reaches the measured time after its end.
			for again := 0; again < 3 && errors.Is(err, errEnded); again++ {
				say("    %v: the machine is too busy; once more", err)
				got, err = generate(ctx, s, g.start)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			data, err := os.ReadFile(result)
			if err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			r, err := g.read(data)
			if err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			got.Name, got.Reported, got.FromSend, got.Whole, got.LateP99 = g.name, r.Reported, r.FromSend, r.Whole, r.LateP99
			say("    %.3f CPU-s for 1,000 round trips, %.0f a second, %.1f KB a user; p99 %.1f ms as it says, %.1f ms by the probe; others used %.1f cores",
				got.CPUPer1000, got.PerS, got.RSSPerUser/1000, at(got.Reported, 99), at(got.Truth, 99), got.OtherCores)
			c.Generators = append(c.Generators, *got)
		}
	}
	return nil
}

// at is the value of a quantile.
func at(values []float64, q float64) float64 {
	for i, x := range quantiles() {
		if x == q && i < len(values) {
			return values[i]
		}
	}
	return 0
}

// generate runs one generator against a fresh gateway, and looks at both from outside.
func generate(ctx context.Context, s settings, begin func(gateway string) (*process, error)) (*generation, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "gateway")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	said, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	gateway, err := start(cmd)
	if err != nil {
		return nil, err
	}
	defer gateway.stop()
	addr, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	addr = strings.TrimSpace(addr)
	p, err := begin(addr)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	got, err := watch(ctx, s, p, gateway, addr)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-time.After(endWithin):
		return nil, errTooLong
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.err != nil {
		return nil, p.ended()
	}
	return got, nil
}

// watch measures the steady phase: from when every user has written until
// shortly before the end.
func watch(ctx context.Context, s settings, p, gateway *process, addr string) (*generation, error) {
	deadline := time.Now().Add(connectWithin)
	for {
		c, err := counts(ctx, addr)
		if err != nil {
			return nil, err
		}
		if c.Senders >= s.users {
			break
		}
		if err := p.ended(); err != nil {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%w: %d of %d users have written", errTooLong, c.Senders, s.users)
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
	probe, err := newProbe(ctx, addr)
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, (roundtrip.WarmupS-1)*time.Second); err != nil {
		return nil, err
	}
	before, err := observe(ctx, p, gateway, addr)
	if err != nil {
		return nil, err
	}
	truth, err := probe.measure(ctx, time.Duration(s.steadyS-3)*time.Second)
	if err != nil {
		return nil, err
	}
	after, err := observe(ctx, p, gateway, addr)
	if err != nil {
		return nil, err
	}
	trips, passed := after.counts.Answered-before.counts.Answered, after.sight.time.Sub(before.sight.time).Seconds()
	if trips == 0 || truth.TotalCount() == 0 {
		return nil, fmt.Errorf("%d round trips, %d of the probe", trips, truth.TotalCount())
	}
	g := &generation{CPUPer1000: (after.load.cpu - before.load.cpu).Seconds() / float64(trips) * 1000, Trips: trips, PerS: float64(trips) / passed,
		RSSPerUser: float64(after.load.rss) / float64(s.users), Probed: truth.TotalCount(), ServeP99: float64(after.counts.ServeP99) / 1000,
		GatewayCPUs: (after.gateway.cpu - before.gateway.cpu).Seconds() / passed,
		OtherCores:  before.sight.others(after.sight)}
	for _, q := range quantiles() {
		g.Truth = append(g.Truth, float64(truth.ValueAtQuantile(q))/1000)
	}
	return g, nil
}

// state is what can be seen of a run at one time.
type state struct {
	sight         sight
	load, gateway usage
	counts        roundtrip.Counts
}

func observe(ctx context.Context, p, gateway *process, addr string) (s state, err error) {
	if s.counts, err = counts(ctx, addr); err != nil {
		return s, err
	}
	if s.load, err = p.usage(); err != nil {
		return s, err
	}
	if s.gateway, err = gateway.usage(); err != nil {
		return s, err
	}
	s.sight, err = look()
	return s, err
}

// counts asks the gateway.
func counts(ctx context.Context, addr string) (c roundtrip.Counts, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+roundtrip.StatsPath, nil)
	if err != nil {
		return c, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return c, err
	}
	defer resp.Body.Close()
	return c, json.NewDecoder(resp.Body).Decode(&c)
}

// wait waits, or returns why not.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
