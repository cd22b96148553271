package report

import (
	"throng/sim/capacity"
	"throng/sim/history"
)

// SchemaVersion is the version of result.json, described by result.schema.json.
//
//	1  first version
//	2  2026-11-24: stages
//	3  2026-11-24: audit: system messages, membership boundaries and cost; processes
//	4  2026-11-24: generator: agents and rig; zones
const SchemaVersion = 4

// Verdict is the outcome of a run, a gate or a phase.
type Verdict string

// Verdicts. A run and a gate have one of the first three; a phase that does not
// gate may also be saturated (reported, never a failure) or done (nothing to
// judge), and missing when the run never came to it.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive"
	Saturated    Verdict = "saturated"
	Done         Verdict = "done"
	Missing      Verdict = "missing"
)

// Exit codes of a run by verdict. ExitUsage is for the command line: the run
// did not start because it was called wrongly.
const (
	ExitPass         = 0
	ExitFail         = 1
	ExitInconclusive = 2
	ExitUsage        = 64
)

// Number is a figure, null when it is not known or too few samples stand
// behind it.
type Number = capacity.Number

// Result is result.json. Latencies are milliseconds, of the gated phase unless
// they are inside a phase.
type Result struct {
	SchemaVersion int      `json:"schema_version"`
	Verdict       Verdict  `json:"verdict"`
	Summary       string   `json:"summary"` // the verdict in one sentence
	Reasons       []string `json:"reasons"` // why it is not a pass; empty otherwise

	Scenario     string            `json:"scenario"`
	Question     string            `json:"question"`
	RunID        string            `json:"run_id"`
	Target       string            `json:"target"`
	TargetReason string            `json:"target_reason"`
	Start        string            `json:"start"` // RFC 3339, UTC
	DurationS    Number            `json:"duration_s"`
	Seed         uint64            `json:"seed"`
	SpecHash     string            `json:"spec_hash"`
	Replay       string            `json:"replay"`
	Versions     map[string]string `json:"versions"`
	Machine      Machine           `json:"machine"`

	Population  Population            `json:"population"`
	Sockets     Sockets               `json:"sockets"`
	Rates       Rates                 `json:"rates"`
	LatencyMs   map[string]Latency    `json:"latency_ms"`
	FanoutMs    map[string]Fanout     `json:"fanout_ms"`
	Stages      map[string]Breakdown  `json:"stages"` // by kind of delivery
	Audit       *Audit                `json:"audit"`  // null: the run ended before its proof
	Generator   Generator             `json:"generator"`
	OfflineRate Number                `json:"offline_share"`
	Roles       map[string]Role       `json:"roles"`
	Processes   []Process             `json:"processes"`       // memory and goroutines, by role and instance
	Zones       *Zones                `json:"zones,omitempty"` // nil: the target imposed no latency
	Capacity    []capacity.Row        `json:"capacity"`
	Estimate    *capacity.Estimate    `json:"estimate"`
	Phases      []PhaseResult         `json:"phases"`
	Gates       []Gate                `json:"gates"`
	Notes       []string              `json:"notes"` // of the harness and about the folder
	Files       map[string]FileOfPlot `json:"plots"`

	spec       *terms
	stampEvery int // one in so many sends was stamped, 0: not known
}

// Machine is the host of the run.
type Machine struct {
	OS       string `json:"os"`
	Kernel   string `json:"kernel"`
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	MemBytes int64  `json:"mem_bytes"`
}

// Population is who existed.
type Population struct {
	Users int64 `json:"users"`
}

// Sockets counts live connections.
type Sockets struct {
	Peak       int64  `json:"peak"`
	SteadyMean Number `json:"steady_mean"`
}

// Rates are means over the gated phase.
type Rates struct {
	Offered    Number `json:"offered_per_s"`    // sends that the schedule had
	Sends      Number `json:"sends_per_s"`      // accepted
	Deliveries Number `json:"deliveries_per_s"` // to applications, counted at the devices
	Recipients Number `json:"recipients_per_s"` // users addressed: sends x fan-out
	Logins     Number `json:"logins_per_s"`
	Pushes     Number `json:"pushes_per_s"`
	FanOut     Number `json:"fan_out"` // recipients for each send, outside declared strata
}

// Latency is a distribution. A quantile without enough samples is null.
type Latency struct {
	Count int64  `json:"count"`
	P50   Number `json:"p50"`
	P90   Number `json:"p90"`
	P99   Number `json:"p99"`
	P999  Number `json:"p999"`
	Max   Number `json:"max"`
	// P99Low and P99High are the 95 % interval of P99, by a bootstrap over ten
	// time blocks; null where it is not computed.
	P99Low  Number `json:"p99_low"`
	P99High Number `json:"p99_high"`
}

// Fanout is when the first and the last online member of groups of a size class
// had a message; N is the number of messages.
type Fanout struct {
	N     int64   `json:"n"`
	First Latency `json:"first"`
	Last  Latency `json:"last"`
}

