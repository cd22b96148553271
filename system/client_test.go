package system_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"throng/system/wire"
)

// patience is how long a test waits for what must come, on a machine that others
// use as well.
const patience = time.Minute

// device is a client that does what the protocol asks of one: it connects
// again when the connection is lost, sends everything unacknowledged again in
// order, acknowledges what it receives and drops what it has already.
type device struct {
	t        *testing.T
	gateways []string // host:port; one is drawn for each connection
	token    string
	user     uint64
	number   uint32

	cancel context.CancelFunc
	done   chan struct{}

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced at every change
	ws         *websocket.Conn
	current    bool // Current has come on this connection
	inboxSeq   uint64
	nextID     uint64
	outbox     map[wire.Conversation]*outbox
	windows    map[sender]*wire.Window
	got        []*wire.Deliver // fresh ones, in order
	duplicates int
	connects   int
	at         time.Time // of the last connect
	receipts   map[peerIn]watermarks
	lists      []*wire.ReceiptList
	results    map[uint64]*wire.GroupResult // by request
	typing     []*wire.TypingEvent
	presence   []*wire.PresenceEvent
	refused    []*wire.Error
	writes     map[uint64]int // of each send, by client_msg_id
	closes     []wire.CloseCode
	deaf       bool            // loses what comes until it connects again
	silent     bool            // acknowledges nothing
	drains     []time.Duration // jitter that gateways told it to go away within
}

type sender struct {
	from   uint64
	device uint32
	group  uint64
	to     uint64 // of copies for the sender's other devices
}

type peerIn struct{ peer, group uint64 }

// watermarks are what a peer has received and read of ours.
type watermarks struct{ delivered, read uint64 }

// outbox is what one conversation has not been told is durable.
type outbox struct {
	seq     uint64 // of the last message made
	chain   []byte // of the last one acknowledged
	unacked []*wire.Send
	flying  int  // written on this connection, not answered
	failed  bool // one of them was answered with an error
}

// dial connects a device and keeps it connected until hangUp.
func dial(t *testing.T, gateways []string, key wire.Key, user uint64, number uint32) *device {
	t.Helper()
	token, err := key.Sign(wire.Claims{User: user, Device: number, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, gateways: gateways, token: token, user: user, number: number,
		changed: make(chan struct{}), outbox: map[wire.Conversation]*outbox{}, windows: map[sender]*wire.Window{},
		receipts: map[peerIn]watermarks{}, results: map[uint64]*wire.GroupResult{}, writes: map[uint64]int{}}
	d.connect()
	return d
}

// connect starts the connection loop.
func (d *device) connect() {
	ctx, cancel := context.WithCancel(d.t.Context())
	d.cancel, d.done = cancel, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		for ctx.Err() == nil && d.session(ctx) {
			pause := time.NewTimer(time.Duration(20+rand.IntN(60)) * time.Millisecond)
			select {
			case <-ctx.Done():
			case <-pause.C:
			}
			pause.Stop()
		}
	}(d.done)
	d.t.Cleanup(d.hangUp)
}

// hangUp disconnects; connect can follow.
func (d *device) hangUp() {
	d.cancel()
	<-d.done
}

// session is one connection. It reports whether another one may follow.
func (d *device) session(ctx context.Context) (again bool) {
	dialer := websocket.Dialer{HandshakeTimeout: 3 * time.Second, Subprotocols: []string{wire.SubprotocolProto}}
	ws, resp, err := dialer.DialContext(ctx, "ws://"+d.gateways[rand.IntN(len(d.gateways))]+wire.Path, http.Header{"Authorization": {"Bearer " + d.token}})
	if err != nil {
		if resp != nil {
			resp.Body.Close()
		}
		return true
	}
	stop := context.AfterFunc(ctx, func() { ws.Close() })
	defer stop()
	defer ws.Close()
	d.update(func() {
		d.ws, d.current = ws, false
		d.connects++
		d.at = time.Now()
		for _, o := range d.outbox {
			o.flying, o.failed = 0, false
		}
		d.write(&wire.Frame{Kind: &wire.Frame_Sync{Sync: &wire.Sync{InboxSeq: d.inboxSeq}}})
		for conv := range d.outbox {
			d.resend(conv)
		}
	})
	var delivered uint64
	for {
		_, data, err := ws.ReadMessage()
		if err != nil {
			again = true
			d.update(func() {
				d.ws = nil
				var closed *websocket.CloseError
				if errors.As(err, &closed) {
					again = wire.CloseCode(closed.Code).Reconnect()
					d.closes = append(d.closes, wire.CloseCode(closed.Code))
				}
			})
			return again
		}
		f := &wire.Frame{}
		if err := f.UnmarshalVT(data); err != nil {
			d.t.Errorf("device %d.%d: frame: %v", d.user, d.number, err)
			return false
		}
		f.CollectStamps()
		d.update(func() { d.handle(f, &delivered) })
	}
}

