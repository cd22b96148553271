package gateway

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

func ackOf(upto uint64) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_Ack{Ack: &wire.Ack{Upto: upto}}}
}

func sendOf(id, to, seq uint64, body string) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{ClientMsgId: id, User: to, Seq: seq, Body: []byte(body)}}}
}

func TestSendIsAnswered(t *testing.T) {
	for _, format := range []wire.Format{wire.Proto, wire.JSON} {
		t.Run(format.Subprotocol(), func(t *testing.T) {
			r := newRig(t, nil)
			c, _ := r.login(1, 2, format)
			c.send(sendOf(41, 5, 1, "hi"))
			if s := c.recv().GetSent(); s.GetClientMsgId() != 41 || len(s.GetMessageId()) != 16 {
				t.Fatalf("answer %v", s)
			}
			it := <-r.message.got
			if it.User != 1 || it.Device != 2 || string(it.Send.Body) != "hi" {
				t.Fatalf("submitted %v", it)
			}
			// Refused by the gateway itself: the connection goes on.
			c.send(&wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{ClientMsgId: 42, Seq: 1}}})
			if e := c.recv().GetError(); e.GetCode() != wire.Code_CODE_INVALID || e.GetClientMsgId() != 42 {
				t.Fatalf("answer %v", e)
			}
			c.send(&wire.Frame{Kind: &wire.Frame_Ping{Ping: &wire.Ping{Nonce: 99}}})
			if p := c.recv().GetPong(); p.GetNonce() != 99 {
				t.Fatalf("pong %v", p)
			}
		})
	}
}

func TestDeliverIsSharedAndAcknowledged(t *testing.T) {
	r := newRig(t, nil)
	a, oa := r.login(1, 0, wire.Proto)
	b, ob := r.login(2, 0, wire.JSON)
	// Many frames for two connections, one of them gone.
	gone, og := r.login(3, 0, wire.Proto)
	gone.ws.Close()
	if c := next[*rpc.SessionClose](t, r.inbox.events); c.Conn != og.Conn || c.User != 3 {
		t.Fatalf("close %v", c)
	}
	const n = 50
	batch := &rpc.OwnerBatch{}
	for i := range n {
		batch.Out = append(batch.Out, deliverTo(t, uint64(i+1), fmt.Sprint("m", i), oa.Conn, og.Conn, ob.Conn))
	}
	current, err := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_Current{Current: &wire.Current{Delivered: n}}})
	if err != nil {
		t.Fatal(err)
	}
	batch.Out = append(batch.Out, &rpc.Outbound{Frame: current, Conns: []uint64{oa.Conn, ob.Conn}})
	writes := r.metric("throng_ws_writes_total")
	r.inbox.send(t, batch)
	for _, c := range []*client{a, b} {
		for i := range n {
			d := c.recv().GetDeliver()
			if d.GetSeq() != uint64(i+1) || string(d.GetBody()) != fmt.Sprint("m", i) {
				t.Fatalf("deliver %d: %v", i, d)
			}
		}
		if cur := c.recv().GetCurrent(); cur.GetDelivered() != n {
			t.Fatalf("current %v", cur)
		}
	}
	// 102 frames in two writes: a backlog leaves in one. The client can have a
	// frame before the gateway has counted its write.
	r.until("two writes", func() bool { return r.metric("throng_ws_writes_total")-writes >= 2 })
	if w := r.metric("throng_ws_writes_total") - writes; w != 2 {
		t.Errorf("%v writes for the batch, want 2", w)
	}
	a.send(ackOf(30))
	if k := next[*rpc.SessionAck](t, r.inbox.events); k.Conn != oa.Conn || k.Upto != 30 || k.User != 1 {
		t.Fatalf("ack %v", k)
	}
	a.send(ackOf(20)) // an old one says nothing new
	a.send(ackOf(n))
	if k := next[*rpc.SessionAck](t, r.inbox.events); k.Upto != n {
		t.Fatalf("ack %v", k)
	}
	b.send(&wire.Frame{Kind: &wire.Frame_Read{Read: &wire.Read{From: 9, FromDevice: 4, UptoSeq: 50}}})
	if u := next[*rpc.ReceiptUpdate](t, r.inbox.events); u.To != 9 || u.ToDevice != 4 || u.Peer != 2 || u.ReadSeq != 50 {
		t.Fatalf("receipt %v", u)
	}
	// More than was delivered is no mistake an honest client makes.
	b.send(ackOf(n + 1))
	if code := b.closed(); code != wire.CloseBadFrame {
		t.Fatalf("closed with %v", code)
	}
}

