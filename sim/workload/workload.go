// Package workload decides who does what when: it turns a scenario and a
// population into a Schedule, in which the time of every send, open, close and
// membership change is fixed before the run by the seed alone. It owns the
// in-chat time law, sessions and their calibration. It has no network, no
// clock and no goroutines, and imports only sim/scenario, sim/population and
// system/wire (for the ids of groups that clients create).
package workload

import "time"

// ActionKind says what an Action does.
type ActionKind uint8

// The kinds of Action.
const (
	Open         ActionKind = iota + 1 // the device connects; stays until Until
	Close                              // the device disconnects; At is its Open's Until
	Send                               // a message to Conv
	Typing                             // a typing frame to Conv
	View                               // the conversation on the screen is now Conv (Open's Conv is the first)
	MemberRemove                       // User leaves Conv.Group, by the provisioning API
	MemberAdd                          // User joins Conv.Group
	GroupAsk                           // User asks what Schedule.Asks says at Index
)

// Cause says why a session was opened.
type Cause uint8

// The causes of an Open. Opens caused by pushes are decided at run time, see
// Schedule.PushOpen.
const (
	Initial      Cause = iota + 1 // was open when warm-up starts: opens in the ramp
	Conversation                  // its user writes in it
	Background                    // opened for no message of its own
)

// Shard is one of Of parts of a run's users. The zero value is all of them.
type Shard struct{ Index, Of int }

// Has says whether a user belongs to the shard.
func (s Shard) Has(user uint64) bool {
	return s.Of <= 1 || int(user*0xd6e8feb86659fd93>>33)%s.Of == s.Index
}

// Conv names a conversation as the protocol does: exactly one is non-zero.
// Peer is the other side as seen by the Action's User.
type Conv struct {
	Group uint64
	Peer  uint64
}

// Action is one scheduled event. Fields that a kind does not use are zero,
// except ReplyTo, About, Index (-1) and Stratum (-1).
type Action struct {
	At      time.Duration // since the start of the ramp
	Until   time.Duration // Open: when the client closes
	User    uint64
	Conv    Conv
	BodyLen int // Send: bytes, at least MinBody
	Device  uint32
	ReplyTo int32 // Send: Index of the message that it answers, -1 none
	About   int32 // Send: Index of the message that it reacts to, edits, deletes, answers or ends as a call, -1 none
	Index   int32 // Send: its own number, 0.. in time order; the backlog's come first. GroupAsk: see there
	MsgKind int32 // Send: a wire.Kind
	Kind    ActionKind
	Cause   Cause
	Phase   uint8 // index into Schedule.Phases
	Stratum int8  // Send: index into the scenario's Extra, -1: counts in the fan-out mean
	Backlog bool  // Send: builds the inbox of a user who opens later
}

// MinBody is the least BodyLen: the load engine puts its own header in it.
const MinBody = 40

// PhaseSpan is a phase of the load clock, which starts with the ramp.
type PhaseSpan struct {
	Name       string // ramp backlog warmup steady spike settle
	Start, End time.Duration
	Load       bool // sends and opens are scheduled in it
	Gated      bool // steady
}

// Stats describe a schedule, for the report and for tests. "In steady" figures
// are what was scheduled there, without opens caused by pushes.
type Stats struct {
	Sends           int     // all phases, all strata
	BacklogSends    int     // of them
	StratumSends    int     // of them
	SteadySends     int     // in steady, in the mean
	SteadySendsPerS float64 // in the mean
	SpikeSendsPerS  float64
	SteadyFanOut    float64 // mean recipients of the SteadySends
	SteadyGroup     float64 // share of SteadySends to groups
	// LoginsPerS in steady, scheduled; PushLoginsPerS is the allowance for
	// opens caused by pushes, LoginsPerS + PushLoginsPerS aims at the target.
	LoginsPerS          float64
	ConversationLogins  float64 // of LoginsPerS
	BackgroundLogins    float64 // of LoginsPerS
	PushLoginsPerS      float64
	PushOpenProbability float64
	PushesPerS          float64 // offline phones addressed in steady: at most so many pushes
	MeanConnected       float64 // in steady, scheduled and the push allowance's share
	MeanConnectedSched  float64 // in steady, scheduled alone
	MeanSessionS        float64 // of the sessions opened in steady
	SessionScaleS       float64 // calibrated mean of the lognormal session length
	OfflineShare        float64 // of steady (message, addressee phone) pairs, by schedule
	InitialOpens        int
	RampLoginsPerS      float64
	BacklogUsers        int
	BacklogRowsPerUser  float64
	BacklogSendsPerS    float64
	ProofDevices        int // addressed after their last scheduled session
	TouchedUsers        int // by the shard
	TouchedGroups       int // by the shard
	PeakConnected       int
	Removals, Additions int
	Asks                int      // group requests of clients
	ActiveChats         int      // conversations with a send in the run
	Warnings            []string // targets that the schedule could not meet, for people
}
