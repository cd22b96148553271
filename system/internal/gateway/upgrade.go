package gateway

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"throng/system/wire"
)

// adopter is a net.Conn whose owner has the connection and needs only to know
// whose it is.
type adopter interface {
	adopt(format wire.Format, claims wire.Claims, t ticket) (admitted bool)
}

// ServeHTTP answers the requests of clients, which are to upgrade to WebSocket.
// It returns when the connection is somebody's, so that what answered is freed.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != wire.Path {
		http.NotFound(w, r)
		return
	}
	refuse := func(status int, outcome, text string) {
		g.m.refused.WithLabelValues(outcome).Inc()
		http.Error(w, text, status)
	}
	if g.draining.Load() {
		w.Header().Set("Retry-After", "1")
		refuse(http.StatusServiceUnavailable, "draining", "draining")
		return
	}
	if g.table.count() >= g.limits.MaxConnections {
		w.Header().Set("Retry-After", "10")
		refuse(http.StatusServiceUnavailable, "full", "too many connections")
		return
	}
	offered := websocket.Subprotocols(r)
	known := func(p string) bool { _, ok := wire.FormatOf(p); return ok }
	if !slices.ContainsFunc(offered, known) {
		refuse(http.StatusBadRequest, "subprotocol", "offer "+wire.SubprotocolProto+" or "+wire.SubprotocolJSON)
		return
	}
	at, now := g.guard.sources.Client(r.RemoteAddr, r.Header), g.sinceStart()
	if wait := g.guard.suspect(at, now); wait > 0 {
		g.tooMany(w, refusal{"address_failures", wait})
		return
	}
	claims, err := g.keys.Verify(bearer(r))
	if err != nil || claims.User == 0 {
		g.guard.failed(at, now)
		g.log.Debug("token refused", "remote", r.RemoteAddr, "err", err)
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(http.StatusUnauthorized, "token", "token refused")
		return
	}
	t, no := g.ticket(r, at, now, claims.User)
	if no.why != "" {
		g.tooMany(w, no)
		return
	}
	up := websocket.Upgrader{
		// After the upgrade this package reads and writes the socket itself:
		// gorilla has no buffers of its own.
		WriteBufferPool: &g.handshakeBufs,
		Subprotocols:    []string{wire.SubprotocolProto, wire.SubprotocolJSON},
		CheckOrigin:     g.checkOrigin,
	}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil { // it has answered the request
		g.guard.tear(t, false)
		g.m.refused.WithLabelValues("handshake").Inc()
		g.log.Debug("upgrade failed", "remote", r.RemoteAddr, "err", err)
		return
	}
	format, _ := wire.FormatOf(ws.Subprotocol())
	g.guard.greeted(t.via)
	adopt := func(format wire.Format, claims wire.Claims, t ticket) bool {
		return g.adoptStream(ws.NetConn(), format, claims, t)
	}
	if a, ok := ws.NetConn().(adopter); ok {
		adopt = a.adopt
	}
	if !adopt(format, claims, t) {
		g.guard.tear(t, true)
	}
}

// ticket counts a connection of a user, and where a proxy has sent it, of the
// address that it comes from.
func (g *Gateway) ticket(r *http.Request, at netip.Addr, now time.Duration, id uint64) (t ticket, no refusal) {
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && g.guard.sources.Proxy(ap.Addr()) {
		if t.via, no = g.guard.connect(at, now); no.why != "" {
			return t, no
		}
	}
	if t.user = g.guard.login(id); t.user == nil {
		g.guard.disconnect(t.via, false)
		return ticket{}, refusal{"user_connections", retryLater}
	}
	return t, refusal{}
}

// admit puts c into the table, unless the gateway has begun to drain: drain
// sees everybody who is in the table, and nobody comes after it has looked.
func (g *Gateway) admit(c *conn, format wire.Format, claims wire.Claims, t ticket) bool {
	c.user, c.device, c.format, c.expires = claims.User, claims.Device, format, claims.Expires.Unix()
	c.lastRx.Store(int64(g.sinceStart()))
	g.gate.Lock()
	defer g.gate.Unlock()
	if g.draining.Load() {
		return false
	}
	if c.who = t.user; t.via != nil {
		c.from = t.via
	}
	g.conns.Add(1)
	g.table.add(c)
	g.m.connections.Inc()
	g.m.open.Inc()
	return true
}

// bearer returns the token of an upgrade request, "" if it has none.
func bearer(r *http.Request) string {
	const scheme = "Bearer "
	if h := r.Header.Get("Authorization"); len(h) > len(scheme) && strings.EqualFold(h[:len(scheme)], scheme) {
		return h[len(scheme):]
	}
	if r.URL.RawQuery == "" {
		return ""
	}
	return r.URL.Query().Get("access_token")
}

func (g *Gateway) checkOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || g.origins["*"] || g.origins[origin] {
		return true
	}
	_, host, ok := strings.Cut(origin, "://")
	return ok && strings.EqualFold(host, r.Host)
}
