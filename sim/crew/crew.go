// Package crew lets several processes play one run. The leader (`throng run`)
// embeds a NATS server; agents (`throng agent`) join it, on this machine or on
// others, and each plays a shard of the users with an engine of its own. What
// the leader tells them are requests; what they record comes back each second
// through a JetStream stream and is merged second by second: counts added up,
// histograms merged.
//
// It owns the protocol between leader and agents, their clocks' offsets, the
// local agents' processes and the notice that one has died. It may not import
// sim/target: what agents need of a deployment is in Terms.
package crew

import (
	"encoding/json"
	"fmt"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/load"
	"throng/system/wire"
)

// Subjects of the protocol. Those that end with a dot are followed by the id
// that an agent has made for itself.
const (
	subjectJoin   = "throng.join"    // request: hello, answer: welcome
	subjectReady  = "throng.ready"   // ready, when its schedule is made
	subjectBeat   = "throng.beat"    // beat, every beatEvery
	subjectClock  = "throng.clock."  // request: nothing, answer: clock
	subjectOrder  = "throng.order."  // request: order, answer: reply
	subjectPushed = "throng.pushed." // []load.Pushed, no answer
	subjectResult = "throng.result." // result, by JetStream
	subjectSpool  = "throng.spool."  // piece of an audit's spool, by JetStream
)

// Times of the protocol.
const (
	beatEvery   = 500 * time.Millisecond
	orderWithin = 30 * time.Second // an order that takes no time by its nature
	mediaWithin = 5 * time.Minute  // to fetch what could not be had before
	beginAhead  = time.Second      // from the order to begin until the load begins
)

// maxMessage bounds a message of the protocol, bytes.
const maxMessage = 32 << 20

// Terms are what an agent needs to know of a run.
type Terms struct {
	RunID      string      `json:"run_id"`
	Spec       []byte      `json:"spec"` // the resolved scenario, YAML
	Generation uint64      `json:"generation"`
	Start      time.Time   `json:"start"` // run time zero by the leader's clock
	Nonce      uint32      `json:"nonce"`
	Gateways   []string    `json:"gateways"`
	Key        wire.Key    `json:"key"`
	CA         []byte      `json:"ca"` // PEM, for wss://; nil: the system's
	Offers     load.Offers `json:"offers"`
	Agents     int         `json:"agents"`
}

// hello is the first that an agent says.
type hello struct {
	ID     string `json:"id"` // random, of letters
	Host   string `json:"host"`
	PID    int    `json:"pid"`
	BootID string `json:"boot_id"` // of the kernel: who has the same has the same clock
	Files  uint64 `json:"files"`   // that it may open
	Folder bool   `json:"folder"`  // it writes its spool into the leader's run folder
}

// welcome answers it. Refused says why there is no place for it.
type welcome struct {
	Refused string `json:"refused,omitempty"`
	Number  int    `json:"number"` // from 1
	Terms   Terms  `json:"terms"`
	// Offset is by how much the agent's clock is ahead of the leader's.
	Offset time.Duration `json:"offset"`
}

// ready says that an agent can begin.
type ready struct {
	Number   int    `json:"number"`
	Schedule string `json:"schedule"` // what its schedule says of the whole run
	Error    string `json:"error,omitempty"`
}

// beat says that an agent lives. Left says why it goes before the end.
type beat struct {
	Number   int    `json:"number"`
	InFlight int64  `json:"in_flight"`
	Left     string `json:"left,omitempty"`
}

// clock is what an agent's clocks say: the wall clock, and the time of the run
// once it knows that.
type clock struct {
	Wall time.Time     `json:"wall"`
	Run  time.Duration `json:"run"`
}

// Kinds of order.
const (
	opBegin      = "begin"
	opStop       = "stop"
	opUnanswered = "unanswered"
	opEndLoad    = "end_load"
	opOpen       = "open"
	opDrain      = "drain"
	opOutages    = "outages"
	opPushAudit  = "push_audit"
	opMedia      = "media"
	opSync       = "sync"
	opFinish     = "finish"
)

// order is what the leader wants an agent to do.
type order struct {
	Op      string         `json:"op"`
	At      time.Duration  `json:"at,omitempty"` // begin: when, drain: until when
	Devices []audit.Device `json:"devices,omitempty"`
	Outages []load.Outage  `json:"outages,omitempty"`
}

// reply answers an order.
type reply struct {
	Error   string             `json:"error,omitempty"`
	Waits   load.Unanswered    `json:"waits,omitzero"`
	Devices []audit.Device     `json:"devices,omitempty"`
	Push    history.PushAudit  `json:"push"`
	Media   history.MediaAudit `json:"media,omitzero"`
	Mark    audit.Mark         `json:"mark"`              // sync
	Results int                `json:"results,omitempty"` // finish: how many there were
}

// result is what an engine recorded in a second.
type result struct {
	Number    int                  `json:"number"` // of the agent
	N         int                  `json:"n"`      // of the result, from 1
	Second    history.Second       `json:"second"`
	Intervals []string             `json:"intervals"` // lines of history.Line
	Stages    []history.Stages     `json:"stages"`
	Roles     []history.RoleSample `json:"roles"`
	Events    []history.Event      `json:"events"`
	Rig       []history.Rig        `json:"rig"`
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("crew: " + err.Error()) // a number that is none: of a clock that is broken
	}
	return b
}

func decode[T any](data []byte) (v T, err error) {
	if err := json.Unmarshal(data, &v); err != nil {
		return v, fmt.Errorf("crew: a message that is none: %w", err)
	}
	return v, nil
}
