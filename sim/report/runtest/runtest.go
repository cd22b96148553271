// Package runtest writes synthetic run folders for tests: a run whose costs,
// rates and latencies are known, so that a test can say what report and
// capacity must find in it. It may import sim/history only.
package runtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"throng/sim/history"
)

// Cost is CPU in microseconds for each piece of work.
type Cost struct{ Frame, Login, ConnectionS, Send, Recipient, Record, Live, Row, Open, Push, Check float64 }

// Options of a synthetic run. The zero value of a field is its default.
type Options struct {
	Seed         uint64
	SendsPerS    float64 // in steady; 358
	SteadyS      float64 // 60
	SpikeS       float64 // 20
	SpecYAML     string
	LateUs       float64 // median lateness of the generator; 150
	Users        int64
	NoNoise      bool // CPU follows the costs exactly
	NoLatency    bool // no histograms, for who does not read them
	ScrapeEveryS float64
	Cost         Cost
	// Leak is a role that keeps 1 MiB and 20 goroutines of every second.
	Leak string
	// NoGauges leaves goroutines and live heap out.
	NoGauges bool
	// Edit changes the manifest and the audit before they are written; audit may
	// be set to nil inside by returning false.
	Edit func(m *history.Manifest, a *history.Audit) (keepAudit bool)
	// Row changes a row of the series.
	Row func(*history.Second)
}

// DefaultCost is the cost that runs have unless told otherwise.
func DefaultCost() Cost {
	return Cost{Frame: 18, Login: 420, ConnectionS: 3, Send: 60, Recipient: 9, Record: 70, Live: 11, Row: 38, Open: 90, Push: 45, Check: 20}
}

func (o *Options) defaults() {
	def := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.SendsPerS, 358)
	def(&o.SteadyS, 60)
	def(&o.SpikeS, 20)
	def(&o.LateUs, 150)
	def(&o.ScrapeEveryS, 5)
	if o.Users == 0 {
		o.Users = 600_000
	}
	if o.Cost == (Cost{}) {
		o.Cost = DefaultCost()
	}
}

// The mix of the synthetic run, for each send.
const (
	GroupShare   = 0.43
	FanOut       = 2.73
	Devices      = 1.2
	OfflineShare = 0.62
	LoginsPer    = 0.506
	SocketsPer   = 46.4
	RowBytes     = 210.0
)

// Start is when every synthetic run started.
func Start() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) }

// state is the run while it is written.
type state struct {
	o     Options
	w     *history.Writer
	rng   *rand.Rand
	stage *rand.Rand
	// stamped counts deliveries by kind.
	stamped map[string]int
	cpu     map[string]float64
	noise   map[string]*rand.Rand         // of each role's CPU
	count   map[string]map[string]float64 // role -> metric -> value
	audit   history.Audit
	conns   float64
	next    float64 // scrape
}

// Write writes a run folder at dir.
func Write(dir string, o Options) error {
	o.defaults()
	phases := timeline(o)
	m := manifest(o, phases)
	s := &state{o: o, rng: rand.New(rand.NewPCG(o.Seed+1, 77)), stage: rand.New(rand.NewPCG(o.Seed+3, 77)), stamped: map[string]int{}, cpu: map[string]float64{}, count: map[string]map[string]float64{}}
	s.audit.Sampled = 1
	s.noise = map[string]*rand.Rand{}
	for i, r := range roles() {
		s.noise[r] = rand.New(rand.NewPCG(o.Seed+2, uint64(i)))
	}
	start := *m
	w, err := history.Create(dir, &start)
	if err != nil {
		return err
	}
	s.w = w
	end := phases[len(phases)-1].End
	for t := 1.0; t <= end; t++ {
		if err := s.second(t, phaseAt(phases, t-0.5)); err != nil {
			return fmt.Errorf("second %g: %w", t, err)
		}
	}
	s.finishAudit()
	keep := true
	if o.Edit != nil {
		keep = o.Edit(m, &s.audit)
	}
	if keep {
		if err := w.Audit(&s.audit); err != nil {
			return err
		}
	}
	if err := w.Event(history.Event{T: 1, Kind: "phase", Detail: "synthetic run"}); err != nil {
		return err
	}
	return w.Finish(m)
}

func timeline(o Options) []history.Phase {
	var out []history.Phase
	t := 0.0
	add := func(name string, s float64, load, gated bool) {
		out = append(out, history.Phase{Name: name, Start: t, End: t + s, BudgetS: s, Load: load, Gated: gated})
		t += s
	}
	f := math.Min(1, o.SteadyS/60)
	add("provision", math.Ceil(4*f), false, false)
	add("ramp", math.Ceil(18*f), true, false)
	add("backlog", math.Ceil(20*f), true, false)
	add("warmup", math.Ceil(15*f), true, false)
	add("steady", o.SteadyS, true, true)
	add("spike", o.SpikeS, true, false)
	add("settle", 4, false, false)
	add("proof", 6, false, false)
	return out
}

