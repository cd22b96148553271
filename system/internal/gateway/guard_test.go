package gateway

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"throng/system/internal/limit"
	"throng/system/wire"
)

func testSources(t *testing.T, proxies ...string) limit.Sources {
	t.Helper()
	p, err := limit.ParsePrefixes(proxies)
	if err != nil {
		t.Fatal(err)
	}
	return limit.Sources{Proxies: p}
}

// try asks for a connection and returns it, or the answer.
func (r *rig) try(token string, header http.Header) (*websocket.Conn, *http.Response, error) {
	r.t.Helper()
	h := header.Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Set("Authorization", "Bearer "+token)
	d := dialer()
	d.Subprotocols = []string{wire.SubprotocolProto}
	ws, resp, err := d.Dial(r.url, h)
	if err == nil {
		r.t.Cleanup(func() { ws.Close() })
	}
	return ws, resp, err
}

// turned tries, and expects to be told to wait, or with TLS at least to be closed.
func (r *rig) turned(token, why string, header http.Header) {
	r.t.Helper()
	before := r.metric("throng_ws_refused_total", "why="+why)
	_, resp, err := r.try(token, header)
	r.wasTurned(why, before, resp, err)
}

// wasTurned checks how try ended; before is what the metric was.
func (r *rig) wasTurned(why string, before float64, resp *http.Response, err error) {
	r.t.Helper()
	if err == nil {
		r.t.Fatalf("was let in, want %s", why)
	}
	if resp != nil {
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), why) {
			r.t.Errorf("answer %s, %v, %q, want %s", resp.Status, resp.Header, body, why)
		}
	}
	if r.metric("throng_ws_refused_total", "why="+why) != before+1 {
		r.t.Errorf("%s is not counted", why)
	}
}

// One address has so many connections, however they are distributed over users.
func TestAddressConnections(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.Limits.AddressConnections = 3 })
	var open []*websocket.Conn
	for u := range uint64(3) {
		ws, _, err := r.try(token(t, 1+u, 0), nil)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, ws)
	}
	r.turned(token(t, 9, 0), "address_connections", nil)
	open[0].Close()
	// The address has the place again when the socket is closed, a little after the
	// session is over.
	r.until("another is let in", func() bool { _, _, err := r.try(token(t, 9, 0), nil); return err == nil })
}

func TestAddressConnects(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.Limits.AddressConnectRate, cfg.Limits.AddressConnectBurst = 1, 2 })
	for n := 0; ; n++ {
		if n > 1000 {
			t.Fatal("never over the limit")
		}
		before := r.metric("throng_ws_refused_total", "why=address_rate")
		ws, _, err := r.try(token(t, 1, 0), nil)
		if err == nil {
			ws.Close()
			continue
		}
		if n < 3 || r.metric("throng_ws_refused_total", "why=address_rate") == before {
			t.Errorf("connection %d: %v", n, err)
		}
		return
	}
}

// Who tries tokens is not asked for more of them, and somebody elsewhere is let in.
func TestAddressFailures(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Limits.AddressFailureRate, cfg.Limits.AddressFailureBurst = 1, 3
		cfg.Sources = testSources(t, "127.0.0.1")
	})
	from := func(a string) http.Header { return http.Header{"X-Forwarded-For": {"198.51.100.77, " + a}} }
	exhaust := func() (refused int) {
		for ; refused < 1000; refused++ {
			_, resp, err := r.try("x.y.z", from("203.0.113.9"))
			if err == nil || resp == nil {
				t.Fatalf("a bad token: %v", err)
			}
			if resp.StatusCode == http.StatusTooManyRequests {
				break
			}
		}
		return refused
	}
	if refused := exhaust(); refused < 4 || refused == 1000 {
		t.Errorf("%d bad tokens were looked at", refused)
	}
	// A good one waits, too: nobody looks at tokens of that address. But not for
	// longer than a second, which may have passed.
	for tries := 0; ; tries++ {
		before := r.metric("throng_ws_refused_total", "why=address_failures")
		ws, resp, err := r.try(token(t, 1, 0), from("203.0.113.9"))
		if err != nil || tries == 20 {
			r.wasTurned("address_failures", before, resp, err)
			break
		}
		ws.Close()
		exhaust()
	}
	if _, _, err := r.try(token(t, 1, 0), from("203.0.113.10")); err != nil {
		t.Errorf("another address pays: %v", err)
	}
}

