package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// ErrSilent is why Closed is called when the server has not answered a
// heartbeat: the connection is half open, or the server does nothing.
var ErrSilent = errors.New("client: the server is silent: nothing came after a ping")

// Heartbeat finds out which connections are dead without anybody having said
// so: when nothing has come for a while it sends a WebSocket ping, and when
// nothing comes after that either it closes the connection with ErrSilent. One
// timer wheel and one goroutine serve all connections; a connection that brings
// something is looked at once an interval. Run must run.
type Heartbeat struct {
	tick  time.Duration // the wheel's step; times are rounded up to it
	start time.Time
	pings sync.WaitGroup
	slots chan struct{} // one for each ping that is being written

	mu    sync.Mutex
	wheel [wheelSlots]map[*Conn]struct{}
	at    int // the slot that is due next
}

const (
	wheelSlots = 512
	// pingsAtOnce bounds the pings that are being written. A write can block on a
	// socket that is full; above the bound the wait begins without a ping.
	pingsAtOnce = 64
	pingTimeout = time.Second
)

// beat is the heartbeat of one connection, under Heartbeat.mu.
type beat struct {
	of          *Heartbeat // nil: it has none
	every, wait time.Duration
	slot        int           // -1 when it is on no slot
	pinged      time.Duration // when the ping that is unanswered was sent; 0 without
}

// NewHeartbeat returns a heartbeat with a step of tick; 0 means 1 s.
func NewHeartbeat(tick time.Duration) *Heartbeat {
	if tick <= 0 {
		tick = time.Second
	}
	return &Heartbeat{tick: tick, start: time.Now(), slots: make(chan struct{}, pingsAtOnce)}
}

// Watch gives a connection that is not started yet a heartbeat: a ping when
// nothing has come for every, the end when nothing comes for wait after it.
func (h *Heartbeat) Watch(c *Conn, every, wait time.Duration) {
	now := h.now()
	c.lastRx.Store(int64(now))
	h.mu.Lock()
	defer h.mu.Unlock()
	c.beat = beat{of: h, every: every, wait: wait, slot: -1}
	h.put(c, every)
}

func (h *Heartbeat) now() time.Duration { return time.Since(h.start) + 1 } // never 0

// put looks at c again in d, or as late as the wheel goes. The caller holds mu.
func (h *Heartbeat) put(c *Conn, d time.Duration) {
	steps := min(max(int((d+h.tick-1)/h.tick), 1), wheelSlots-1)
	c.beat.slot = (h.at + steps) % wheelSlots
	if h.wheel[c.beat.slot] == nil {
		h.wheel[c.beat.slot] = map[*Conn]struct{}{}
	}
	h.wheel[c.beat.slot][c] = struct{}{}
}

// heard notes that something has come.
func (c *Conn) heard() {
	if h := c.beat.of; h != nil {
		c.lastRx.Store(int64(h.now()))
	}
}

// forget takes a connection that has ended off the wheel.
func (h *Heartbeat) forget(c *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.beat.slot >= 0 {
		delete(h.wheel[c.beat.slot], c)
		c.beat.slot = -1
	}
}

// Run turns the wheel until ctx is done, and waits for pings under way.
func (h *Heartbeat) Run(ctx context.Context) {
	defer h.pings.Wait()
	tick := time.NewTicker(h.tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			h.turn(h.now())
		}
	}
}

// turn looks at the connections of the next slot.
func (h *Heartbeat) turn(now time.Duration) {
	var ping, dead []*Conn
	h.mu.Lock()
	h.at = (h.at + 1) % wheelSlots
	due := h.wheel[h.at]
	h.wheel[h.at] = nil
	for c := range due {
		last := time.Duration(c.lastRx.Load())
		switch b := &c.beat; {
		case b.pinged != 0 && last < b.pinged && now-b.pinged < b.wait: // further than the wheel goes
			h.put(c, b.pinged+b.wait-now)
		case b.pinged != 0 && last < b.pinged:
			b.slot = -1
			dead = append(dead, c)
		case now-last < b.every:
			b.pinged = 0
			h.put(c, last+b.every-now)
		default:
			b.pinged = now
			h.put(c, b.wait)
			ping = append(ping, c)
		}
	}
	h.mu.Unlock()
	for _, c := range dead {
		c.silent.Store(true)
		c.socket.abort() // the reader ends, and says why
	}
	for _, c := range ping {
		h.ping(c)
	}
}

// ping writes a ping on a goroutine of its own. That it failed shows in
// silence.
func (h *Heartbeat) ping(c *Conn) {
	select {
	case h.slots <- struct{}{}:
	default:
		return
	}
	h.pings.Go(func() {
		_ = c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(pingTimeout))
		<-h.slots
	})
}
