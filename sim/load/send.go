package load

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/workload"
	"throng/system/wire"
)

// The body of a simulated message begins with a header that tells the receiver
// what it is; the rest is padding to the length that the profile wants.
const (
	bodyMagic  = 0x676e7274 // "trng"
	bodyHeader = 24
)

// header is what a simulated message says about itself.
type header struct {
	index    int32              // of the send
	intended time.Duration      // microseconds
	in       audit.Conversation // which the frame may not know
}

// makeBody returns a body of n bytes (at least the header).
func makeBody(n int, nonce uint32, h header) []byte {
	b := make([]byte, max(n, bodyHeader))
	binary.LittleEndian.PutUint32(b[0:], bodyMagic)
	binary.LittleEndian.PutUint32(b[4:], nonce)
	binary.LittleEndian.PutUint32(b[8:], uint32(h.index))
	binary.LittleEndian.PutUint64(b[16:], uint64(h.intended.Microseconds())<<16|uint64(h.in))
	return b
}

// readBody returns what a message says about itself, ok when it is of this run.
func readBody(b []byte, nonce uint32) (h header, ok bool) {
	if len(b) < bodyHeader || binary.LittleEndian.Uint32(b) != bodyMagic || binary.LittleEndian.Uint32(b[4:]) != nonce {
		return h, false
	}
	last := binary.LittleEndian.Uint64(b[16:])
	return header{int32(binary.LittleEndian.Uint32(b[8:])), time.Duration(last>>16) * time.Microsecond, audit.Conversation(last)}, true
}

// play hands each action on at its intended time. It returns when the schedule
// is over or ctx is done.
func (e *Engine) play(ctx context.Context) {
	actions := e.sched.Actions
	sleep := time.NewTimer(0)
	defer sleep.Stop()
	for i := range actions {
		a := &actions[i]
		if !e.mine(a) {
			continue
		}
		if now := e.now(); e.loadStart+a.At > now {
			sleep.Reset(e.dialer.Grid.After(e.loadStart+a.At) - now)
			select {
			case <-ctx.Done():
				return
			case <-sleep.C:
			}
		}
		switch a.Kind {
		case workload.Send:
			e.stats.offered.Add(1)
			e.enqueue(job{action: a})
		case workload.Typing, workload.Close:
			e.enqueue(job{action: a})
		case workload.Open:
			e.late(a)
			e.openSession(e.device(a.User, a.Device), e.loadStart+a.Until, conv{a.Conv.Group, a.Conv.Peer})
		case workload.MemberAdd, workload.MemberRemove:
			e.late(a)
			e.readers.Go(func() { e.changeMembers(ctx, a) })
		case workload.GroupAsk:
			e.late(a)
			e.askGroup(a)
		}
	}
}

// late records how much later than intended an action was started: the
// generator's own error.
func (e *Engine) late(a *workload.Action) {
	e.rec.Record(e.kinds.late, (e.now() - e.loadStart - a.At).Microseconds())
}

// job is an action for a send worker. released marks a reply that was held:
// its intended time has passed already.
type job struct {
	action   *workload.Action
	released bool
	uploaded bool // its object is
}

func (e *Engine) enqueue(j job) {
	select {
	case e.queues[hashUser(j.action.User)%sendWorkers] <- j:
	default:
		e.stats.unstarted.Add(1)
	}
}

// sendLoop carries out the actions of its share of the users, in order.
func (e *Engine) sendLoop(ctx context.Context, queue <-chan job) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-queue:
			e.carryOut(j)
		}
	}
}

func (e *Engine) carryOut(j job) {
	a := j.action
	if j.uploaded {
		e.submit(a)
		return
	}
	if j.released {
		e.rec.Record(e.kinds.held, (e.now() - e.loadStart - a.At).Microseconds())
		e.compose(a)
		return
	}
	e.late(a)
	switch a.Kind {
	case workload.Send:
		if a.ReplyTo < 0 || e.replies.due(a.Index) {
			e.compose(a)
		} else {
			e.limitHold(a)
		}
	case workload.Typing:
		e.typing(a)
	case workload.Close:
		e.leave(e.device(a.User, a.Device))
	}
}

