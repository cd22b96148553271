package inbox

import (
	"cmp"
	"slices"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// maxReceiptsFrame bounds the receipts in one frame.
const maxReceiptsFrame = 512

// ackKey names a watermark made by an acknowledgement.
type ackKey struct {
	to     Key
	group  uint64
	sender uint64 // who acknowledged: the peer of the sender
}

// receiptBox holds the watermarks that wait in memory for a device.
type receiptBox struct {
	marks map[markKey]marks
}

type markKey struct{ group, peer uint64 }

type marks struct{ delivered, read uint64 }

// delivered notes that a user's device has a message. The receipts of a turn
// are coalesced: an acknowledgement of a hundred messages of one sender in one
// conversation is one watermark.
func (c *Core) delivered(m *Message, by uint64) {
	if m.From == by || m.From == 0 { // 0: a system message
		return
	}
	k := ackKey{to: Key{User: m.From, Device: m.FromDevice}, group: m.Group, sender: by}
	if m.Seq > c.acked[k] {
		c.acked[k] = m.Seq
	}
}

// spreadReceipts sends the turn's receipts on their way to the senders' shards.
func (c *Core) spreadReceipts() {
	for k, seq := range c.acked {
		u := &rpc.ReceiptUpdate{To: k.to.User, ToDevice: k.to.Device, Group: k.group, Peer: k.sender, DeliveredSeq: seq}
		if c.owns(k.to.User) {
			c.Receipt(u)
		} else {
			c.eff.Forward = append(c.eff.Forward, u)
		}
	}
	clear(c.acked)
}

// Receipt merges a watermark for a device of this core's shards. Those of a
// group's members come to one for all of them. Beyond the limits a receipt for
// a peer that has none waiting is dropped and counted: the next one of that
// peer makes up for it.
func (c *Core) Receipt(u *rpc.ReceiptUpdate) {
	c.stats.Receipts++
	key := Key{User: u.To, Device: u.ToDevice}
	k, m := markKey{u.Group, u.Peer}, marks{u.DeliveredSeq, u.ReadSeq}
	if u.Group != 0 && c.aggregate(key, k, m) {
		return
	}
	c.merge(key, k, m)
	c.announce(key)
}

// announce sees to it that what waits for a device goes out if it is live: the
// first after a pause at once, so that a conversation of two does not wait;
// then one for each gap.
func (c *Core) announce(key Key) {
	d := c.knownDevice(key)
	if d == nil || d.session == nil || !d.session.live {
		return
	}
	s := d.session
	if s.receiptTimer {
		return
	}
	s.receiptTimer = true
	if due := s.receiptsAt + int64(c.lim.ReceiptGap); due > c.now {
		c.wheel.add(timer{at: due, kind: timerReceipts, dev: d, s: s})
	} else {
		c.flush = append(c.flush, d)
	}
}

func (c *Core) merge(key Key, k markKey, m marks) {
	b := c.boxes[key]
	if b == nil {
		if c.marks >= c.lim.Receipts {
			c.stats.ReceiptsDropped++
			return
		}
		b = &receiptBox{marks: make(map[markKey]marks, 1)}
		c.boxes[key] = b
	}
	old, ok := b.marks[k]
	if !ok {
		if c.marks >= c.lim.Receipts || len(b.marks) >= c.lim.DeviceMarks {
			c.stats.ReceiptsDropped++
			return
		}
		c.marks++
	}
	b.marks[k] = marks{max(old.delivered, m.delivered), max(old.read, m.read)}
}

// sendReceipts flushes the boxes of live devices that are due.
func (c *Core) sendReceipts() {
	for _, d := range c.flush {
		s := d.session
		if s == nil {
			continue
		}
		s.receiptTimer = false
		if !s.live || d.taking { // receiptsTaken has it come here again
			continue
		}
		c.answerQueries(s)
		b := c.boxes[d.Key]
		if b == nil {
			continue
		}
		s.receiptsAt = c.now
		all := make([]*wire.Receipt, 0, len(b.marks))
		for k, m := range b.marks {
			all = append(all, &wire.Receipt{Group: k.group, Peer: k.peer, DeliveredSeq: m.delivered, ReadSeq: m.read})
		}
		c.forget(d.Key, b)
		slices.SortFunc(all, func(a, b *wire.Receipt) int {
			return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Peer, b.Peer))
		})
		for part := range slices.Chunk(all, maxReceiptsFrame) {
			c.frame(s, &wire.Frame{Kind: &wire.Frame_Receipts{Receipts: &wire.Receipts{Receipts: part}}})
		}
	}
	c.flush = c.flush[:0]
}

func (c *Core) forget(key Key, b *receiptBox) {
	c.marks -= len(b.marks)
	delete(c.boxes, key)
}

// SaveReceipts moves the receipts of devices that are not live to the store;
// with all, those of the others too. The runner calls it about once a second,
// and with all before it stops.
func (c *Core) SaveReceipts(all bool) {
	c.saveLedgers(all)
	for key, b := range c.boxes {
		if u := c.users[key.User]; u != nil {
			if d := u.device(key.Device); d != nil {
				if !all && d.session != nil && d.session.live {
					continue
				}
				d.receipts = true
			}
		}
		for k, m := range b.marks {
			c.batch.Marks = append(c.batch.Marks, Mark{Key: key, Group: k.group, Peer: k.peer, Delivered: m.delivered, Read: m.read})
		}
		c.forget(key, b)
	}
}

// receiptsTaken hands in what the store had for a device that went live.
func (c *Core) receiptsTaken(d *device, ms []Mark) {
	d.taking = false
	c.reconcile(d, ms)
	c.flush = append(c.flush, d)
}
