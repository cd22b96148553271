package client

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server serves one WebSocket at a time with f.
func server(t *testing.T, f func(ws *websocket.Conn)) string {
	up := websocket.Upgrader{Subprotocols: []string{wire.SubprotocolProto}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
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

// What arrives in one piece is acknowledged by one frame, and before the
// client waits for more.
func TestAcknowledgesTogetherBeforeBlocking(t *testing.T) {
	acks := make(chan uint64, 10)
	url := server(t, func(ws *websocket.Conn) {
		var piece []byte
		for seq := range uint64(3) {
			b := deliver(t, seq+1)
			piece = append(piece, 0x82, byte(len(b)))
			piece = append(piece, b...)
		}
		if _, err := ws.NetConn().Write(piece); err != nil {
			t.Error(err)
		}
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
	})
	h := newFrames()
	c, err := new(Dialer).Dial(context.Background(), url, "good", h)
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
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
}

func TestServerSaysWhyItCloses(t *testing.T) {
	url := server(t, func(ws *websocket.Conn) {
		msg := websocket.FormatCloseMessage(int(wire.CloseDraining), "draining")
		if err := ws.WriteControl(websocket.CloseMessage, msg, time.Now().Add(time.Second)); err != nil {
			t.Error(err)
		}
		_, _, _ = ws.ReadMessage()
	})
	h := newFrames()
	c, err := new(Dialer).Dial(context.Background(), url, "good", h)
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
	var ce *websocket.CloseError
	if err := wait(t, h.closed, "Closed"); !errors.As(err, &ce) || ce.Code != int(wire.CloseDraining) {
		t.Errorf("Closed with %v, want close code %d", err, wire.CloseDraining)
	}
}

func TestRefusedUpgrade(t *testing.T) {
	url := server(t, func(*websocket.Conn) {})
	_, err := new(Dialer).Dial(context.Background(), url, "bad", newFrames())
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized || !strings.Contains(refused.Body, "who are you") {
		t.Errorf("dial with a bad token: %v, want status 401 and the server's words", err)
	}
}
