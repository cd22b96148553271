package system_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/reflect/protoreflect"

	"throng/system"
	"throng/system/wire"
)

// The tests of these files are clients that mean harm, beside people who chat: the
// people are served, whoever means harm is refused, and nothing grows.

// hostilePatience is how long something has to happen. Nothing here is timed.
const hostilePatience = 30 * time.Second

// chat is two people whose messages have to arrive while somebody does something.
type chat struct {
	a, b *device
	n    int
}

func (d *deployment) chat(a, b uint64) *chat {
	c := &chat{a: d.dial(a, 0), b: d.dial(b, 0)}
	c.a.awaitCurrent()
	c.b.awaitCurrent()
	return c
}

// served has each send the other ten more messages, and waits for all there were.
func (c *chat) served() {
	c.a.t.Helper()
	for range 10 {
		c.a.send(direct(c.b.user), fmt.Sprintf("hello %d", c.n))
		c.b.send(direct(c.a.user), fmt.Sprintf("hello %d", c.n))
		c.n++
	}
	c.b.awaitBodies(c.a.user, 0, numbered("hello", c.n)...)
	c.a.awaitBodies(c.b.user, 0, numbered("hello", c.n)...)
}

// heap is what is alive, in MiB.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc >> 20)
}

// hostile connects from an address of the loopback network.
type hostile struct {
	d    *deployment
	from string
}

func (d *deployment) hostile(from string) *hostile { return &hostile{d, from} }

func (h *hostile) dialer() *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(h.from)}}
}

// raw opens a connection and writes text.
func (h *hostile) raw(addr, text string) net.Conn {
	h.d.t.Helper()
	nc, err := h.dialer().DialContext(h.d.t.Context(), "tcp", addr)
	if err != nil {
		h.d.t.Fatal(err)
	}
	h.d.t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(hostilePatience)); err != nil {
		h.d.t.Fatal(err)
	}
	if _, err := io.WriteString(nc, text); err != nil {
		h.d.t.Fatal(err)
	}
	return nc
}

// ended waits until the server has ended a connection, and returns what it said.
func ended(t *testing.T, nc net.Conn) string {
	t.Helper()
	got, err := io.ReadAll(nc)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		t.Error("the connection was kept open")
	}
	return string(got)
}

func (d *deployment) tokenOf(user uint64, lives time.Duration) string {
	d.t.Helper()
	token, err := d.key.Sign(wire.Claims{User: user, Expires: time.Now().Add(lives)})
	if err != nil {
		d.t.Fatal(err)
	}
	return token
}

// try asks for a WebSocket. The body of an answer other than yes has been read.
func (h *hostile) try(token string) (ws *websocket.Conn, resp *http.Response, text string) {
	h.d.t.Helper()
	dialer := websocket.Dialer{NetDialContext: h.dialer().DialContext, HandshakeTimeout: hostilePatience,
		Subprotocols: []string{wire.SubprotocolProto}, EnableCompression: true}
	ws, resp, err := dialer.DialContext(h.d.t.Context(), "ws://"+h.d.gateways()[0]+wire.Path, http.Header{"Authorization": {"Bearer " + token}})
	if resp == nil {
		h.d.t.Fatalf("no answer: %v", err)
	}
	if err == nil {
		h.d.t.Cleanup(func() { ws.Close() })
		if err := ws.SetReadDeadline(time.Now().Add(hostilePatience)); err != nil {
			h.d.t.Fatal(err)
		}
		return ws, resp, ""
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	return nil, resp, string(body)
}

// login is a WebSocket of a user, who has said Sync.
func (h *hostile) login(user uint64) *websocket.Conn {
	h.d.t.Helper()
	ws, resp, text := h.try(h.d.tokenOf(user, time.Hour))
	if ws == nil {
		h.d.t.Fatalf("user %d: %s: %s", user, resp.Status, text)
	}
	if ext := resp.Header.Get("Sec-WebSocket-Extensions"); ext != "" {
		h.d.t.Errorf("the gateway agrees to %q: nobody here bounds what comes out of it", ext)
	}
	if err := ws.WriteMessage(websocket.BinaryMessage, []byte{0x0a, 0x00}); err != nil {
		h.d.t.Fatal(err)
	}
	return ws
}

// closeCode reads on and returns the code that a connection is closed with.
func closeCode(t *testing.T, ws *websocket.Conn) wire.CloseCode {
	t.Helper()
	for {
		if _, _, err := ws.ReadMessage(); err != nil {
			var ce *websocket.CloseError
			if errors.As(err, &ce) {
				return wire.CloseCode(ce.Code)
			}
			t.Errorf("ended without a code: %v", err)
			return 0
		}
	}
}

// pour writes b again and again until it is not taken any more.
func pour(t *testing.T, nc net.Conn, b []byte) (ended chan struct{}) {
	t.Helper()
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		_ = nc.SetWriteDeadline(time.Now().Add(hostilePatience))
		for {
			if _, err := nc.Write(b); err != nil {
				return
			}
		}
	}()
	return ended
}

