package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bothWays runs a test over a socket that is polled and over one that a
// goroutine reads.
func bothWays(t *testing.T, test func(t *testing.T, secure bool)) {
	t.Run("ws", func(t *testing.T) { test(t, false) })
	t.Run("wss", func(t *testing.T) { test(t, true) })
}

// server serves one WebSocket at a time with f, and returns what dials it.
func server(t *testing.T, secure bool, f func(ws *websocket.Conn)) (*Dialer, string) {
	up := websocket.Upgrader{Subprotocols: []string{wire.SubprotocolProto}}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			t.Errorf("upgrade: %v", err)
			return
		}
		defer ws.Close()
		f(ws)
	}))
	d := &Dialer{}
	if secure {
		s.StartTLS()
		roots := x509.NewCertPool()
		roots.AddCert(s.Certificate())
		d.TLS = &tls.Config{RootCAs: roots}
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return d, "ws" + strings.TrimPrefix(s.URL, "http")
}

// dial connects and starts.
func dial(t *testing.T, d *Dialer, url string, h Handler) *Conn {
	t.Helper()
	c, err := d.Dial(t.Context(), url, "good", h)
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
	return c
}

// frames collects what a connection brings.
type frames struct {
	got    chan *wire.Frame
	closed chan error
}

func newFrames() *frames { return &frames{make(chan *wire.Frame, 100), make(chan error, 1)} }

func (f *frames) Frame(_ *Conn, x *wire.Frame) { f.got <- x }
func (f *frames) Closed(_ *Conn, err error)    { f.closed <- err }

func wait[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s within 20 s", what)
		panic("unreachable")
	}
}

func deliver(t *testing.T, seq uint64) []byte {
	t.Helper()
	f := &wire.Frame{Kind: &wire.Frame_Deliver{Deliver: &wire.Deliver{From: 7, Seq: seq}}}
	b, err := f.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readAcks reads until the end what each Ack says.
func readAcks(t *testing.T, ws *websocket.Conn, acks chan<- uint64) {
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return
		}
		var f wire.Frame
		if err := f.UnmarshalVT(b); err != nil {
			t.Error(err)
			return
		}
		acks <- f.GetAck().GetUpto()
	}
}

// A client with a grid takes together what comes within a step of it, and what
// comes after a pause at once.
func TestGrid(t *testing.T) {
	const more = 10
	acks := make(chan uint64, 2*more)
	said := make(chan bool)
	d, url := server(t, false, func(ws *websocket.Conn) {
		go func() {
			tick := time.NewTicker(3 * time.Millisecond)
			defer tick.Stop()
			for seq := uint64(1); seq <= 1+more; seq++ {
				if seq == 2 {
					<-said // the first is acknowledged: it came after a pause
				}
				if err := ws.WriteMessage(websocket.BinaryMessage, deliver(t, seq)); err != nil {
					t.Error(err)
				}
				<-tick.C
			}
		}()
		readAcks(t, ws, acks)
	})
	d.Grid = Grid{Epoch: time.Now(), Step: 200 * time.Millisecond}
	h := newFrames()
	c := dial(t, d, url, h)
	if got := wait(t, acks, "acknowledgement"); got != 1 {
		t.Errorf("the first Ack says %d deliveries, want 1", got)
	}
	close(said)
	n := 0
	for last := uint64(0); last < 1+more; n++ {
		last = wait(t, acks, "acknowledgement")
	}
	if n > more/2 {
		t.Errorf("%d deliveries were acknowledged in %d pieces: each woke the client", more, n)
	}
	c.Abort()
	wait(t, h.closed, "Closed")
}

func TestGridAfter(t *testing.T) {
	for _, x := range []struct{ step, at, want time.Duration }{{0, 7, 7}, {5, 0, 0}, {5, 1, 5}, {5, 5, 5}, {5, 6, 10}} {
		if got := (Grid{Step: x.step}).After(x.at); got != x.want {
			t.Errorf("after %d on a grid of %d comes %d, want %d", x.at, x.step, got, x.want)
		}
	}
}

// What arrives in one piece is acknowledged by one frame, and before the
// client waits for more.
func TestAcknowledgesTogetherBeforeBlocking(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		acks := make(chan uint64, 10)
		d, url := server(t, secure, func(ws *websocket.Conn) {
			var piece []byte
			for seq := range uint64(3) {
				b := deliver(t, seq+1)
				piece = append(piece, 0x82, byte(len(b)))
				piece = append(piece, b...)
			}
			if _, err := ws.NetConn().Write(piece); err != nil {
				t.Error(err)
			}
			readAcks(t, ws, acks)
		})
		h := newFrames()
		c := dial(t, d, url, h)
		if got := wait(t, acks, "acknowledgement"); got != 3 {
			t.Errorf("first Ack says %d deliveries, want 3 at once", got)
		}
		for seq := range uint64(3) {
			if got := wait(t, h.got, "frame").GetDeliver().GetSeq(); got != seq+1 {
				t.Errorf("delivery %d has seq %d", seq+1, got)
			}
		}
		c.Close()
		if err := wait(t, h.closed, "Closed"); err != nil {
			t.Errorf("Closed after Close here: %v, want nil", err)
		}
	})
}

