package audit

import (
	"math"
	"slices"
	"time"

	"throng/system/wire"
)

// ledger is everything about the conversations of one partition, while it is
// judged.
type ledger struct {
	cfg     *Config
	ids     map[wire.MessageID]*record
	streams map[streamKey]*stream
	groups  map[uint64]*group
	slabs   [][]record // records in the order read; only the last slab grows
	flaws   map[flawKey]flaw
	strange []strange // deliveries that are nobody's, a few of them
	unknown int64     // all of them
	classes [4]int64
	systems int64
	room    []Device // scratch
}

// slab is how many records are allocated at once.
const slab = 128

// strange is a delivery of something that nobody wrote.
type strange struct {
	id  wire.MessageID
	dev Device
}

// streamKey names what has an order: a sender's device in a conversation.
type streamKey struct {
	sender Device
	conv   uint64
	group  bool
}

type stream struct {
	key   streamKey
	group *group // nil in a direct conversation
	// sets are the addressees of its messages, each once in a row.
	sets [][]Device
	// last is the highest sequence number delivered to each device of base.
	base []Device
	last []uint32
	// offsets: of a group's stream, the greatest position delivered to each.
	offsets []int64
	more    map[Device]uint32 // the same for devices outside base
}

// record is what is known of a message. Times are microseconds.
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

	writtenAt, ackedAt int64
	first, last        uint32 // latencies of live deliveries to online devices
	live               uint16 // number of these
	state              state
	flawed             bool // has entries in flaws
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
	forged // what was delivered is not what was sent
)

type flawKey struct {
	r *record
	i int
}

func newLedger(cfg *Config) *ledger {
	return &ledger{
		cfg: cfg, ids: map[wire.MessageID]*record{}, streams: map[streamKey]*stream{}, groups: map[uint64]*group{},
		flaws: map[flawKey]flaw{},
	}
}

// did reads a block of what senders and groups did. all are the messages of the
// block's spool in this lane so far; it returns them with those of the block.
func (l *ledger) did(c *cursor, all []*record, proofs map[Device]proof) []*record {
	for c.more() {
		k := kind(c.byte())
		switch k {
		case written:
			all = append(all, l.written(c))
		case acked, refusal, renumbered:
			n := c.uint()
			if n >= uint64(len(all)) {
				c.bad = true
				return all
			}
			all[n].answered(k, c)
		case isDrained, isUnprovable:
			dev, p := c.device(), drained
			if k == isUnprovable {
				p = unprovable
			}
			proofs[dev] = max(proofs[dev], p)
		default:
			l.changes(k, c)
		}
	}
	return all
}

func (l *ledger) written(c *cursor) *record {
	m, at := c.message(l.room[:0])
	l.room = m.Addressees
	if r := l.ids[m.ID]; r != nil {
		return r
	}
	key := streamKey{sender: m.Sender, conv: m.Peer}
	if m.Group != 0 {
		key.conv, key.group = m.Group, true
	}
	st := l.streamOf(key)
	devs := st.share(m.Addressees)
	r := l.newRecord()
	*r = record{
		id: m.ID, stream: st, devs: devs, seq: m.Seq, intended: m.Intended, writtenAt: at,
		offMin: noOffset, offMax: noOffset,
		sizeClass: uint8(m.SizeClass), phase: m.Phase, stratum: m.Stratum,
	}
	if n := len(m.Addressees); n > 64 {
		r.big = make([]uint64, 2*((n+63)/64))
	}
	l.ids[m.ID] = r
	return r
}

// answered notes what became of a message.
func (r *record) answered(k kind, c *cursor) {
	switch k {
	case acked:
		if at := c.micros(); r.state != acknowledged {
			r.state, r.ackedAt = acknowledged, at
		}
	case refusal:
		if r.state == unanswered {
			r.state = refused
		}
	case renumbered:
		r.seq = c.uint()
	}
}

// received reads a block of what devices received.
func (l *ledger) received(c *cursor) {
	for c.more() {
		switch kind(c.byte()) {
		case delivered:
			r := c.receipt()
			l.delivered(&r)
		case system:
			n := c.notice()
			l.system(&n)
		default:
			c.bad = true
		}
	}
}