// TestHostileSockets: what can be done to a gateway before it knows who one is, and
// below its protocol.
func TestHostileSockets(t *testing.T) {
	const perAddress = 40
	d := startAll(t, counts{1, 1, 1, 1, 1, 1}, func(c *system.Config) {
		s := &c.Settings
		s.ExemptAddresses = []string{"none"}
		s.AddressConnections, s.AddressConnectsPerSecond = perAddress, -1
		s.AddressFailuresPerSecond, s.AddressFailureBurst = 1, 30
		s.HandshakeTimeout, s.IdleTimeout = system.Duration(2*time.Second), system.Duration(3*time.Second)
	})
	d.provision(200, 1, nil)
	people := d.chat(1, 2)
	people.served()
	before := heap()
	t.Run("half a handshake", func(t *testing.T) { testHalfHandshakes(t, d.in2(t), people, perAddress) })
	t.Run("half a frame", func(t *testing.T) { testHalfFrames(t, d.in2(t), people) })
	t.Run("frames", func(t *testing.T) { testHostileFrames(t, d.in2(t), people) })
	t.Run("connections", func(t *testing.T) { testConnectionFlood(t, d.in2(t), people, perAddress) })
	t.Run("tokens", func(t *testing.T) { testHostileTokens(t, d.in2(t), people) })
	t.Run("expiry", func(t *testing.T) { testExpiry(t, d.in2(t), people) })
	if grown := heap() - before; grown > 64 {
		t.Errorf("%d MiB more are alive than before", grown)
	}
}

// testHalfHandshakes: requests that never end take an address's own connections, and
// only for a while.
func testHalfHandshakes(t *testing.T, d *deployment, people *chat, perAddress int) {
	h := d.hostile("127.0.0.2")
	gateway := d.gateways()[0]
	var slow []net.Conn
	for range perAddress {
		slow = append(slow, h.raw(gateway, "GET "+wire.Path+" HTTP/1.1\r\nHost: x\r\nX-Slow: "))
	}
	// One more is turned away, unless the first of them are over by now.
	got := ended(t, h.raw(gateway, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	if !strings.HasPrefix(got, "HTTP/1.1 429 ") || !strings.Contains(got, "Retry-After: ") {
		if !strings.HasPrefix(got, "HTTP/1.1 404 ") {
			t.Errorf("over the limit: %q", got)
		}
		t.Log("the machine was too busy to open all of them in time")
	}
	people.served()
	for _, nc := range slow {
		if got := ended(t, nc); strings.Contains(got, " 101 ") {
			t.Errorf("half a request is answered with %q", got)
		}
	}
	d.eventually("the address may connect again", func() error {
		ws, resp, text := h.try(d.tokenOf(3, time.Hour))
		if ws == nil {
			return fmt.Errorf("%s: %s", resp.Status, text)
		}
		return ws.Close()
	})
}

// testHalfFrames: a frame that never ends is given up, however it drips.
func testHalfFrames(t *testing.T, d *deployment, people *chat) {
	h := d.hostile("127.0.0.3")
	header := []byte{0x82, 0xfe, 0xea, 0x60, 1, 2, 3, 4} // 60,000 bytes to come
	stop := make(chan struct{})
	var slow []*websocket.Conn
	var dripping []chan struct{}
	for user := uint64(20); user < 30; user++ {
		ws := h.login(user)
		nc := ws.NetConn()
		if _, err := nc.Write(append(header, 7)); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, ws)
		done := make(chan struct{})
		dripping = append(dripping, done)
		go func() {
			defer close(done)
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				if _, err := nc.Write([]byte{7}); err != nil {
					return
				}
			}
		}()
	}
	people.served()
	for _, ws := range slow {
		if code := closeCode(t, ws); code != wire.CloseIdle {
			t.Errorf("closed with %v, want %v", code, wire.CloseIdle)
		}
	}
	close(stop)
	for _, done := range dripping {
		<-done
	}
}

