package audit

import (
	"encoding/binary"
	"errors"
	"time"

	"throng/system/wire"
)

// kind is the first byte of an event. Numbers in events are varints; times are
// microseconds, as the difference from the last one in their block.
type kind byte

const (
	_ kind = iota
	written
	acked
	refusal
	renumbered
	start
	reached
	outside
	changing
	unchanged
	added
	removed
	isDrained
	isUnprovable
	delivered
	system
)

// Flags of a delivery, above its class in the lowest two bits.
const (
	flagOnline = 1 << (2 + iota)
	flagDamaged
	flagID    // it has a proper id
	classMask = 3
)

func (l *lane) uint(v uint64) { l.buf = binary.AppendUvarint(l.buf, v) }
func (l *lane) int(v int64)   { l.buf = binary.AppendVarint(l.buf, v) }

func (l *lane) time(t time.Duration) {
	us := t.Microseconds()
	l.int(us - l.at)
	l.at = us
}

func (l *lane) device(d Device) {
	l.uint(d.User)
	l.uint(uint64(d.Device))
}

func (l *lane) list(users []uint64) {
	l.uint(uint64(len(users)))
	for _, u := range users {
		l.uint(u)
	}
}

func (l *lane) message(m *Message) {
	l.buf = append(l.buf, m.ID[:]...)
	l.buf = append(l.buf, byte(m.SizeClass), m.Phase, byte(m.Stratum))
	l.uint(m.Group)
	l.uint(m.Peer)
	l.device(m.Sender)
	l.uint(m.Seq)
	l.time(m.Intended)
	l.uint(uint64(len(m.Addressees)))
	user := uint64(0)
	for _, d := range m.Addressees {
		l.uint(d.User - user)
		l.uint(uint64(d.Device))
		user = d.User
	}
}

func (l *lane) delivery(d *Delivery) {
	flags := byte(d.Class) & classMask
	if d.Online {
		flags |= flagOnline
	}
	if d.Damaged {
		flags |= flagDamaged
	}
	f := d.Frame
	var id wire.MessageID
	if len(f.MessageId) == len(id) {
		copy(id[:], f.MessageId)
		flags |= flagID
	}
	l.buf = append(l.buf, flags)
	l.buf = append(l.buf, id[:]...)
	l.device(d.To)
	l.uint(f.Group)
	l.uint(f.From)
	l.uint(uint64(f.FromDevice))
	l.uint(f.To)
	l.uint(f.Seq)
	l.int(f.Offset)
	l.time(d.At)
}

func (l *lane) system(dev Device, d *wire.Deliver) {
	c := d.GetChange()
	id := wire.SystemIDOf(d.Group, d.Seq)
	proper := byte(0)
	if d.Seq >= 2 && c.GetVersion() == d.Seq && d.From == 0 && string(d.MessageId) == string(id[:]) {
		proper = 1
	}
	l.buf = append(l.buf, proper)
	l.device(dev)
	l.uint(d.Group)
	l.uint(d.Seq)
	l.int(d.Offset)
	l.list(c.GetAdd())
	l.list(c.GetRemove())
}

// errEvent says that a block is sound and what is in it is not: it was written
// by another version.
var errEvent = errors.New("an event cannot be read")

// cursor reads the events of a block. After an error everything is zero.
type cursor struct {
	b   []byte
	at  int64
	bad bool
}

func (c *cursor) more() bool { return len(c.b) > 0 && !c.bad }

func (c *cursor) byte() byte {
	if len(c.b) == 0 {
		c.bad = true
		return 0
	}
	b := c.b[0]
	c.b = c.b[1:]
	return b
}

func (c *cursor) uint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) int() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

// micros reads a time.
func (c *cursor) micros() int64 {
	c.at += c.int()
	return c.at
}

func (c *cursor) id() (id wire.MessageID) {
	if len(c.b) < len(id) {
		c.bad, c.b = true, nil
		return id
	}
	copy(id[:], c.b)
	c.b = c.b[len(id):]
	return id
}

func (c *cursor) device() Device { return Device{c.uint(), uint32(c.uint())} }

// length reads the length of a list whose elements take at least a byte each.
func (c *cursor) length() int {
	n := c.uint()
	if n > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return 0
	}
	return int(n)
}

func (c *cursor) list() []uint64 {
	users := make([]uint64, c.length())
	for i := range users {
		users[i] = c.uint()
	}
	return users
}

// message reads a message and when it was told of. Its addressees are appended
// to room.
func (c *cursor) message(room []Device) (m Message, at int64) {
	m.ID = c.id()
	m.SizeClass, m.Phase, m.Stratum = int(c.byte()), c.byte(), int8(c.byte())
	m.Group, m.Peer, m.Sender, m.Seq = c.uint(), c.uint(), c.device(), c.uint()
	m.Intended = time.Duration(c.micros()) * time.Microsecond
	user := uint64(0)
	for range c.length() {
		user += c.uint()
		room = append(room, Device{user, uint32(c.uint())})
	}
	m.Addressees = room
	return m, c.micros()
}

// receipt is a delivery as it is read back.
type receipt struct {
	flags      byte
	id         wire.MessageID
	dev, from  Device
	group, to  uint64
	seq        uint64
	offset, at int64
}

func (c *cursor) receipt() (r receipt) {
	r.flags, r.id, r.dev = c.byte(), c.id(), c.device()
	r.group, r.from, r.to = c.uint(), c.device(), c.uint()
	r.seq, r.offset, r.at = c.uint(), c.int(), c.micros()
	return r
}

// notice is a system message as it is read back.
type notice struct {
	proper         bool
	dev            Device
	group, version uint64
	offset, at     int64
	add, remove    []uint64
}

func (c *cursor) notice() (n notice) {
	n.proper, n.dev = c.byte() == 1, c.device()
	n.group, n.version, n.offset = c.uint(), c.uint(), c.int()
	n.add, n.remove, n.at = c.list(), c.list(), c.micros()
	return n
}
