package gateway

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/wire"
)

// received handles what the client has sent. Only the reader calls it, who has
// to end the connection when c.ended is true after it.
func (c *conn) received(b []byte) {
	now := c.g.sinceStart()
	c.lastRx.Store(int64(now))
	c.g.m.rxBytes.Add(float64(len(b)))
	if l := &c.g.limits; c.who != nil {
		r := l.rate(l.UserByteRate, l.UserByteBurst)
		c.over = c.who.V.bytes.Charge(r, int64(len(b)), now)
		if r.PerSecond > 0 && c.over.Seconds()*r.PerSecond > float64(r.Burst) { // was told, and goes on
			c.refuse(wire.CloseRate, "too many bytes")
		}
	}
	c.consume(b, now)
}

// consume handles the frames in b and keeps what is left for the next read.
func (c *conn) consume(b []byte, now time.Duration) {
	own := len(c.in) > 0
	if own {
		c.in = append(c.in, b...)
		b = c.in
	}
	for len(b) > 0 {
		n := c.frame(b, now)
		if n < 0 { // it is being closed: what still comes does not count
			c.in, c.msg = nil, nil
			c.partial.Store(0)
			return
		}
		if n == 0 {
			break
		}
		b = b[n:]
	}
	switch {
	case len(b) == 0:
		c.in = nil
	case own:
		c.in = append(c.in[:0], b...)
	default:
		c.in = append([]byte(nil), b...)
	}
	switch {
	case len(c.in) == 0 && c.msgOp == 0:
		c.partial.Store(0)
	case c.partial.Load() == 0:
		c.partial.Store(int64(now))
	}
}

// frame handles the WebSocket frame at the start of b and returns its length,
// 0 when it is not complete, -1 when the connection is being closed.
func (c *conn) frame(b []byte, now time.Duration) int {
	h, n, err := wire.ParseHeader(b)
	if c.isClosing() {
		// All that counts now is the client's answer to the close message, after which
		// it sends nothing. Something like it may be in the midst of a frame that was not
		// read to its end, and what is unread when the socket is closed makes the kernel
		// reset it, before the client has seen why.
		if err != nil || n == 0 || h.Len > wire.MaxControlPayload || len(b) < n+h.Len {
			return -1
		}
		c.ended = h.Opcode == wire.OpClose && h.Masked && len(b) == n+h.Len
		return n + h.Len
	}
	switch {
	case err != nil:
		return c.refuse(wire.CloseBadFrame, err.Error())
	case n == 0:
		return 0
	case !h.Masked:
		return c.refuse(wire.CloseBadFrame, "frame from a client without a mask")
	case h.Len > wire.MaxFrameBytes-len(c.msg):
		return c.refuse(wire.CloseTooLarge, "message too large")
	case len(b) < n+h.Len:
		return 0
	}
	if !c.allow(now) {
		return c.refuse(wire.CloseRate, "too many frames")
	}
	p := b[n : n+h.Len]
	wire.Mask(p, h.Mask)
	ok := true
	switch h.Opcode {
	case wire.OpPing:
		c.g.m.rx[kindWSPing].Inc()
		if c.push(wire.AppendServerMessage(nil, wire.OpPong, p), false) {
			c.flush()
		}
	case wire.OpPong:
		c.g.m.rx[kindWSPong].Inc()
	case wire.OpClose:
		c.g.m.rx[kindWSClose].Inc()
		c.answerClose(p)
		return -1
	default:
		ok = c.data(h, p)
	}
	if !ok {
		return -1
	}
	return n + h.Len
}

// data puts messages together from their fragments. It reports false when the
// connection is being closed.
func (c *conn) data(h wire.Header, p []byte) bool {
	if (h.Opcode == wire.OpContinuation) != (c.msgOp != 0) {
		return c.refuse(wire.CloseBadFrame, "fragment out of place") > 0
	}
	if h.Opcode != wire.OpContinuation && h.Opcode != c.format.Opcode() {
		return c.refuse(wire.CloseBadFrame, "message type does not fit the subprotocol") > 0
	}
	if !h.Fin {
		c.msgOp = c.format.Opcode()
		c.msg = append(c.msg, p...)
		return true
	}
	if c.msgOp != 0 {
		p = append(c.msg, p...)
		c.msg, c.msgOp = nil, 0
	}
	return c.message(p)
}

// message handles one Frame of the protocol.
func (c *conn) message(p []byte) bool {
	if upto, ok := c.format.Ack(p); ok && upto > 0 && c.isSynced() {
		return c.acknowledge(upto)
	}
	f, err := c.format.Decode(p)
	if err != nil {
		return c.refuse(wire.CloseBadFrame, err.Error()) > 0
	}
	if err := wire.Validate(f); err != nil {
		var fe *wire.FrameError
		if !errors.As(err, &fe) || fe.Fatal {
			return c.refuse(wire.CloseBadFrame, err.Error()) > 0
		}
		c.g.m.rx[kindSend].Inc() // the only kind that is refused without closing
		c.replyError(&wire.Error{Code: fe.Code, ClientMsgId: fe.ClientMsgID, Detail: fe.Detail})
		return true
	}
	_, first := f.GetKind().(*wire.Frame_Sync)
	if first == c.isSynced() {
		return c.refuse(wire.CloseBadFrame, "sync comes first, and once") > 0
	}
	return c.dispatch(f)
}