// testHostileFrames: each is refused with its code, and what it promises is neither
// waited for nor made room for.
func testHostileFrames(t *testing.T, d *deployment, people *chat) {
	h := d.hostile("127.0.0.4")
	mask := [4]byte{9, 8, 7, 6}
	fragment := func(opcode byte, p []byte) []byte {
		b := wire.AppendClientMessage(nil, opcode, p, mask)
		b[0] &^= 0x80 // more to come
		return b
	}
	compressed := wire.AppendClientMessage(nil, wire.OpBinary, []byte{0x62, 0x60, 0, 0}, mask)
	compressed[0] |= 0x40 // RSV1: permessage-deflate, which nobody agreed to
	for i, tc := range []struct {
		name        string
		first, then []byte
		want        wire.CloseCode
	}{
		{"a compressed frame", compressed, nil, wire.CloseBadFrame},
		{"a frame of 2^40 bytes", []byte{0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4}, make([]byte, 4096), wire.CloseTooLarge},
		{"a frame of 2^63 bytes", []byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, nil, wire.CloseBadFrame},
		{"fragments without an end", fragment(wire.OpBinary, make([]byte, 1000)), fragment(wire.OpContinuation, make([]byte, 1000)), wire.CloseTooLarge},
		{"empty fragments", fragment(wire.OpBinary, nil), bytes.Repeat(fragment(wire.OpContinuation, nil), 100), wire.CloseRate},
		{"pings", nil, bytes.Repeat(wire.AppendClientMessage(nil, wire.OpPing, make([]byte, 100), mask), 100), wire.CloseRate},
		{"pongs", nil, bytes.Repeat(wire.AppendClientMessage(nil, wire.OpPong, nil, mask), 100), wire.CloseRate},
		{"a frame without a mask", []byte{0x82, 0x02, 0x0a, 0x00}, nil, wire.CloseBadFrame},
		{"text where binary belongs", wire.AppendClientMessage(nil, wire.OpText, []byte("{}"), mask), nil, wire.CloseBadFrame},
		{"a message that is none", wire.AppendClientMessage(nil, wire.OpBinary, bytes.Repeat([]byte{0xff}, 1000), mask), nil, wire.CloseBadFrame},
		{"a length that is longer than the message", wire.AppendClientMessage(nil, wire.OpBinary, []byte{0x12, 0xff, 0xff, 0xff, 0xff, 0x07}, mask), nil, wire.CloseBadFrame},
		{"a second Sync", wire.AppendClientMessage(nil, wire.OpBinary, []byte{0x0a, 0x00}, mask), nil, wire.CloseBadFrame},
	} {
		ws := h.login(40 + uint64(i))
		nc := ws.NetConn()
		if _, err := nc.Write(tc.first); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		var done chan struct{}
		if tc.then != nil {
			done = pour(t, nc, tc.then)
		}
		if code := closeCode(t, ws); code != tc.want {
			t.Errorf("%s: closed with %v, want %v", tc.name, code, tc.want)
		}
		ws.Close()
		if done != nil {
			<-done
		}
	}
	people.served()
}

// testConnectionFlood: one address has as many connections as it may, of whomever.
func testConnectionFlood(t *testing.T, d *deployment, people *chat, perAddress int) {
	h := d.hostile("127.0.0.5")
	in := 0
	for i := range 2 * perAddress {
		ws, resp, text := h.try(d.tokenOf(100+uint64(i), time.Hour))
		switch {
		case ws != nil:
			in++
			if err := ws.WriteMessage(websocket.BinaryMessage, []byte{0x0a, 0x00}); err != nil {
				t.Fatal(err)
			}
			go func() { // answers pings, as who means to stay
				for {
					if _, _, err := ws.ReadMessage(); err != nil {
						return
					}
				}
			}()
		case resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(text, "address_connections"):
			t.Errorf("connection %d: %s, %v, %q", i, resp.Status, resp.Header, text)
		}
	}
	if in < perAddress || in > perAddress+perAddress/2 { // some may have been lost and made room
		t.Errorf("%d of one address were let in, want %d", in, perAddress)
	}
	people.served()
	newcomer := d.dial(3, 0)
	newcomer.awaitCurrent()
	newcomer.hangUp()
}

