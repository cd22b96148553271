package load

import (
	"cmp"
	"slices"
	"time"

	"throng/sim/metrics"
	"throng/system/wire"
)

// What a device keeps of its conversations stays while its user is away, and
// millions of users do: it is lists of small structures without pointers,
// looked through from one end, because a device has few of each.

// outbox is what a device keeps of a conversation that it has written in.
type outbox struct {
	conv            conv
	chain           [wire.ChainBytes]byte // of acked
	seq             uint32                // last used
	acked           uint32                // last answered with a chain
	delivered, read uint32                // to the peer, or to all members of the group, up to here
	resending       bool                  // a resend is scheduled
}

// sentAt remembers when a message was intended, for the receipts that come later.
type sentAt struct {
	intended time.Duration
	out      int32 // which of the device's outboxes
	seq      uint32
}

// maxSentKept bounds the sends of a device that can still get a read latency.
const maxSentKept = 64

// outboxOf returns the outbox of a conversation, nil if the device has not
// written in it. It is good until the next send, at most while d.mu is held.
func (d *device) outboxOf(c conv) *outbox {
	if i := d.outboxAt(c); i >= 0 {
		return &d.out[i]
	}
	return nil
}

func (d *device) outboxAt(c conv) int {
	return slices.IndexFunc(d.out, func(o outbox) bool { return o.conv == c })
}

// number gives a new message of a conversation its number. The caller holds d.mu.
func (d *device) number(c conv) uint64 {
	o := d.outboxOf(c)
	if o == nil {
		d.out = append(d.out, outbox{conv: c})
		o = &d.out[len(d.out)-1]
	}
	o.seq++
	return uint64(o.seq)
}

// note takes a numbered message among the unanswered ones. The caller holds
// d.mu.
func (d *device) note(m *outMsg) {
	d.unacked = append(d.unacked, m)
	d.remember(m.conv, m.seq, m.intended)
}

func (d *device) remember(c conv, seq uint64, intended time.Duration) {
	if len(d.sent) >= maxSentKept {
		d.sent = slices.Delete(d.sent, 0, maxSentKept/2)
	}
	d.sent = append(d.sent, sentAt{intended: intended, out: int32(d.outboxAt(c)), seq: uint32(seq)})
}

// unanswered returns the message with a client message id, nil if it was
// answered. The caller holds d.mu.
func (d *device) unanswered(clientID uint64) *outMsg {
	for _, m := range d.unacked {
		if m.send.ClientMsgId == clientID {
			return m
		}
	}
	return nil
}

// settle takes an answered message off the unanswered ones. The caller holds
// d.mu.
func (d *device) settle(m *outMsg) {
	m.done = true
	if i := slices.Index(d.unacked, m); i >= 0 {
		d.unacked = slices.Delete(d.unacked, i, i+1)
	}
	if len(d.unacked) == 0 {
		d.unacked = nil
	}
}

// accepted notes that a message is durable, or refused and its number used up.
// The caller holds d.mu.
func (d *device) accepted(m *outMsg, chain []byte) {
	d.settle(m)
	if o := d.outboxOf(m.conv); uint32(m.seq) > o.acked {
		o.acked = uint32(m.seq)
		copy(o.chain[:], chain)
	}
}

// waiting are the unanswered messages of a conversation, in order. The caller
// holds d.mu.
func (d *device) waiting(c conv) []*outMsg {
	var out []*outMsg
	for _, m := range d.unacked {
		if m.conv == c {
			out = append(out, m)
		}
	}
	return out
}

// receipts handles watermarks that come back to the sender. In a group they
// speak for all members.
func (e *Engine) receipts(d *device, r *wire.Receipts) {
	now := e.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range r.Receipts {
		out := d.outboxAt(conv{group: x.Group, peer: x.Peer})
		if out < 0 {
			continue
		}
		o := &d.out[out]
		if x.Group == 0 {
			o.read = e.upTo(d, out, e.kinds.read, o.read, x.ReadSeq, now)
			o.delivered = o.read // nobody asks when a direct one was delivered
		} else {
			o.delivered = e.upTo(d, out, e.kinds.deliveredAll, o.delivered, x.DeliveredSeq, now)
			o.read = e.upTo(d, out, e.kinds.readAll, o.read, x.ReadSeq, now)
		}
		all := min(o.delivered, o.read)
		d.sent = slices.DeleteFunc(d.sent, func(s sentAt) bool { return int(s.out) == out && s.seq <= all })
	}
}

// upTo records the latency of each send that a watermark newly covers, and
// returns the watermark.
func (e *Engine) upTo(d *device, out int, kind metrics.Kind, before uint32, now uint64, at time.Duration) uint32 {
	if now <= uint64(before) {
		return before
	}
	for _, s := range d.sent {
		if int(s.out) == out && s.seq > before && uint64(s.seq) <= now {
			e.rec.Record(kind, (at - s.intended).Microseconds())
		}
	}
	return uint32(now)
}

// stream names what is ordered: one sender's device in one conversation, from
// the side of a receiver.
type stream struct {
	place  uint64 // the group; of what another device of the same user sent: to whom
	from   uint64
	device uint32
	own    bool // of another device of the same user, to somebody
}

func streamOf(m *wire.Deliver) stream {
	if m.To != 0 {
		return stream{m.To, m.From, m.FromDevice, true}
	}
	return stream{m.Group, m.From, m.FromDevice, false}
}

func (s stream) compare(t stream) int {
	own := 0
	if s.own != t.own {
		if own = 1; t.own {
			own = -1
		}
	}
	return cmp.Or(cmp.Compare(s.from, t.from), cmp.Compare(s.place, t.place), cmp.Compare(s.device, t.device), own)
}

// heard is what a device has received of a stream.
type heard struct {
	stream stream
	window wire.Window
}

// maxHeard bounds the streams that a device remembers: more than the members of
// a dozen of the largest groups. Beyond it nothing is taken for a duplicate.
const maxHeard = 1 << 14

func (d *device) find(s stream) (int, bool) {
	return slices.BinarySearchFunc(d.heard, s, func(h heard, s stream) int { return h.stream.compare(s) })
}

// accept runs a delivery through the de-duplication window and says whether
// the application gets it. The caller holds d.mu.
func (d *device) accept(m *wire.Deliver) bool {
	d.inboxSeq = max(d.inboxSeq, m.InboxSeq)
	s := streamOf(m)
	i, ok := d.find(s)
	if !ok {
		if len(d.heard) >= maxHeard {
			return true
		}
		d.heard = slices.Insert(d.heard, i, heard{stream: s})
	}
	return d.heard[i].window.Accept(m.Seq)
}

// newest is the highest number that has come of a stream, which a read receipt
// names; 0 if none. The caller holds d.mu.
func (d *device) newest(s stream) uint64 {
	if i, ok := d.find(s); ok {
		return d.heard[i].window.Highest()
	}
	return 0
}
