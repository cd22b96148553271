// Package scenario turns a YAML file into an immutable Spec: the question a
// run answers, the profile and scale it runs at, its phases, faults and gates.
// It owns the meaning, unit, range and default of every field, the published
// workload figures (profile.go) and the scale-down law (rates.go). It has no
// network, no clock and no goroutines, and imports nothing of this module.
package scenario

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// Presets of the chat mix, see profile.go.
const (
	PresetA      = "A"      // group tail by the exponential fit, fan-out 2.08
	PresetB      = "B"      // A with 2.95 % of heavy tail, fan-out 2.73
	PresetC      = "C"      // recipients lognormal, 60 % of messages to groups, fan-out 11.2
	PresetDirect = "direct" // no groups at all, fan-out 1
)

// Connection models: who holds a socket.
const (
	Foreground = "foreground" // only while the app is on the screen
	Legacy     = "legacy"     // until an idle time-out, 639 s on average
)

// Spec is a parsed scenario. It is immutable: nobody writes to it after Parse;
// WithOverrides returns a changed copy. Seconds are float64 and named ...S.
type Spec struct {
	Name       string
	Question   string
	Profile    string  // whatsapp_2025
	Preset     string  // A, B, C, direct
	Connection string  // foreground, legacy
	Scale      float64 // share of the whole service, 1/5000 = 0.0002
	Seed       uint64
	Agents     int // processes that play the users, 0: see Needs
	Topology   Topology
	Phases     Phases
	Extra      []Stratum
	Membership Membership
	Faults     []Fault
	Zones      []Zone
	Links      []Link
	// Regions are parts of the users with a clock of their own; none: the users
	// are one.
	Regions []Region
	// DayS is how long a day of 24 hours takes; 0: it is always the peak.
	DayS  float64
	Gates Gates

	// Infrastructure and Limits are for targets in containers; others ignore them.
	Infrastructure Infrastructure
	Limits         Limits

	// Provider is the simulated push provider.
	Provider Provider

	// Media are the objects of messages that have some.
	Media Media

	// ProofSample is the share of offline addressees that are connected and
	// drained at the end; below 1 the rest counts as unproved, declared.
	ProofSample float64
	// ReplyHoldLimitS bounds how long a reply waits for the message it answers.
	ReplyHoldLimitS float64
	// ResolutionS: the generator starts actions and looks for what has come at most
	// once in so long, so that both are up to that late, which counts as latency.
	ResolutionS float64
	// AckTimeoutS: a send without an answer for so long is written again.
	AckTimeoutS float64
	// PushDelayS: an inbox row unacknowledged for so long is told to push.
	PushDelayS float64
	// PushEveryS: least time between two pushes to a device that stays away.
	PushEveryS float64
	// BacklogRowsPerLogin is the mean number of inbox rows that a user whose
	// app opens in the run finds waiting; they are sent before warm-up.
	BacklogRowsPerLogin float64
	// Rates override, each on its own, what profile x scale gives; 0: not overridden.
	Rates Overrides
}

// Topology counts the instances of each role, and the partitions of the log.
type Topology struct {
	Gateways, Messages, Fanouts, Groups, Inboxes, Pushes int
	Partitions                                           int
	TopicLayout                                          string // Hashed or TopicPerGroup
}

// Layouts of the groups' log in Kafka.
const (
	Hashed        = "hashed"
	TopicPerGroup = "topic-per-group"
)

// Phases of a run. Provision, Backlog, Proof and Report are budgets: what the
// scenario plans for them. The backlog's sends are spread over its budget.
type Phases struct {
	ProvisionS  float64
	RampS       float64
	BacklogS    float64
	WarmupS     float64
	SteadyS     float64
	SpikeS      float64
	SpikeFactor float64 // offered sends in the spike over those of steady
	SpikeRegion string  // where the spike is; empty: everywhere
	SettleS     float64
	ProofS      float64
	ReportS     float64
}

// TotalS is the whole run from provisioning to the report, by budget.
func (p Phases) TotalS() float64 {
	return p.ProvisionS + p.RampS + p.BacklogS + p.WarmupS + p.SteadyS + p.SpikeS + p.SettleS + p.ProofS + p.ReportS
}

// Stratum declares extra sends outside the fan-out mean: Sends messages spread
// over Groups groups of GroupSize members each, evenly over Phase.
type Stratum struct {
	Name      string
	GroupSize int
	Groups    int
	Sends     int
	Phase     string // warmup, steady, spike
}

// Membership changes of real groups, and other changes of them, during steady,
// a second.
type Membership struct {
	// By the provisioning API.
	RemovalsPerS  float64
	AdditionsPerS float64
	// By clients who are online.
	CreatesPerS float64
	JoinsPerS   float64 // an administrator adds somebody
	LeavesPerS  float64
	RenamesPerS float64
}

