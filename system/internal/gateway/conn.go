package gateway

import (
	"sync"
	"sync/atomic"
	"time"

	"throng/system/internal/limit"
	"throng/system/wire"
)

// conn is one WebSocket. It is small on purpose: an idle one is this struct
// and its socket, and has no buffers. What a delivery touches comes first and
// fits a cache line: the lists of a batch are longer than the caches.
type conn struct {
	g *Gateway
	// mu guards what follows up to format, and what is below it, and is held
	// while writing to sock, so that messages leave whole and in order. Lock
	// order: inboxLink.mu, then conn.mu.
	mu        sync.Mutex
	pend      [][]byte // whole WebSocket messages, shared, not to be changed
	pendBytes int      // in pend, backlog and the hands of writeStream
	delivered uint64   // Deliver messages so far
	blocked   bool     // the socket takes nothing; writable or writeStream goes on
	closing   bool     // nothing is accepted any more; a close message may be pending
	closed    bool     // sock must not be used any more
	format    wire.Format

	id      uint64 // set by table.add; 0: not upgraded yet
	user    uint64
	device  uint32
	timed   uint32        // of a Deliver's number, whose acknowledgement is timed; 0: of none; under mu
	sock    socket        // not to be used once closed, under mu
	expires int64         // of the token, Unix seconds
	idle    time.Duration // it may be silent for so long; set by sync
	opened  time.Duration // accepted, since Gateway.start
	from    *address      // whose limits count it, given back at the end; nil: nobody's, or the listener does
	who     *user         // set by admit; nil in tests of the reader alone

	// The reader's own.
	in      []byte        // the start of a frame whose rest has not come
	msg     []byte        // the fragments of a message so far
	msgOp   byte          // opcode of that message, 0: none begun
	ended   bool          // both sides have said Close
	timedAt uint32        // when that was handed over, in microseconds since Gateway.start, as far as they fit; under mu
	frames  limit.Bucket  // rate limit
	over    time.Duration // how long the user has to wait for having sent too many bytes
	view    topic
	partial atomic.Int64 // since when in or msg is not empty, 0: they are

	lastRx     atomic.Int64 // time of the last byte, since Gateway.start
	pinged     int64        // lastRx when the sweeper sent a ping; the sweeper's own
	inFlight   atomic.Int32 // sends without an answer
	groupCalls atomic.Int32 // group requests without an answer

	// More that mu guards.
	backlog   []byte        // what the socket did not take of a message, goes before pend
	blockedAt time.Duration // since when blocked, since Gateway.start
	grace     *time.Timer   // ends a connection that is closing
	reason    string        // label of throng_ws_closed_total
	synced    bool          // Sync has come: the inbox knows, or will, of the session
	detached  bool          // the inbox and the registry know, or will, of its end
	ackQueued bool          // waits in inboxLink.acks
	presence  presence
	epoch     uint64            // of the session; 0: the inbox has not said it yet
	inboxSeq  uint64            // Sync.inbox_seq
	openedIn  uint64            // inboxLink.epoch in which the session was opened
	base      uint64            // delivered when it was opened
	acked     uint64            // of the delivered, acknowledged
	traced    *[]tracedDelivery // in the order of their numbers; nil: none
}

// newConn returns a connection that has no socket yet.
func (g *Gateway) newConn() *conn { return &conn{g: g, opened: g.sinceStart()} }

// close sends a close message after all that is pending and ends the
// connection; the client has closeGrace to answer. Only the first call counts.
func (c *conn) close(code wire.CloseCode) {
	c.closeWith(wire.AppendCloseMessage(nil, code, code.String()), code.String())
}

func (c *conn) closeWith(message []byte, reason string) {
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return
	}
	c.closing, c.reason = true, reason
	c.appendLocked(message)
	c.flushLocked()
	if !c.closed {
		c.grace = time.AfterFunc(closeGrace, func() { c.abort(reason) })
	}
	c.mu.Unlock()
	c.detach()
}

// abort ends the connection at once, whatever is pending. The reader cleans up.
func (c *conn) abort(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abortLocked(reason)
}

func (c *conn) abortLocked(reason string) {
	if c.closed {
		return
	}
	if !c.closing {
		c.closing, c.reason = true, reason
	}
	c.dropPendingLocked()
	c.sock.abort()
}

