package gateway

import (
	"time"
	"unsafe"
)

// push appends a whole WebSocket message and reports whether the caller has to
// call flush: it must, soon, when it does. b must not be changed afterwards.
// deliver counts it as a Deliver.
func (c *conn) push(b []byte, deliver bool) (mustFlush bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pushLocked(b, deliver)
	return len(c.pend) == 1 && !c.blocked
}

// pushAll is push for several, all of them Delivers or none. With now, the time
// since Gateway.start, the acknowledgement of the last of them is timed.
func (c *conn) pushAll(frames []sharedFrame, deliver bool, now time.Duration) (mustFlush bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	idle := len(c.pend) == 0
	for i := range frames {
		if b := frames[i].in(c.format); b != nil {
			c.pushLocked(b, deliver)
			if frames[i].traceparent != "" && !c.closing {
				c.traceLocked(frames[i].traceparent)
			}
		}
	}
	if now != 0 && c.timed == 0 && !c.closing {
		c.timed, c.timedAt = uint32(c.delivered), uint32(now.Microseconds())
	}
	return idle && len(c.pend) > 0 && !c.blocked
}

func (c *conn) pushLocked(b []byte, deliver bool) {
	if c.closing {
		return
	}
	if deliver {
		c.delivered++
	}
	if c.pendBytes+len(b) > c.g.limits.PendingBytes {
		// Only a socket that takes nothing makes a client slow: a burst is
		// written before it is judged.
		c.flushLocked()
		if c.pendBytes > 0 && c.pendBytes+len(b) > c.g.limits.PendingBytes {
			c.abortLocked("slow_consumer")
			return
		}
	}
	c.appendLocked(b)
}

// pendRoom is the length of the lists that connections with something pending
// share: an idle one has none.
const pendRoom = 32

func (c *conn) appendLocked(b []byte) {
	if c.pend == nil {
		c.pend = c.g.pends.Get().(*[pendRoom][]byte)[:0]
	}
	c.pend = append(c.pend, b)
	c.pendBytes += len(b)
}

// pushEphemeral is push for what may be dropped; it reports ok=false when it was.
func (c *conn) pushEphemeral(b []byte) (mustFlush, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.pendBytes > ephemeralPending {
		return false, false
	}
	c.appendLocked(b)
	return len(c.pend) == 1 && !c.blocked, true
}

// flush writes all that is pending, as far as the socket takes it.
func (c *conn) flush() {
	c.mu.Lock()
	c.flushLocked()
	c.mu.Unlock()
}

func (c *conn) flushLocked() {
	for !c.blocked && !c.closed {
		switch {
		case c.backlog != nil:
			b := c.backlog
			c.backlog = nil
			c.writeLocked(b, 0)
		case len(c.pend) == 1:
			c.writeLocked(c.pend[0], 1)
		case len(c.pend) > 1:
			c.writeManyLocked()
		default:
			if c.closing { // all is out, the close message too: the client sees it, then the end
				c.sock.closeWrite()
			}
			return
		}
	}
}

// writeManyLocked makes one write of all that fits the scratch buffer: a system
// call costs several times what copying small messages does.
func (c *conn) writeManyLocked() {
	s := c.g.scratch.Get().(*scratch)
	s.gather(c.pend)
	c.writeLocked(s.b, len(s.of))
	if cap(s.b) <= 2*scratchBytes {
		c.g.scratch.Put(s)
	}
}

// scratch is where pending messages are gathered for one write. It remembers
// which they were: what waits for one member of a busy group often waits for the
// next one too.
type scratch struct {
	b  []byte
	of [][]byte
}

func (s *scratch) gather(pend [][]byte) {
	n, size := 0, 0
	same := true // so far
	for n < len(pend) && (n == 0 || size+len(pend[n]) <= scratchBytes) {
		same = same && n < len(s.of) && len(pend[n]) == len(s.of[n]) && unsafe.SliceData(pend[n]) == unsafe.SliceData(s.of[n])
		size += len(pend[n])
		n++
	}
	if same && n == len(s.of) {
		return
	}
	clear(s.of)
	s.b, s.of = s.b[:0], append(s.of[:0], pend[:n]...)
	for _, m := range s.of {
		s.b = append(s.b, m...)
	}
}

// writeLocked makes one attempt to write b, which is the first n of pend.
func (c *conn) writeLocked(b []byte, n int) {
	w, err := c.sock.write(b)
	c.g.m.txBytes.Add(float64(w))
	if err != nil {
		c.abortLocked("client")
		return
	}
	c.popLocked(n)
	c.pendBytes -= w
	if w == len(b) {
		return
	}
	c.backlog = append([]byte(nil), b[w:]...)
	c.blocked, c.blockedAt = true, c.g.sinceStart()
	c.g.m.blocked.Inc()
}

// writable goes on with what the socket did not take.
func (c *conn) writable() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocked && !c.closed {
		c.unblockLocked()
		c.flushLocked()
	}
}

func (c *conn) unblockLocked() {
	if c.blocked {
		c.blocked = false
		c.g.m.blocked.Dec()
	}
}

// popLocked removes the first n of pend.
func (c *conn) popLocked(n int) {
	rest := copy(c.pend, c.pend[n:])
	clear(c.pend[rest:])
	c.pend = c.pend[:rest]
	if rest > 0 {
		return
	}
	if cap(c.pend) == pendRoom {
		c.g.pends.Put((*[pendRoom][]byte)(c.pend[:pendRoom]))
	}
	c.pend = nil
}

// dropPendingLocked forgets what has not been written.
func (c *conn) dropPendingLocked() {
	c.pend, c.backlog, c.pendBytes = nil, nil, 0
}
