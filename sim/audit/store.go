package audit

import (
	"encoding/binary"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"throng/system/wire"
)

// shards is the number of lock stripes, for message ids and for conversations.
const shards = 64

// Audit follows messages to devices. All methods may be called from any
// goroutine. A message is in two places: its id in one of ids, everything about
// it in the stripe of its conversation, where also the order of the
// conversation's deliveries is kept.
type Audit struct {
	cfg   Config
	gated [256]bool
	ids   [shards]idShard
	convs [shards]stripe

	redelivered atomic.Int64
	system      atomic.Int64
	classes     [4]atomic.Int64 // deliveries by Class

	mu      sync.Mutex
	devices map[Device]proof // what the proof phase said, under mu
	unknown int64            // deliveries of messages that nobody wrote, under mu
	strange []string         // examples of them, under mu
}

// proof is how the proof phase ended for a device.
type proof uint8

const (
	notDrained proof = iota
	drained
	unprovable
)

type idShard struct {
	mu sync.Mutex
	m  map[wire.MessageID]*record
}

type stripe struct {
	mu      sync.Mutex
	streams map[streamKey]*stream
	groups  map[uint64]*group
	slabs   [][]record // records in the order written; only the last slab grows
	flaws   map[flawKey]flaw
}

// slab is how many records are allocated at once.
const slab = 128

// streamKey names what has an order: a sender's device in a conversation.
type streamKey struct {
	sender Device
	conv   uint64
	group  bool
}

type stream struct {
	key    streamKey
	stripe *stripe
	group  *group // nil in a direct conversation
	// sets are the addressees of its messages, each once in a row.
	sets [][]Device
	// last is the highest sequence number delivered to each device of base.
	base []Device
	last []uint32
	// offsets: of a group's stream, the greatest position delivered to each.
	offsets []int64
	more    map[Device]uint32 // the same for devices outside base
}

// record is what is kept of a message for the whole run.
type record struct {
	id       wire.MessageID
	stream   *stream
	devs     []Device
	seq      uint64
	intended time.Duration
	// Lowest and highest position in the group's log that a delivery told,
	// noOffset when none did. They differ when a message was appended twice.
	offMin, offMax int64
	// delivered and online have a bit for each of devs while these are at most
	// 64; else big holds the words of delivered, then those of online.
	delivered, online uint64
	big               []uint64
	extras            *[]extra // deliveries to devices outside devs

	writtenAt, ackedAt uint32 // the group's clock
	first, last        uint32 // microseconds, of live deliveries to online devices
	open, live, marked uint16 // devices marked online: not yet delivered, delivered live, all
	state              state
	flawed             bool // has entries in the stripe's flaws
	sizeClass, phase   uint8
	stratum            int8
}

const noOffset = math.MinInt64

type state uint8

const (
	unanswered state = iota
	acknowledged
	refused
)

type extra struct {
	dev  Device
	flaw flaw
}

// flaw is what is wrong with the delivery of a message to a device.
type flaw uint8

const (
	duplicated flaw = 1 << iota
	reordered
	forged // what the frame says about the message is not what was sent
)

type flawKey struct {
	rec *record
	i   int
}

// group is the membership history of a group, as far as it changed.
type group struct {
	id      uint64
	clock   uint32 // ticks at each event of a change
	changes []change
	outside map[uint64]bool // users that were not members at the start
	streams []*stream

	// Of groups that Start was called for.
	start    []uint64
	newest   uint64              // version
	versions map[uint64]*version // that some device has heard of
	told     map[Device]int64    // the greatest offset of its system messages
}

// change is one membership change of one user.
type change struct {
	user        uint64
	add, known  bool // known: it has an offset
	offset      int64
	begun, done uint32 // the group's clock; begun 0: nobody told
}

// New returns an empty audit.
func New(cfg Config) *Audit {
	a := &Audit{cfg: cfg, devices: map[Device]proof{}}
	for _, p := range cfg.Gated {
		a.gated[p] = true
	}
	for i := range a.ids {
		a.ids[i].m = map[wire.MessageID]*record{}
		a.convs[i].streams = map[streamKey]*stream{}
		a.convs[i].groups = map[uint64]*group{}
	}
	return a
}