// handle takes one frame; d.mu is held.
func (d *device) handle(f *wire.Frame, delivered *uint64) {
	switch k := f.Kind.(type) {
	case *wire.Frame_Deliver:
		m := k.Deliver
		if d.deaf {
			return
		}
		*delivered++
		d.inboxSeq = max(d.inboxSeq, m.InboxSeq)
		from := sender{m.From, m.FromDevice, m.Group, m.To}
		w := d.windows[from]
		if w == nil {
			w = &wire.Window{}
			d.windows[from] = w
		}
		if w.Accept(m.Seq) {
			d.got = append(d.got, m)
		} else {
			d.duplicates++
		}
		if !d.silent {
			d.write(&wire.Frame{Kind: &wire.Frame_Ack{Ack: &wire.Ack{Upto: *delivered}}})
		}
	case *wire.Frame_Sent:
		d.answered(k.Sent.ClientMsgId, func(o *outbox) {
			o.chain = k.Sent.Chain
		})
	case *wire.Frame_Error:
		d.fault(k.Error)
	case *wire.Frame_Current:
		d.current = true
		if k.Current.Delivered != *delivered && !d.deaf {
			d.t.Errorf("device %d.%d: Current says %d delivered, got %d", d.user, d.number, k.Current.Delivered, *delivered)
		}
	case *wire.Frame_Receipts:
		for _, r := range k.Receipts.Receipts {
			at := peerIn{r.Peer, r.Group}
			old := d.receipts[at]
			d.receipts[at] = watermarks{max(r.DeliveredSeq, old.delivered), max(r.ReadSeq, old.read)}
		}
	case *wire.Frame_ReceiptList:
		d.lists = append(d.lists, k.ReceiptList)
	case *wire.Frame_GroupResult:
		d.results[k.GroupResult.RequestId] = k.GroupResult
	case *wire.Frame_TypingEvent:
		d.typing = append(d.typing, k.TypingEvent)
	case *wire.Frame_PresenceEvent:
		d.presence = append(d.presence, k.PresenceEvent)
	case *wire.Frame_Drain:
		jitter := time.Duration(k.Drain.JitterMs) * time.Millisecond
		d.drains = append(d.drains, jitter)
		ws := d.ws
		time.AfterFunc(rand.N(jitter+1), func() { ws.Close() })
	}
}

// answered removes an acknowledged send from its outbox.
func (d *device) answered(id uint64, f func(*outbox)) {
	for conv, o := range d.outbox {
		for i, s := range o.unacked {
			if s.ClientMsgId != id {
				continue
			}
			if i != 0 {
				d.t.Errorf("device %d.%d: message %d of %+v was acknowledged before %d", d.user, d.number, s.Seq, conv, o.unacked[0].Seq)
			}
			o.unacked = append(o.unacked[:i:i], o.unacked[i+1:]...)
			o.flying--
			f(o)
			d.settle(conv, o)
			return
		}
	}
}

// fault takes an error frame: what can pass is sent again once everything in
// flight is answered, what cannot is dropped.
func (d *device) fault(e *wire.Error) {
	retry := e.Code == wire.Code_CODE_RETRY || e.Code == wire.Code_CODE_SEQUENCE || e.Code == wire.Code_CODE_RATE_LIMITED || e.Code == wire.Code_CODE_INTERNAL
	for conv, o := range d.outbox {
		for i, s := range o.unacked {
			if s.ClientMsgId != e.ClientMsgId {
				continue
			}
			o.flying--
			o.failed = true
			if !retry {
				d.refused = append(d.refused, e)
				o.unacked = append(o.unacked[:i:i], o.unacked[i+1:]...)
				if len(e.Chain) > 0 {
					o.chain = e.Chain
				} else { // it used up no sequence number: close the gap
					for _, later := range o.unacked[i:] {
						later.Seq--
					}
					o.seq--
				}
			}
			d.settle(conv, o)
			return
		}
	}
}

// settle sends a conversation again when all of it in flight has been answered
// and something failed.
func (d *device) settle(conv wire.Conversation, o *outbox) {
	if o.flying == 0 && o.failed {
		o.failed = false
		ws := d.ws
		time.AfterFunc(50*time.Millisecond, func() {
			d.update(func() {
				if d.ws == ws && o.flying == 0 {
					d.resend(conv)
				}
			})
		})
		return
	}
	if !o.failed {
		d.resend(conv)
	}
}

