package inbox

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"throng/system/wire"
)

const (
	// ledgerPending bounds the messages of a ledger that not everybody has
	// read. The oldest is forgotten: a later one that everybody has speaks for it.
	ledgerPending = 64
	// ledgerPeers bounds the members of a ledger, those who have left included:
	// twice what a group may have.
	ledgerPeers = 2048
	// gone, as peer.after, is who has left the group: nothing counts.
	gone = math.MaxUint64
)

// ledger is what one device has sent to one group, and who has it. It answers
// up to where all members have it: a member receives the messages of one sender
// in order, so who has one has all that came before.
//
// Which members a message was addressed to is not known, only how many there
// were. So a member who joins counts from the next message on, and one who
// leaves does not count any more; both come as changes of the group, in order
// with its messages.
type ledger struct {
	key     ledgerKey
	last    uint64 // newest message
	version uint64 // of the group: the newest change seen
	all     marks  // up to where every member has received, and read
	told    marks  // what of it has been passed on to the device's box
	pending []sending
	// early: a new member has received what is not known here yet. Only with the
	// next message is it known whether it had joined before those pending.
	early bool
	peers []member // sorted by user

	stored bool // a row holds an earlier state of it
	dirty  bool // in Core.dirty
	weight int  // as counted in Core.marks
	prev   *ledger
	next   *ledger
}

type ledgerKey struct {
	Key
	group uint64
}

// sending is a message that not every member has read, as far as is known.
type sending struct {
	seq                             uint64
	recipients, undelivered, unread uint32
}

// member has received and read so much. Up to after nothing counts.
type member struct{ user, after, delivered, read uint64 }

// seen is up to where the member has read what it has: who may send receipts
// for a message is not checked, who has received it is known.
func (p *member) seen() uint64 { return min(p.read, p.delivered) }

func (p *member) counts(seq, upto uint64) bool { return p.after < seq && seq <= upto }

// size is what the ledger adds to the receipt marks kept in memory.
func (l *ledger) size() int { return 1 + len(l.pending) + len(l.peers) }

// sent notes a message to recipients members, and reports whether it is new.
func (l *ledger) sent(seq uint64, recipients uint32) bool {
	if seq <= l.last {
		return false
	}
	l.last = seq
	s := sending{seq: seq, recipients: recipients}
	l.recount(&s) // a receipt may have been faster
	if l.early {
		l.early = false
		l.recountAll()
	}
	if len(l.pending) >= ledgerPending {
		l.pending = append(l.pending[:0], l.pending[1:]...)
	}
	l.pending = append(l.pending, s)
	l.settle()
	return true
}

func (l *ledger) recount(s *sending) {
	s.undelivered, s.unread = s.recipients, s.recipients
	for i := range l.peers {
		p := &l.peers[i]
		if p.counts(s.seq, p.delivered) {
			down(&s.undelivered)
		}
		if p.counts(s.seq, p.seen()) {
			down(&s.unread)
		}
	}
}

func (l *ledger) recountAll() {
	for i := range l.pending {
		l.recount(&l.pending[i])
	}
}

func down(n *uint32) {
	if *n > 0 {
		*n--
	}
}

// mark merges the watermarks of a member, and reports whether that was news.
func (l *ledger) mark(user uint64, m marks) bool {
	i, found := l.find(user)
	if !found {
		// A read receipt takes a shorter way and may be faster; but anybody can
		// send one, so those alone do not fill the ledger.
		if limit := ledgerPeers; len(l.peers) >= limit || m.delivered == 0 && len(l.peers) >= limit/2 {
			return false
		}
		l.peers = slices.Insert(l.peers, i, member{user: user})
	}
	p := &l.peers[i]
	old := *p
	p.delivered, p.read = max(p.delivered, m.delivered), max(p.read, m.read)
	if *p == old || p.after == gone {
		return *p != old
	}
	if old.delivered == 0 && p.delivered > l.last {
		l.early = true
		return true
	}
	for j := len(l.pending) - 1; j >= 0; j-- {
		s := &l.pending[j]
		if p.counts(s.seq, p.delivered) && s.seq > old.delivered {
			down(&s.undelivered)
		}
		if p.counts(s.seq, p.seen()) && s.seq > old.seen() {
			down(&s.unread)
		}
	}
	l.settle()
	return true
}

func (l *ledger) find(user uint64) (i int, found bool) {
	return slices.BinarySearchFunc(l.peers, user, func(p member, u uint64) int { return cmp.Compare(p.user, u) })
}

// peer returns what is noted of a user, from now on if nothing was; nil when
// there is no room. It is good until the next one is noted.
func (l *ledger) peer(user uint64) *member {
	i, found := l.find(user)
	if !found {
		if len(l.peers) >= ledgerPeers {
			return nil
		}
		l.peers = slices.Insert(l.peers, i, member{user: user})
	}
	return &l.peers[i]
}