func phaseAt(ps []history.Phase, t float64) history.Phase {
	for _, p := range ps {
		if t >= p.Start && t < p.End {
			return p
		}
	}
	return ps[len(ps)-1]
}

func manifest(o Options, phases []history.Phase) *history.Manifest {
	m := &history.Manifest{FormatVersion: history.FormatVersion, RunID: "20260304T050607Z-5e5e5e", Scenario: "groups_peak",
		Question: "What do group members experience at the diurnal peak, and in a New Year's spike on top of it?",
		Target:   "embedded", TargetReason: "synthetic run for tests", Seed: 42, SpecHash: "5e5e5e5e5e5e5e5e", SpecYAML: o.SpecYAML,
		Versions: map[string]string{"throng": "v0.0.0-test", "go": "go1.26", "kfake": "v0", "miniredis": "v2"},
		Machine:  history.Machine{OS: "linux", Kernel: "6.18", CPU: "AMD EPYC", Cores: 2, MemBytes: 24 << 30, OpenFiles: 1 << 20, Hypervised: true},
		Replay:   "make sim SCENARIO=groups_peak STACK=embedded SCALE=1/5000 SEED=42", Start: Start(),
		End: Start().Add(time.Duration(phases[len(phases)-1].End * float64(time.Second))), Phases: phases, Users: o.Users, StampEvery: 1}
	for i, r := range roles() {
		m.Roles = append(m.Roles, history.RoleInstance{Role: r, PID: 1000 + i, Infra: i > 5})
	}
	return m
}

func roles() []string {
	return []string{"gateway", "message", "fanout", "group", "inbox", "push", "kafka", "redis", "provider", "generator"}
}

// second plays one second.
func (s *state) second(t float64, p history.Phase) error {
	target := SocketsPer * s.o.SendsPerS
	rate, logins := 0.0, 0.0
	switch p.Name {
	case "ramp":
		logins = target / (p.End - p.Start)
	case "backlog":
		rate, logins = s.o.SendsPerS*0.9, s.o.SendsPerS*LoginsPer*0.4
	case "warmup", "steady":
		rate, logins = s.o.SendsPerS, s.o.SendsPerS*LoginsPer
	case "spike":
		rate, logins = s.o.SendsPerS*5, s.o.SendsPerS*LoginsPer
	case "proof":
		logins = s.o.SendsPerS * 6
	}
	sends := s.noisy(rate)
	opens := s.noisy(logins)
	if p.Name == "ramp" {
		s.conns += opens
	}
	offline := OfflineShare
	if p.Name == "backlog" {
		offline = 1
	}
	pairs := sends * FanOut * Devices
	live := math.Round(pairs * (1 - offline))
	row := history.Second{T: t, Phase: p.Name, Offered: int64(sends), Written: int64(sends), Accepted: int64(sends), Live: int64(live), Logins: int64(opens),
		Connected: int64(s.conns), InFlight: int64(sends / 80), Closed: int64(opens), Pushes: int64(pairs * offline * 0.5)}
	switch p.Name {
	case "warmup", "steady", "spike":
		row.Drained = int64(opens * 2.7)
	case "proof":
		row.Proof = int64(opens * 3)
	}
	row.FramesIn = int64(sends*2.5 + live*1.8)
	row.FramesOut = int64(live*1.4 + sends + float64(row.Drained))
	if s.o.Row != nil {
		s.o.Row(&row)
	}
	s.account(row, p, sends, pairs, live)
	if err := s.w.Second(row); err != nil {
		return err
	}
	if err := s.samples(t, p); err != nil {
		return err
	}
	return s.latencies(t, p, sends, live, opens)
}

func (s *state) noisy(mean float64) float64 {
	if mean <= 0 {
		return 0
	}
	if s.o.NoNoise {
		return math.Round(mean)
	}
	return math.Max(0, math.Round(mean+math.Sqrt(mean)*s.rng.NormFloat64()))
}

func (s *state) add(role, metric string, v float64) {
	if s.count[role] == nil {
		s.count[role] = map[string]float64{}
	}
	s.count[role][metric] += v
}