func (a *Audit) find(id wire.MessageID) *record {
	s := &a.ids[id[0]%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[id]
}

// stripeOf returns the stripe of a conversation: groups by id, direct ones by
// the pair that the stream is between.
func (a *Audit) stripeOf(k streamKey) *stripe {
	h := k.conv
	if !k.group {
		h += k.sender.User
	}
	return &a.convs[h*0x9e3779b97f4a7c15>>(64-6)]
}

// groupOf returns the membership record of a group; the caller holds the lock.
func (s *stripe) groupOf(id uint64) *group {
	g := s.groups[id]
	if g == nil {
		g = &group{id: id}
		s.groups[id] = g
	}
	return g
}

// streamOf returns the stream of a key; the caller holds the lock.
func (s *stripe) streamOf(k streamKey, devs []Device) *stream {
	st := s.streams[k]
	if st == nil {
		st = &stream{key: k, stripe: s, base: devs, last: make([]uint32, len(devs))}
		if k.group {
			st.group = s.groupOf(k.conv)
			st.group.streams = append(st.group.streams, st)
			st.offsets = make([]int64, len(devs))
		}
		s.streams[k] = st
	}
	return st
}

// share returns the addressees of the message before when they are the same, so
// that a caller who makes a new slice for each message does not cost memory.
func (st *stream) share(devs []Device) []Device {
	if n := len(st.sets); n > 0 {
		before := st.sets[n-1]
		if same(before, devs) || slices.Equal(before, devs) {
			return before
		}
	}
	st.sets = append(st.sets, devs)
	return devs
}

func (s *stripe) newRecord() *record {
	n := len(s.slabs)
	if n == 0 || len(s.slabs[n-1]) == cap(s.slabs[n-1]) {
		s.slabs = append(s.slabs, make([]record, 0, slab))
		n++
	}
	last := &s.slabs[n-1]
	*last = (*last)[:len(*last)+1]
	return &(*last)[len(*last)-1]
}

func (r *record) bit(online bool, i int) *uint64 {
	if r.big == nil {
		if online {
			return &r.online
		}
		return &r.delivered
	}
	if online {
		i += len(r.big) / 2 * 64
	}
	return &r.big[i/64]
}

func (r *record) has(online bool, i int) bool { return *r.bit(online, i)>>(uint(i)%64)&1 != 0 }
func (r *record) set(online bool, i int)      { *r.bit(online, i) |= 1 << (uint(i) % 64) }

func (s *stripe) flawOf(r *record, i int) flaw {
	if !r.flawed {
		return 0
	}
	return s.flaws[flawKey{r, i}]
}

func (s *stripe) addFlaw(r *record, i int, f flaw) {
	if s.flaws == nil {
		s.flaws = map[flawKey]flaw{}
	}
	r.flawed = true
	s.flaws[flawKey{r, i}] |= f
}

// pass moves the order mark of a device past seq and says whether a later one
// had passed already, or a later change of the group. offset is of a group.
func (st *stream) pass(r *record, i int, dev Device, offset int64) (late bool) {
	seq := uint32(r.seq)
	if i < 0 || !same(r.devs, st.base) {
		i = search(st.base, dev)
	}
	if i >= 0 && st.group != nil {
		st.offsets[i] = max(st.offsets[i], offset)
	}
	if st.group != nil && st.group.told[dev] > offset {
		return true // it has heard of a later change
	}
	if i >= 0 {
		if seq < st.last[i] {
			return true
		}
		st.last[i] = seq
		return false
	}
	if seq < st.more[dev] {
		return true
	}
	if st.more == nil {
		st.more = map[Device]uint32{}
	}
	st.more[dev] = seq
	return false
}

func same(a, b []Device) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// search returns the index of dev in a sorted slice, -1 when it is not there.
func search(devs []Device, dev Device) int {
	lo, hi := 0, len(devs)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if devs[mid].less(dev) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(devs) && devs[lo] == dev {
		return lo
	}
	return -1
}

func (d Device) less(e Device) bool {
	return d.User < e.User || d.User == e.User && d.Device < e.Device
}

func micros(d time.Duration) uint32 {
	return uint32(min(max(d.Microseconds(), 0), math.MaxUint32))
}

func idOf(b []byte) (id wire.MessageID, ok bool) {
	if len(b) != len(id) {
		return id, false
	}
	binary.LittleEndian.PutUint64(id[:8], binary.LittleEndian.Uint64(b))
	binary.LittleEndian.PutUint64(id[8:], binary.LittleEndian.Uint64(b[8:]))
	return id, true
}