// detach tells the inbox and the registry, once, that the session has ended.
func (c *conn) detach() {
	c.mu.Lock()
	if !c.synced || c.detached {
		c.mu.Unlock()
		return
	}
	c.detached = true
	p := &c.presence
	announced, seen := p.announced, p.known && !p.hidden
	c.mu.Unlock()
	c.g.inboxOf(c.user).closeSession(c)
	c.g.cfg.Sessions.Unregister(c.user, c.device, c.id, seen)
	if announced {
		c.g.views.publishPresence(c.user, false, true)
	}
}

// finish releases the connection. Only the reader calls it, when it has left
// the socket.
func (c *conn) finish() {
	c.mu.Lock()
	c.closing, c.closed = true, true
	c.dropPendingLocked()
	c.unblockLocked()
	if c.grace != nil {
		c.grace.Stop()
	}
	if c.reason == "" {
		c.reason = "client"
	}
	reason := c.reason
	c.endTracesLocked(c.delivered, "the connection ended first")
	c.mu.Unlock()
	c.detach()
	c.g.views.set(c, topic{})
	c.g.table.remove(c)
	c.sock.close()
	c.g.guard.tear(ticket{c.from, c.who}, true)
	c.g.m.connections.Dec()
	c.g.m.open.Dec()
	c.g.m.closed(reason)
	c.g.conns.Done()
}

// sync begins the session: the first frame has come.
func (c *conn) sync(s *wire.Sync) {
	// Register first, then drain: whoever looks the device up after the inbox
	// has it finds it.
	c.g.cfg.Sessions.Register(c.user, c.device, c.id)
	c.mu.Lock()
	gone := c.closing
	c.synced = !gone
	c.idle = c.g.limits.idleOf(s.GetPlatform())
	c.inboxSeq = s.GetInboxSeq()
	c.mu.Unlock()
	if gone {
		c.g.cfg.Sessions.Unregister(c.user, c.device, c.id, false)
		return
	}
	c.g.m.logins.Inc()
	c.g.inboxOf(c.user).openSession(c)
}

// ack notes that the client has the first upto Delivers. It reports false when
// there were not as many.
func (c *conn) ack(upto uint64) bool {
	c.mu.Lock()
	if upto > c.delivered {
		c.mu.Unlock()
		return false
	}
	tell := upto > c.acked && !c.ackQueued
	if upto > c.acked {
		c.acked = upto
		c.ackQueued = true
		if c.timed != 0 && int32(uint32(upto)-c.timed) >= 0 {
			took := uint32(time.Duration(c.lastRx.Load()).Microseconds()) - c.timedAt
			c.g.m.deliver.Done(time.Duration(took)*time.Microsecond, false)
			c.timed = 0
		}
		c.endTracesLocked(upto, "")
	}
	c.mu.Unlock()
	if tell {
		c.g.inboxOf(c.user).queueAck(c)
	}
	return true
}

// reply sends one frame to this connection.
func (c *conn) reply(kind int, f *wire.Frame) {
	if c.queueReply(kind, f) {
		c.flush()
	}
}

// queueReply appends one frame and reports whether the caller has to flush.
func (c *conn) queueReply(kind int, f *wire.Frame) bool {
	b, err := c.format.ServerMessage(f)
	if err != nil {
		c.g.log.Error("frame of the server cannot be encoded", "kind", kindName(kind), "err", err)
		return false
	}
	c.g.m.tx[kind].Inc()
	return c.push(b, false)
}

// replyError answers a frame with an Error.
func (c *conn) replyError(e *wire.Error) {
	c.reply(kindError, &wire.Frame{Kind: &wire.Frame_Error{Error: e}})
}

// sendShared sends a frame that others get too.
func (c *conn) sendShared(s *sharedFrame) {
	if b := s.in(c.format); b != nil && c.push(b, false) {
		c.flush()
	}
	c.g.m.tx[s.kind].Inc()
}

// sharedFrame is one frame for many connections, as whole WebSocket messages.
// It belongs to one goroutine; the slices may be kept by anybody.
type sharedFrame struct {
	g     *Gateway
	kind  int
	proto []byte
	json  []byte // made when the first JSON connection needs it

	traceparent string // of a Deliver that is traced, else empty
}

// in returns the message in a format, nil if it cannot be had.
func (s *sharedFrame) in(f wire.Format) []byte {
	if f == wire.Proto {
		return s.proto
	}
	if s.json == nil {
		_, n, err := wire.ParseHeader(s.proto)
		if err != nil || n == 0 {
			return nil
		}
		frame, err := wire.Proto.Decode(s.proto[n:])
		if err == nil {
			s.json, err = wire.JSON.ServerMessage(frame)
		}
		if err != nil {
			s.g.log.Error("frame of an inbox cannot be written as JSON", "err", err)
			return nil
		}
	}
	return s.json
}