// change notes a change of the group's members; a repetition changes nothing.
func (l *ledger) change(g *wire.GroupChange) bool {
	if g.GetVersion() <= l.version {
		return false
	}
	l.version = g.GetVersion()
	for _, u := range g.GetRemove() {
		if p := l.peer(u); p != nil {
			l.leave(p)
		}
	}
	for _, u := range g.GetAdd() {
		if p := l.peer(u); p != nil {
			p.after = l.last
		}
	}
	l.settle()
	return true
}

// leave takes a member out of the count of what it was to receive.
func (l *ledger) leave(p *member) {
	for i := range l.pending {
		s := &l.pending[i]
		if s.seq <= p.after {
			continue
		}
		down(&s.recipients)
		if s.seq > p.delivered {
			down(&s.undelivered)
		}
		if s.seq > p.seen() {
			down(&s.unread)
		}
	}
	p.after, p.read = gone, p.seen()
}

// settle moves the watermarks of all and forgets what is done.
func (l *ledger) settle() {
	done := 0
	for i := range l.pending {
		s := &l.pending[i]
		if s.undelivered == 0 {
			l.all.delivered = max(l.all.delivered, s.seq)
		}
		if s.unread == 0 {
			l.all.read = max(l.all.read, s.seq)
		}
	}
	for done < len(l.pending) && l.pending[done].seq <= l.all.read {
		done++
	}
	if done > 0 {
		l.pending = append(l.pending[:0], l.pending[done:]...)
	}
	if len(l.pending) == 0 {
		l.peers = slices.DeleteFunc(l.peers, func(p member) bool { return p.after == gone })
	}
}

// merge adds what another ledger of the same device and group knows.
func (l *ledger) merge(o *ledger) {
	newer := o.version > l.version
	l.last, l.version = max(l.last, o.last), max(l.version, o.version)
	l.all = marks{max(l.all.delivered, o.all.delivered), max(l.all.read, o.all.read)}
	l.told = marks{max(l.told.delivered, o.told.delivered), max(l.told.read, o.told.read)}
	for _, s := range o.pending {
		i, found := slices.BinarySearchFunc(l.pending, s.seq, func(a sending, seq uint64) int { return cmp.Compare(a.seq, seq) })
		if !found {
			l.pending = slices.Insert(l.pending, i, s)
		}
	}
	if n := len(l.pending) - ledgerPending; n > 0 {
		l.pending = append(l.pending[:0], l.pending[n:]...)
	}
	for _, p := range o.peers {
		i, found := l.find(p.user)
		if !found {
			if len(l.peers) < ledgerPeers {
				l.peers = slices.Insert(l.peers, i, p)
			}
			continue
		}
		have := &l.peers[i]
		have.delivered, have.read = max(have.delivered, p.delivered), max(have.read, p.read)
		if newer {
			have.after = p.after
		}
	}
	l.recountAll()
	l.settle()
}

// receipts returns what each member has, for the list that a client asks for.
func (l *ledger) receipts() []*wire.Receipt {
	out := make([]*wire.Receipt, 0, len(l.peers))
	for i := range l.peers {
		if p := &l.peers[i]; p.after != gone && p.delivered > 0 {
			out = append(out, &wire.Receipt{Group: l.key.group, Peer: p.user, DeliveredSeq: p.delivered, ReadSeq: p.seen()})
		}
	}
	return out
}

// encode returns the ledger for a row: numbers as varints, with counts ahead of
// the lists.
func (l *ledger) encode() []byte {
	b := make([]byte, 0, 24+6*len(l.pending)+16*len(l.peers))
	put := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.AppendUvarint(b, v)
		}
	}
	put(l.last, l.version, l.all.delivered, l.all.read, uint64(len(l.pending)), uint64(len(l.peers)))
	for _, s := range l.pending {
		put(l.last-s.seq, uint64(s.recipients))
	}
	for _, p := range l.peers {
		put(p.user, p.after, p.delivered, p.read)
	}
	return b
}

var errLedger = errors.New("inbox: a stored ledger of receipts is malformed")

// decodeLedger reads back what encode wrote.
func decodeLedger(b []byte) (*ledger, error) {
	bad := false
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad, n = true, 0
		}
		b = b[n:]
		return v
	}
	l := &ledger{last: next(), version: next(), all: marks{next(), next()}}
	l.told = l.all
	pending, peers := next(), next()
	if bad || pending > ledgerPending || peers > ledgerPeers {
		return nil, errLedger
	}
	for range pending {
		l.pending = append(l.pending, sending{seq: l.last - next(), recipients: uint32(next())})
	}
	for range peers {
		l.peers = append(l.peers, member{next(), next(), next(), next()})
	}
	if bad || len(b) > 0 || !slices.IsSortedFunc(l.peers, func(a, b member) int { return cmp.Compare(a.user, b.user) }) {
		return nil, errLedger
	}
	l.recountAll()
	return l, nil
}