func TestOwnerRestart(t *testing.T) {
	r := newRig(t, nil)
	c, open := r.login(1, 0, wire.Proto)
	r.inbox.send(t, &rpc.OwnerBatch{Out: []*rpc.Outbound{deliverTo(t, 1, "a", open.Conn), deliverTo(t, 2, "b", open.Conn)}})
	c.recv()
	c.recv()
	c.send(ackOf(1))
	next[*rpc.SessionAck](t, r.inbox.events)

	r.inbox.srv.Stop()
	r.inbox = startInbox(t, r.inbox.addr, 2)
	again := next[*rpc.SessionOpen](t, r.inbox.events)
	if again.Conn != open.Conn || again.User != 1 || again.Epoch != 1<<28+1 {
		t.Fatalf("opened again as %v", again)
	}
	// Late, of the first stream: the new owner has not delivered anything yet.
	c.send(ackOf(2))
	current, err := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_Current{Current: &wire.Current{Delivered: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	r.inbox.send(t, &rpc.OwnerBatch{Out: []*rpc.Outbound{deliverTo(t, 2, "b", open.Conn),
		{Frame: current, Conns: []uint64{open.Conn}}}})
	if d := c.recv().GetDeliver(); d.GetSeq() != 2 {
		t.Fatalf("deliver %v", d)
	}
	if cur := c.recv().GetCurrent(); cur.GetDelivered() != 3 { // of this connection
		t.Fatalf("current %v", cur)
	}
	c.send(ackOf(3))
	if k := next[*rpc.SessionAck](t, r.inbox.events); k.Upto != 1 {
		t.Fatalf("ack %v, want 1 since the session was opened again", k)
	}
	r.until("ready again", func() bool { return r.gw.Ready() == nil })
}

func TestKick(t *testing.T) {
	r := newRig(t, nil)
	c, open := r.login(1, 0, wire.Proto)
	r.inbox.send(t, &rpc.OwnerBatch{Kicks: []*rpc.Kick{{Conn: open.Conn, CloseCode: uint32(wire.CloseReplaced)}}})
	if code := c.closed(); code != wire.CloseReplaced {
		t.Fatalf("closed with %v", code)
	}
	next[*rpc.SessionClose](t, r.inbox.events)
	r.until("connection gone", func() bool { return r.metric("throng_ws_closed_total", "reason=replaced") == 1 })
	// The slot is used again, under another id.
	_, again := r.login(1, 0, wire.Proto)
	if again.Conn == open.Conn {
		t.Fatal("a conn id was used twice")
	}
}

func TestMessageServiceLost(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.Limits.InFlight = 3 })
	r.message.answer = nil // before the first send
	c, _ := r.login(1, 0, wire.Proto)
	for i := range 4 {
		c.send(sendOf(uint64(i+1), 2, uint64(i+1), "x"))
	}
	if e := c.recv().GetError(); e.GetCode() != wire.Code_CODE_RATE_LIMITED || e.GetClientMsgId() != 4 || e.GetRetryAfterMs() == 0 {
		t.Fatalf("answer %v", e)
	}
	for range 3 {
		<-r.message.got
	}
	r.message.srv.Stop()
	retry := map[uint64]bool{}
	for range 3 {
		e := c.recv().GetError()
		if e.GetCode() != wire.Code_CODE_RETRY {
			t.Fatalf("answer %v", e)
		}
		retry[e.GetClientMsgId()] = true
	}
	if len(retry) != 3 {
		t.Fatalf("told to retry %v", retry)
	}
	c.send(sendOf(9, 2, 1, "x"))
	if e := c.recv().GetError(); e.GetCode() != wire.Code_CODE_RETRY || e.GetClientMsgId() != 9 {
		t.Fatalf("answer while there is no message service: %v", e)
	}
	r.message = startMessage(t, r.message.addr, accept)
	r.until("ready again", func() bool { return r.gw.Ready() == nil })
	c.send(sendOf(10, 2, 1, "x"))
	if s := c.recv().GetSent(); s.GetClientMsgId() != 10 {
		t.Fatalf("answer %v", s)
	}
}

