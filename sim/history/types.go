// Package history is the on-disk format of a run: what the engine writes while
// it runs and what every later verb (report, capacity, compare, gate) reads.
// Verbs meet in a run folder, never in memory. It has no network and knows no
// target.
package history

import (
	"math"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Kinds of latency, the tags in latency.hlog. All are measured from the
// intended send time, in microseconds, except those that say otherwise.
const (
	KindSent          = "send_sent"           // until Sent reaches the sender
	KindDeliverDirect = "send_deliver_direct" // until Deliver reaches an online addressee device
	KindDeliverGroup  = "send_deliver_group"
	KindDeliverOwn    = "send_deliver_own" // until the copy of a direct message reaches another device of the sender's
	KindRead          = "send_read"        // direct: until the read receipt reaches the sender
	// Group: until the receipt that every member has received it, or has read
	// it, reaches the sender.
	KindDeliveredAll = "send_delivered_all"
	KindReadAll      = "send_read_all"
	KindDrain        = "drain"          // from the start of the connect until Current
	KindLogin        = "login"          // from the start of the connect until the upgrade is done
	KindPush         = "push"           // until the provider has accepted a push for it
	KindLate         = "generator_late" // actual start - intended, every scheduled action
	KindGroupChange  = "group_change"   // until a client's change of a group is answered: it is in the group's log
	KindBack         = "back."          // after a fault, by its number: from a lost connection until Current on the next
	// Of media: until it is uploaded; and from the delivery of its message until the
	// first byte, until all of it. The whole way: from the intended time until a
	// device that was online has it, with the right hash.
	KindMediaUpload    = "media_upload"
	KindMediaFirstByte = "media_first_byte"
	KindMediaFetch     = "media_fetch"
	KindMediaWhole     = "media_end_to_end"
	// Uploads and fetches by the object's size: "media_upload.<class>".
	KindMediaUploadOf = "media_upload."
	KindMediaFetchOf  = "media_fetch."

	KindHeld = "held" // how long replies were held beyond their scheduled time
	// Fan-out, over members online: "fanout_first.<class>" and "fanout_last.<class>".
	KindFanoutFirst = "fanout_first."
	KindFanoutLast  = "fanout_last."
	// The drain by what was delivered before Current: "drain.<class>".
	KindDrainRows = "drain."
	// By zone of the gateway that the device is connected to, in scenarios with
	// zones: "zone.<zone>.<what>".
	KindZone = "zone."
)

// What is measured by zone, the last part of a KindZone.
const (
	ZoneSentDirect = "sent_direct"
	ZoneSentGroup  = "sent_group"
	ZoneChange     = "group_change"
	ZoneDrain      = "drain"
)

// DrainClasses are the classes of drains, by the number of messages.
var DrainClasses = []SizeClass{{"0", 0}, {"1-10", 10}, {"11-100", 100}, {"101-1000", 1000}, {"1001-", math.MaxInt}}

// MediaClasses are the classes of media objects, by bytes.
var MediaClasses = []SizeClass{{"0-64KiB", 64 << 10}, {"64-512KiB", 512 << 10}, {"512KiB-4MiB", 4 << 20}, {"4MiB-", math.MaxInt}}

// SizeClasses are the group size classes of fan-out figures, by number of
// members: the class of a group is the first whose Max is not below its size.
var SizeClasses = []SizeClass{{"2-4", 4}, {"5-10", 10}, {"11-30", 30}, {"31-100", 100}, {"101-256", 256}, {"257-1023", 1023}, {"1024", 1024}}

// SizeClass names the groups with at most Max members, or drains of so many
// messages, or objects of so many bytes.
type SizeClass struct {
	Name string
	Max  int
}

// Manifest says what ran, where and on what. manifest.json.
type Manifest struct {
	FormatVersion int               `json:"format_version"` // 1
	RunID         string            `json:"run_id"`
	Scenario      string            `json:"scenario"`
	Question      string            `json:"question"`
	Target        string            `json:"target"` // embedded, containers, external
	TargetReason  string            `json:"target_reason"`
	Versions      map[string]string `json:"versions"` // throng, go, components
	Machine       Machine           `json:"machine"`
	Seed          uint64            `json:"seed"`
	SpecHash      string            `json:"spec_hash"`
	SpecYAML      string            `json:"spec_yaml"`   // the resolved scenario
	Replay        string            `json:"replay"`      // the command that runs the same again
	Start         time.Time         `json:"start"`       // run time zero
	End           time.Time         `json:"end"`         // zero while running
	Interrupted   bool              `json:"interrupted"` // Ctrl-C or a failure ended it early
	Phases        []Phase           `json:"phases"`
	Roles         []RoleInstance    `json:"roles"`
	Users         int64             `json:"users"`
	StampEvery    int               `json:"stamp_every,omitempty"` // one in so many sends is stamped; 0: not known
	Zones         []Zone            `json:"zones,omitempty"`
	Links         []ZoneLink        `json:"links,omitempty"`
	Notes         []string          `json:"notes"`
	Missing       []Missing         `json:"missing,omitempty"`
	Agents        []Agent           `json:"agents,omitempty"` // none: the harness played everybody itself
}

// Agent is one of several processes that played the users of a run.
type Agent struct {
	Number int    `json:"number"` // from 1; instance of the role generator in roles.csv
	Host   string `json:"host"`
	PID    int    `json:"pid"`
	// SameClock: it ran on the leader's machine, and its clock is the leader's.
	// Else its clock was ahead by ClockAheadMs when it joined, which was taken
	// out, and what is left of that over the run is at most ClockErrorMs.
	SameClock    bool    `json:"same_clock"`
	ClockAheadMs float64 `json:"clock_ahead_ms"`
	ClockErrorMs float64 `json:"clock_error_ms"`
	LateP99Ms    float64 `json:"late_p99_ms"` // of its actions, over the whole load
	Actions      int64   `json:"actions"`
	Died         string  `json:"died,omitempty"` // why it did not live to the end
	DiedS        float64 `json:"died_s,omitempty"`
}

// Zone is a place of the deployment and what is there, as role/instance.
type Zone struct {
	Name   string   `json:"name"`
	Region string   `json:"region"`
	Has    []string `json:"has"`
}

// ZoneLink is the latency that the target has imposed between two zones, on
// every connection from either to the other.
type ZoneLink struct {
	Between   string  `json:"between"`
	And       string  `json:"and"`
	LatencyMs float64 `json:"latency_ms"` // one way
	JitterMs  float64 `json:"jitter_ms"`  // at most so much more
}

// Missing is something that the scenario needs and the target does not declare.
type Missing struct {
	Needs   string `json:"needs"`   // faults, membership changes, users and groups, push audit, capacity
	Text    string `json:"text"`    // one sentence: what is missing, and where to declare it
	Refused bool   `json:"refused"` // the load was not started for it
}

// NeedsCapacity is the need whose absence costs the plan and not the verdict.
const NeedsCapacity = "capacity"

// Machine describes the host of the run.
type Machine struct {
	OS         string `json:"os"`
	Kernel     string `json:"kernel"`
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	MemBytes   int64  `json:"mem_bytes"`
	OpenFiles  uint64 `json:"open_files"`
	Hypervised bool   `json:"hypervised"`
}

// Phase is a part of a run, in seconds since its start.
type Phase struct {
	Name    string  `json:"name"` // provision ramp backlog warmup steady spike settle proof report
	Start   float64 `json:"start_s"`
	End     float64 `json:"end_s"`
	BudgetS float64 `json:"budget_s"` // what the scenario planned for it
	Load    bool    `json:"load"`     // offered load runs on the schedule
	Gated   bool    `json:"gated"`    // the SLOs decide the verdict here
}

// RoleInstance is one process of the backend, its infrastructure or the harness.
type RoleInstance struct {
	Role     string `json:"role"` // gateway message fanout group inbox push | kafka redis provider | generator
	Instance int    `json:"instance"`
	PID      int    `json:"pid"`
	Infra    bool   `json:"infra"` // infrastructure or harness, not a role of the backend
}

// Second is one row of series.csv: counts are of that second alone.
type Second struct {
	T          float64 `csv:"t_s"` // end of the second, since the start of the run
	Phase      string  `csv:"phase"`
	Offered    int64   `csv:"offered"`  // sends whose intended time fell in it
	Written    int64   `csv:"written"`  // sends first written to a socket
	Accepted   int64   `csv:"accepted"` // Sent received
	Refused    int64   `csv:"refused"`  // sends answered by a final error
	Live       int64   `csv:"delivered_live"`
	Drained    int64   `csv:"delivered_drain"`
	Transition int64   `csv:"delivered_transition"`
	Proof      int64   `csv:"delivered_proof"`
	Duplicates int64   `csv:"duplicates_dropped"` // dropped by the client's window: redeliveries
	Logins     int64   `csv:"logins"`
	Closed     int64   `csv:"closed"`     // sessions ended by the client
	Dropped    int64   `csv:"dropped"`    // sessions ended by anyone else
	Pushes     int64   `csv:"pushes"`     // accepted by the provider
	FramesIn   int64   `csv:"frames_in"`  // frames written to gateways, all kinds
	FramesOut  int64   `csv:"frames_out"` // frames received from gateways
	Connected  int64   `csv:"connected"`  // at its end
	InFlight   int64   `csv:"in_flight"`  // written, not answered, at its end
	Held       int64   `csv:"held"`       // replies and sends that wait for something, at its end
	Unstarted  int64   `csv:"unstarted"`  // scheduled actions given up
	Errors     int64   `csv:"errors"`
}

// RoleSample is one row of roles.csv, about one a second for each process.
type RoleSample struct {
	T          float64 `csv:"t_s"`
	Role       string  `csv:"role"`
	Instance   int     `csv:"instance"`
	CPUSeconds float64 `csv:"cpu_s"` // user + system, cumulative over restarts
	RSSBytes   int64   `csv:"rss_bytes"`
	Threads    int     `csv:"threads"`
}

// CounterSample is one scrape of the counters of one role instance (its
// Prometheus /metrics; labels folded into the name as name{k="v"}), taken about
// every 5 s and at each phase boundary. Values are cumulative within a process;
// Restart increases by one when the process was replaced.
type CounterSample struct {
	T        float64            `json:"t_s"`
	Role     string             `json:"role"`
	Instance int                `json:"instance"`
	Restart  int                `json:"restart"`
	Values   map[string]float64 `json:"values"`
}

// Interval is one histogram of one kind over one second, microseconds.
type Interval struct {
	Kind  string
	Start float64 // seconds since the start of the run
	End   float64
	Hist  *hdrhistogram.Histogram
}

// Event is something that happened once: a fault, a restart, a warning. events.jsonl.
type Event struct {
	T      float64 `json:"t_s"`
	Kind   string  `json:"kind"` // fault restart warning phase
	Detail string  `json:"detail"`
}

// Audit is the delivery proof of a run. audit.json. Counts are of pairs
// (message, addressee device) except Sends and Acknowledged, which are messages.
type Audit struct {
	Sends        int64 `json:"sends"`        // written to a socket at least once
	Acknowledged int64 `json:"acknowledged"` // Sent received
	Unanswered   int64 `json:"unanswered"`   // neither Sent nor a final error at the first try: may or may not arrive
	Expected     int64 `json:"expected"`     // pairs of acknowledged messages
	Proved       int64 `json:"proved"`       // delivered exactly once, in order
	Lost         int64 `json:"lost"`         // the device was drained and did not have it
	Duplicated   int64 `json:"duplicated"`   // reached the application twice, beyond client de-duplication
	Reordered    int64 `json:"reordered"`    // reached the application after a later one of its sender and conversation
	Foreign      int64 `json:"foreign"`      // not addressed to this device
	Unproved     int64 `json:"unproved"`     // the device could not be drained at the end
	Redelivered  int64 `json:"redelivered"`  // dropped by the client's window: the evidence of at-least-once transport
	// Sampled is the declared share of addressees that were proved, 1 without sampling.
	Sampled float64 `json:"sampled"`

	// Where deliveries came from; the four sum to all deliveries to applications.
	Live       int64 `json:"live"`
	Drain      int64 `json:"drain"`
	Transition int64 `json:"transition"`
	Proof      int64 `json:"proof"`

	// System are the system messages of groups that reached applications: not
	// among the four, nor among sends, but pairs that are expected and proved.
	System int64 `json:"system,omitempty"`
	// Of Expected, of Proved, and of Lost, Duplicated, Reordered and Foreign
	// together, the pairs whose message is a system message.
	SystemExpected int64 `json:"system_expected,omitempty"`
	SystemProved   int64 `json:"system_proved,omitempty"`
	SystemWrong    int64 `json:"system_wrong,omitempty"`
	// Boundaries are the additions and removals of a member whose position in the
	// group's log is known: what the group delivered was judged by them.
	Boundaries int64 `json:"boundaries,omitempty"`

	// Recipients is the sum of addressed users of acknowledged sends outside
	// declared extra strata, and SteadySends their number: the fan-out.
	FanoutSends      int64 `json:"fanout_sends"`
	FanoutRecipients int64 `json:"fanout_recipients"`
	// Of the pairs of these sends: how many found their device offline.
	OfflinePairs int64 `json:"offline_pairs"`
	AllPairs     int64 `json:"all_pairs"`

	Push PushAudit `json:"push"`

	Media MediaAudit `json:"media,omitzero"`

	// Examples of what went wrong, at most 20, for people.
	Examples []string `json:"examples,omitempty"`

	// Problems say in a sentence each what of the evidence is missing.
	Problems []string `json:"problems,omitempty"`

	Cost AuditCost `json:"cost,omitzero"`
}

// AuditCost is what the proof itself took.
type AuditCost struct {
	Events     int64   `json:"events"`     // told by the engines
	Bytes      int64   `json:"bytes"`      // of their spools
	Partitions int     `json:"partitions"` // judged one after the other
	Replays    int     `json:"replays"`    // how often all were judged
	WallS      float64 `json:"wall_s"`     // of all replays
	CPUSeconds float64 `json:"cpu_s"`      // of the judging process during them
}

// MediaAudit is about pairs of a delivered message with an object and a user who
// is not its sender: pairs = proved + corrupt + missing.
type MediaAudit struct {
	Uploads       int64 `json:"uploads"`        // objects that were uploaded
	UploadsFailed int64 `json:"uploads_failed"` // that could not be; their messages were not sent
	Resumed       int64 `json:"resumed"`        // interruptions of uploads that went on
	Pairs         int64 `json:"pairs"`
	Proved        int64 `json:"proved"`  // fetched, and its hash is that of what was sent
	Corrupt       int64 `json:"corrupt"` // fetched, and it is not
	Missing       int64 `json:"missing"` // could not be fetched
	BytesUp       int64 `json:"bytes_up"`
	BytesDown     int64 `json:"bytes_down"`
	// Examples of what went wrong on the way, made good or not, at most 5.
	Examples []string `json:"examples,omitempty"`
}

// mediaExamples bounds MediaAudit.Examples.
const mediaExamples = 5

// Plus adds up two parts of a run.
func (a MediaAudit) Plus(b MediaAudit) MediaAudit {
	examples := slices.Concat(a.Examples, b.Examples)
	return MediaAudit{Uploads: a.Uploads + b.Uploads, UploadsFailed: a.UploadsFailed + b.UploadsFailed, Resumed: a.Resumed + b.Resumed,
		Pairs: a.Pairs + b.Pairs, Proved: a.Proved + b.Proved, Corrupt: a.Corrupt + b.Corrupt, Missing: a.Missing + b.Missing,
		BytesUp: a.BytesUp + b.BytesUp, BytesDown: a.BytesDown + b.BytesDown, Examples: examples[:min(len(examples), mediaExamples)]}
}

// Plus adds up two parts of a run.
func (a PushAudit) Plus(b PushAudit) PushAudit {
	return PushAudit{Checked: a.Checked + b.Checked, Missing: a.Missing + b.Missing, Dead: a.Dead + b.Dead,
		Failed: a.Failed + b.Failed, Throttled: a.Throttled + b.Throttled, DeadAgain: a.DeadAgain + b.DeadAgain}
}

// PushAudit is about inbox rows older than the push delay: each has a push that
// the provider accepted, a dead letter or an acknowledgement.
type PushAudit struct {
	Checked int64 `json:"checked"`
	Missing int64 `json:"missing"`
	// Of the checked ones that have no accepted push, by the provider's reason.
	Dead      int64 `json:"dead,omitempty"`      // it does not know the device
	Failed    int64 `json:"failed,omitempty"`    // it failed the attempts: dead letters
	Throttled int64 `json:"throttled,omitempty"` // it made everybody wait
	// DeadAgain counts pushes to devices that it had said before to be gone.
	DeadAgain int64 `json:"dead_again,omitempty"`
}