// Messages come in whatever pieces: a byte at a time, fragmented with a ping
// inside, larger than any buffer.
func TestMessagesInPieces(t *testing.T) {
	large := &wire.Frame{Kind: &wire.Frame_Deliver{Deliver: &wire.Deliver{From: 7, Seq: 3, Body: make([]byte, 3*64<<10)}}}
	body, err := large.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	bothWays(t, func(t *testing.T, secure bool) {
		d, url := server(t, secure, func(ws *websocket.Conn) {
			pongs := make(chan string, 2)
			ws.SetPongHandler(func(data string) error { pongs <- data; return nil })
			go func() {
				one := deliver(t, 1)
				for _, b := range append([]byte{0x82, byte(len(one))}, one...) {
					_, _ = ws.NetConn().Write([]byte{b})
				}
				two := deliver(t, 2)
				pieces := append([]byte{0x02, 1, two[0], 0x89, 2, 'h', 'i', 0x80, byte(len(two) - 1)}, two[1:]...)
				_, _ = ws.NetConn().Write(pieces)
				if got := <-pongs; got != "hi" {
					t.Errorf("the ping inside a message was answered with %q", got)
				}
				_ = ws.WriteControl(websocket.PingMessage, []byte("alone"), time.Now().Add(time.Second))
				if got := <-pongs; got != "alone" {
					t.Errorf("a ping with no message behind it was answered with %q", got)
				}
				_ = ws.WriteMessage(websocket.BinaryMessage, body)
			}()
			for {
				if _, _, err := ws.ReadMessage(); err != nil {
					return
				}
			}
		})
		h := newFrames()
		c := dial(t, d, url, h)
		for seq := range uint64(3) {
			if got := wait(t, h.got, "frame").GetDeliver(); got.GetSeq() != seq+1 || seq == 2 && len(got.GetBody()) != 3*64<<10 {
				t.Errorf("delivery %d has seq %d, %d bytes", seq+1, got.GetSeq(), len(got.GetBody()))
			}
		}
		c.Close()
		if err := wait(t, h.closed, "Closed"); err != nil {
			t.Errorf("Closed after Close here: %v, want nil", err)
		}
	})
}

func TestServerSaysWhyItCloses(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		// At once: the frame is there before the client has started to read.
		d, url := server(t, secure, func(ws *websocket.Conn) {
			msg := websocket.FormatCloseMessage(int(wire.CloseDraining), "draining")
			if err := ws.WriteControl(websocket.CloseMessage, msg, time.Now().Add(time.Second)); err != nil {
				t.Error(err)
			}
		})
		h := newFrames()
		dial(t, d, url, h)
		var ce *websocket.CloseError
		if err := wait(t, h.closed, "Closed"); !errors.As(err, &ce) || ce.Code != int(wire.CloseDraining) {
			t.Errorf("Closed with %v, want close code %d", err, wire.CloseDraining)
		}
	})
}

func TestServerGoesWithoutAWord(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		d, url := server(t, secure, func(ws *websocket.Conn) { _ = ws.NetConn().Close() })
		h := newFrames()
		dial(t, d, url, h)
		if err := wait(t, h.closed, "Closed"); err == nil {
			t.Error("Closed with nil, which says that the connection was ended here")
		}
	})
}

func TestAbortEndsTheConnection(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		d, url := server(t, secure, func(ws *websocket.Conn) { _, _, _ = ws.ReadMessage() })
		h := newFrames()
		dial(t, d, url, h).Abort()
		if err := wait(t, h.closed, "Closed"); err != nil {
			t.Errorf("Closed after Abort here: %v, want nil", err)
		}
	})
}

// What a server does not read waits in the client, up to a bound, and then the
// connection ends; nobody waits for it.
func TestServerThatDoesNotRead(t *testing.T) {
	reading := make(chan struct{})
	d, url := server(t, false, func(*websocket.Conn) { <-reading })
	defer close(reading)
	h := newFrames()
	c := dial(t, d, url, h)
	f := &wire.Frame{Kind: &wire.Frame_Send{Send: &wire.Send{Body: make([]byte, 100<<10)}}}
	err := error(nil)
	for range 1000 { // 100 MB, far more than the kernel takes
		if err = c.Write(f); err != nil {
			break
		}
	}
	if !errors.Is(err, errStuck) {
		t.Errorf("writing without end gives %v, want %v", err, errStuck)
	}
	wait(t, h.closed, "Closed")
}

func TestRefusedUpgrade(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		d, url := server(t, secure, func(*websocket.Conn) {})
		_, err := d.Dial(t.Context(), url, "bad", newFrames())
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized || !strings.Contains(refused.Body, "who are you") {
			t.Errorf("dial with a bad token: %v, want status 401 and the server's words", err)
		}
	})
}

func TestNobodyListens(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &Dialer{Sources: LoopbackSources(0)}
	_ = ln.Close()
	if _, err := d.Dial(t.Context(), "ws://"+ln.Addr().String(), "good", newFrames()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial where nobody listens: %v, want connection refused", err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	d.HandshakeTimeout = 50 * time.Millisecond
	if _, err := d.Dial(t.Context(), "ws://"+silent.Addr().String(), "good", newFrames()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial where nobody answers: %v, want deadline exceeded", err)
	}
}
