package load

import (
	"sync"
	"time"

	"throng/sim/audit"
	"throng/sim/client"
	"throng/system/wire"
)

// deviceShards spreads the locks of the device table.
const deviceShards = 64

type deviceShard struct {
	mu sync.Mutex
	m  map[audit.Device]*device
}

type idShard struct {
	mu sync.Mutex
	m  map[wire.MessageID]int32 // message -> index of its send
}

// conv names a conversation from one side: a group, or the other user.
type conv struct{ group, peer uint64 }

// connState of a device.
type connState uint8

const (
	offline connState = iota
	connecting
	open
)

// device is what a phone keeps: its connection while it has one, and over all
// connections its outbox and what it has received. Only devices that the run
// touched exist. All fields are guarded by mu.
type device struct {
	mu  sync.Mutex
	key audit.Device

	conn  *client.Conn
	state connState
	gate  int // gateway it goes to next
	// proof: this session is opened to prove what the device has.
	proof bool
	// current is closed when Current arrives, for the proof; nil otherwise.
	current chan struct{}

	// The session as its user sees it: a connection lost by the server's fault
	// and reconnected is the same session.
	until     time.Duration // when the user leaves
	openedAt  time.Duration // start of the first connect, -1 when there is no session
	onlineAt  time.Duration // first Current of the session, -1 before
	connectAt time.Duration // start of this connect
	lostAt    time.Duration // when the session lost the connection that it has not got back, 0 otherwise
	lastOpen  time.Duration // of the session before
	lastClose time.Duration
	// lastOnline is onlineAt of the session before.
	lastOnline time.Duration

	view     conv
	inboxSeq uint64
	pushes   uint64 // pushes the owner has seen
	pushed   pushed

	out     []outbox
	sent    []sentAt
	heard   []heard            // in order
	unacked []*outMsg          // sends without an answer, in order; nil when there is none
	asks    map[uint64]*asking // by number, unanswered only
}

// outMsg is a send that is not answered.
type outMsg struct {
	dev      *device
	conv     conv
	audit    audit.Handle
	id       wire.MessageID
	index    int32
	intended time.Duration
	seq      uint64
	send     *wire.Send
	written  time.Duration // last write, -1 before the first
	again    bool          // that was not the first
	done     bool
}

func (e *Engine) shardOf(k audit.Device) *deviceShard {
	return &e.devices[hashUser(k.User)%deviceShards]
}

// hashUser spreads dense user ids (Fibonacci hashing).
func hashUser(u uint64) uint64 { return (u * 0x9e3779b97f4a7c15) >> 32 }

// device returns the device, made if the run had not touched it yet.
func (e *Engine) device(user uint64, dev uint32) *device {
	k := audit.Device{User: user, Device: dev}
	s := e.shardOf(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.m[k]
	if d == nil {
		d = &device{key: k, openedAt: -1, onlineAt: -1, pushed: pushed{last: -1, failed: -1}, lastOpen: -1, lastClose: -1, lastOnline: -1, gate: int(hashUser(user)) % len(e.gates)}
		s.m[k] = d
	}
	return d
}

// known returns the device if the run has touched it.
func (e *Engine) known(k audit.Device) *device {
	s := e.shardOf(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[k]
}

// eachDevice calls f for every device, without any lock held.
func (e *Engine) eachDevice(f func(*device)) {
	for i := range e.devices {
		s := &e.devices[i]
		s.mu.Lock()
		all := make([]*device, 0, len(s.m))
		for _, d := range s.m {
			all = append(all, d)
		}
		s.mu.Unlock()
		for _, d := range all {
			f(d)
		}
	}
}

func (e *Engine) setIndex(id wire.MessageID, index int32) {
	s := &e.ids[id[0]%deviceShards]
	s.mu.Lock()
	s.m[id] = index
	s.mu.Unlock()
}

func (e *Engine) indexOf(id wire.MessageID) (int32, bool) {
	s := &e.ids[id[0]%deviceShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.m[id]
	return i, ok
}

// onlineSince says whether the device counted as online for something intended
// at t: its sync had finished before, and its user has not left.
func (d *device) onlineSince(t time.Duration) bool {
	return d.openedAt >= 0 && d.onlineAt >= 0 && d.onlineAt <= t
}