func TestSlowClientCostsOnlyItself(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.Limits.SendBufferBytes = 16 << 10 })
	// A client that reads nothing after it has logged in.
	slow, os := r.login(1, 0, wire.Proto)
	if err := tcpOf(slow).SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	fast, of := r.login(2, 0, wire.Proto)
	body := strings.Repeat("x", 32<<10)
	closed := false
	for i := uint64(1); i <= 200; i++ {
		r.inbox.send(t, &rpc.OwnerBatch{Out: []*rpc.Outbound{deliverTo(t, i, body, os.Conn, of.Conn)}})
		if d := fast.recv().GetDeliver(); d.GetSeq() != i {
			t.Fatalf("deliver %v, want %d", d.GetSeq(), i)
		}
		fast.send(ackOf(i))
		if closed = r.metric("throng_ws_closed_total", "reason=slow_consumer") == 1; closed {
			break
		}
	}
	if !closed {
		t.Fatal("6 MiB went to a client that reads nothing")
	}
	if k := next[*rpc.SessionClose](t, r.inbox.events); k.Conn != os.Conn {
		t.Fatalf("close %v", k)
	}
}

// A client that reads slowly, but reads, gets everything in order.
func TestBacklogKeepsOrder(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Limits.SendBufferBytes = 4 << 10
		cfg.Limits.PendingBytes = 64 << 20
	})
	c, o := r.login(1, 0, wire.Proto)
	const n = 400
	body := strings.Repeat("y", 20<<10)
	for i := uint64(1); i <= n; i++ {
		r.inbox.send(t, &rpc.OwnerBatch{Out: []*rpc.Outbound{deliverTo(t, i, body, o.Conn)}})
	}
	r.until("the socket to be full", func() bool { return r.metric("throng_ws_blocked") == 1 })
	for i := uint64(1); i <= n; i++ {
		d := c.recv().GetDeliver()
		if d.GetSeq() != i || len(d.GetBody()) != len(body) {
			t.Fatalf("deliver %d with %d bytes, want %d", d.GetSeq(), len(d.GetBody()), i)
		}
		c.send(&wire.Frame{Kind: &wire.Frame_Read{Read: &wire.Read{From: 9, UptoSeq: i}}})
	}
	r.until("the backlog to be gone", func() bool { return r.metric("throng_ws_blocked") == 0 })
}