// Audit is the delivery proof, in pairs of message and device but the first three.
type Audit struct {
	Sends        int64  `json:"sends"`
	Acknowledged int64  `json:"acknowledged"`
	Unanswered   int64  `json:"unanswered"`
	Expected     int64  `json:"expected"`
	Proved       int64  `json:"proved"`
	Lost         int64  `json:"lost"`
	Duplicated   int64  `json:"duplicated"`
	Reordered    int64  `json:"reordered"`
	Foreign      int64  `json:"foreign"`
	Unproved     int64  `json:"unproved"`
	Redelivered  int64  `json:"redelivered"`
	Sampled      Number `json:"sampled"`
	Live         int64  `json:"live"`
	Drain        int64  `json:"drain"`
	Transition   int64  `json:"transition"`
	Proof        int64  `json:"proof"`
	// System messages of groups that reached applications, the pairs of Expected
	// and Proved that are theirs, and how many of theirs are lost, duplicated,
	// reordered or foreign. Boundaries are the additions and removals of a member
	// by whose position in the log the group's deliveries were judged.
	System         int64 `json:"system"`
	SystemExpected int64 `json:"system_expected"`
	SystemProved   int64 `json:"system_proved"`
	SystemWrong    int64 `json:"system_wrong"`
	Boundaries     int64 `json:"boundaries"`

	PushChecked int64 `json:"push_checked"`
	PushMissing int64 `json:"push_missing"`
	// Checked rows without an accepted push, by the provider's reason.
	PushDead      int64 `json:"push_dead,omitempty"`
	PushFailed    int64 `json:"push_failed,omitempty"`
	PushThrottled int64 `json:"push_throttled,omitempty"`
	// PushDeadAgain are pushes to devices that the provider had said to be gone.
	PushDeadAgain int64      `json:"push_dead_again,omitempty"`
	Examples      []string   `json:"examples"`
	Cost          *AuditCost `json:"cost,omitempty"`
	// Media is nil where the run had none.
	Media *history.MediaAudit `json:"media,omitempty"`
}

// AuditCost is what the proof itself took.
type AuditCost struct {
	Events     int64  `json:"events"` // told by the engines
	Bytes      int64  `json:"bytes"`  // of their records
	Partitions int    `json:"partitions"`
	Replays    int    `json:"replays"`
	WallS      Number `json:"wall_s"`
	CPUSeconds Number `json:"cpu_s"`
}

// Generator is the harness's own error.
type Generator struct {
	LateMs      Latency `json:"late_ms"`       // gated phase
	SpikeLateMs Latency `json:"spike_late_ms"` // on its own, never gates
	Agents      []Agent `json:"agents"`        // empty: the harness played everybody itself
	Rig         []Rig   `json:"rig"`           // empty: of a version that did not watch it
}

// Role is what a role cost. DemandUs is CPU microseconds for each piece of its
// work; estimate.demands has their intervals and methods.
type Role struct {
	Instances    int               `json:"instances"`
	Infra        bool              `json:"infra"`
	CPUSeconds   Number            `json:"cpu_s"`        // whole run
	SteadyCores  Number            `json:"steady_cores"` // mean over the gated phase
	RSSPeakBytes int64             `json:"rss_peak_bytes"`
	DemandUs     map[string]Number `json:"demand_us"`
}

// PhaseResult is one phase with its own verdict.
type PhaseResult struct {
	Name        string             `json:"name"`
	Start       Number             `json:"start_s"`
	End         Number             `json:"end_s"`
	BudgetS     Number             `json:"budget_s"`
	Gated       bool               `json:"gated"`
	Load        bool               `json:"load"`
	Verdict     Verdict            `json:"verdict"`
	Line        string             `json:"line"` // what happened, in words
	OfferedPerS Number             `json:"offered_per_s"`
	SendsPerS   Number             `json:"sends_per_s"`
	DeliverPerS Number             `json:"deliveries_per_s"`
	LoginsPerS  Number             `json:"logins_per_s"`
	LatencyMs   map[string]Latency `json:"latency_ms"`
}

// Gate is one condition on the run. A broken gate of kind "slo" or "audit"
// fails the run; a broken one of kind "validity" makes it inconclusive, because
// then the run is no measurement of the system.
type Gate struct {
	Name    string  `json:"name"`
	Kind    string  `json:"kind"` // slo, audit, validity
	Phase   string  `json:"phase"`
	Value   Number  `json:"value"`
	Limit   Number  `json:"limit"`
	Unit    string  `json:"unit"`
	Count   int64   `json:"count"` // samples behind value, 0 where it is a count itself
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`
}

// FileOfPlot are the files of a figure, relative to the run folder.
type FileOfPlot struct {
	Title string `json:"title"`
	SVG   string `json:"svg"`
	Dark  string `json:"svg_dark"`
	PNG   string `json:"png"`
	PNGD  string `json:"png_dark"`
}

// ExitCode is the exit code of a run with this result.
func (r *Result) ExitCode() int { return r.Verdict.ExitCode() }

// ExitCode is the exit code for a verdict: anything that is not a clear pass or
// fail is inconclusive.
func (v Verdict) ExitCode() int {
	switch v {
	case Pass:
		return ExitPass
	case Fail:
		return ExitFail
	}
	return ExitInconclusive
}