// account adds a second to the counters, the CPU and the audit.
func (s *state) account(r history.Second, p history.Phase, sends, pairs, live float64) {
	group := math.Round(sends * GroupShare)
	recipients := sends*FanOut - (sends - group)
	rows := pairs - live + (sends-group)*Devices*(live/math.Max(pairs, 1))
	frames := float64(r.FramesIn + r.FramesOut)
	pushes := float64(r.Pushes)
	for _, c := range []struct {
		role, metric string
		v            float64
	}{
		{"gateway", "throng_logins_total", float64(r.Logins)},
		{"gateway", `throng_ws_rx_frames_total{kind="send"}`, sends}, {"gateway", `throng_ws_rx_frames_total{kind="ack"}`, float64(r.FramesIn) - sends},
		{"gateway", "throng_ws_rx_bytes_total", float64(r.FramesIn) * 46}, {"gateway", `throng_ws_tx_frames_total{kind="deliver"}`, float64(r.FramesOut)},
		{"gateway", "throng_ws_tx_bytes_total", float64(r.FramesOut) * 118}, {"gateway", "throng_ws_writes_total", float64(r.FramesOut) * 0.83},
		{"gateway", `throng_rpc_tx_bytes_total{service="Inbox"}`, live * 40}, {"inbox", `throng_rpc_tx_bytes_total{service="Inbox"}`, live * 130},
		{"message", `throng_sends_accepted_total{kind="direct"}`, sends - group}, {"message", `throng_sends_accepted_total{kind="group"}`, group},
		{"message", "throng_kafka_produced_records_total", group}, {"message", "throng_kafka_produced_bytes_total", group * 260},
		{"message", `throng_rpc_tx_bytes_total{service="Message"}`, sends * 150},
		{"fanout", "throng_kafka_consumed_records_total", group}, {"fanout", "throng_kafka_consumed_bytes_total", group * 260},
		{"fanout", "throng_fanout_records_total", group}, {"fanout", "throng_fanout_recipients_total", recipients},
		{"gateway", `throng_redis_ops_total{op="set"}`, float64(r.Logins) * 2}, {"group", `throng_redis_ops_total{op="get"}`, group * 0.1},
		{"group", "throng_group_checks_total", group}, {"group", `throng_group_cache_total{tier="process",result="hit"}`, group * 0.9},
		{"group", `throng_group_cache_total{tier="process",result="miss"}`, group * 0.1}, {"group", `throng_group_cache_total{tier="redis",result="miss"}`, group * 0.02},
		{"group", `throng_sql_statements_total{store="group"}`, group * 0.02}, {"group", `throng_sql_rows_read_total{store="group"}`, group * 0.1},
		{"inbox", `throng_inbox_devices_total{how="live"}`, live}, {"inbox", `throng_inbox_devices_total{how="stored"}`, pairs - live},
		{"inbox", "throng_inbox_rows_appended_total", rows}, {"inbox", "throng_inbox_row_bytes_total", rows * RowBytes},
		{"inbox", "throng_inbox_rows_deleted_total", rows * 0.7}, {"inbox", "throng_inbox_opens_total", float64(r.Logins)},
		{"inbox", `throng_sql_statements_total{store="inbox"}`, rows * 0.9}, {"inbox", `throng_sql_rows_written_total{store="inbox"}`, rows * 1.7},
		{"inbox", `throng_sql_transactions_total{store="inbox"}`, rows * 0.1}, {"push", "throng_push_attempts_total{outcome=\"accepted\"}", pushes},
	} {
		s.add(c.role, c.metric, c.v)
	}
	c := s.o.Cost
	for role, us := range map[string]float64{
		"gateway": frames*c.Frame + float64(r.Logins)*c.Login + float64(r.Connected)*c.ConnectionS,
		"message": sends * c.Send, "fanout": group*c.Record + recipients*c.Recipient, "group": group * c.Check,
		"inbox": live*c.Live + rows*c.Row + float64(r.Logins)*c.Open, "push": pushes * c.Push,
		"kafka": group * 80, "redis": float64(r.Logins) * 35, "provider": pushes * 20, "generator": frames*16 + float64(r.Logins)*300,
	} {
		noise := 1.0
		if !s.o.NoNoise {
			noise += 0.05 * s.noise[role].NormFloat64()
		}
		s.cpu[role] += us / 1e6 * noise
	}
	a := &s.audit
	a.Sends += int64(sends)
	a.Acknowledged += int64(sends)
	a.Live, a.Drain, a.Proof = a.Live+r.Live, a.Drain+r.Drained, a.Proof+r.Proof
	a.Expected += int64(pairs)
	a.FanoutSends += int64(sends)
	a.FanoutRecipients += int64(math.Round(sends * FanOut))
	if p.Gated {
		a.AllPairs += int64(pairs)
		a.OfflinePairs += int64(pairs - live)
	}
}

