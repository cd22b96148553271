package gateway

import (
	"testing"
	"time"

	"throng/system/wire"
)

// FuzzRead gives the reader any bytes, in two pieces. Whatever they are, it
// must not panic, must keep no more than a frame's worth of them, and must
// answer with whole WebSocket messages.
func FuzzRead(f *testing.F) {
	g, err := New(Config{ID: "fuzz", Key: testKey(), Messages: []string{"127.0.0.1:1"}, Inboxes: []string{"127.0.0.1:1"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(g.hangUp)
	masked := func(op byte, p []byte) []byte { return wire.AppendClientMessage(nil, op, p, [4]byte{1, 2, 3, 4}) }
	sync := masked(wire.OpBinary, []byte{0x0a, 0x00})
	f.Add(sync, masked(wire.OpBinary, []byte{0x42, 0x02, 0x08, 0x2a}), false)
	f.Add(append(sync, masked(wire.OpPing, []byte("x"))...), masked(wire.OpClose, []byte{3, 0xe8}), false)
	f.Add(masked(wire.OpText, []byte(`{"sync":{}}`)), masked(wire.OpText, []byte(`{"ping":{"nonce":"1"}}`)), true)
	f.Add([]byte{0x02, 0x80, 0, 0, 0, 0}, []byte{0x80, 0x82, 0, 0, 0, 0, 0x0a, 0x00}, false)
	f.Add([]byte{0x82, 0xff, 0, 0, 0, 0, 0, 1, 0x18, 0, 0, 0, 0, 0}, []byte{0x89, 0x7e, 0, 126}, false)
	f.Fuzz(func(t *testing.T, first, second []byte, asJSON bool) {
		format := wire.Proto
		if asJSON {
			format = wire.JSON
		}
		out := &page{}
		c := g.newConn()
		c.sock = out
		if !g.admit(c, format, wire.Claims{User: 1}, ticket{user: g.guard.login(1)}) {
			t.Fatal("not admitted")
		}
		for _, b := range [][]byte{first, second} {
			c.consume(b, time.Second)
			if n := len(c.in) + len(c.msg); n > 2*wire.MaxFrameBytes+14 {
				t.Fatalf("keeps %d bytes", n)
			}
		}
		c.close(wire.CloseInternal)
		c.finish()
		checkMessages(t, out.written)
	})
}

// page is a socket that keeps what is written.
type page struct{ written []byte }

func (p *page) write(b []byte) (int, error) { p.written = append(p.written, b...); return len(b), nil }
func (p *page) closeWrite()                 {}
func (p *page) abort()                      {}
func (p *page) close()                      {}

// checkMessages reads what the gateway wrote.
func checkMessages(t *testing.T, b []byte) {
	t.Helper()
	for len(b) > 0 {
		h, used, err := wire.ParseHeader(b)
		if err != nil || used == 0 || h.Masked || !h.Fin || len(b) < used+h.Len {
			t.Fatalf("the gateway wrote %x: %v", b, err)
		}
		b = b[used+h.Len:]
	}
}