// A proxy's clients are counted by their own addresses, and its own connections not.
func TestProxiedConnections(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Limits.AddressConnections = 1
		cfg.Sources = testSources(t, "127.0.0.0/8")
	})
	from := func(a string) http.Header { return http.Header{"X-Forwarded-For": {a}} }
	ws, _, err := r.try(token(t, 1, 0), from("2001:db8::1"))
	if err != nil {
		t.Fatal(err)
	}
	r.turned(token(t, 2, 0), "address_connections", from("2001:db8::2")) // the same /64
	if _, _, err := r.try(token(t, 2, 0), from("2001:db8:0:1::2")); err != nil {
		t.Errorf("another network: %v", err)
	}
	ws.Close()
	r.until("another is let in", func() bool { _, _, err := r.try(token(t, 3, 0), from("2001:db8::3")); return err == nil })
}

func TestUserConnections(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.Limits.UserConnections = 2 })
	for device := range uint32(2) {
		r.login(1, device, wire.Proto)
	}
	r.turned(token(t, 1, 2), "user_connections", nil)
	r.login(2, 0, wire.Proto)
}

// What is over a user's rate is answered, with when to try again; it holds for all
// of the user's devices and for nobody else, and coming back does not fill it up.
func TestUserSends(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.Limits.UserSendRate, cfg.Limits.UserSendBurst = 1, 5 })
	send := func(c *client, id uint64) *wire.Frame {
		c.send(&wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{ClientMsgId: id, User: 9, Seq: id, Kind: wire.Kind_KIND_TEXT}}})
		return c.recv()
	}
	flood := func(device uint32) (accepted int) {
		c, _ := r.login(1, device, wire.Proto)
		for id := uint64(1); id < 1000; id++ {
			f := send(c, id)
			if f.GetSent() != nil {
				accepted++
				continue
			}
			if e := f.GetError(); e.GetCode() != wire.Code_CODE_RATE_LIMITED || e.GetClientMsgId() != id || e.GetRetryAfterMs() == 0 || e.GetRetryAfterMs() > 1000 {
				t.Errorf("answer %v", f)
			}
			c.ws.Close()
			return accepted
		}
		t.Error("nothing is over the limit")
		return accepted
	}
	start := time.Now()
	first := flood(0)
	r.until("it has gone", func() bool { return r.metric("throng_ws_connections") == 0 })
	again := flood(1)
	if spare := int(time.Since(start)/time.Second) + 1; first < 6 || first+again > 6+spare {
		t.Errorf("%d sends and then %d were accepted of 6, in %v", first, again, time.Since(start))
	}
	if r.metric("throng_ws_limited_total", "limit=user_sends") != 2 {
		t.Error("not counted")
	}
	good, _ := r.login(2, 0, wire.Proto)
	if f := send(good, 1); f.GetSent() == nil {
		t.Errorf("somebody else got %v", f)
	}
}

// Who sends too many bytes is told so, and who goes on is closed.
func TestUserBytes(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.Limits.UserByteRate, cfg.Limits.UserByteBurst = 1000, 100_000 })
	c, _ := r.login(1, 0, wire.Proto)
	frame := func(id uint64) []byte {
		b, err := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{ClientMsgId: id, User: 9, Seq: id, Kind: wire.Kind_KIND_TEXT, Body: make([]byte, 49_000)}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for i, ok := range []bool{true, true, false} { // 49, 98 and 147 thousand
		if err := c.ws.WriteMessage(websocket.BinaryMessage, frame(uint64(i+1))); err != nil {
			t.Fatal(err)
		}
		f := c.recv()
		if e := f.GetError(); (f.GetSent() != nil) != ok || !ok && (e.GetCode() != wire.Code_CODE_RATE_LIMITED || e.GetRetryAfterMs() < 1000) {
			t.Fatalf("send %d: %v", i+1, f)
		}
	}
	for id := range uint64(100) { // the server ends it somewhere
		if c.ws.WriteMessage(websocket.BinaryMessage, frame(10+id)) != nil {
			break
		}
	}
	r.until("it is closed", func() bool { return r.metric("throng_ws_closed_total", "reason=rate") == 1 })
	r.login(2, 0, wire.Proto)
}

// What is remembered of addresses and users is bounded, and the end gives back all.
func TestGuardIsBounded(t *testing.T) {
	r := newRig(t, nil)
	g := r.gw.guard
	for i := range remembered + 1000 {
		at := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		a, no := g.connect(at, 0)
		if no.why != "" {
			t.Fatal(no.why)
		}
		g.failed(at, 0)
		g.disconnect(a, false)
		g.logout(g.login(uint64(i)))
	}
	held, idle := g.addresses.Len()
	users, idleUsers := g.users.Len()
	if held != 0 || users != 0 || idle != remembered || idleUsers != remembered {
		t.Errorf("%d and %d are held, %d and %d remembered", held, users, idle, idleUsers)
	}
	if r.metric("throng_queue_dropped_total", "queue=gateway_addresses") != 1000 {
		t.Error("the forgotten are not counted")
	}
}
