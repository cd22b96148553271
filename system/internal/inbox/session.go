package inbox

import (
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// Open starts a session of a device: what it says it has (InboxSeq, 0: nothing)
// is deleted, the rest of its inbox drains, then it is live. A session that the
// device has already is replaced, unless it is the newer of the two: then the
// one that opens is kicked. A device that is not provisioned is kicked.
func (c *Core) Open(gateway uint64, o *rpc.SessionOpen) {
	c.stats.Opens++
	conn := o.Conn
	d := c.touch(o.User).device(o.Device)
	if d == nil {
		c.eff.Kicks = append(c.eff.Kicks, Kick{Gateway: gateway, Conn: conn, Code: wire.CloseNoSuchUser})
		return
	}
	if !c.admit(d, o.Epoch) {
		c.stats.Fenced++
		c.eff.Kicks = append(c.eff.Kicks, Kick{Gateway: gateway, Conn: conn, Code: wire.CloseReplaced})
		return
	}
	if old := d.session; old != nil {
		// The same connection opens again when its gateway has lost the stream
		// and found this owner still the same one.
		if old.gateway != gateway || old.conn != conn {
			c.eff.Kicks = append(c.eff.Kicks, Kick{Gateway: old.gateway, Conn: old.conn, Code: wire.CloseReplaced})
		}
		c.end(old)
	}
	s := &session{dev: d, gateway: gateway, conn: conn, since: c.now}
	c.seen(d)
	d.session = s
	all := c.gateways[gateway]
	if all == nil {
		all = make(map[*session]struct{})
		c.gateways[gateway] = all
	}
	all[s] = struct{}{}
	c.opened(s)
	if d.rows > 0 && o.InboxSeq >= d.oldest {
		c.dropUpTo(d, min(o.InboxSeq, c.seq))
	}
	if d.rows == 0 {
		c.stats.LoginsWithoutPage++
	}
	c.next(s)
}

func (c *Core) goLive(s *session) {
	s.live, s.suspect = true, false
	c.lookAhead(s, nil)
	f := wire.Frame{Kind: &wire.Frame_Current{Current: &wire.Current{Delivered: s.sent}}}
	c.frame(s, &f)
	c.flush = append(c.flush, s.dev)
	if s.dev.receipts {
		s.dev.receipts, s.dev.taking = false, true
		c.batch.TakeReceipts = append(c.batch.TakeReceipts, s.dev.Key)
		c.taking = append(c.taking, s.dev)
		return
	}
	c.reconcile(s.dev, nil)
}

// frame sends a frame other than Deliver to one session.
func (c *Core) frame(s *session, f *wire.Frame) {
	b, err := f.MarshalVT()
	if err != nil {
		panic("inbox: encode a frame of numbers: " + err.Error())
	}
	c.eff.Frames = append(c.eff.Frames, Outbound{Gateway: s.gateway, Frame: b, Conns: []uint64{s.conn}})
}

// deliver counts a delivery and waits for its acknowledgement.
func (c *Core) deliver(s *session, e entry) {
	e.at = c.now
	s.flight.push(e)
	s.sent++
	if !s.ackTimer {
		s.ackTimer = true
		c.wheel.add(timer{at: c.now + int64(c.lim.AckTimeout), kind: timerAck, dev: s.dev, s: s})
	}
}

// find returns the session of a connection, nil if there is none (any more).
func (c *Core) find(gateway, conn, userID uint64) *session {
	u := c.users[userID]
	if u == nil {
		return nil
	}
	for _, d := range u.devices {
		if s := d.session; s != nil && s.conn == conn && s.gateway == gateway {
			return s
		}
	}
	return nil
}

// Ack says that a connection's device has the first upto deliveries.
func (c *Core) Ack(gateway, conn, userID, upto uint64) {
	s := c.find(gateway, conn, userID)
	if s == nil {
		return
	}
	upto = min(upto, s.sent) // a client may claim more than it was sent
	if upto <= s.acked {
		return
	}
	s.suspect = false
	for s.acked < upto {
		e := s.flight.pop()
		s.acked++
		if it := e.item; it != nil {
			it.live++
			c.resolve(it)
		} else {
			c.dropRow(s.dev, e.seq, e.body)
		}
		c.delivered(e.msg, s.dev.User)
	}
	c.next(s)
}

// resolve counts one device of a group item as done.
func (c *Core) resolve(it *Item) {
	if it.pending--; it.pending == 0 {
		c.answer(it, wire.Code_CODE_UNSPECIFIED)
	}
}

// Close ends a session, if the connection still has it.
func (c *Core) Close(gateway, conn, userID uint64) {
	if s := c.find(gateway, conn, userID); s != nil {
		c.end(s)
	}
}

// GatewayLost ends every session of a gateway's stream.
func (c *Core) GatewayLost(gateway uint64) {
	for s := range c.gateways[gateway] {
		c.end(s)
	}
	delete(c.gateways, gateway)
}

func (c *Core) end(s *session) {
	if s.live {
		c.demote(s, &c.stats.DemotedEnd)
	}
	s.closed = true
	s.flight = queue{}
	c.lookAhead(s, nil)
	s.dev.session = nil
	if all := c.gateways[s.gateway]; all != nil {
		delete(all, s)
		if len(all) == 0 {
			delete(c.gateways, s.gateway)
		}
	}
	c.schedulePush(s.dev)
}

// demote makes a live device stored: what is in flight and in no row yet gets
// rows, in order. The session goes on draining. What is in flight is not sent
// again: the connection is an ordered stream, so it will be acknowledged late,
// or the session will end. So it counts as the page in flight, and the rows
// that come in from now on follow when it has been acknowledged.
func (c *Core) demote(s *session, reason *uint64) {
	s.live, s.since = false, c.now
	stored := false
	for i := s.flight.head; i < len(s.flight.e); i++ {
		e := &s.flight.e[i]
		it := e.item
		if it == nil {
			continue
		}
		stored = true
		if it.bodyID == 0 && len(it.Msg.Deliver) > inlineBytes {
			c.seq++
			it.bodyID = c.seq
		}
		e.seq, e.body, e.item = c.storeGroup(s.dev, it), it.bodyID, nil
		it.stored++
		c.resolve(it)
	}
	if stored || s.flight.len() > 0 {
		*reason++
	}
}

// ackDue looks at the oldest delivery in flight.
func (c *Core) ackDue(s *session) {
	s.ackTimer = false
	if s.closed || s.flight.len() == 0 {
		return
	}
	due := s.flight.first().at + int64(c.lim.AckTimeout)
	if due <= c.now {
		s.suspect = true
		if s.live {
			c.demote(s, &c.stats.DemotedTimeout)
		}
		c.schedulePush(s.dev)
		due = c.now + int64(c.lim.AckTimeout)
	}
	s.ackTimer = true
	c.wheel.add(timer{at: due, kind: timerAck, dev: s.dev, s: s})
}
