package load

import (
	"time"

	"throng/sim/audit"
	"throng/sim/workload"
	"throng/system/wire"
)

// deliver handles one message at a device: the client's window, the audit, the
// latency, and what the delivery causes (replies, reads).
func (e *Engine) deliver(d *device, m *wire.Deliver) {
	if m.Kind == wire.Kind_KIND_SYSTEM {
		e.system(d, m)
		return
	}
	now := e.now()
	h, ours := readBody(m.Body, e.nonce)
	intended, index := h.intended, h.index
	if ours = ours && int(index) < len(e.sched.Sends); !ours {
		h.in = audit.Claimed(d.key, m)
	}
	d.mu.Lock()
	fresh := d.accept(m)
	class, online := e.classify(d, intended)
	if fresh && ours && (class == audit.Drain || class == audit.Proof) {
		e.checkPush(d, m, now)
	}
	leaves := d.until
	d.mu.Unlock()
	if !fresh {
		e.stats.duplicates.Add(1)
		e.audit.Redelivered()
		return
	}
	e.audit.Delivered(&audit.Delivery{To: d.key, Frame: m, In: h.in, Class: class, Online: online, Damaged: !ours, At: now})
	switch class {
	case audit.Live:
		e.stats.live.Add(1)
	case audit.Drain:
		e.stats.drained.Add(1)
	case audit.Transition:
		e.stats.transition.Add(1)
	case audit.Proof:
		e.stats.proof.Add(1)
	}
	if !ours {
		return // the audit calls it foreign
	}
	e.media.arrived(d.key, m, h, class, now)
	if class == audit.Live {
		e.recordLive(m, now-intended)
		if m.Stamps != nil {
			e.recordStages(m, intended, now)
		}
	}
	for _, a := range e.replies.arrived(index, d.key.User) {
		e.enqueue(job{action: a, released: true})
	}
	if class != audit.Proof && m.From != d.key.User {
		e.scheduleRead(d, m, index, intended, leaves)
	}
}

// system handles what a group tells its members of a change. It has no
// intended time.
func (e *Engine) system(d *device, m *wire.Deliver) {
	d.mu.Lock()
	fresh := d.accept(m)
	d.mu.Unlock()
	if !fresh {
		e.stats.duplicates.Add(1)
		e.audit.Redelivered()
		return
	}
	e.audit.System(d.key, m, e.now())
	if _, created := e.sched.Created[m.Group]; created {
		e.release(m.Group) // its members know it from now on, whoever made it
	}
}

// classify says how a delivery counts, and whether its device was online at the
// time when the message should have been sent, intended. The caller holds d.mu.
func (e *Engine) classify(d *device, intended time.Duration) (c audit.Class, online bool) {
	left := d.lastOpen >= 0 && d.lastOpen <= intended && intended <= d.lastClose // before the message came
	online = d.onlineSince(intended) || left && d.lastOnline >= 0 && d.lastOnline <= intended
	switch {
	case d.proof:
		return audit.Proof, online
	case d.onlineSince(intended):
		return audit.Live, online
	case d.openedAt >= 0 && d.openedAt <= intended:
		return audit.Transition, online // while it was logging in or draining
	case left:
		return audit.Transition, online
	}
	return audit.Drain, online
}

func (e *Engine) recordLive(m *wire.Deliver, latency time.Duration) {
	us := latency.Microseconds()
	switch {
	case m.To != 0:
		e.rec.Record(e.kinds.own, us)
		return
	case m.Group == 0:
		e.rec.Record(e.kinds.direct, us)
		return
	}
	e.rec.Record(e.kinds.group, us)
}

// scheduleRead makes the user read the message after a while, if the session
// lasts that long. A read receipt names the newest message of the stream.
func (e *Engine) scheduleRead(d *device, m *wire.Deliver, index int32, intended, leaves time.Duration) {
	in := workload.Conv{Group: m.Group}
	if m.Group == 0 {
		in.Peer = m.From
	}
	read, delay := e.sched.ReadDelay(d.key.User, index, in, intended-e.loadStart)
	at := e.now() + delay
	if !read || at >= leaves {
		return
	}
	k := streamOf(m)
	e.timers.at(at, func() {
		d.mu.Lock()
		conn, upto := d.conn, d.newest(k)
		d.mu.Unlock()
		if conn != nil {
			_ = conn.Write(&wire.Frame{Kind: &wire.Frame_Read{Read: &wire.Read{
				Group: k.place, From: k.from, FromDevice: k.device, UptoSeq: upto}}})
		}
	})
}
