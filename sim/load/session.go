package load

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/gorilla/websocket"

	"throng/sim/audit"
	"throng/sim/client"
	"throng/sim/history"
	"throng/sim/scenario"
	"throng/sim/workload"
	"throng/system/wire"
)

// openSession makes the device's user open the app until the given time. A
// session that is already open is prolonged.
func (e *Engine) openSession(d *device, until time.Duration, view conv) {
	d.mu.Lock()
	d.until = max(d.until, until)
	if d.openedAt >= 0 {
		d.mu.Unlock()
		return
	}
	now := e.now()
	d.openedAt, d.onlineAt, d.view = now, -1, view
	d.state = connecting
	d.mu.Unlock()
	e.timers.at(until, func() { e.leave(d) })
	e.connect(d)
}

// leave ends the session when its user's time has come.
func (e *Engine) leave(d *device) {
	d.mu.Lock()
	if d.openedAt < 0 || d.proof || e.closing.Load() {
		d.mu.Unlock()
		return
	}
	if now := e.now(); d.until > now {
		until := d.until
		d.mu.Unlock()
		e.timers.at(until, func() { e.leave(d) })
		return
	}
	e.endSession(d)
	conn := d.conn
	d.conn, d.state = nil, offline
	d.mu.Unlock()
	if conn != nil {
		conn.Close(presenceFrame(false))
	}
}

// endSession notes that the user has left. The caller holds d.mu.
func (e *Engine) endSession(d *device) {
	d.lastOpen, d.lastOnline, d.lastClose = d.openedAt, d.onlineAt, e.now()
	d.openedAt, d.onlineAt, d.until, d.lostAt = -1, -1, 0, 0
}

// connect logs the device in, on a goroutine of its own: a slow system must
// not hold back other arrivals.
func (e *Engine) connect(d *device) {
	if e.stats.logging.Add(1) > maxConnecting {
		e.stats.logging.Add(-1)
		e.stats.unstarted.Add(1)
		d.mu.Lock()
		e.endSession(d)
		d.state = offline
		d.mu.Unlock()
		return
	}
	e.readers.Go(func() {
		defer e.stats.logging.Add(-1)
		e.login(d)
	})
}

func (e *Engine) login(d *device) {
	start := e.now()
	token, err := e.access.Token(d.key.User, d.key.Device)
	if err != nil {
		e.log.Error("token", "err", err)
		e.lostConnection(d)
		return
	}
	d.mu.Lock()
	d.connectAt = start
	gate := e.gates[d.gate%len(e.gates)]
	d.mu.Unlock()
	e.readers.Add(1) // the reader, until Closed
	conn, err := e.dialer.Dial(context.Background(), gate, token, (*deviceHandler)(&session{e: e, d: d}))
	if err != nil {
		e.readers.Done()
		e.stats.errors.Add(1)
		e.stats.short(err)
		e.log.Debug("login", "user", d.key.User, "err", err)
		e.lostConnection(d)
		return
	}
	e.stats.connected.Add(1)
	platform := platformOf(d.key)
	e.heart.Watch(conn, pingEvery(platform), pongWait)
	d.mu.Lock()
	if d.state != connecting { // left in the meantime
		d.mu.Unlock()
		conn.Start()
		conn.Close()
		return
	}
	d.conn, d.state = conn, open
	e.stats.logins.Add(1)
	e.rec.Record(e.kinds.login, (e.now() - start).Microseconds())
	frames := []*wire.Frame{{Kind: &wire.Frame_Sync{Sync: &wire.Sync{InboxSeq: d.inboxSeq, Platform: platform}}}}
	for _, m := range d.unacked {
		frames = append(frames, e.frame(d, m))
	}
	for _, x := range d.asks { // not answered: repeated on the new connection
		frames = append(frames, x.frame)
	}
	if !d.proof {
		frames = append(frames, presenceFrame(true))
		if d.view != (conv{}) {
			frames = append(frames, &wire.Frame{Kind: &wire.Frame_View{View: &wire.View{User: d.view.peer, Group: d.view.group}}})
		}
	}
	_ = conn.Write(frames...) // an error is followed by Closed
	d.mu.Unlock()
	conn.Start()
}

// platformOf says what a device is: phones are Android or iOS, linked devices
// desktops.
func platformOf(k audit.Device) wire.Platform {
	switch {
	case k.Device != 0:
		return wire.Platform_PLATFORM_DESKTOP
	case hashUser(k.User)%4 == 0:
		return wire.Platform_PLATFORM_IOS
	}
	return wire.Platform_PLATFORM_ANDROID
}

// pongWait is how long a client waits for anything after a ping before it
// connects again.
const pongWait = 20 * time.Second

// pingEvery is after how long without a byte a client pings: three times within
// the idle time-out of its platform (WORKLOAD: iOS 180 s, Android 900 s;
// desktops: the gateway's 75 s).
func pingEvery(p wire.Platform) time.Duration {
	switch p {
	case wire.Platform_PLATFORM_IOS:
		return 60 * time.Second
	case wire.Platform_PLATFORM_ANDROID:
		return 300 * time.Second
	}
	return 25 * time.Second
}