// limitHold gives a held reply up after the scenario's limit: the message it
// answers does not come any more.
func (e *Engine) limitHold(a *workload.Action) {
	e.timers.at(e.loadStart+a.At+seconds(e.spec.ReplyHoldLimitS), func() {
		if e.replies.giveUp(a.Index) {
			e.stats.unstarted.Add(1)
		}
	})
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// submit makes a send part of its conversation and writes it as soon as its
// device has a connection. A device's sends all pass here one at a time (its
// worker), so the number taken first is also appended first; the audit hears of
// the message before anybody, a login included, can write it.
func (e *Engine) submit(a *workload.Action) {
	if e.hold(a) {
		return
	}
	intended := e.loadStart + a.At
	object := e.object(a)
	if object != nil { // the upload has a latency of its own
		object.took, intended = object.at-intended, object.at
	}
	c := conv{a.Conv.Group, a.Conv.Peer}
	in := audit.InGroup(c.group)
	if c.group == 0 {
		in = audit.Between(a.User, c.peer)
	}
	clientID := uint64(a.Index) + 1
	m := &outMsg{conv: c, index: a.Index, intended: intended, id: wire.IDOf(a.User, a.Device, clientID), written: -1,
		send: &wire.Send{ClientMsgId: clientID, User: c.peer, Group: c.group, Kind: wire.Kind(a.MsgKind),
			Body: makeBody(int(a.BodyLen), e.nonce, header{a.Index, intended, in})}}
	if object != nil {
		object.refer(m.send)
	}
	if a.About >= 0 {
		about := e.sched.SenderOf(a.About)
		id := wire.IDOf(about.User, about.Device, uint64(a.About)+1)
		m.send.About = id[:]
	}
	addressees, class := e.addressees(c, audit.Device{User: a.User, Device: a.Device})
	d := e.device(a.User, a.Device)
	if e.target != nil { // who hears of pushes
		e.setIndex(m.id, a.Index)
	}

	m.dev = d
	d.mu.Lock()
	m.seq = d.number(c)
	d.mu.Unlock()

	m.audit = e.audit.Written(&audit.Message{ID: m.id, Group: c.group, Peer: c.peer, Sender: d.key, Seq: m.seq, Intended: intended,
		Addressees: addressees, SizeClass: class, Phase: a.Phase, Stratum: a.Stratum}, e.now())
	for _, k := range addressees {
		if r := e.known(k); r != nil {
			r.mu.Lock()
			online := r.onlineSince(intended)
			r.mu.Unlock()
			if online {
				e.stats.expected.Add(1)
			}
		}
	}
	e.stats.written.Add(1)
	e.stats.inFlight.Add(1)
	e.flying.add(m)

	d.mu.Lock()
	defer d.mu.Unlock()
	d.note(m)
	if d.state == open {
		e.write(d, m)
	}
}

// write puts unanswered sends on the device's connection. The caller holds
// d.mu, which keeps the conversation in order.
func (e *Engine) write(d *device, sends ...*outMsg) {
	frames := make([]*wire.Frame, len(sends))
	for i, m := range sends {
		frames[i] = e.frame(d, m)
	}
	// An error is followed by Closed, and that by a reconnect that sends again.
	_ = d.conn.Write(frames...)
}

// frame completes a send that is about to be written. The caller holds d.mu.
func (e *Engine) frame(d *device, m *outMsg) *wire.Frame {
	m.send.Seq = m.seq
	m.send.Chain = nil
	if o := d.outboxOf(m.conv); o.acked > 0 && m.seq == uint64(o.acked)+1 {
		m.send.Chain = o.chain[:]
	}
	now := e.now()
	if m.again = m.written >= 0; !m.again {
		setWritten(m.send.Body, now-m.intended)
	}
	m.written = now
	return &wire.Frame{Kind: &wire.Frame_Send{Send: m.send}}
}

// resend writes everything unanswered of a conversation again, in order.
func (e *Engine) resend(d *device, c conv) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.outboxOf(c).resending = false
	if d.state == open {
		e.write(d, d.waiting(c)...)
	}
}

// sent handles Sent: m is durable.
func (e *Engine) sent(d *device, s *wire.Sent) {
	now := e.now()
	d.mu.Lock()
	m := d.unanswered(s.ClientMsgId)
	if m == nil { // answered before, on another connection
		d.mu.Unlock()
		return
	}
	d.accepted(m, s.Chain)
	gate := d.gate
	d.mu.Unlock()
	e.stats.inFlight.Add(-1)
	e.stats.accepted.Add(1)
	m.audit.Acknowledged(now)
	e.rec.Record(e.kinds.sent, (now - m.intended).Microseconds())
	if m.conv.group != 0 {
		e.inZone(gate, groupOf, now-m.intended)
	} else {
		e.inZone(gate, directOf, now-m.intended)
	}
}

