package inbox

import (
	"throng/system/internal/rpc"
	"throng/system/wire"
)

const (
	// makeRoomTries bounds the ledgers looked at to make room for another.
	makeRoomTries = 16
	// saveMost bounds the ledgers written at a time: when a gateway is lost,
	// thousands of senders are away at once, and nobody waits for this.
	saveMost = 1000
	// maxQueries bounds the requests of a session that wait until it is live.
	maxQueries = 8
)

// sentToGroup notes that a device of these shards has sent a message to a
// group, so that the receipts of its members come to one.
func (c *Core) sentToGroup(u *user, it *Item) {
	d := u.device(it.Msg.FromDevice)
	if d == nil || it.Recipients == 0 {
		return
	}
	k := ledgerKey{d.Key, it.Msg.Group}
	l := c.ledgers[k]
	if l == nil {
		l = c.addLedger(&ledger{key: k})
	}
	if c.makeRoom(l) {
		c.changed(l, l.sent(it.Msg.Seq, it.Recipients))
	}
}

// groupChanged notes a change of a group's members for what users have sent to it.
func (c *Core) groupChanged(it *Item) {
	for _, id := range it.Users {
		for _, d := range c.users[id].devices {
			if l := c.ledgers[ledgerKey{d.Key, it.Msg.Group}]; l != nil {
				c.changed(l, l.change(it.Msg.change))
			}
		}
	}
}

// aggregate takes a receipt for a message to a group. It reports false when
// what the device has sent is not at hand: then the receipt waits as it is
// until the device is live, in memory or in the store.
func (c *Core) aggregate(key Key, k markKey, m marks) bool {
	lk := ledgerKey{key, k.group}
	l := c.ledgers[lk]
	if l == nil {
		if !c.isLive(key) {
			return false
		}
		if m.delivered == 0 {
			return true // nobody has received anything: it was long ago, or is not true
		}
		l = c.addLedger(&ledger{key: lk})
	}
	if c.makeRoom(l) {
		c.stats.Aggregated++
		c.changed(l, l.mark(k.peer, m))
	}
	return true
}

func (c *Core) knownDevice(key Key) *device {
	if u := c.users[key.User]; u != nil {
		return u.device(key.Device)
	}
	return nil
}

// isLive reports whether a device has a session that gets receipts now.
func (c *Core) isLive(key Key) bool {
	d := c.knownDevice(key)
	return d != nil && d.session != nil && d.session.live
}

func (c *Core) addLedger(l *ledger) *ledger {
	c.ledgers[l.key] = l
	c.linkLedger(l)
	return l
}

func (c *Core) linkLedger(l *ledger) {
	l.prev, l.next = c.ledgerRing.prev, &c.ledgerRing
	l.prev.next, l.next.prev = l, l
}

func (l *ledger) unlink() { l.prev.next, l.next.prev = l.next, l.prev }

// changed does what follows when a ledger was changed, if news says so.
func (c *Core) changed(l *ledger, news bool) {
	if !news {
		return
	}
	c.weigh(l)
	if !l.dirty {
		l.dirty = true
		c.dirty = append(c.dirty, l)
	}
	if l.all != l.told {
		l.told = l.all
		c.merge(l.key.Key, markKey{group: l.key.group}, l.all)
		c.announce(l.key.Key)
	}
}

// weigh counts the ledger as it is now among the marks in memory.
func (c *Core) weigh(l *ledger) {
	n := l.size()
	c.marks += n - l.weight
	l.weight = n
}

// makeRoom makes l the most recently used ledger. While there are too many
// marks it forgets others, least recently used first, except those of live
// devices, and writes what is not written yet. It reports whether l may grow; a
// new one that may not is forgotten.
func (c *Core) makeRoom(l *ledger) bool {
	l.unlink()
	c.linkLedger(l)
	for tries := makeRoomTries; c.marks >= c.lim.Receipts && tries > 0; tries-- {
		old := c.ledgerRing.next
		if old == l {
			break
		}
		if c.isLive(old.key.Key) {
			old.unlink()
			c.linkLedger(old)
			continue
		}
		c.saveLedger(old)
		c.forgetLedger(old)
	}
	if c.marks < c.lim.Receipts {
		return true
	}
	c.stats.ReceiptsDropped++
	if l.weight == 0 {
		c.forgetLedger(l)
	}
	return false
}

func (c *Core) forgetLedger(l *ledger) {
	l.unlink()
	l.dirty = false // saveLedgers passes over it
	c.marks -= l.weight
	delete(c.ledgers, l.key)
	if d := c.knownDevice(l.key.Key); d != nil && l.stored {
		d.receipts = true
	}
}