func TestHostileClients(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Limits.FrameBurst = 20
		cfg.Limits.FramesPerSecond = 1
	})
	honest, open := r.login(100, 0, wire.Proto)
	raw := func(b ...byte) func(*client) {
		return func(c *client) {
			if _, err := c.ws.NetConn().Write(b); err != nil {
				t.Error(err)
			}
		}
	}
	sync := &wire.Frame{Kind: &wire.Frame_Sync{Sync: &wire.Sync{}}}
	for _, tc := range []struct {
		name string
		do   func(*client)
		want wire.CloseCode
	}{
		{"not a frame", func(c *client) { c.ws.WriteMessage(websocket.BinaryMessage, []byte{0xff, 1, 2}) }, wire.CloseBadFrame},
		{"text on the binary protocol", func(c *client) { c.ws.WriteMessage(websocket.TextMessage, []byte("{}")) }, wire.CloseBadFrame},
		{"empty frame", func(c *client) { c.ws.WriteMessage(websocket.BinaryMessage, nil) }, wire.CloseBadFrame},
		{"server frame", func(c *client) { c.send(&wire.Frame{Kind: &wire.Frame_Pong{Pong: &wire.Pong{}}}) }, wire.CloseBadFrame},
		{"no sync first", func(c *client) { c.send(ackOf(0)) }, wire.CloseBadFrame},
		{"sync twice", func(c *client) { c.send(sync); c.send(sync) }, wire.CloseBadFrame},
		{"no mask", raw(0x82, 0x02, 1, 1), wire.CloseBadFrame},
		{"reserved bits", raw(0xf2, 0x80, 0, 0, 0, 0), wire.CloseBadFrame},
		{"reserved opcode", raw(0x83, 0x80, 0, 0, 0, 0), wire.CloseBadFrame},
		{"continuation of nothing", raw(0x80, 0x80, 0, 0, 0, 0), wire.CloseBadFrame},
		{"huge length", raw(0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0), wire.CloseTooLarge},
		{"long control frame", raw(0x89, 0xfe, 1, 0, 0, 0, 0, 0), wire.CloseBadFrame},
		{"too large", func(c *client) {
			c.send(sync)
			c.ws.WriteMessage(websocket.BinaryMessage, make([]byte, wire.MaxFrameBytes+1))
		}, wire.CloseTooLarge},
		{"too large, with what looks like a close in it", func(c *client) {
			raw(0x82, 0xff, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0)(c)
			like := append([]byte{0x88, 0x80, 0, 0, 0, 0}, bytes.Repeat([]byte{0xff}, 4096)...)
			for range 100 { // the client's system sends what it may, whatever has come meanwhile
				if _, err := c.ws.NetConn().Write(like); err != nil {
					return
				}
			}
		}, wire.CloseTooLarge},
		{"too many frames", func(c *client) {
			c.send(sync)
			for range 40 {
				if c.ws.WriteMessage(websocket.PingMessage, nil) != nil {
					return
				}
			}
		}, wire.CloseRate},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := r.dial(1, 0, wire.Proto)
			tc.do(c)
			if code := c.closed(); code != tc.want {
				t.Errorf("closed with %v, want %v", code, tc.want)
			}
		})
	}
	r.inbox.send(t, &rpc.OwnerBatch{Out: []*rpc.Outbound{deliverTo(t, 1, "still here", open.Conn)}})
	if d := honest.recv().GetDeliver(); d.GetSeq() != 1 {
		t.Fatalf("deliver %v", d)
	}
	r.until("only the honest one", func() bool { return r.metric("throng_ws_connections") == 1 })
}

// Fragments, control frames between them, frames cut anywhere: the client's
// packets may fall as they like.
func TestFragmentsAndSplits(t *testing.T) {
	r := newRig(t, nil)
	c, _ := r.login(1, 0, wire.Proto)
	payload, err := wire.Proto.Encode(sendOf(5, 2, 1, strings.Repeat("z", 60_000)))
	if err != nil {
		t.Fatal(err)
	}
	frag := func(first byte, p []byte) []byte {
		b := wire.AppendClientMessage(nil, wire.OpBinary, p, [4]byte{1, 2, 3, 4})
		b[0] = first
		return b
	}
	var stream []byte
	stream = append(stream, frag(0x02, payload[:10])...)
	stream = append(stream, wire.AppendClientMessage(nil, wire.OpPing, []byte("p"), [4]byte{9})...)
	stream = append(stream, frag(0x00, nil)...)
	stream = append(stream, frag(0x00, payload[10:30_000])...)
	stream = append(stream, frag(0x80, payload[30_000:])...)
	pong := make(chan string, 1)
	c.ws.SetPongHandler(func(s string) error { pong <- s; return nil })
	for i, n := 0, 1; i < len(stream); n = n*2 + 1 {
		end := min(i+n%9000+1, len(stream))
		if _, err := c.ws.NetConn().Write(stream[i:end]); err != nil {
			t.Fatal(err)
		}
		i = end
	}
	if s := c.recv().GetSent(); s.GetClientMsgId() != 5 {
		t.Fatalf("answer %v", s)
	}
	if it := <-r.message.got; len(it.Send.Body) != 60_000 {
		t.Fatalf("%d bytes arrived", len(it.Send.Body))
	}
	if p := <-pong; p != "p" {
		t.Fatalf("pong %q", p)
	}
}

