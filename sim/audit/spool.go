package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"throng/system/wire"
)

// A spool is a file of blocks. Each begins with a header of five little-endian
// words: magic, CRC-32C of all that follows it in the block, the number of the
// block from 0, the lane, the length of what follows the header. Block 0 says
// how many partitions there are. Each partition has two lanes: one of what
// senders and groups did, one of what devices received, because the judge reads
// the first of all spools before it reads the second of any. Events lie in a lane
// in the order they were told. A mark ends the spool, or what there is so far of
// it: everything before it is there, and nothing is missing.
const (
	spoolMagic  = 0x31535054 // "TPS1"
	blockHeader = 20
	maxBlock    = 64 << 20 // refused by readers; writers stay below it by far

	laneStart = 1<<32 - 1 // of block 0
	laneMark  = 1<<32 - 2
)

// Bounds of a spool's buffers and of its partitions.
const (
	spoolBuffers  = 4 << 20 // bytes, all lanes together
	minLaneBuffer = 4 << 10
	maxLaneBuffer = 32 << 10

	// messagesAPartition is how many messages a partition may have in the mean. A
	// message takes 300 bytes to a kilobyte while it is judged, more in groups
	// of more than 64 devices.
	messagesAPartition = 20_000
	// MaxPartitions bounds the buffers of a spool: 8 MiB.
	MaxPartitions = 1024
)

// Partitions returns into how many partitions the spools of a run with so many
// messages should be cut.
func Partitions(messages int) int {
	return min(max((messages+messagesAPartition-1)/messagesAPartition, 1), MaxPartitions)
}

// checksum continues a CRC-32C, which processors have an instruction for.
func checksum(sum uint32, b []byte) uint32 {
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), b)
}

// Spool takes what one engine tells and writes it to a file. All methods may be
// called from any goroutine; calls about one device's deliveries, and about one
// message, must not overlap. It holds at most MaxPartitions times two buffers, 8
// MiB, whatever it is told. The first error of the file is kept: what is told
// after it is dropped, and Sync and Err say so.
type Spool struct {
	lanes []lane // of partition p: 2p what was done, 2p+1 what was received
	full  int    // length at which a lane is written

	redelivered atomic.Int64
	failed      atomic.Bool // err is set

	mu     sync.Mutex // for what follows, taken after a lane's
	w      io.Writer
	blocks uint32
	bytes  int64
	events int64
	err    error
}

// lane is the end of a lane that is not written yet.
type lane struct {
	mu      sync.Mutex
	buf     []byte // block header and events
	at      int64  // microseconds of the last event of the block
	events  int64
	written uint32 // messages told so far, in a lane of senders
}

// Mark is a place in a spool up to which it is complete.
type Mark struct {
	Bytes  int64 `json:"bytes"`
	Events int64 `json:"events"`
}

// NewSpool returns a spool that writes to w, which it does not close. The spools
// that are judged together have the same number of partitions.
func NewSpool(w io.Writer, partitions int) *Spool {
	partitions = min(max(partitions, 1), MaxPartitions)
	s := &Spool{w: w, lanes: make([]lane, 2*partitions)}
	s.full = min(max(spoolBuffers/len(s.lanes), minLaneBuffer), maxLaneBuffer)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.block(laneStart, binary.AppendUvarint(make([]byte, blockHeader), uint64(partitions)), 0)
	return s
}