func presenceFrame(available bool) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_Presence{Presence: &wire.Presence{Available: available}}}
}

// lostConnection makes the device connect again, elsewhere and after a random
// time, as long as its user stays.
func (e *Engine) lostConnection(d *device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = nil
	d.gate++
	now := e.now()
	if d.openedAt < 0 {
		d.state = offline
		return
	}
	if (!d.proof && e.closing.Load()) || d.until <= now {
		e.endSession(d)
		d.state = offline
		return
	}
	d.state = connecting
	if d.lostAt == 0 {
		d.lostAt = now
	}
	jitter := scenario.ReconnectJitter
	if f := e.faultBefore(now); f >= 0 {
		jitter = e.spec.Faults[f].ReconnectJitter
	}
	e.timers.at(now+reconnectMin+e.jitter.upTo(jitter), func() { e.connect(d) })
}

// session is one connection of a device.
type session struct {
	e     *Engine
	d     *device
	drain bool // Current has come
}

// deviceHandler implements client.Handler.
type deviceHandler session

// Frame handles what the server sent.
func (h *deviceHandler) Frame(c *client.Conn, f *wire.Frame) {
	e, d := h.e, h.d
	e.stats.framesOut.Add(1)
	switch k := f.Kind.(type) {
	case *wire.Frame_Deliver:
		e.deliver(d, k.Deliver)
	case *wire.Frame_Sent:
		e.sent(d, k.Sent)
	case *wire.Frame_Current:
		e.current((*session)(h), c, k.Current.Delivered)
	case *wire.Frame_Receipts:
		e.receipts(d, k.Receipts)
	case *wire.Frame_GroupResult:
		e.answered(d, k.GroupResult)
	case *wire.Frame_Error:
		if k.Error.ClientMsgId != 0 {
			e.refusedOrRetry(d, k.Error)
		} else {
			e.stats.errors.Add(1)
		}
	case *wire.Frame_Drain:
		jitter := time.Duration(k.Drain.JitterMs)*time.Millisecond + time.Millisecond
		e.timers.at(e.now()+e.jitter.upTo(jitter), func() { c.Close() })
	}
}

// current notes that the device is live, after so many deliveries.
func (e *Engine) current(h *session, c *client.Conn, delivered uint64) {
	d := h.d
	now := e.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != c {
		return
	}
	if d.onlineAt < 0 {
		d.onlineAt = now
	}
	if f := e.faultBefore(d.lostAt); f >= 0 && d.lostAt > 0 {
		e.rec.Record(e.kinds.back[f], (now - d.lostAt).Microseconds())
	}
	d.lostAt = 0
	if !h.drain {
		h.drain = true
		if !d.proof {
			took := (now - d.connectAt).Microseconds()
			e.rec.Record(e.kinds.drain, took)
			e.inZone(d.gate, drainOf, now-d.connectAt)
			rows := int(min(delivered, math.MaxInt))
			class := slices.IndexFunc(history.DrainClasses, func(c history.SizeClass) bool { return rows <= c.Max })
			e.rec.Record(e.kinds.drainRows[class], took)
		}
	}
	if d.current != nil {
		close(d.current)
		d.current = nil
	}
}

// Closed handles the end of a connection.
func (h *deviceHandler) Closed(c *client.Conn, err error) {
	e, d := h.e, h.d
	defer e.readers.Done()
	in, _ := c.Frames()
	e.stats.framesIn.Add(in)
	d.mu.Lock()
	mine := d.conn == c
	wasOpen := mine && d.state == open
	d.mu.Unlock()
	e.stats.connected.Add(-1)
	if err == nil && !mine {
		e.stats.closed.Add(1) // the user left
		return
	}
	if err != nil {
		e.stats.dropped.Add(1)
		if errors.Is(err, client.ErrSilent) {
			e.stats.silent.Add(1)
		}
		var ce *websocket.CloseError
		if errors.As(err, &ce) && !wire.CloseCode(ce.Code).Reconnect() {
			e.log.Warn("closed for good by the server", "user", d.key.User, "code", ce.Code, "text", ce.Text)
		}
	}
	if wasOpen {
		e.lostConnection(d)
	}
}

// typing sends a typing frame if the session is open.
func (e *Engine) typing(a *workload.Action) {
	d := e.device(a.User, a.Device)
	d.mu.Lock()
	conn := d.conn
	d.mu.Unlock()
	if conn != nil {
		_ = conn.Write(&wire.Frame{Kind: &wire.Frame_Typing{Typing: &wire.Typing{User: a.Conv.Peer, Group: a.Conv.Group}}})
	}
}

// abortAll closes every socket at once.
func (e *Engine) abortAll() {
	e.closing.Store(true)
	e.eachDevice(func(d *device) {
		d.mu.Lock()
		conn := d.conn
		d.conn, d.state = nil, offline
		d.openedAt = -1
		d.mu.Unlock()
		if conn != nil {
			conn.Abort()
		}
	})
}