func (s *state) finishAudit() {
	a := &s.audit
	a.Proved = a.Expected
	a.Proof = max(0, a.Expected-a.Live-a.Drain)
	a.Redelivered = 3
	a.System, a.SystemExpected, a.SystemProved, a.Boundaries = 124, 124, 124, 31
	a.Push = history.PushAudit{Checked: a.OfflinePairs}
}

func (s *state) samples(t float64, p history.Phase) error {
	for i, role := range roles() {
		rss := int64(20<<20) + int64(i)<<20
		if role == "gateway" {
			rss += int64(s.conns * 11000)
		}
		if role == s.o.Leak {
			rss += int64(t * (1 << 20))
		}
		if err := s.w.Role(history.RoleSample{T: t, Role: role, CPUSeconds: s.cpu[role], RSSBytes: rss, Threads: 12}); err != nil {
			return err
		}
	}
	if t < s.next && t != p.End {
		return nil
	}
	s.next = t + s.o.ScrapeEveryS
	for _, role := range roles() {
		if len(s.count[role]) == 0 && role != history.RoleGenerator {
			continue
		}
		vals := s.gauges(role, t)
		for k, v := range s.count[role] {
			vals[k] = math.Round(v)
		}
		if err := s.w.Counters(history.CounterSample{T: t, Role: role, Values: vals}); err != nil {
			return err
		}
	}
	return nil
}

// gauges are the goroutines and the live heap of a role.
func (s *state) gauges(role string, t float64) map[string]float64 {
	if s.o.NoGauges {
		return map[string]float64{}
	}
	n, heap := 80.0, float64(8<<20)
	if role == "gateway" || role == history.RoleGenerator {
		n, heap = n+s.conns, heap+s.conns*4000
	}
	if role == s.o.Leak {
		n, heap = n+20*t, heap+t*(1<<20)
	}
	return map[string]float64{history.GaugeGoroutines: math.Round(n), history.GaugeLiveHeap: math.Round(heap)}
}

// latencies writes the histograms of a second.
func (s *state) latencies(t float64, p history.Phase, sends, live, opens float64) error {
	f := 1.0
	if p.Name == "spike" {
		f = 2.4
	}
	put := func(kind string, n, medianUs, sigma float64) error {
		if n < 1 {
			return nil
		}
		h := hdrhistogram.New(history.HistMin, history.HistMax, history.HistDigits)
		for range int(n) {
			v := medianUs * math.Exp(sigma*s.rng.NormFloat64())
			if err := h.RecordValue(int64(math.Max(1, v))); err != nil {
				return err
			}
		}
		return s.w.Interval(history.Interval{Kind: kind, Start: t - 1, End: t, Hist: h})
	}
	if s.o.NoLatency {
		return nil
	}
	if !p.Load {
		if p.Name == "proof" {
			return put(history.KindLogin, opens, 1800, 0.5)
		}
		return nil
	}
	group := sends * GroupShare
	for _, k := range []struct {
		kind         string
		n, us, sigma float64
	}{
		{history.KindSent, sends, 1500 * f, 0.55}, {history.KindDeliverDirect, live * 0.21, 2100 * f, 0.6}, {history.KindDeliverGroup, live * 0.79, 4200 * f, 0.65},
		{history.KindRead, live * 0.2, 9e6, 1}, {history.KindDrain, opens, 3900 * f, 0.5}, {history.KindLogin, opens, 1800 * f, 0.5},
		{history.KindPush, sends * 0.5, 2.1e6, 0.05}, {history.KindLate, sends + opens, s.o.LateUs * f, 0.8}, {history.KindHeld, sends * 0.02, 4e5, 1},
	} {
		if err := put(k.kind, k.n, k.us, k.sigma); err != nil {
			return err
		}
	}
	if err := s.stages(history.KindDeliverDirect, t, int(live*0.21)); err != nil {
		return err
	}
	if err := s.stages(history.KindDeliverGroup, t, int(live*0.79)); err != nil {
		return err
	}
	for i, c := range history.SizeClasses {
		n := group * []float64{0.72, 0.2, 0.05, 0.015, 0.008, 0.004, 0.003}[i]
		if n < 1 && s.rng.Float64() < n {
			n = 1
		}
		if err := put(history.KindFanoutFirst+c.Name, n, 3500*f*(1+0.06*float64(i)), 0.5); err != nil {
			return err
		}
		if err := put(history.KindFanoutLast+c.Name, n, 3700*f*math.Pow(1.35, float64(i)), 0.5); err != nil {
			return err
		}
	}
	return nil
}
