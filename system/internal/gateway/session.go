package gateway

import (
	"time"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// presence is what others may know of a connection's user. The inbox shard keeps
// what the user has chosen, and says it when it has opened the session: until then
// nothing is announced.
type presence struct {
	available bool // as the client says
	announced bool // and others were told
	known     bool // hidden is known
	hidden    bool // the user shows nobody when they are here or were last seen
	unsaved   bool // hidden was set here, and the inbox has not confirmed it
	queued    bool // waits in inboxLink.privacy
}

// told notes what the inbox says of the session: its epoch, with which it is
// opened again, and the user's privacy.
func (c *conn) told(o *rpc.SessionOpened) {
	hide := o.GetPrivacy().GetHideLastSeen()
	c.mu.Lock()
	first := c.epoch == 0
	c.epoch = o.GetEpoch()
	p := &c.presence
	again := p.unsaved && p.hidden != hide // the inbox does not know it yet, or has lost it
	if !again {
		p.unsaved = false
	}
	changed := !again && (!p.known && hide || p.known && p.hidden != hide)
	if !again {
		p.known, p.hidden = true, hide
	}
	c.mu.Unlock()
	if again {
		c.g.inboxOf(c.user).queuePrivacy(c)
	}
	if changed {
		c.g.cfg.Sessions.Hide(c.id, hide)
	}
	if first {
		c.g.m.login.Done(c.g.sinceStart()-c.opened, false)
	}
	c.announce()
}

// setPrivacy is the client's choice for its user.
func (c *conn) setPrivacy(hide bool) {
	c.mu.Lock()
	p := &c.presence
	p.known, p.hidden, p.unsaved = true, hide, true
	c.mu.Unlock()
	c.g.cfg.Sessions.Hide(c.id, hide)
	c.g.inboxOf(c.user).queuePrivacy(c)
	c.announce()
}

// setAvailable is what the client says of its user's presence.
func (c *conn) setAvailable(available bool) {
	c.mu.Lock()
	c.presence.available = available
	c.mu.Unlock()
	c.announce()
}

// announce publishes the user's presence if what others may know of it has
// changed.
func (c *conn) announce() {
	c.mu.Lock()
	p := &c.presence
	is := p.available && p.known && !p.hidden && !c.detached
	changed, seen := is != p.announced && !c.detached, !is && !p.hidden
	if changed {
		p.announced = is
	}
	c.mu.Unlock()
	if changed {
		c.g.views.publishPresence(c.user, is, seen)
	}
}

// queuePrivacy has the user's choice sent with the next batch. While there is no
// stream it waits for the session to be opened again.
func (l *inboxLink) queuePrivacy(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.mu.Lock()
	add := l.up && !c.presence.queued
	c.presence.queued = c.presence.queued || add
	c.mu.Unlock()
	if add {
		l.privacy = append(l.privacy, c)
		l.poke()
	}
}

func privacyOf(conns []*conn) []*rpc.PrivacyUpdate {
	out := make([]*rpc.PrivacyUpdate, 0, len(conns))
	for _, c := range conns {
		c.mu.Lock()
		c.presence.queued = false
		hide := c.presence.hidden
		c.mu.Unlock()
		out = append(out, &rpc.PrivacyUpdate{User: c.user, Privacy: &wire.Privacy{HideLastSeen: hide}})
	}
	return out
}

// idleOf returns how long a connection of a platform may be silent.
func (l *Limits) idleOf(p wire.Platform) time.Duration {
	switch p {
	case wire.Platform_PLATFORM_ANDROID:
		return l.IdleAndroid
	case wire.Platform_PLATFORM_IOS:
		return l.IdleIOS
	}
	return l.IdleTimeout
}
