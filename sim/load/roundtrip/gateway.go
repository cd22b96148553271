// Package roundtrip is the work by which generators of load are compared: users
// who each write one message a second to a gateway with nothing behind it. It
// has that gateway and plays the work with sim/load. The benchmark of sim/load
// and sim/cmd/peers use it; it may not import sim/target.
package roundtrip

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/gorilla/websocket"

	"throng/system/wire"
)

// FirstProbe is the lowest user that Counts leaves out: somebody who looks at
// the gateway from beside the load.
const FirstProbe = 1 << 32

// StatsPath answers with the Counts as JSON.
const StatsPath = "/counts"

// Counts is what the gateway has seen of users below FirstProbe.
type Counts struct {
	Senders   int   `json:"senders"`     // users who have written
	Answered  int64 `json:"answered"`    // sends
	ServeP50  int64 `json:"serve_us_50"` // from a send read to its answer written, µs
	ServeP99  int64 `json:"serve_us_99"`
	Connected int   `json:"connected"`
}

// Gateway answers every Send at once and hands it on to its user, if somebody else.
type Gateway struct {
	buffers  sync.Pool
	mu       sync.Mutex // what is below
	users    map[uint64]*user
	answered int64
	senders  int
	serve    *hdrhistogram.Histogram // µs
}

type user struct {
	id   uint64
	sent bool // under Gateway.mu

	mu sync.Mutex // writes
	ws *websocket.Conn
}

// NewGateway returns a gateway without users.
func NewGateway() *Gateway {
	return &Gateway{users: map[uint64]*user{}, serve: hdrhistogram.New(1, 60_000_000, 3)}
}

// ServeHTTP takes a user's socket, or answers with the Counts.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == StatsPath {
		_ = json.NewEncoder(w).Encode(g.counts())
		return
	}
	up := websocket.Upgrader{Subprotocols: []string{wire.SubprotocolProto}, ReadBufferSize: 512, WriteBufferSize: 512, WriteBufferPool: &g.buffers}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	id, _ := strconv.ParseUint(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), 10, 64)
	u := &user{id: id, ws: ws}
	g.mu.Lock()
	g.users[id] = u
	g.mu.Unlock()
	defer g.leave(u)
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return
		}
		read := time.Now()
		f := &wire.Frame{}
		if f.UnmarshalVT(b) != nil {
			return
		}
		switch k := f.Kind.(type) {
		case *wire.Frame_Sync:
			u.write(&wire.Frame{Kind: &wire.Frame_Current{Current: &wire.Current{}}})
		case *wire.Frame_Send:
			g.answer(u, k.Send, read)
		}
	}
}

func (g *Gateway) leave(u *user) {
	g.mu.Lock()
	if g.users[u.id] == u {
		delete(g.users, u.id)
	}
	g.mu.Unlock()
	_ = u.ws.Close()
}

func (g *Gateway) answer(u *user, s *wire.Send, read time.Time) {
	id := wire.IDOf(u.id, 0, s.ClientMsgId)
	u.write(&wire.Frame{Kind: &wire.Frame_Sent{Sent: &wire.Sent{ClientMsgId: s.ClientMsgId, MessageId: id[:], Chain: make([]byte, 16)}}})
	took := time.Since(read)
	g.mu.Lock()
	to := g.users[s.User]
	if u.id < FirstProbe {
		g.answered++
		_ = g.serve.RecordValue(took.Microseconds())
		if !u.sent {
			u.sent = true
			g.senders++
		}
	}
	g.mu.Unlock()
	if to != nil && to != u { // a note to oneself is on the only device already
		to.write(&wire.Frame{Kind: &wire.Frame_Deliver{Deliver: &wire.Deliver{MessageId: id[:], From: u.id, Seq: s.Seq, Body: s.Body}}})
	}
}

func (g *Gateway) counts() Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Counts{Senders: g.senders, Answered: g.answered, Connected: len(g.users),
		ServeP50: g.serve.ValueAtQuantile(50), ServeP99: g.serve.ValueAtQuantile(99)}
}

func (u *user) write(f *wire.Frame) {
	b, err := f.MarshalVT()
	if err != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.ws.WriteMessage(websocket.BinaryMessage, b)
}