// Err returns why the spool is incomplete, nil while it is not.
func (s *Spool) Err() error {
	if !s.failed.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Sync writes everything that was told before the call, and a mark. Replay can
// read up to it while the spool goes on.
func (s *Spool) Sync() (Mark, error) {
	for i := range s.lanes {
		l := &s.lanes[i]
		l.mu.Lock()
		s.write(l, i)
		l.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := binary.AppendUvarint(make([]byte, blockHeader), uint64(s.redelivered.Load()))
	s.block(laneMark, binary.AppendUvarint(b, uint64(s.events)), 0)
	return Mark{Bytes: s.bytes, Events: s.events}, s.err
}

// write writes a lane's buffer; the caller holds its lock.
func (s *Spool) write(l *lane, number int) {
	if len(l.buf) <= blockHeader {
		return
	}
	s.mu.Lock()
	s.block(uint32(number), l.buf, l.events)
	s.mu.Unlock()
	l.buf, l.at, l.events = l.buf[:blockHeader], 0, 0
	if cap(l.buf) > 4*s.full {
		l.buf = nil // it was one large event
	}
}

// block writes one block, whose header is left free; the caller holds mu.
func (s *Spool) block(lane uint32, b []byte, events int64) {
	if s.err != nil {
		return
	}
	for i, v := range []uint32{spoolMagic, 0, s.blocks, lane, uint32(len(b) - blockHeader)} {
		binary.LittleEndian.PutUint32(b[4*i:], v)
	}
	binary.LittleEndian.PutUint32(b[4:], checksum(0, b[8:]))
	n, err := s.w.Write(b)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		s.err = fmt.Errorf("the audit's spool is incomplete after %d bytes: %w", s.bytes, err)
		s.failed.Store(true)
		return
	}
	s.blocks++
	s.bytes += int64(n)
	s.events += events
}

// partition returns the partition of a conversation.
func (s *Spool) partition(c Conversation) int { return int(c) * (len(s.lanes) / 2) >> 16 }

// begin locks a lane and begins an event in it.
func (s *Spool) begin(number int, k kind) *lane {
	l := &s.lanes[number]
	l.mu.Lock()
	if l.buf == nil {
		l.buf = make([]byte, blockHeader, s.full+512)
	}
	l.buf = append(l.buf, byte(k))
	return l
}

// end ends an event and unlocks its lane.
func (s *Spool) end(l *lane, number int) {
	l.events++
	if s.failed.Load() {
		l.buf, l.events = l.buf[:blockHeader], 0
	} else if len(l.buf) >= s.full {
		s.write(l, number)
	}
	l.mu.Unlock()
}

// did begins an event of a conversation's senders or of a group, received one of
// what its devices received.
func (s *Spool) did(c Conversation, k kind) (*lane, int) {
	n := 2 * s.partition(c)
	return s.begin(n, k), n
}

func (s *Spool) received(c Conversation, k kind) (*lane, int) {
	n := 2*s.partition(c) + 1
	return s.begin(n, k), n
}

// Handle is a message that was told. The zero value is none.
type Handle struct {
	spool   *Spool
	lane, n uint32 // n counts the messages of the lane
}

// errNoHandle is a mistake of the caller.
var errNoHandle = errors.New("audit: a message that was not told")

// Written tells of a message before its first byte is written. Telling it again
// (a retry) changes nothing.
func (s *Spool) Written(m *Message, at time.Duration) Handle {
	in := Between(m.Sender.User, m.Peer)
	if m.Group != 0 {
		in = InGroup(m.Group)
	}
	l, n := s.did(in, written)
	l.message(m)
	l.time(at)
	h := Handle{s, uint32(n), l.written}
	l.written++
	s.end(l, n)
	return h
}

func (h Handle) begin(k kind) *lane {
	if h.spool == nil {
		panic(errNoHandle)
	}
	l := h.spool.begin(int(h.lane), k)
	l.uint(uint64(h.n))
	return l
}

// Acknowledged says that the sender has Sent for it.
func (h Handle) Acknowledged(at time.Duration) {
	l := h.begin(acked)
	l.time(at)
	h.spool.end(l, int(h.lane))
}

// Refused says that the sender has a final error for it, and had not written it
// before: it must reach nobody. An acknowledgement outweighs it, whichever comes
// first.
func (h Handle) Refused() {
	h.spool.end(h.begin(refusal), int(h.lane))
}

// Renumber tells that the message is not written under its first number but
// under a lower one: those before it were refused and do not count.
func (h Handle) Renumber(seq uint64) {
	l := h.begin(renumbered)
	l.uint(seq)
	h.spool.end(l, int(h.lane))
}

// Delivered tells of a delivery. One device's are told in the order its
// application got them.
func (s *Spool) Delivered(d *Delivery) {
	l, n := s.received(d.In, delivered)
	l.delivery(d)
	s.end(l, n)
}

// System is Delivered for a system message. What it says also tells the audit
// of the change, see Added and Removed.
func (s *Spool) System(dev Device, d *wire.Deliver, at time.Duration) {
	l, n := s.received(InGroup(d.Group), system)
	l.system(dev, d)
	l.time(at)
	s.end(l, n)
}

// Redelivered counts a delivery that the client's window dropped.
func (s *Spool) Redelivered() { s.redelivered.Add(1) }

// Start tells the members of a group in its first version, once or more. Without
// it any system message of the group is foreign.
func (s *Spool) Start(group uint64, members []uint64) {
	l, n := s.did(InGroup(group), start)
	l.uint(group)
	l.list(members)
	s.end(l, n)
}

// Reached tells that a group has come to a version: of each up to it there is a
// system message, due to the members of that version and of the one before.
func (s *Spool) Reached(group, version uint64) {
	l, n := s.did(InGroup(group), reached)
	l.uint(group)
	l.uint(version)
	s.end(l, n)
}

// Outside says that a user is not a member of a group at the start, although
// the addressees of its messages name the user, who may join later.
func (s *Spool) Outside(group, user uint64) {
	l, n := s.did(InGroup(group), outside)
	l.uint(group)
	l.uint(user)
	s.end(l, n)
}

// Changing says that a membership change of a user is about to be asked for.
// Until Removed, Added or a system message says where it happened, messages that
// are not acknowledged before are neither due to the user nor foreign. It
// sharpens verdicts on messages whose own position nobody told.
func (s *Spool) Changing(group, user uint64, at time.Duration) { s.asked(group, user, at, changing) }

// Unchanged says that what Changing announced at that time was refused, and did
// not happen.
func (s *Spool) Unchanged(group, user uint64, at time.Duration) { s.asked(group, user, at, unchanged) }

func (s *Spool) asked(group, user uint64, at time.Duration, k kind) {
	l, n := s.did(InGroup(group), k)
	l.uint(group)
	l.uint(user)
	l.time(at)
	s.end(l, n)
}

// Removed says that user was removed at that position of the group's log: what
// is after it is not for the user. at is when that was known.
func (s *Spool) Removed(group, user uint64, offset int64, at time.Duration) {
	s.changed(group, user, offset, at, removed)
}

// Added says that user was added at that position of the group's log: what is
// before it is not for the user. at is when that was known.
func (s *Spool) Added(group, user uint64, offset int64, at time.Duration) {
	s.changed(group, user, offset, at, added)
}

func (s *Spool) changed(group, user uint64, offset int64, at time.Duration, k kind) {
	l, n := s.did(InGroup(group), k)
	l.uint(group)
	l.uint(user)
	l.int(offset)
	l.time(at)
	s.end(l, n)
}

// Drained says, in the proof phase and after the load has ended, that a device
// was connected and got Current: what it has not got by now is lost.
func (s *Spool) Drained(dev Device) { s.proof(dev, isDrained) }

// Unprovable says that a device could not be connected or drained: what it has
// not got is not proved, whatever else was said.
func (s *Spool) Unprovable(dev Device) { s.proof(dev, isUnprovable) }

// proof tells in partition 0 what is true in all.
func (s *Spool) proof(dev Device, k kind) {
	l := s.begin(0, k)
	l.device(dev)
	s.end(l, 0)
}