func TestUpgradeRefused(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.AllowedOrigins = []string{"https://chat.example"} })
	expired, err := testKey().Sign(wire.Claims{User: 1, Expires: time.Now().Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	good := "Bearer " + token(t, 1, 0)
	for _, tc := range []struct {
		name, auth, proto, origin, query string
		want                             int
	}{
		{"fine", good, wire.SubprotocolProto, "", "", http.StatusSwitchingProtocols},
		{"token in the query", "", wire.SubprotocolJSON, "https://chat.example", "?access_token=" + token(t, 1, 0), http.StatusSwitchingProtocols},
		{"no subprotocol", good, "", "", "", http.StatusBadRequest},
		{"other subprotocol", good, "mqtt", "", "", http.StatusBadRequest},
		{"no token", "", wire.SubprotocolProto, "", "", http.StatusUnauthorized},
		{"bad token", good + "x", wire.SubprotocolProto, "", "", http.StatusUnauthorized},
		{"expired token", "Bearer " + expired, wire.SubprotocolProto, "", "", http.StatusUnauthorized},
		{"other origin", good, wire.SubprotocolProto, "https://evil.example", "", http.StatusForbidden},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := http.Header{}
			if tc.auth != "" {
				h.Set("Authorization", tc.auth)
			}
			if tc.origin != "" {
				h.Set("Origin", tc.origin)
			}
			d := dialer()
			if tc.proto != "" {
				d.Subprotocols = []string{tc.proto}
			}
			ws, resp, err := d.Dial(r.url+tc.query, h)
			if err == nil {
				defer ws.Close()
				if ws.Subprotocol() != tc.proto {
					t.Errorf("subprotocol %q", ws.Subprotocol())
				}
			}
			if resp == nil || resp.StatusCode != tc.want {
				t.Fatalf("answer %v, %v, want status %d", resp, err, tc.want)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		// All at once, and long enough for a busy machine to be in time.
		cfg.Limits.SyncTimeout = time.Second
		cfg.Limits.IdleTimeout = 3 * time.Second
		cfg.Limits.HandshakeTimeout = time.Second
	})
	unsaid := r.dial(1, 0, wire.Proto)
	silent, _ := r.login(2, 0, wire.Proto)
	silent.ws.SetPingHandler(func(string) error { return nil })
	// One that answers pings stays: it reads for longer than the idle time-out.
	alive, open := r.login(3, 0, wire.Proto)
	pings := make(chan struct{}, 100)
	answer := alive.ws.PingHandler()
	alive.ws.SetPingHandler(func(s string) error { pings <- struct{}{}; return answer(s) })
	got := make(chan *wire.Frame, 1)
	go func() {
		f, _ := alive.read()
		got <- f
	}()
	for range 4 {
		select {
		case <-pings:
		case f := <-got:
			t.Fatalf("answers pings: got %v, or was closed", f)
		}
	}
	r.inbox.send(t, &rpc.OwnerBatch{Out: []*rpc.Outbound{deliverTo(t, 1, "x", open.Conn)}})
	if f := <-got; f.GetDeliver().GetSeq() != 1 {
		t.Errorf("answers pings: got %v", f)
	}
	if code := unsaid.closed(); code != wire.CloseNoSync {
		t.Errorf("without sync: closed with %v", code)
	}
	if code := silent.closed(); code != wire.CloseIdle {
		t.Errorf("silent: closed with %v", code)
	}
	// Slow-loris: a request that dribbles.
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: x\r\n", wire.Path)
	if err := nc.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 1024); err == nil; {
		_, err = nc.Read(buf)
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Error("a dribbling request was not cut off")
	}
}

func TestDrain(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.Limits.DrainTimeout = 300 * time.Millisecond })
	leaves, _ := r.login(1, 0, wire.Proto)
	stays, _ := r.login(2, 0, wire.JSON)
	r.stop()
	if d := leaves.recv().GetDrain(); d.GetJitterMs() != 3000 {
		t.Fatalf("drain %v", d)
	}
	leaves.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1001, ""), time.Now().Add(time.Second))
	if code := leaves.closed(); code != 1001 {
		t.Errorf("the close was answered with %v", code)
	}
	if d := stays.recv().GetDrain(); d == nil {
		t.Fatal("no drain")
	}
	if code := stays.closed(); code != wire.CloseDraining {
		t.Errorf("closed with %v", code)
	}
	for range 2 {
		next[*rpc.SessionClose](t, r.inbox.events)
	}
	if _, _, err := dialer().Dial(r.url, nil); err == nil {
		t.Error("a draining gateway took a connection")
	}
}
