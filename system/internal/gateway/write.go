package gateway

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// push appends a whole WebSocket message and reports whether the caller has to
// call flush: it must, soon, when it does. b must not be changed afterwards.
// deliver counts it as a Deliver.
func (c *conn) push(b []byte, deliver bool) (mustFlush bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
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
			return false
		}
	}
	c.pend = append(c.pend, b)
	c.pendBytes += len(b)
	return len(c.pend) == 1 && !c.blocked
}

// pushEphemeral is push for what may be dropped; it reports ok=false when it was.
func (c *conn) pushEphemeral(b []byte) (mustFlush, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.blocked || c.pendBytes > ephemeralPending {
		return false, false
	}
	c.pend = append(c.pend, b)
	c.pendBytes += len(b)
	return len(c.pend) == 1, true
}

// flush writes all that is pending, as far as the socket takes it.
func (c *conn) flush() {
	c.mu.Lock()
	c.flushLocked()
	c.mu.Unlock()
}

func (c *conn) flushLocked() {
	for len(c.pend) > 0 && !c.blocked && !c.closed {
		if len(c.pend) == 1 {
			c.writeLocked(c.pend[0], 1)
			continue
		}
		// One write for all that fits the scratch buffer: a system call costs
		// several times what copying small messages does.
		buf := c.g.scratch.Get().(*[]byte)
		b, n := (*buf)[:0], 0
		for n < len(c.pend) && (n == 0 || len(b)+len(c.pend[n]) <= scratchBytes) {
			b = append(b, c.pend[n]...)
			n++
		}
		c.writeLocked(b, n)
		if cap(b) <= 2*scratchBytes {
			*buf = b[:0]
			c.g.scratch.Put(buf)
		}
	}
	if c.closing && !c.closed && !c.blocked {
		// All is out, the close message too: the client sees it, then the end.
		_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	}
}

// writeLocked makes one attempt to write b, which is the first n of pend.
func (c *conn) writeLocked(b []byte, n int) {
	w, err := unix.Write(c.fd, b)
	for err == unix.EINTR {
		w, err = unix.Write(c.fd, b)
	}
	c.g.m.writes.Inc()
	if w > 0 {
		c.g.m.txBytes.Add(float64(w))
	}
	switch {
	case err != nil && err != unix.EAGAIN:
		c.abortLocked("client")
		return
	case w == len(b):
		c.popLocked(n)
		c.pendBytes -= len(b)
		return
	}
	w = max(w, 0)
	c.backlog = append([]byte(nil), b[w:]...)
	c.popLocked(n)
	c.pendBytes -= w
	c.blocked = true
	c.g.m.blocked.Inc()
	// finish has not run, so the reader still holds one count of conns.
	c.g.conns.Add(1)
	go c.writeBlocked()
}

// popLocked removes the first n of pend. An emptied list keeps little memory.
func (c *conn) popLocked(n int) {
	rest := copy(c.pend, c.pend[n:])
	clear(c.pend[rest:])
	c.pend = c.pend[:rest]
	if rest == 0 && cap(c.pend) > 8 {
		c.pend = nil
	}
}

// dropPendingLocked forgets what has not been written.
func (c *conn) dropPendingLocked() {
	c.pend, c.backlog, c.pendBytes = nil, nil, 0
}

// writeBlocked writes to a socket that did not take everything, until it has
// nothing left, in its own goroutine. It is the only writer meanwhile.
func (c *conn) writeBlocked() {
	defer c.g.conns.Done()
	defer c.g.m.blocked.Dec()
	var sent int
	for {
		c.mu.Lock()
		// dropPendingLocked may have reset the sum meanwhile.
		c.pendBytes = max(c.pendBytes-sent, 0)
		b := c.backlog
		c.backlog = nil
		for b == nil && len(c.pend) > 0 {
			n := 0
			for n < len(c.pend) && len(b) < scratchBytes {
				b = append(b, c.pend[n]...)
				n++
			}
			c.popLocked(n)
		}
		if c.closed || len(b) == 0 {
			c.blocked = false
			c.flushLocked() // ends a connection that is closing
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.g.limits.WriteTimeout)); err != nil {
			c.abort("client")
			return
		}
		n, err := c.nc.Write(b)
		c.g.m.writes.Inc()
		c.g.m.txBytes.Add(float64(n))
		if err != nil {
			reason := "client"
			if errors.Is(err, os.ErrDeadlineExceeded) {
				reason = "slow_consumer"
			}
			c.abort(reason)
			return
		}
		sent = len(b)
	}
}