func (c *conn) dispatch(f *wire.Frame) bool {
	m := c.g.m
	switch k := f.GetKind().(type) {
	case *wire.Frame_Ack:
		return c.acknowledge(k.Ack.GetUpto())
	case *wire.Frame_Send:
		m.rx[kindSend].Inc()
		c.send(k.Send)
	case *wire.Frame_Read:
		m.rx[kindRead].Inc()
		if k.Read.GetFrom() == c.user {
			break // a copy of what another of the user's devices sent
		}
		c.g.inboxOf(k.Read.GetFrom()).queueRead(c.user, k.Read)
	case *wire.Frame_ReceiptsRequest:
		m.rx[kindListRequest].Inc()
		if !c.g.inboxOf(c.user).queueQuery(c, k.ReceiptsRequest) {
			c.replyError(&wire.Error{Code: wire.Code_CODE_RETRY, Detail: "no list of receipts now", RetryAfterMs: retryAfterMS})
		}
	case *wire.Frame_Typing:
		m.rx[kindTyping].Inc()
		c.g.views.typing(c.user, k.Typing)
	case *wire.Frame_Presence:
		m.rx[kindPresence].Inc()
		c.setAvailable(k.Presence.GetAvailable())
	case *wire.Frame_Privacy:
		m.rx[kindPrivacy].Inc()
		c.setPrivacy(k.Privacy.GetHideLastSeen())
	case *wire.Frame_View:
		m.rx[kindView].Inc()
		c.g.views.set(c, topicOf(k.View))
	case *wire.Frame_Ping:
		m.rx[kindPing].Inc()
		c.reply(kindPong, &wire.Frame{Kind: &wire.Frame_Pong{Pong: &wire.Pong{Nonce: k.Ping.GetNonce()}}})
	case *wire.Frame_GroupRequest:
		m.rx[kindGroupRequest].Inc()
		c.g.groups.ask(c, k.GroupRequest)
	case *wire.Frame_Sync:
		m.rx[kindSync].Inc()
		c.sync(k.Sync)
	}
	return true
}

func (c *conn) acknowledge(upto uint64) bool {
	c.g.m.rx[kindAck].Inc()
	if !c.ack(upto) {
		return c.refuse(wire.CloseBadFrame, "ack of what was not delivered") > 0
	}
	return true
}

// send passes a Send to its message instance, or answers why not.
func (c *conn) send(s *wire.Send) {
	over := func(of prometheus.Counter, why string, retryAfterMS uint32) {
		of.Inc()
		c.replyError(&wire.Error{Code: wire.Code_CODE_RATE_LIMITED, ClientMsgId: s.GetClientMsgId(), Detail: why, RetryAfterMs: retryAfterMS})
	}
	if c.who != nil {
		l := &c.g.limits
		if c.over > 0 {
			over(c.g.m.limited.bytes, "too many bytes", retryMS(c.over))
			return
		}
		if wait := c.who.V.sends.Take(l.rate(l.UserSendRate, l.UserSendBurst), 1, c.g.sinceStart()); wait > 0 {
			over(c.g.m.limited.sends, "too many sends", retryMS(wait))
			return
		}
	}
	if n := c.inFlight.Add(1); n > int32(c.g.limits.InFlight) {
		c.inFlight.Add(-1)
		over(c.g.m.limited.inFlight, "too many sends without an answer", retryAfterMS)
		return
	}
	if why := c.g.messageOf(c.user).submit(c, s); why != "" {
		c.inFlight.Add(-1)
		c.replyError(&wire.Error{Code: wire.Code_CODE_RETRY, ClientMsgId: s.GetClientMsgId(),
			Detail: why, RetryAfterMs: retryAfterMS})
	}
}

// refuse closes the connection; it returns -1, for frame.
func (c *conn) refuse(code wire.CloseCode, why string) int {
	c.g.log.Debug("closing a connection", "user", c.user, "device", c.device, "code", code.String(), "why", why)
	c.close(code)
	return -1
}

// answerClose ends a connection that the client closes: the same code goes
// back, if it is one.
func (c *conn) answerClose(p []byte) {
	var code []byte
	if len(p) >= 2 && binary.BigEndian.Uint16(p) >= 1000 {
		code = p[:2]
	}
	c.closeWith(wire.AppendServerMessage(nil, wire.OpClose, code), "client")
	c.mu.Lock()
	c.ended = c.pendBytes == 0 // else the rest goes out within closeGrace
	c.mu.Unlock()
}

// allow counts one frame against the connection's rate.
func (c *conn) allow(now time.Duration) bool {
	l := &c.g.limits
	return c.frames.Take(l.rate(l.FramesPerSecond, l.FrameBurst), 1, now) == 0
}

func (c *conn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

func (c *conn) isSynced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.synced
}
