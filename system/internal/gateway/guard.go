package gateway

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"throng/system/internal/limit"
)

// address is what one address has open and may still do; nil is one that is not
// limited. Its counts are guarded by guard.addresses.
type address = limit.Entry[netip.Addr, addressUse]

type addressUse struct {
	open, greeting     int
	connects, failures limit.Bucket
}

// user is what one user has open and may still do, on all connections of theirs
// to this gateway.
type user = limit.Entry[uint64, userUse]

type userUse struct {
	open         int
	sends, bytes limit.Bucket
}

// guard knows what each address and each user has used up.
type guard struct {
	sources   limit.Sources
	limits    *Limits
	addresses *limit.Table[netip.Addr, addressUse]
	users     *limit.Table[uint64, userUse]
}

// remembered bounds the addresses and the users without a connection that are
// remembered, so that nobody gets a full bucket for coming back; above it the
// least recently seen is forgotten. An entry has about 250 bytes.
const remembered = 65_536

func newGuard(s limit.Sources, l *Limits, m *metrics) *guard {
	return &guard{sources: s, limits: l,
		addresses: limit.NewTable[netip.Addr, addressUse](remembered, m.addresses.Dropped.Inc),
		users:     limit.NewTable[uint64, userUse](remembered, m.users.Dropped.Inc),
	}
}

// refusal says why somebody is turned away, and for how long.
type refusal struct {
	why   string // label of throng_ws_refused_total; "": is let in
	retry time.Duration
}

// retryLater is what is told where nobody can know when there will be room.
const retryLater = 10 * time.Second

// connect counts a socket of an address that says nothing yet.
func (g *guard) connect(at netip.Addr, now time.Duration) (*address, refusal) {
	key, ok := g.sources.Key(at)
	if !ok {
		return nil, refusal{}
	}
	var no refusal
	a := g.addresses.Hold(key, func(u *addressUse) bool {
		l := g.limits
		switch wait := u.connects.Wait(l.rate(l.AddressConnectRate, l.AddressConnectBurst), now); {
		case wait > 0:
			no = refusal{"address_rate", wait}
		case u.open >= l.AddressConnections:
			no = refusal{"address_connections", retryLater}
		case u.greeting >= l.AddressHandshakes:
			no = refusal{"address_handshakes", l.HandshakeTimeout}
		default:
			u.connects.Charge(l.rate(l.AddressConnectRate, l.AddressConnectBurst), 1, now)
			u.open++
			u.greeting++
			return true
		}
		return false
	})
	return a, no
}

// peer is connect for who comes by themselves; a proxy's clients are counted when
// it has said who they are.
func (g *guard) peer(at netip.Addr, now time.Duration) (*address, refusal) {
	if g.sources.Proxy(at) {
		return nil, refusal{}
	}
	return g.connect(at, now)
}

// greeted notes that the handshake of a connection is over.
func (g *guard) greeted(a *address) {
	if a != nil {
		g.addresses.Do(a.Key(), func(u *addressUse) { u.greeting-- })
	}
}

// disconnect gives back what connect has counted.
func (g *guard) disconnect(a *address, greeted bool) {
	g.addresses.Release(a, func(u *addressUse) {
		u.open--
		if !greeted {
			u.greeting--
		}
	})
}

// suspect returns how long an address has to wait before it may try another token.
func (g *guard) suspect(at netip.Addr, now time.Duration) (wait time.Duration) {
	if key, ok := g.sources.Key(at); ok {
		g.addresses.Do(key, func(u *addressUse) {
			wait = u.failures.Wait(g.limits.rate(g.limits.AddressFailureRate, g.limits.AddressFailureBurst), now)
		})
	}
	return wait
}

// failed counts a token that was refused.
func (g *guard) failed(at netip.Addr, now time.Duration) {
	if key, ok := g.sources.Key(at); ok {
		g.addresses.Do(key, func(u *addressUse) {
			u.failures.Charge(g.limits.rate(g.limits.AddressFailureRate, g.limits.AddressFailureBurst), 1, now)
		})
	}
}

// login counts a connection of a user; nil: they have as many as they may.
func (g *guard) login(id uint64) *user {
	return g.users.Hold(id, func(u *userUse) bool {
		if u.open >= g.limits.UserConnections {
			return false
		}
		u.open++
		return true
	})
}

func (g *guard) logout(u *user) { g.users.Release(u, func(u *userUse) { u.open-- }) }

// measure tells how many addresses and users there are in memory.
func (g *guard) measure(m *metrics) {
	_, idle := g.addresses.Len()
	m.addresses.Depth.Set(float64(idle))
	_, idle = g.users.Len()
	m.users.Depth.Set(float64(idle))
}

// rate is a setting, below 0: no limit.
func (l *Limits) rate(perSecond, burst int) limit.Rate {
	return limit.Rate{PerSecond: float64(perSecond), Burst: int64(burst)}
}

// ticket is what a request has been let in with: what its connection gives back at
// its end.
type ticket struct {
	via  *address // that a proxy named
	user *user
}

func (g *guard) tear(t ticket, greeted bool) {
	g.disconnect(t.via, greeted)
	g.logout(t.user)
}

// seconds is a wait as Retry-After has it: whole seconds, at least one.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((max(d, 1)+time.Second-1)/time.Second), 10)
}

// retryMS is a wait as Error.retry_after_ms has it.
func retryMS(d time.Duration) uint32 {
	return uint32(min((d+time.Millisecond-1)/time.Millisecond, 1<<31))
}

// turnedAway is the answer to a connection that is not let in.
func turnedAway(no refusal) []byte {
	return []byte("HTTP/1.1 429 Too Many Requests\r\nRetry-After: " + seconds(no.retry) +
		"\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: " + strconv.Itoa(len(no.why)+1) + "\r\n\r\n" + no.why + "\n")
}

// counted is a listener whose connections are counted by address.
type counted struct {
	net.Listener
	g *Gateway
}

// Accept implements net.Listener. Who is over a limit is closed without an answer:
// it might be one that TLS has to be spoken to.
func (l counted) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ap, _ := netip.ParseAddrPort(nc.RemoteAddr().String()) // none: not limited
		from, no := l.g.guard.peer(ap.Addr(), l.g.sinceStart())
		if no.why == "" {
			return &countedConn{Conn: nc, g: l.g, from: from}, nil
		}
		l.g.m.refused.WithLabelValues(no.why).Inc()
		nc.Close()
	}
}

// countedConn gives back what its address has been counted.
type countedConn struct {
	net.Conn
	g       *Gateway
	from    *address
	mu      sync.Mutex
	greeted bool
	closed  bool
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.mu.Lock()
	first, greeted := !c.closed, c.greeted
	c.closed = true
	c.mu.Unlock()
	if first {
		c.g.guard.disconnect(c.from, greeted)
	}
	return c.Conn.Close()
}

// CloseWrite ends the stream to the client.
func (c *countedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// hello notes that the handshake is over.
func (c *countedConn) hello() {
	c.mu.Lock()
	first := !c.closed && !c.greeted
	c.greeted = true
	c.mu.Unlock()
	if first {
		c.g.guard.greeted(c.from)
	}
}

// tooMany answers a request that is over a limit.
func (g *Gateway) tooMany(w http.ResponseWriter, no refusal) {
	g.m.refused.WithLabelValues(no.why).Inc()
	w.Header().Set("Retry-After", seconds(no.retry))
	http.Error(w, no.why, http.StatusTooManyRequests)
}