// shadows reports whether there may be a row of the ledger that has not been
// read yet: then it must not be written over.
func (c *Core) shadows(l *ledger) bool {
	d := c.knownDevice(l.key.Key)
	return !l.stored && d != nil && d.receipts
}

// saveLedger writes a ledger that has changed, with what its device has not
// been told of it. One that everybody has read and no row holds is not worth a
// row.
func (c *Core) saveLedger(l *ledger) {
	if !l.dirty || !l.stored && len(l.pending) == 0 || c.shadows(l) {
		l.dirty = false
		return
	}
	l.dirty, l.stored = false, true
	m := Mark{Key: l.key.Key, Group: l.key.group, Ledger: l.encode()}
	if b := c.boxes[l.key.Key]; b != nil {
		k := markKey{group: l.key.group}
		if wait, ok := b.marks[k]; ok {
			m.Delivered, m.Read = wait.delivered, wait.read
			c.dropMark(l.key.Key, b, k)
		}
	}
	if d := c.knownDevice(l.key.Key); d != nil && (m.Delivered > 0 || m.Read > 0) {
		d.receipts = true
	}
	c.batch.Marks = append(c.batch.Marks, m)
}

// dropMark takes a mark out of a device's box.
func (c *Core) dropMark(key Key, b *receiptBox, k markKey) {
	delete(b.marks, k)
	c.marks--
	if len(b.marks) == 0 {
		delete(c.boxes, key)
	}
}

// saveLedgers writes those that have changed and whose devices are not live;
// with all, of the others too.
func (c *Core) saveLedgers(all bool) {
	kept, most := c.dirty[:0], len(c.batch.Marks)+saveMost
	for _, l := range c.dirty {
		if !l.dirty {
			continue
		}
		if !all && (c.isLive(l.key.Key) || len(c.batch.Marks) >= most) || c.shadows(l) {
			kept = append(kept, l)
			continue
		}
		c.saveLedger(l)
	}
	clear(c.dirty[len(kept):])
	c.dirty = kept
}

// reconcile brings together what the store and memory have for a device that
// has become live: ledgers, and receipts of members that came when the ledger
// was not at hand.
func (c *Core) reconcile(d *device, stored []Mark) {
	for i := range stored {
		m := &stored[i]
		if m.Delivered > 0 || m.Read > 0 {
			c.merge(d.Key, markKey{m.Group, m.Peer}, marks{m.Delivered, m.Read})
		}
		if len(m.Ledger) == 0 {
			continue
		}
		o, err := decodeLedger(m.Ledger)
		if err != nil { // an owner of another version wrote it
			c.stats.ReceiptsDropped++
			continue
		}
		o.key, o.stored = ledgerKey{d.Key, m.Group}, true
		if l := c.ledgers[o.key]; l != nil {
			l.stored = true
			l.merge(o)
			c.changed(l, true)
		} else if c.makeRoom(c.addLedger(o)) {
			c.weigh(o)
		}
	}
	b := c.boxes[d.Key]
	if b == nil {
		return
	}
	for k, m := range b.marks {
		if k.group != 0 && k.peer != 0 {
			c.dropMark(d.Key, b, k)
			c.aggregate(d.Key, k, m)
		}
	}
}

// Query asks for a list of which members have what the session's device has
// sent to a group. It is answered when the session is live.
func (c *Core) Query(gateway, conn, userID uint64, q *wire.ReceiptsRequest) {
	s := c.find(gateway, conn, userID)
	if s == nil {
		return
	}
	if len(s.queries) >= maxQueries {
		c.stats.QueriesDropped++
		return
	}
	s.queries = append(s.queries, q)
	c.flush = append(c.flush, s.dev)
}

// answerQueries sends the lists that a live session has asked for.
func (c *Core) answerQueries(s *session) {
	for _, q := range s.queries {
		list := &wire.ReceiptList{RequestId: q.GetRequestId()}
		if l := c.ledgers[ledgerKey{s.dev.Key, q.GetGroup()}]; l != nil {
			list.Receipts = l.receipts()
		}
		c.frame(s, &wire.Frame{Kind: &wire.Frame_ReceiptList{ReceiptList: list}})
	}
	s.queries = nil
}

// queried hands in what a gateway's clients have asked.
func (c *Core) queried(gateway uint64, qs []*rpc.ReceiptsQuery) {
	for _, q := range qs {
		c.Query(gateway, q.Conn, q.User, q.Request)
	}
}
