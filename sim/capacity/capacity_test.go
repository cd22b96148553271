package capacity

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/report/runtest"
)

func profile() Profile {
	return Profile{Name: "whatsapp_2025", Preset: "B", Connection: "foreground", MessagesPerDay: 100e9, PeakToMean: 1.55,
		SendsPerS: 1.794e6, GroupSendsPerS: 0.77e6, DeliveriesPerS: 4.9e6, LoginsPerS: 908e3, Connections: 83e6}
}

func open(t *testing.T, o runtest.Options) *history.Run {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	o.NoLatency = true
	if err := runtest.Write(dir, o); err != nil {
		t.Fatal(err)
	}
	run, err := history.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(run.Problems) > 0 {
		t.Fatal(run.Problems)
	}
	return run
}

func demand(e *Estimate, role, per string) Demand {
	for _, d := range e.Demands {
		if d.Role == role && d.Per == per {
			return d
		}
	}
	return Demand{Value: Unknown()}
}

func near(t *testing.T, what string, got Number, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(float64(got)-want) <= tolerance*math.Abs(want)) {
		t.Errorf("%s = %.4g, want %.4g within %g %%", what, float64(got), want, tolerance*100)
	}
}

func TestDemandsAreThoseOfTheRun(t *testing.T) {
	c := runtest.DefaultCost()
	e := FromRun(open(t, runtest.Options{NoNoise: true}), profile(), "")
	near(t, "message per send", demand(e, "message", "send").Value, c.Send, 0.001)
	near(t, "gateway frame", demand(e, "gateway", "frame").Value, c.Frame, 0.02)
	near(t, "gateway login", demand(e, "gateway", "login").Value, c.Login, 0.02)
	near(t, "gateway connection", demand(e, "gateway", "connection_s").Value, c.ConnectionS, 0.05)
	near(t, "inbox row", demand(e, "inbox", "row").Value, c.Row, 0.03)
	near(t, "inbox live", demand(e, "inbox", "live_delivery").Value, c.Live, 0.08)
	near(t, "push attempt", demand(e, "push", "attempt").Value, c.Push, 0.01)
	// Group messages and recipients rise together in this run: not to be told apart.
	if d := demand(e, "fanout", "recipient"); d.Value.Known() {
		t.Errorf("fan-out's recipient has a demand of its own, %g us: the run cannot tell", float64(d.Value))
	}
	if !strings.Contains(strings.Join(e.Caveats, "\n"), "fanout is not split") {
		t.Errorf("no caveat about the fan-out: %q", e.Caveats)
	}
}

func TestIntervalsHoldTheTruth(t *testing.T) {
	c := runtest.DefaultCost()
	hits := 0
	for seed := range uint64(6) {
		d := demand(FromRun(open(t, runtest.Options{Seed: seed, SteadyS: 30, SpikeS: 5}), profile(), ""), "message", "send")
		if float64(d.Low) <= c.Send && c.Send <= float64(d.High) {
			hits++
		}
		if d.High-d.Low > Number(c.Send) {
			t.Errorf("interval %g to %g is useless", float64(d.Low), float64(d.High))
		}
	}
	if hits < 4 { // 95 % each: fewer than four of six is one in ten thousand
		t.Errorf("%d of 6 intervals hold the truth", hits)
	}
}