// testHostileTokens: what is signed by nobody, or not any more, lets nobody in, and
// who goes on trying is not listened to.
func testHostileTokens(t *testing.T, d *deployment, people *chat) {
	h := d.hostile("127.0.0.6")
	good := d.tokenOf(5, time.Hour)
	parts := strings.Split(good, ".")
	other := slices.Clone(d.key)
	other[0] ^= 1
	forged, err := other.Sign(wire.Claims{User: 5, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := d.key.Sign(wire.Claims{Admin: true, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	tokens := map[string]string{
		"none":                     "",
		"nonsense":                 "x.y.z",
		"another key":              forged,
		"expired":                  d.tokenOf(5, -time.Second),
		"alg none":                 "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0." + parts[1] + ".",
		"without its signature":    parts[0] + "." + parts[1] + ".",
		"of somebody else":         parts[0] + "." + strings.Split(d.tokenOf(6, time.Hour), ".")[1] + "." + parts[2],
		"of an administrator":      nobody,
		"longer than any":          good + strings.Repeat("A", 4096),
		"SQL":                      "' OR 1=1 --",
		"a signature cut short":    good[:len(good)-4],
		"with a NUL in the header": parts[0] + "%00." + parts[1] + "." + parts[2],
	}
	for name, token := range tokens {
		ws, resp, _ := h.try(token)
		if ws != nil || resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("token %s: %s", name, resp.Status)
		}
	}
	refused := false
	for range 200 {
		if _, resp, _ := h.try("x.y.z"); resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") != "" {
			refused = true
			break
		}
	}
	if !refused {
		t.Error("an address may try as many tokens as it likes")
	}
	people.served()
	d.hostile("127.0.0.7").login(5).Close()
}

// testExpiry: a connection lasts no longer than its token.
func testExpiry(t *testing.T, d *deployment, people *chat) {
	var ws *websocket.Conn
	d.eventually("a token that is about to expire is taken", func() error {
		var resp *http.Response
		if ws, resp, _ = d.hostile("127.0.0.8").try(d.tokenOf(7, 3*time.Second)); ws == nil {
			return errors.New(resp.Status)
		}
		return ws.WriteMessage(websocket.BinaryMessage, []byte{0x0a, 0x00})
	})
	if code := closeCode(t, ws); code != wire.CloseTokenExpired {
		t.Errorf("closed with %v, want %v", code, wire.CloseTokenExpired)
	}
	people.served()
}

// TestHostileUsers: what somebody can do who has a token.
func TestHostileUsers(t *testing.T) {
	const burst, groups = 50, 5
	d := startAll(t, counts{1, 1, 1, 2, 1, 1}, func(c *system.Config) {
		c.Settings.UserSendsPerSecond, c.Settings.UserSendBurst = 1, burst
		c.Settings.UserGroupsPerHour = groups
	})
	d.provision(30, 1, map[uint64][]uint64{900: {10, 11}})
	people := d.chat(1, 2)
	t.Run("sends", func(t *testing.T) { testSendFlood(t, d.in2(t), people, burst) })
	t.Run("groups", func(t *testing.T) { testGroupFlood(t, d.in2(t), people, groups) })
	t.Run("SQL", func(t *testing.T) { testSQLMetacharacters(t, d.in2(t), people) })
}

// testSendFlood: what is over a user's rate is refused with when to try again, and
// what was accepted of it arrives.
func testSendFlood(t *testing.T, d *deployment, people *chat, burst int) {
	victim := d.dial(4, 0)
	victim.awaitCurrent()
	ws := d.hostile("127.0.0.2").login(3)
	start := time.Now()
	const flood = 600
	var out []byte
	for seq := uint64(1); seq <= flood; seq++ {
		b, err := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{ClientMsgId: seq, User: 4, Seq: seq, Kind: wire.Kind_KIND_TEXT, Body: []byte("x")}}})
		if err != nil {
			t.Fatal(err)
		}
		out = wire.AppendClientMessage(out, wire.OpBinary, b, [4]byte{1, 2, 3, 4})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = ws.NetConn().Write(out)
	}()
	sent, limited, other := 0, 0, 0
	for sent+limited+other < flood {
		_, b, err := ws.ReadMessage()
		if err != nil {
			t.Fatalf("after %d accepted, %d limited, %d refused: %v", sent, limited, other, err)
		}
		f, err := wire.Proto.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		switch e := f.GetError(); {
		case f.GetSent() != nil:
			sent++
		case e.GetCode() == wire.Code_CODE_RATE_LIMITED && e.GetRetryAfterMs() > 0:
			limited++
		case e != nil:
			other++ // behind a gap: those that were in flight at once
		}
	}
	<-done
	most := burst + 2 + int(time.Since(start)/time.Second)
	if sent == 0 || sent > most || limited == 0 {
		t.Errorf("%d accepted of at most %d, %d limited, %d refused", sent, most, limited, other)
	}
	people.served()
	victim.await("what was accepted", func() bool { return len(victim.bodies(3, 0)) == sent })
	ws.Close()
}

