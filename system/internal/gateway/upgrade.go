package gateway

import (
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"

	"github.com/gorilla/websocket"

	"throng/system/wire"
)

// upgrade is the handler of wire.Path. It returns when the connection's reader
// has started, so that the HTTP server's goroutine and buffers are freed.
func (g *Gateway) upgrade(w http.ResponseWriter, r *http.Request) {
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
	claims, err := g.cfg.Key.Verify(bearer(r))
	if err != nil || claims.User == 0 {
		g.log.Debug("token refused", "remote", r.RemoteAddr, "err", err)
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(http.StatusUnauthorized, "token", "token refused")
		return
	}
	up := websocket.Upgrader{
		HandshakeTimeout: g.limits.HandshakeTimeout,
		// After the upgrade this package reads and writes the socket itself;
		// these are only as large as the handshake needs.
		ReadBufferSize: 512, WriteBufferPool: &g.handshakeBufs,
		Subprotocols: []string{wire.SubprotocolProto, wire.SubprotocolJSON},
		CheckOrigin:  g.checkOrigin,
	}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil { // it has answered the request
		g.m.refused.WithLabelValues("handshake").Inc()
		g.log.Debug("upgrade failed", "remote", r.RemoteAddr, "err", err)
		return
	}
	format, _ := wire.FormatOf(ws.Subprotocol())
	g.adopt(ws.NetConn(), format, claims)
}

// adopt makes a connection of an upgraded socket.
func (g *Gateway) adopt(nc net.Conn, format wire.Format, claims wire.Claims) {
	sc, ok := nc.(syscall.Conn)
	if !ok { // TLS ends before the gateway, at the load balancer
		g.log.Error("the listener's connections are not plain sockets", "type", nc)
		nc.Close()
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		g.log.Debug("upgraded socket is gone", "err", err)
		nc.Close()
		return
	}
	c := &conn{g: g, user: claims.User, device: claims.Device, format: format, nc: nc, raw: raw,
		expires: claims.Expires.Unix(), opened: g.sinceStart()}
	if err := raw.Control(func(fd uintptr) { c.fd = int(fd) }); err != nil {
		nc.Close()
		return
	}
	if tc, ok := nc.(*net.TCPConn); ok {
		if err := tc.SetWriteBuffer(g.limits.SendBufferBytes); err != nil {
			g.log.Debug("send buffer of a socket", "err", err)
		}
	}
	c.lastRx.Store(int64(c.opened))
	if !g.admit(c) {
		nc.Close()
		return
	}
	go c.read()
}

// admit puts c into the table, unless the gateway has begun to drain: drain
// sees everybody who is in the table, and nobody comes after it has looked.
func (g *Gateway) admit(c *conn) bool {
	g.gate.Lock()
	defer g.gate.Unlock()
	if g.draining.Load() {
		return false
	}
	g.conns.Add(1)
	g.table.add(c)
	g.m.connections.Inc()
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

// countHandshakes bounds sockets that are not upgraded yet: a client that only
// connects costs a socket until HandshakeTimeout.
func (g *Gateway) countHandshakes(nc net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		if g.handshakes.Add(1) > int64(g.limits.MaxHandshakes) {
			g.m.refused.WithLabelValues("handshakes").Inc()
			nc.Close()
		}
	case http.StateHijacked, http.StateClosed:
		g.handshakes.Add(-1)
	}
}