func TestRows(t *testing.T) {
	e := FromRun(open(t, runtest.Options{NoNoise: true}), profile(), "")
	if e.NotUsable != "" {
		t.Fatal(e.NotUsable)
	}
	value := func(tier, resource string) Number {
		r, ok := e.Find(tier, resource)
		if !ok {
			t.Errorf("no row %s %s", tier, resource)
		}
		return r.Value
	}
	c := runtest.DefaultCost()
	near(t, "message cores", value("message", "cores"), c.Send/1e6*1.794e6, 0.001)
	sum := Number(0)
	for _, role := range backendRoles() {
		sum += value(role, "cpu_per_send")
	}
	near(t, "CPU of all roles", value("all roles", "cpu_per_send"), float64(sum), 0.001)
	near(t, "message instances", value("message", "instances"), math.Ceil(c.Send*1.794/9.6)+2, 0)
	near(t, "log in", value("log", "throughput_in"), 260*runtest.GroupShare*1.794e6, 0.01)
	near(t, "group hit share", value("cache", "group_hit_share"), 0.98, 0.002)
	near(t, "offline share", e.OfflineShare, runtest.OfflineShare, 0.01)
	near(t, "bytes a row", value("inbox", "bytes_per_row"), runtest.RowBytes, 0.01)
	if v := value("gateway", "instances"); v < 477 {
		t.Errorf("%g gateways hold 83 M connections of 175 k each", float64(v))
	}
	for _, r := range e.Rows {
		if r.Kind != Measured && r.Kind != Computed && r.Kind != Assumed {
			t.Errorf("%s %s: kind %q", r.Tier, r.Resource, r.Kind)
		}
		if r.Formula == "" || r.Unit == "" && r.Kind == Computed {
			t.Errorf("%s %s: formula %q, unit %q", r.Tier, r.Resource, r.Formula, r.Unit)
		}
		if r.Low.Known() && (r.Low > r.Value+1e-9 || r.High < r.Value-1e-9) {
			t.Errorf("%s %s: %g outside %g to %g", r.Tier, r.Resource, float64(r.Value), float64(r.Low), float64(r.High))
		}
	}
	shares := map[string]Number{}
	for _, r := range e.Rows {
		if r.Tier == "inbox" && r.Resource == "rows_written" {
			shares[r.Offline] = r.Value
		}
	}
	if len(shares) != 4 || !(shares["0.3"] < shares["0.5"] && shares["0.5"] < shares[AsMeasured] && shares[AsMeasured] < shares["0.7"]) {
		t.Errorf("inbox rows by offline share: %v", shares)
	}
	if len(e.Compare) < 10 || e.Why == "" {
		t.Errorf("%d comparisons", len(e.Compare))
	}
}

func TestNoPlanFromAnUnusableRun(t *testing.T) {
	e := FromRun(open(t, runtest.Options{SteadyS: 10, SpikeS: 2}), profile(), "the generator was the limit")
	if len(e.Rows) != 0 || e.NotUsable == "" || len(e.Demands) == 0 {
		t.Errorf("%d rows, %q, %d demands", len(e.Rows), e.NotUsable, len(e.Demands))
	}
	e = FromRun(open(t, runtest.Options{SteadyS: 10, SpikeS: 2, Edit: func(m *history.Manifest, _ *history.Audit) bool { m.Phases = m.Phases[:4]; return true }}), profile(), "")
	if len(e.Rows) != 0 || e.NotUsable == "" {
		t.Errorf("a run without its gated phase has a plan of %d rows", len(e.Rows))
	}
}

func TestFewScrapesHaveNoInterval(t *testing.T) {
	e := FromRun(open(t, runtest.Options{SteadyS: 15, SpikeS: 3}), profile(), "")
	r, ok := e.Find("log", "records")
	if !ok || !r.Value.Known() || r.Low.Known() {
		t.Errorf("three scrapes in the phase, and the interval is %v to %v (found %v)", r.Low, r.High, ok)
	}
}

func TestCollinearColumnsAreNotSplit(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var x [][]float64
	var y []float64
	for range 30 {
		a := 100 + 10*rng.NormFloat64()
		x, y = append(x, []float64{a, 2.7 * a * (1 + 0.001*rng.NormFloat64())}), append(y, a)
	}
	if f := nonNegative(x, y); f.ok {
		t.Errorf("split two columns with variance inflation %v", f.vif)
	}
}

func TestNonNegative(t *testing.T) {
	x := [][]float64{{1, 0}, {0, 1}, {1, 1}, {2, 1}, {1, 2}, {3, 1}, {1, 3}, {2, 2}, {0, 2}, {2, 0}}
	var y []float64
	for _, r := range x {
		y = append(y, 3*r[0]+5*r[1])
	}
	f := nonNegative(x, y)
	if !f.ok || math.Abs(f.coef[0]-3) > 1e-9 || math.Abs(f.coef[1]-5) > 1e-9 {
		t.Errorf("%+v", f)
	}
	for i, r := range x {
		y[i] = 3*r[0] - 0.1*r[1]
	}
	if c := solveNonNegative(x, y); c[1] != 0 || c[0] <= 0 {
		t.Errorf("a negative cost was fitted: %v", c)
	}
}

func TestNumberInJSON(t *testing.T) {
	b, err := json.Marshal([]Number{Unknown(), 1.23456789, 100e9, 0})
	if err != nil || string(b) != "[null,1.23457,100000000000,0]" {
		t.Errorf("%s %v", b, err)
	}
}