// Fault kills one process, or empties one store. Either Kill or Flush is set.
type Fault struct {
	At           time.Duration // since the start of steady
	Kill         string        // role/instance, as in fanout/0; mysql/0 is the primary
	Flush        string        // redis/0
	RestartAfter time.Duration // from the kill; Never: it stays dead
	// ReconnectJitter is over how long those spread their next connect who lose
	// their connection from then on, until the next fault.
	ReconnectJitter time.Duration
}

// What says what the fault does to which process, as in "kill fanout/0".
func (f Fault) What() string {
	if f.Flush != "" {
		return "flush " + f.Flush
	}
	return "kill " + f.Kill
}

// Target returns the role and the instance that the fault is for.
func (f Fault) Target() (role string, instance int) {
	role, n, _ := strings.Cut(f.Kill+f.Flush, "/")
	instance, _ = strconv.Atoi(n) // Parse has checked it
	return role, instance
}

// Gates on the steady phase; 0: no such gate. Latencies are milliseconds from
// the intended send time.
type Gates struct {
	P99SentMs          float64
	P99DeliverMs       float64 // both kinds of deliver together
	P99DeliverDirectMs float64
	P99DeliverGroupMs  float64
	P99DeliverOwnMs    float64 // copies of direct messages for the sender's other devices
	P99DrainMs         float64
	P99LoginMs         float64
	// GeneratorLateP99Ms: above it the run is inconclusive, not failed.
	GeneratorLateP99Ms float64
	// FanoutMeanTolerance: relative distance of the measured fan-out from the
	// profile's, above it the run is inconclusive.
	FanoutMeanTolerance float64
	// RateTolerance: relative distance of offered sends, logins and connected
	// sockets from the resolved rates, above it the run is inconclusive.
	RateTolerance float64
	// MinDeliveries in the whole run; below it the run is inconclusive.
	MinDeliveries int64
	// RSSGrowthMax and GoroutineGrowthMax: how much the resident memory and the
	// goroutines of any process of a role, or of the generator, may grow over
	// steady, as a share of their mean, 32 MiB and 100 at least. Infrastructure is
	// left out.
	RSSGrowthMax       float64
	GoroutineGrowthMax float64
}

// Overrides of the resolved rates, for scenarios that are too small for the
// profile's ratios. 0: not overridden.
type Overrides struct {
	Users        int64
	SendsPerS    float64
	LoginsPerS   float64
	MeanSessionS float64
	// ChatTempo divides the times between the messages of a chat.
	ChatTempo float64
	// BurstShare replaces the weight of the conversation burst branch (0.7473)
	// in the law of times between messages: 0.95 makes bursts of 20 messages.
	BurstShare float64
	// Devices is the mean number of devices of a user, 1 to 2.
	Devices float64
	// LinkedShare of the opens that no conversation asks for are on a linked device.
	LinkedShare float64
}

// profileDevices and profileLinkedShare are what the profile assumes of linked
// devices (WORKLOAD: 1.2 devices a user, swept from 1 to 2; assumed).
const (
	profileDevices     = 1.2
	profileLinkedShare = 0.1
)

// ReconnectJitter is that of a scenario before its first fault, and of a fault
// that does not say another.
const ReconnectJitter = 450 * time.Millisecond

// ProfileRates is what a scenario has that overrides nothing.
func ProfileRates() Overrides {
	return Overrides{Devices: profileDevices, LinkedShare: profileLinkedShare}
}

// Load reads and parses a scenario file. The error is an Errors when the
// file's content is at fault.
func Load(path string) (*Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read scenario: %w", err)
	}
	return Parse(path, data)
}

// Hash identifies the resolved scenario: equal specs, equal hashes, whatever
// the file's comments, order and spelling of defaults.
func (s *Spec) Hash() string {
	sum := sha256.Sum256(s.YAML())
	return hex.EncodeToString(sum[:])
}

// WithOverrides returns a copy with another scale, steady duration (seconds)
// or seed; nil leaves a value as it is. The backlog, which grows with the number
// of users who open in the load, keeps its rate: another steady duration makes it
// shorter or longer. Values out of range are an Errors.
func (s *Spec) WithOverrides(scale, steadyS *float64, seed *uint64) (*Spec, error) {
	c := *s
	if scale != nil {
		c.Scale = *scale
	}
	if steadyS != nil {
		before := c.Phases.WarmupS + c.Phases.SteadyS + c.Phases.SpikeS
		c.Phases.SteadyS = *steadyS
		after := c.Phases.WarmupS + c.Phases.SteadyS + c.Phases.SpikeS
		c.Phases.BacklogS = math.Ceil(c.Phases.BacklogS * after / before)
	}
	if seed != nil {
		c.Seed = *seed
	}
	return Parse("overridden scenario", c.YAML())
}

// WithAgents returns a copy that is played by another number of agents.
func (s *Spec) WithAgents(n int) (*Spec, error) {
	c := *s
	c.Agents = n
	return Parse("overridden scenario", c.YAML())
}
