package gateway

import (
	"context"
	"time"

	"throng/system/wire"
)

// sweepParts is how many ticks the sweeper takes to see every connection.
const sweepParts = 4

// sweep looks at every connection once in a while, instead of a timer for
// each: who has not begun, who has been silent, whose token is over.
func (g *Gateway) sweep(ctx context.Context) {
	tick := time.NewTicker(g.sweepInterval())
	defer tick.Stop()
	for i := 0; ; i = (i + 1) % sweepParts {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := g.sinceStart()
		g.front.sweep(now)
		g.guard.measure(g.m)
		wall := time.Now().Unix()
		for _, c := range g.table.part(i, sweepParts) {
			g.check(c, now, wall)
		}
	}
}

// sweepInterval has every connection seen several times within the shortest
// time-out, and at most 16 times a second.
func (g *Gateway) sweepInterval() time.Duration {
	shortest := min(g.limits.IdleTimeout, g.limits.IdleIOS, g.limits.IdleAndroid, g.limits.SyncTimeout,
		g.limits.HandshakeTimeout, g.limits.WriteTimeout)
	return min(max(shortest/8/sweepParts, time.Second/64), time.Second)
}

// check applies the time-outs to one connection.
func (g *Gateway) check(c *conn, now time.Duration, wall int64) {
	last := time.Duration(c.lastRx.Load())
	begun := time.Duration(c.partial.Load())
	c.mu.Lock()
	synced, stuck := c.synced, c.blocked && now-c.blockedAt > g.limits.WriteTimeout
	c.mu.Unlock()
	switch {
	case stuck:
		c.abort("slow_consumer")
	case !synced:
		if now-c.opened > g.limits.SyncTimeout {
			c.close(wire.CloseNoSync)
		}
	case wall >= c.expires:
		c.close(wire.CloseTokenExpired)
	case now-last > c.idle, begun != 0 && now-begun > g.limits.IdleTimeout:
		c.close(wire.CloseIdle)
	case now-last > 2*c.idle/5 && c.pinged != int64(last):
		c.pinged = int64(last)
		g.m.tx[kindWSPing].Inc()
		if c.push(wire.AppendServerMessage(nil, wire.OpPing, nil), false) {
			c.flush()
		}
	}
}
