package audit

import (
	"fmt"
	"slices"
	"time"

	"throng/system/wire"
)

// Handle is a written message: its methods need no look-up.
type Handle struct{ rec *record }

// Written tells of a message before its first byte is written. Telling it again
// (a retry) changes nothing.
func (a *Audit) Written(m Message) Handle {
	ids := &a.ids[m.ID[0]%shards]
	key := streamKey{sender: m.Sender, conv: m.Peer}
	if m.Group != 0 {
		key.conv, key.group = m.Group, true
	}
	s := a.stripeOf(key)
	ids.mu.Lock()
	defer ids.mu.Unlock()
	if r := ids.m[m.ID]; r != nil {
		return Handle{r}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streamOf(key, m.Addressees)
	r := s.newRecord()
	*r = record{
		id: m.ID, stream: st, devs: st.share(m.Addressees), seq: m.Seq, intended: m.Intended,
		offMin: noOffset, offMax: noOffset,
		sizeClass: uint8(m.SizeClass), phase: m.Phase, stratum: m.Stratum,
	}
	if n := len(m.Addressees); n > 64 {
		r.big = make([]uint64, 2*((n+63)/64))
	}
	if st.group != nil {
		r.writtenAt = st.group.clock
	}
	ids.m[m.ID] = r
	return Handle{r}
}

// OnlineAt is Online for the device with that index in Addressees.
func (h Handle) OnlineAt(i int) {
	s := h.rec.stream.stripe
	s.mu.Lock()
	defer s.mu.Unlock()
	h.rec.mark(i)
}

// Renumber tells that the message is not written under its first number but
// under a lower one: those before it were refused and do not count.
func (h Handle) Renumber(seq uint64) {
	s := h.rec.stream.stripe
	s.mu.Lock()
	defer s.mu.Unlock()
	h.rec.seq = seq
}

// Online says that a device was online when the message was to be sent. Call it
// before the message is written, so that First and Last come out right. Devices
// that are not among its addressees are left out, and those of users who are
// known to have left, or not to have joined yet.
func (a *Audit) Online(id wire.MessageID, dev Device) {
	r := a.find(id)
	if r == nil {
		return
	}
	if i := search(r.devs, dev); i >= 0 {
		Handle{r}.OnlineAt(i)
	}
}

func (r *record) mark(i int) {
	if r.has(true, i) || r.stream.group.gone(r, r.devs[i]) {
		return
	}
	r.set(true, i)
	r.marked++
	if !r.has(false, i) {
		r.open++
	}
}

// Acknowledged says that the sender has Sent for it.
func (h Handle) Acknowledged() {
	s := h.rec.stream.stripe
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.rec.state != acknowledged {
		h.rec.state = acknowledged
		if g := h.rec.stream.group; g != nil {
			h.rec.ackedAt = g.clock
		}
	}
}

// Refused says that the sender has a final error for it: it must reach nobody.
// An acknowledgement outweighs it, whichever comes first.
func (h Handle) Refused() {
	s := h.rec.stream.stripe
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.rec.state == unanswered {
		h.rec.state = refused
	}
}

// Acknowledged is Handle.Acknowledged. An id that was not written is ignored.
func (a *Audit) Acknowledged(id wire.MessageID) {
	if r := a.find(id); r != nil {
		Handle{r}.Acknowledged()
	}
}

// Refused is Handle.Refused. An id that was not written is ignored.
func (a *Audit) Refused(id wire.MessageID) {
	if r := a.find(id); r != nil {
		Handle{r}.Refused()
	}
}

// Redelivered counts a delivery that the client's window dropped.
func (a *Audit) Redelivered(Device) { a.redelivered.Add(1) }

// Delivered tells what a device's application got, after the client's window,
// in the order it got it: calls for one device must not overlap. at is on the
// clock of Message.Intended.
func (a *Audit) Delivered(dev Device, d *wire.Deliver, class Class, at time.Duration) Delivery {
	a.classes[class&3].Add(1)
	id, ok := idOf(d.MessageId)
	var r *record
	if ok {
		r = a.find(id)
	}
	if r == nil {
		a.nobodys(dev, d)
		return Delivery{}
	}
	st := r.stream
	s := st.stripe
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.group != nil {
		r.place(d.Offset)
	}
	i := search(r.devs, dev)
	var f flaw
	var first bool // this application has it for the first time
	if i >= 0 {
		first = !r.has(false, i)
		r.set(false, i)
	} else {
		first = r.addExtra(dev)
	}
	if !first {
		f |= duplicated
	} else if r.state != refused && st.pass(r, i, dev, d.Offset) {
		f |= reordered
	}
	if !r.describes(dev, d) {
		f |= forged
	}
	if f != 0 && i >= 0 {
		s.addFlaw(r, i, f)
	} else if f != 0 {
		r.extraOf(dev).flaw |= f
	}
	out := Delivery{
		Known: true, Duplicate: !first, Group: st.group != nil, Phase: r.phase, Stratum: r.stratum,
		SizeClass: int(r.sizeClass), Intended: r.intended, Latency: at - r.intended,
	}
	if i >= 0 && r.has(true, i) {
		out.Online = true
		if first {
			r.resolve(&out, class)
		}
	}
	return out
}

// resolve accounts for the delivery to a device that was marked online.
func (r *record) resolve(out *Delivery, class Class) {
	r.open--
	if class == Live {
		us := micros(out.Latency)
		if r.live == 0 {
			r.first = us
			out.First = true
		}
		r.live++
		r.last = max(r.last, us)
	}
	out.LiveOnline = int(r.live)
	out.Last = r.open == 0 && r.live > 0
	out.FirstLatency = time.Duration(r.first) * time.Microsecond
	out.LastLatency = time.Duration(r.last) * time.Microsecond
}

func (r *record) place(offset int64) {
	if r.offMin == noOffset {
		r.offMin, r.offMax = offset, offset
		return
	}
	r.offMin, r.offMax = min(r.offMin, offset), max(r.offMax, offset)
}

// describes says whether a frame for a device tells the truth about the message.
func (r *record) describes(dev Device, d *wire.Deliver) bool {
	k := r.stream.key
	to := uint64(0) // told only to the sender's other devices
	if !k.group && dev.User == k.sender.User {
		to = k.conv
	}
	if d.To != to {
		return false
	}
	if k.group != (d.Group != 0) || k.group && d.Group != k.conv {
		return false
	}
	return d.From == k.sender.User && d.FromDevice == k.sender.Device && d.Seq == r.seq
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

func (a *Audit) nobodys(dev Device, d *wire.Deliver) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unknown++
	if len(a.strange) < examplesOfAKind {
		a.strange = append(a.strange, fmt.Sprintf("foreign: message %x, which nobody wrote, reached %v", d.MessageId, dev))
	}
}

// Outside says that a user is not a member of a group at the start, although
// the addressees of its messages name the user, who will join later. Call it
// before the first message of the group is written.
func (a *Audit) Outside(groupID, user uint64) {
	g, unlock := a.lockGroup(groupID)
	defer unlock()
	if g.outside == nil {
		g.outside = map[uint64]bool{}
	}
	g.outside[user] = true
}

// Changing says that a membership change of a user is about to be asked for.
// Until Removed or Added says where it happened, messages that are not
// acknowledged before are neither due to the user nor foreign. It sharpens
// verdicts on messages whose own position nobody told.
func (a *Audit) Changing(groupID, user uint64) {
	g, unlock := a.lockGroup(groupID)
	defer unlock()
	g.clock++
	g.changes = append(g.changes, change{user: user, begun: g.clock})
}

// Removed says that user was removed at that position of the group's log: what
// is after it is not for the user.
func (a *Audit) Removed(groupID, user uint64, offset int64) { a.changed(groupID, user, false, offset) }

// Added says that user was added at that position of the group's log: what is
// before it is not for the user.
func (a *Audit) Added(groupID, user uint64, offset int64) { a.changed(groupID, user, true, offset) }

// Unchanged says that what Changing announced was refused, and did not happen.
func (a *Audit) Unchanged(groupID, user uint64) {
	g, unlock := a.lockGroup(groupID)
	defer unlock()
	if i := slices.IndexFunc(g.changes, func(c change) bool { return c.user == user && !c.known }); i >= 0 {
		g.changes = slices.Delete(g.changes, i, i+1)
	}
}

func (a *Audit) changed(groupID, user uint64, add bool, offset int64) {
	g, unlock := a.lockGroup(groupID)
	defer unlock()
	g.changed(user, add, offset)
}

// changed notes a change at its offset; one that is known already stays.
func (g *group) changed(user uint64, add bool, offset int64) {
	if slices.ContainsFunc(g.changes, func(c change) bool {
		return c.user == user && c.known && c.add == add && c.offset == offset
	}) {
		return
	}
	g.clock++
	i := slices.IndexFunc(g.changes, func(c change) bool { return c.user == user && !c.known })
	if i < 0 {
		g.changes = append(g.changes, change{user: user})
		i = len(g.changes) - 1
	}
	c := &g.changes[i]
	c.add, c.known, c.offset, c.done = add, true, offset, g.clock
}

func (a *Audit) lockGroup(id uint64) (*group, func()) {
	s := a.stripeOf(streamKey{conv: id, group: true})
	s.mu.Lock()
	return s.groupOf(id), s.mu.Unlock
}

// Drained says, in the proof phase and after the load has ended, that a device
// was connected and got Current: what it has not got by now is lost.
func (a *Audit) Drained(dev Device) { a.prove(dev, drained) }

// Unprovable says that a device could not be connected or drained: what it has
// not got is not proved, whatever was said before.
func (a *Audit) Unprovable(dev Device) { a.prove(dev, unprovable) }

func (a *Audit) prove(dev Device, p proof) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.devices[dev] = p
}