// resend writes what is unacknowledged and not in flight, within the window
// that the server allows; d.mu is held.
func (d *device) resend(conv wire.Conversation) {
	o := d.outbox[conv]
	for o.flying < min(len(o.unacked), wire.MaxInFlight/4) && d.ws != nil {
		s := o.unacked[o.flying]
		s.Chain = nil
		if o.flying == 0 {
			s.Chain = o.chain
		}
		d.write(&wire.Frame{Kind: &wire.Frame_Send{Send: s}})
		d.writes[s.ClientMsgId]++
		o.flying++
	}
}

// write sends a frame; a failure shows in the reader. d.mu is held.
func (d *device) write(f *wire.Frame) {
	data, err := f.MarshalVT()
	if err != nil {
		d.t.Errorf("marshal: %v", err)
		return
	}
	if d.ws != nil {
		_ = d.ws.WriteMessage(websocket.BinaryMessage, data)
	}
}

// do writes a frame on the connection there is.
func (d *device) do(f *wire.Frame) { d.update(func() { d.write(f) }) }

// send queues a text message.
func (d *device) send(conv wire.Conversation, body string) {
	d.sendKind(conv, wire.Kind_KIND_TEXT, nil, body)
}

// sendKind queues a message of any kind, about another one or nil, and returns
// its id.
func (d *device) sendKind(conv wire.Conversation, kind wire.Kind, about []byte, body string) (id wire.MessageID) {
	d.update(func() {
		id = wire.IDOf(d.user, d.number, d.nextID+1)
		o := d.outbox[conv]
		if o == nil {
			o = &outbox{}
			d.outbox[conv] = o
		}
		d.nextID++
		o.seq++
		o.unacked = append(o.unacked, &wire.Send{ClientMsgId: d.nextID, User: conv.User, Group: conv.Group, Seq: o.seq, Kind: kind, About: about, Body: []byte(body)})
		if !o.failed {
			d.resend(conv)
		}
	})
	return id
}

// update changes d under its lock and wakes who waits for a change.
func (d *device) update(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	close(d.changed)
	d.changed = make(chan struct{})
}

// await waits until ok, which is called with d.mu held, and fails the test
// after a deadline.
func (d *device) await(what string, ok func() bool) {
	d.t.Helper()
	d.awaitFor(patience, what, ok)
}

func (d *device) awaitFor(limit time.Duration, what string, ok func() bool) {
	d.t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		d.mu.Lock()
		if ok() {
			d.mu.Unlock()
			return
		}
		changed := d.changed
		state := fmt.Sprintf("connected %v, current %v, %d received, %d unacknowledged, %d connects, closes %v, refused %v",
			d.ws != nil, d.current, len(d.got), d.unacked(), d.connects, d.closes, d.refused)
		d.mu.Unlock()
		select {
		case <-deadline.C:
			d.t.Fatalf("device %d.%d, after %s: %s (%s)", d.user, d.number, limit, what, state)
		case <-changed:
		}
	}
}

// insist is await for what is best effort: again is called now and from time to
// time until ok, because what it asks for may be shed, or overtaken by what it
// depends on.
func (d *device) insist(what string, again func(), ok func() bool) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			again()
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	d.await(what, ok)
}

// lookAt views a user, who is looked up, until the last that it hears of
// anybody's presence is ok.
func (d *device) lookAt(user uint64, what string, ok func(*wire.PresenceEvent) bool) {
	d.t.Helper()
	d.insist(what, func() {
		d.do(&wire.Frame{Kind: &wire.Frame_View{View: &wire.View{}}})
		d.do(&wire.Frame{Kind: &wire.Frame_View{View: &wire.View{User: user}}})
	}, func() bool {
		n := len(d.presence)
		return n > 0 && d.presence[n-1].User == user && ok(d.presence[n-1])
	})
}

func (d *device) awaitCurrent() {
	d.t.Helper()
	d.await("current", func() bool { return d.ws != nil && d.current })
}

func (d *device) awaitSent() {
	d.t.Helper()
	d.await("everything sent", func() bool { return d.unacked() == 0 })
}

// unsent is how many messages are not acknowledged.
func (d *device) unsent() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.unacked()
}

// unacked is unsent with d.mu held.
func (d *device) unacked() int {
	n := 0
	for _, o := range d.outbox {
		n += len(o.unacked)
	}
	return n
}

// bodies returns the bodies received from a user in a conversation, in order.
func (d *device) bodies(from, group uint64) []string {
	var out []string
	for _, m := range d.got {
		if m.From == from && m.Group == group {
			out = append(out, string(m.Body))
		}
	}
	return out
}

func (d *device) awaitBodies(from, group uint64, want ...string) {
	d.t.Helper()
	d.await(fmt.Sprintf("messages of %d in group %d", from, group), func() bool { return len(d.bodies(from, group)) >= len(want) })
	d.mu.Lock()
	defer d.mu.Unlock()
	got := d.bodies(from, group)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		d.t.Fatalf("device %d.%d got %q of %d in group %d, want %q", d.user, d.number, got, from, group, want)
	}
}
