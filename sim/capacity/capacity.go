// Package capacity turns a recorded run into what the whole service needs: the
// service demand of each role (CPU time for each send and, where the run can
// tell them apart, for each frame, login, row), the traffic of each hop, and
// from these the fleet for the profile's full traffic at its diurnal peak.
// Every row says its formula, its inputs and whether they were measured,
// computed or assumed.
//
// It owns the planning assumptions (assume.go) and the arithmetic. It is pure:
// no network, no clock, no goroutines; it may import sim/history, sim/metrics
// and sim/scenario only.
package capacity

import (
	"encoding/json"
	"math"
	"strconv"

	"throng/sim/scenario"
)

// Number is a figure that may be unknown: NaN, which is null in JSON and "~"
// for people.
type Number float64

// Unknown is the Number that stands for no figure.
func Unknown() Number { return Number(math.NaN()) }

// Known says whether there is a figure.
func (n Number) Known() bool { return !math.IsNaN(float64(n)) && !math.IsInf(float64(n), 0) }

// MarshalJSON writes null for an unknown number, and no more digits than six:
// the figures are not better, and results stay readable.
func (n Number) MarshalJSON() ([]byte, error) {
	if !n.Known() {
		return []byte("null"), nil
	}
	v := float64(n)
	if v != math.Trunc(v) || math.Abs(v) >= 1e15 {
		r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 6, 64), 64)
		if err == nil {
			v = r
		}
	}
	return json.Marshal(v)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (n *Number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*n = Unknown()
		return nil
	}
	var v float64
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*n = Number(v)
	return nil
}

// Where a figure comes from.
const (
	Measured = "measured" // in this run, as it is
	Computed = "computed" // from measured and assumed figures, by the formula
	Assumed  = "assumed"  // published, or a planning rule; not from this run
)

// Measure is a measured figure with its 95 % interval. Low and High are unknown
// when there are fewer than MinBlocks blocks.
type Measure struct {
	Value, Low, High Number
	Blocks           int
	warning          string // about the interval
}

func unmeasured() Measure { return Measure{Value: Unknown(), Low: Unknown(), High: Unknown()} }

// times scales a measure and its interval.
func (m Measure) times(f float64) Measure {
	m.Value, m.Low, m.High = m.Value*Number(f), m.Low*Number(f), m.High*Number(f)
	if f < 0 {
		m.Low, m.High = m.High, m.Low
	}
	return m
}

// plus adds what is known exactly.
func (m Measure) plus(f float64) Measure {
	m.Value, m.Low, m.High = m.Value+Number(f), m.Low+Number(f), m.High+Number(f)
	return m
}

// through passes value and interval through a function that never falls.
func (m Measure) through(f func(float64) float64) Measure {
	m.Value, m.Low, m.High = Number(f(float64(m.Value))), Number(f(float64(m.Low))), Number(f(float64(m.High)))
	return m
}

// atLeast cuts the low end off at what is possible.
func (m Measure) atLeast(f float64) Measure {
	return m.through(func(v float64) float64 {
		if math.IsNaN(v) {
			return v
		}
		return math.Max(v, f)
	})
}

// Input is one input of a row.
type Input struct {
	Name   string `json:"name"`
	Value  Number `json:"value"`
	Unit   string `json:"unit"`
	Kind   string `json:"kind"`
	Source string `json:"source,omitempty"`
}

// Row is one figure of the estimate.
type Row struct {
	Tier     string  `json:"tier"`
	Resource string  `json:"resource"`
	Value    Number  `json:"value"`
	Low      Number  `json:"low"`
	High     Number  `json:"high"`
	Unit     string  `json:"unit"`
	Formula  string  `json:"formula"`
	Inputs   []Input `json:"inputs"`
	Kind     string  `json:"kind"`
	// Offline is the share of deliveries to offline devices that the row is
	// for: "0.3", "0.5", "0.7" or "measured"; empty when it does not matter.
	Offline string `json:"offline_share,omitempty"`
}

// Demand is CPU time of a role for one piece of its work, in microseconds of
// one core of the machine of the run.
type Demand struct {
	Role   string `json:"role"`
	Per    string `json:"per"` // send, delivery, frame, login, connection_s, row, ...
	Value  Number `json:"value_us"`
	Low    Number `json:"low_us"`
	High   Number `json:"high_us"`
	Method string `json:"method"`
}

// Comparison sets a quantity of this estimate beside published ones.
type Comparison struct {
	Quantity string `json:"quantity"`
	Unit     string `json:"unit"`
	Textbook Number `json:"textbook"`
	Workload Number `json:"workload"` // WORKLOAD.md section 6
	Ours     Number `json:"ours"`
	Why      string `json:"why"`
}

// Estimate is everything that a run says about capacity.
type Estimate struct {
	Profile Profile `json:"profile"`
	Phase   string  `json:"phase"` // the phase the measures are of
	Blocks  int     `json:"blocks"`
	// NotUsable says why there is no fleet plan; empty when there is one.
	NotUsable string       `json:"not_usable,omitempty"`
	Demands   []Demand     `json:"demands"`
	Rows      []Row        `json:"-"` // capacity[] of a result
	Compare   []Comparison `json:"compare"`
	Why       string       `json:"why"` // in one sentence, why the three differ
	Caveats   []string     `json:"caveats"`
	// OfflineShare is the measured share of pairs whose device was offline.
	OfflineShare Number `json:"offline_share"`
}

// Find returns the row of a tier and resource, at the measured offline share
// where it matters.
func (e *Estimate) Find(tier, resource string) (Row, bool) {
	for _, r := range e.Rows {
		if r.Tier == tier && r.Resource == resource && (r.Offline == "" || r.Offline == AsMeasured) {
			return r, true
		}
	}
	return Row{Value: Unknown(), Low: Unknown(), High: Unknown()}, false
}

// Profile is the whole service at its diurnal peak: what the estimate is for.
type Profile struct {
	Name           string  `json:"name"`
	Preset         string  `json:"preset"`
	Connection     string  `json:"connection"`
	MessagesPerDay float64 `json:"messages_per_day"`
	PeakToMean     float64 `json:"peak_to_mean"`
	SendsPerS      float64 `json:"sends_per_s"`
	GroupSendsPerS float64 `json:"group_sends_per_s"`
	DeliveriesPerS float64 `json:"deliveries_per_s"`
	LoginsPerS     float64 `json:"logins_per_s"`
	Connections    float64 `json:"connections"`
}

// Full is the profile of a scenario at scale 1, whatever the scenario
// overrides to be small.
func Full(s *scenario.Spec) Profile {
	c := *s
	c.Scale, c.Rates = 1, scenario.ProfileRates()
	r := c.Resolved()
	return Profile{Name: s.Profile, Preset: s.Preset, Connection: s.Connection, PeakToMean: peakToMean,
		MessagesPerDay: r.SendsPerS / peakToMean * secondsPerDay, SendsPerS: r.SendsPerS, GroupSendsPerS: r.GroupSendsPerS,
		DeliveriesPerS: r.DeliveriesPerS, LoginsPerS: r.LoginsPerS, Connections: r.Connections}
}