func (l *ledger) delivered(d *receipt) {
	l.classes[d.flags&classMask]++
	r := l.ids[d.id]
	if r == nil || d.flags&flagID == 0 {
		l.nobodys(d.id, d.dev)
		return
	}
	st := r.stream
	if st.group != nil {
		r.place(d.offset)
	}
	i := search(r.devs, d.dev)
	var f flaw
	var first bool // this application has it for the first time
	if i >= 0 {
		first = !r.has(false, i)
		r.set(false, i)
	} else {
		first = r.addExtra(d.dev)
	}
	if !first {
		f |= duplicated
	} else if r.state != refused && st.pass(r, i, d.dev, d.offset) {
		f |= reordered
	}
	if d.flags&flagDamaged != 0 || !r.describes(d) {
		f |= forged
	}
	if f != 0 && i >= 0 {
		r.flawed = true
		l.flaws[flawKey{r, i}] |= f
	} else if f != 0 {
		r.extraOf(d.dev).flaw |= f
	}
	if first && i >= 0 && d.flags&flagOnline != 0 {
		r.set(true, i)
		if Class(d.flags&classMask) == Live {
			r.reached(time.Duration(d.at)*time.Microsecond - r.intended)
		}
	}
}

// reached accounts for a live delivery to a device that was online.
func (r *record) reached(latency time.Duration) {
	us := uint32(min(max(latency.Microseconds(), 0), math.MaxUint32))
	if r.live == 0 {
		r.first = us
	}
	r.live++
	r.first, r.last = min(r.first, us), max(r.last, us)
}

func (r *record) place(offset int64) {
	if r.offMin == noOffset {
		r.offMin, r.offMax = offset, offset
		return
	}
	r.offMin, r.offMax = min(r.offMin, offset), max(r.offMax, offset)
}

// describes says whether a frame for a device tells the truth about the message.
func (r *record) describes(d *receipt) bool {
	k := r.stream.key
	group, to := uint64(0), uint64(0) // to is told only to the sender's other devices
	if k.group {
		group = k.conv
	} else if d.dev.User == k.sender.User {
		to = k.conv
	}
	return d.group == group && d.to == to && d.from == k.sender && d.seq == r.seq
}

// nobodys notes a delivery of something that nobody wrote.
func (l *ledger) nobodys(id wire.MessageID, dev Device) {
	l.unknown++
	if len(l.strange) < examplesOfAKind {
		l.strange = append(l.strange, strange{id, dev})
	}
}

func (r *record) extraOf(dev Device) *extra {
	if r.extras == nil {
		return nil
	}
	for i := range *r.extras {
		if (*r.extras)[i].dev == dev {
			return &(*r.extras)[i]
		}
	}
	return nil
}

func (r *record) addExtra(dev Device) (first bool) {
	if r.extraOf(dev) != nil {
		return false
	}
	if r.extras == nil {
		r.extras = new([]extra)
	}
	*r.extras = append(*r.extras, extra{dev: dev})
	return true
}

// groupOf returns the membership record of a group.
func (l *ledger) groupOf(id uint64) *group {
	g := l.groups[id]
	if g == nil {
		g = &group{id: id}
		l.groups[id] = g
	}
	return g
}

// streamOf returns the stream of a key.
func (l *ledger) streamOf(k streamKey) *stream {
	st := l.streams[k]
	if st == nil {
		st = &stream{key: k}
		if k.group {
			st.group = l.groupOf(k.conv)
			st.group.streams = append(st.group.streams, st)
		}
		l.streams[k] = st
	}
	return st
}

// share returns a copy of the addressees, that of the message before when they
// are the same.
func (st *stream) share(devs []Device) []Device {
	n := len(st.sets)
	if n > 0 && slices.Equal(st.sets[n-1], devs) {
		return st.sets[n-1]
	}
	devs = slices.Clone(devs)
	st.sets = append(st.sets, devs)
	if n == 0 {
		st.base, st.last = devs, make([]uint32, len(devs))
		if st.group != nil {
			st.offsets = make([]int64, len(devs))
		}
	}
	return devs
}

func (l *ledger) newRecord() *record {
	n := len(l.slabs)
	if n == 0 || len(l.slabs[n-1]) == cap(l.slabs[n-1]) {
		l.slabs = append(l.slabs, make([]record, 0, slab))
		n++
	}
	last := &l.slabs[n-1]
	*last = (*last)[:len(*last)+1]
	return &(*last)[len(*last)-1]
}

// each visits every message.
func (l *ledger) each(f func(*record)) {
	for _, slab := range l.slabs {
		for j := range slab {
			f(&slab[j])
		}
	}
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

func (l *ledger) flawOf(r *record, i int) flaw {
	if !r.flawed {
		return 0
	}
	return l.flaws[flawKey{r, i}]
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