// refusedOrRetry handles an Error that answers a send.
func (e *Engine) refusedOrRetry(d *device, f *wire.Error) {
	d.mu.Lock()
	m := d.unanswered(f.ClientMsgId)
	if m == nil {
		d.mu.Unlock()
		return
	}
	switch f.Code {
	case wire.Code_CODE_RETRY, wire.Code_CODE_SEQUENCE, wire.Code_CODE_RATE_LIMITED, wire.Code_CODE_INTERNAL:
	default:
		e.refuse(d, m, f.Chain)
		again := m.again
		d.mu.Unlock()
		e.stats.inFlight.Add(-1)
		e.stats.refused.Add(1)
		if !again { // else it may have been accepted when it was written first
			m.audit.Refused()
		}
		d.mu.Lock()
		if len(d.waiting(m.conv)) == 0 {
			d.mu.Unlock()
			return
		}
	}
	o := d.outboxOf(m.conv)
	again := !o.resending
	o.resending = true
	d.mu.Unlock()
	e.stats.errors.Add(1)
	if again {
		wait := max(time.Duration(f.RetryAfterMs)*time.Millisecond, 50*time.Millisecond)
		e.timers.at(e.now()+wait+e.jitter.upTo(wait), func() { e.resend(d, m.conv) })
	}
}

// refuse takes a send that was finally refused out of its conversation. With a
// chain its number is used up, else it is free and those behind it move up. The
// caller holds d.mu.
func (e *Engine) refuse(d *device, m *outMsg, chain []byte) {
	if len(chain) > 0 {
		d.accepted(m, chain)
		return
	}
	d.settle(m)
	for _, u := range d.waiting(m.conv) {
		if u.seq > m.seq {
			u.seq--
			u.audit.Renumber(u.seq)
		}
	}
	d.outboxOf(m.conv).seq--
}

// flying lists the unanswered sends in the order they were made.
type flying struct {
	mu  sync.Mutex
	all []*outMsg
}

func (f *flying) add(m *outMsg) {
	f.mu.Lock()
	f.all = append(f.all, m)
	f.mu.Unlock()
}

// unanswered returns those that are not answered, and forgets the others.
func (f *flying) unanswered() []*outMsg {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := f.all[:0]
	for _, m := range f.all {
		m.dev.mu.Lock()
		done := m.done
		m.dev.mu.Unlock()
		if !done {
			kept = append(kept, m)
		}
	}
	clear(f.all[len(kept):])
	f.all = kept
	return append([]*outMsg(nil), kept...)
}

// resendLoop sends again what was written long ago and never answered.
func (e *Engine) resendLoop(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, m := range e.flying.unanswered() {
			d := m.dev
			d.mu.Lock()
			o := d.outboxOf(m.conv)
			stale := d.state == open && !m.done && m.written >= 0 && e.now()-m.written > resendAfter && !o.resending
			o.resending = o.resending || stale
			d.mu.Unlock()
			if stale {
				e.resend(d, m.conv)
			}
		}
	}
}

// addressees returns the devices that a send in c must reach, sorted, and the
// size class of a group. The sender's other devices are among them.
func (e *Engine) addressees(c conv, sender audit.Device) ([]audit.Device, int) {
	if c.group == 0 {
		first, second := e.devicesOf(min(c.peer, sender.User)), e.devicesOf(max(c.peer, sender.User))
		return without(append(first, second...), sender), 0
	}
	all, members := e.groupDevices(c.group)
	return without(all, sender), sizeClass(members)
}

// without returns a copy of devs that leaves one out.
func without(devs []audit.Device, one audit.Device) []audit.Device {
	out := make([]audit.Device, 0, len(devs))
	for _, d := range devs {
		if d != one {
			out = append(out, d)
		}
	}
	return out
}

func sizeClass(members int) int {
	for i, c := range history.SizeClasses {
		if members <= c.Max {
			return i
		}
	}
	return len(history.SizeClasses) - 1
}

func (e *Engine) devicesOf(user uint64) []audit.Device {
	n := e.cfg.Population.Devices(user)
	out := make([]audit.Device, n)
	for i := range out {
		out[i] = audit.Device{User: user, Device: uint32(i)}
	}
	return out
}