// testGroupFlood: nobody makes more groups in an hour than they may.
func testGroupFlood(t *testing.T, d *deployment, people *chat, groups int) {
	greedy, modest := d.dial(5, 0), d.dial(6, 0)
	greedy.awaitCurrent()
	modest.awaitCurrent()
	made := 0
	for i := range 3 * groups {
		id, name := uint64(1000+i), fmt.Sprint("g", i)
		var res *wire.GroupResult
		greedy.do(&wire.Frame{Kind: &wire.Frame_GroupRequest{GroupRequest: &wire.GroupRequest{RequestId: id,
			Action: wire.GroupRequest_ACTION_CREATE, Users: []uint64{6}, Name: &name}}})
		greedy.await("an answer", func() bool { res = greedy.results[id]; return res != nil })
		switch {
		case res.Code == 0:
			made++
		case res.Code != wire.Code_CODE_RATE_LIMITED || res.RetryAfterMs == 0:
			t.Errorf("group %d: %v", i, res)
		}
	}
	if made != groups {
		t.Errorf("%d groups were made, want %d", made, groups)
	}
	modest.asked(wire.GroupRequest_ACTION_CREATE, 0, []uint64{5}, named("mine"))
	people.served()
}

// testSQLMetacharacters: a text is a text, in every field that has one.
func testSQLMetacharacters(t *testing.T, d *deployment, people *chat) {
	texts := []string{
		`'; DROP TABLE chat_group; --`, `" OR ""="`, `') OR ('1'='1`, "`; DELETE FROM chat_member; `", `\'; UPDATE chat_member SET admin=1; -- `,
		`%_?:name@x$1 /* */ #`, "' UNION SELECT token FROM inbox_devices --", "x' || (SELECT 1) || '", "привет ' 👋 \u0001 \n\t",
	}
	// Those of a client: a new one has to be tried here, too.
	var fields []string
	var collect func(m protoreflect.MessageDescriptor)
	collect = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			switch f := m.Fields().Get(i); {
			case f.Kind() == protoreflect.StringKind:
				fields = append(fields, string(f.FullName()))
			case f.Message() != nil && (m.Name() != "Frame" || f.Number() < 16): // above: those of servers
				collect(f.Message())
			}
		}
	}
	collect((&wire.Frame{}).ProtoReflect().Descriptor())
	for _, f := range fields {
		if !strings.HasSuffix(f, ".GroupRequest.name") && !strings.HasSuffix(f, ".GroupRequest.description") && !strings.HasSuffix(f, ".GroupRequest.icon") {
			t.Errorf("%s is sent by clients, and nothing hostile is tried in it", f)
		}
	}
	if len(fields) != 3 {
		t.Errorf("fields with text: %v", fields)
	}
	a := d.dial(10, 0)
	a.awaitCurrent()
	info := a.asked(wire.GroupRequest_ACTION_CREATE, 0, []uint64{11}, named(texts[0]))
	for _, text := range texts {
		edit := func(r *wire.GroupRequest) { r.Name, r.Description, r.Icon = &text, &text, &text }
		a.asked(wire.GroupRequest_ACTION_UPDATE, info.Group, nil, edit)
		got := a.asked(wire.GroupRequest_ACTION_INFO, info.Group, nil)
		if got.Name != text || got.Description != text || got.Icon != text || len(got.Members) != 2 {
			t.Errorf("%q came back as %v", text, got)
		}
	}
	// Those of the provisioning API: the token of a push and the name of a group.
	tokens := map[uint64]string{}
	for i, text := range texts {
		tokens[12+uint64(i)] = text
	}
	d.provisionTokens(tokens)
	if got := a.asked(wire.GroupRequest_ACTION_INFO, 900, nil); got.Size != 2 {
		t.Errorf("another group has become %v", got)
	}
	b := d.dial(11, 0)
	b.awaitCurrent()
	a.send(group(900), texts[0])
	b.awaitBodies(10, 900, texts[0])
	for i, text := range texts {
		a.send(direct(12+uint64(i)), text)
	}
	a.awaitSent()
	for _, text := range texts {
		d.in.provider.await(t, text)
	}
	people.served()
}
