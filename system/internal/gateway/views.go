package gateway

import (
	"encoding/binary"
	"slices"
	"strconv"
	"sync"
	"time"

	"throng/system/wire"
)

// topic is what a client can have on its screen. The zero value is nothing.
type topic struct {
	user  uint64
	group uint64
}

func topicOf(v *wire.View) topic { return topic{user: v.GetUser(), group: v.GetGroup()} }

// name is the topic's name to the registry: "u<id>" or "g<id>".
func (t topic) name() string {
	if t.group != 0 {
		return "g" + strconv.FormatUint(t.group, 10)
	}
	return "u" + strconv.FormatUint(t.user, 10)
}

func parseTopic(name string) (topic, bool) {
	if len(name) < 2 {
		return topic{}, false
	}
	id, err := strconv.ParseUint(name[1:], 10, 64)
	switch {
	case err != nil:
		return topic{}, false
	case name[0] == 'u':
		return topic{user: id}, true
	case name[0] == 'g':
		return topic{group: id}, true
	}
	return topic{}, false
}

// views knows which connections look at what, and passes typing and presence
// between them and the channels. All of it is best effort.
type views struct {
	g *Gateway

	mu sync.Mutex
	// viewers holds the conn ids by topic; bounded by the connections, each of
	// which views one topic.
	viewers map[topic][]uint64
}

func (v *views) init(g *Gateway) {
	v.g = g
	v.viewers = make(map[topic][]uint64)
}

// set makes t what c looks at. Only c's reader calls it.
func (v *views) set(c *conn, t topic) {
	if t == c.view {
		return
	}
	old := c.view
	c.view = t
	v.mu.Lock()
	if old != (topic{}) {
		left := slices.DeleteFunc(v.viewers[old], func(id uint64) bool { return id == c.id })
		v.viewers[old] = left
		if len(left) == 0 {
			delete(v.viewers, old)
			v.g.cfg.Sessions.Unsubscribe(old.name())
		}
	}
	if t != (topic{}) {
		v.viewers[t] = append(v.viewers[t], c.id)
		if len(v.viewers[t]) == 1 {
			v.g.cfg.Sessions.Subscribe(t.name())
		}
	}
	v.mu.Unlock()
	if t.user != 0 && !v.shed(kindPresenceEvent) {
		v.answerPresence(c.id, t.user)
	}
}

// answerPresence tells a new viewer once whether the user is here.
func (v *views) answerPresence(conn, user uint64) {
	v.g.cfg.Sessions.Presence(user, func(online bool, lastSeen time.Time) {
		c := v.g.table.get(conn)
		if c == nil {
			return
		}
		e := &wire.PresenceEvent{User: user, Available: online}
		if !lastSeen.IsZero() {
			e.LastSeenMs = lastSeen.UnixMilli()
		}
		m, err := c.format.ServerMessage(&wire.Frame{Kind: &wire.Frame_PresenceEvent{PresenceEvent: e}})
		if err != nil {
			v.g.log.Error("presence event cannot be encoded", "err", err)
			return
		}
		v.write(c, m, kindPresenceEvent)
	})
}

// typing publishes that user types.
func (v *views) typing(user uint64, t *wire.Typing) {
	e := &wire.TypingEvent{Group: t.GetGroup(), From: user}
	on := topic{user: user}
	if t.GetGroup() != 0 {
		on = topic{group: t.GetGroup()}
	}
	v.publish(on, kindTypingEvent, t.GetUser(), user, &wire.Frame{Kind: &wire.Frame_TypingEvent{TypingEvent: e}})
}

// publishPresence publishes that user has come or gone; seen: and that they were
// here until now.
func (v *views) publishPresence(user uint64, available, seen bool) {
	e := &wire.PresenceEvent{User: user, Available: available}
	if seen {
		e.LastSeenMs = time.Now().UnixMilli()
	}
	v.publish(topic{user: user}, kindPresenceEvent, 0, user, &wire.Frame{Kind: &wire.Frame_PresenceEvent{PresenceEvent: e}})
}

// eventHeader is what precedes the frame on a channel: the user it is for (0:
// every viewer) and the user it comes from, who does not get it back.
const eventHeader = 16

func (v *views) publish(t topic, kind int, to, from uint64, f *wire.Frame) {
	if v.shed(kind) {
		return
	}
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, eventHeader+64), to)
	b = binary.LittleEndian.AppendUint64(b, from)
	b, err := wire.Proto.Append(b, f)
	if err != nil {
		v.g.log.Error("event cannot be encoded", "kind", kindName(kind), "err", err)
		return
	}
	v.g.m.event(kind).published.Inc()
	v.g.cfg.Sessions.Publish(t.name(), b)
}

// deliver hands what was published on a topic to its viewers here.
func (v *views) deliver(name string, payload []byte) {
	t, ok := parseTopic(name)
	if !ok || len(payload) <= eventHeader {
		v.g.log.Error("malformed event", "topic", name, "bytes", len(payload))
		return
	}
	to := binary.LittleEndian.Uint64(payload)
	from := binary.LittleEndian.Uint64(payload[8:])
	frame := payload[eventHeader:]
	v.mu.Lock()
	viewers := slices.Clone(v.viewers[t])
	v.mu.Unlock()
	if len(viewers) == 0 || v.shed(frameKind(frame)) {
		return
	}
	shared := sharedFrame{g: v.g, kind: frameKind(frame), proto: wire.AppendServerMessage(nil, wire.OpBinary, frame)}
	for _, id := range viewers {
		c := v.g.table.get(id)
		if c == nil || c.user == from || (to != 0 && c.user != to) {
			continue
		}
		if m := shared.in(c.format); m != nil {
			v.write(c, m, shared.kind)
		}
	}
}

func (v *views) write(c *conn, m []byte, kind int) {
	mustFlush, ok := c.pushEphemeral(m)
	if !ok {
		v.g.m.event(kind).dropped.Inc()
		return
	}
	if mustFlush {
		c.flush()
	}
	v.g.m.tx[kind].Inc()
	v.g.m.event(kind).delivered.Inc()
}
