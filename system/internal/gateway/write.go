package gateway

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
	if c.closing || c.pendBytes > ephemeralPending {
		return false, false
	}
	c.pend = append(c.pend, b)
	c.pendBytes += len(b)
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
