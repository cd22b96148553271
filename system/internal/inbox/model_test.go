package inbox_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"throng/system/internal/inbox"
	"throng/system/internal/inbox/inboxtest"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// The model: senders who send everything unanswered again, in order, after a
// restart; devices whose application drops what it has by message id; gateways
// and connections that come and go, or stay half-open at a gateway that lost its
// stream; a store that fails. Whatever happens, each device gets each accepted
// message once, in the order of its sender's conversation, and nobody else's; a
// user's other devices get what one of them sends; and the connection that a
// device uses is never closed for an older one.

const (
	modelUsers    = 3
	modelGateways = 2
	modelInFlight = 3
)

// conversation is a sender's ordered path to users.
type conversation struct {
	from       inbox.Key
	group      uint64
	to         []uint64
	next       uint64
	unanswered []uint64 // seqs handed to the owner
	items      map[*inbox.Item]uint64
	// copies: direct, and the sender has other devices, which get it when the
	// addressee has it.
	copies bool
}

// reaches reports whether messages are for a device.
func (c *conversation) reaches(k inbox.Key) bool {
	if k == c.from {
		return false
	}
	return slices.Contains(c.to, k.User) || c.copies && k.User == c.from.User
}

// phone is a device's application with its connection.
type phone struct {
	key inbox.Key
	socket
	pipe      []piped
	piped     uint64 // deliveries that came on this connection
	base      uint64 // of them, those before the gateway opened the session (again)
	processed uint64 // of them, those processed
	inboxSeq  uint64
	seen      map[wire.MessageID]bool
	last      map[*conversation]uint64 // the newest seq
}

// piped is a frame on its way to a phone.
type piped struct {
	inbox.Outbound
	base uint64 // of the phone, when the gateway had it
}

// socket is a connection of a phone as its gateway knows it.
type socket struct {
	key      inbox.Key
	at       int    // the gateway
	conn     uint64 // 0: not connected
	inboxSeq uint64 // of Sync
}

type model struct {
	t        *rapid.T
	m        *machine
	convs    []*conversation
	phones   []*phone
	nextConn uint64
	gateway  [modelGateways]uint64
	nextGW   uint64
	ghosts   []socket          // half-open: their phones have gone, nobody noticed
	epochs   map[uint64]uint64 // of connections, as their gateways know them

	users  []uint64
	events []func(*inbox.Core)
	after  []func()

	pushes []*modelPush // asked for and not answered
}

// modelPush is a push of which an attempt may start until it is answered.
type modelPush struct {
	ref       uint64
	key       inbox.Key
	cancelled time.Time // when it was taken back, zero: it was not
	message   wire.MessageID
	stored    bool // the message has a row, and its device does not have it yet
}

// answerPush lets the push role answer one request.
func (x *model) answerPush(p *modelPush, outcome rpc.PushOutcome) {
	x.pushes = slices.DeleteFunc(x.pushes, func(q *modelPush) bool { return q == p })
	x.events = append(x.events, func(c *inbox.Core) { c.PushResult(p.ref, outcome) })
}

// watchPushes takes note of what was asked for and taken back in a turn, and
// checks that no message was recorded as acknowledged while an attempt to push it
// could start.
func (x *model) watchPushes(eff *inbox.Effects) {
	for _, p := range x.pushes {
		if !p.cancelled.IsZero() && x.m.now.Sub(p.cancelled) >= 2*time.Second {
			continue // the owner has given up waiting
		}
		if p.stored && !x.stored(p) {
			x.t.Fatalf("a message of %v was recorded as acknowledged while push %d for it was on its way", p.key, p.ref)
		}
	}
	for _, r := range eff.Pushes {
		p := &modelPush{ref: r.Ref, key: r.Key, message: r.Message}
		has := slices.ContainsFunc(x.phones, func(ph *phone) bool { return ph.key == p.key && ph.seen[p.message] })
		p.stored = !has && x.stored(p)
		x.pushes = append(x.pushes, p)
	}
	for _, k := range eff.Cancels {
		for _, p := range x.pushes {
			if p.ref == k.Ref {
				p.cancelled = x.m.now
			}
		}
	}
}

func (x *model) stored(p *modelPush) bool {
	return slices.ContainsFunc(x.m.store.Rows(p.key), func(r inbox.Row) bool { return r.Message == p.message })
}

func newModel(t *rapid.T) *model {
	lim := inbox.Limits{InFlight: modelInFlight, PageRows: 2, PageBytes: 800, Users: 2, AckTimeout: 2 * time.Second}
	x := &model{t: t, m: newMachine(lim), epochs: map[uint64]uint64{}}
	for i := range x.gateway {
		x.nextGW++
		x.gateway[i] = x.nextGW
	}
	for u := range uint64(modelUsers) {
		for d := range uint32(1 + u%2) {
			k := inbox.Key{User: u + 1, Device: d}
			x.phones = append(x.phones, &phone{key: k, seen: map[wire.MessageID]bool{}, last: map[*conversation]uint64{}})
			x.events = append(x.events, func(c *inbox.Core) { c.Provision([]inbox.Registration{{Key: k, Token: fmt.Sprint(k)}}) })
		}
	}
	x.turn(false)
	for from := range uint64(2) {
		k := inbox.Key{User: 100 + from}
		x.convs = append(x.convs,
			&conversation{from: k, to: []uint64{1}},
			&conversation{from: k, to: []uint64{2}},
			&conversation{from: k, group: 9, to: []uint64{1, 2, 3}},
			&conversation{from: k, group: 8 + from*3, to: []uint64{2, 3}})
	}
	two := inbox.Key{User: 2} // a phone of the model, with another device beside it
	x.convs = append(x.convs,
		&conversation{from: two, to: []uint64{1}, copies: true},
		&conversation{from: inbox.Key{User: 2, Device: 1}, to: []uint64{3}, copies: true},
		&conversation{from: two, to: []uint64{2}}, // a note to oneself
		&conversation{from: two, group: 9, to: []uint64{1, 2, 3}})
	for _, c := range x.convs {
		c.items = map[*inbox.Item]uint64{}
	}
	return x
}

// append hands seq to the owner in this turn; own: for the sender's other devices.
func (x *model) append(c *conversation, seq uint64, own bool) {
	body := fmt.Sprintf("%d of %d in %d: %0*d", seq, c.from.User, c.group, 300*int(seq%3), 0)
	it := item(c.group, c.from, seq, body, c.to...)
	if own || c.group == 0 && c.to[0] == c.from.User {
		it = ownCopy(c.from, seq, body, c.to[0])
	}
	c.items[it] = seq
	x.users = append(x.users, it.Users...)
	x.events = append(x.events, func(core *inbox.Core) { core.Append(it) })
}

func (x *model) send() {
	c := x.convs[rapid.IntRange(0, len(x.convs)-1).Draw(x.t, "conversation")]
	if len(c.unanswered) >= 8 {
		return
	}
	c.next++
	c.unanswered = append(c.unanswered, c.next)
	x.append(c, c.next, false)
}

func (x *model) phone(connected bool) *phone {
	var some []*phone
	for _, p := range x.phones {
		if (p.conn != 0) == connected {
			some = append(some, p)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[rapid.IntRange(0, len(some)-1).Draw(x.t, "phone")]
}

// open connects a phone; its old connection, if it has one, stays half-open.
func (x *model) open(p *phone) {
	x.leave(p)
	x.nextConn++
	p.socket = socket{key: p.key, at: rapid.IntRange(0, modelGateways-1).Draw(x.t, "gateway"), conn: x.nextConn, inboxSeq: p.inboxSeq}
	p.pipe, p.piped, p.base, p.processed = nil, 0, 0, 0
	if rapid.IntRange(0, 4).Draw(x.t, "forgetful") == 0 {
		p.socket.inboxSeq = 0
	}
	x.openSocket(p.socket)
}

// leave makes a phone's connection half-open.
func (x *model) leave(p *phone) {
	if p.conn != 0 {
		x.ghosts = append(x.ghosts, p.socket)
	}
	p.conn = 0
}

// openSocket has the gateway open the session of a socket, with the epoch that
// it has been told, if any.
func (x *model) openSocket(s socket) {
	g := x.gateway[s.at]
	o := &rpc.SessionOpen{User: s.key.User, Device: s.key.Device, Conn: s.conn, InboxSeq: s.inboxSeq, Epoch: x.epochs[s.conn]}
	x.users = append(x.users, s.key.User)
	x.events = append(x.events, func(c *inbox.Core) { c.Open(g, o) })
}

// reopen has a gateway open all of its sessions on a new stream. Those whose
// epoch it was not told it closes instead.
func (x *model) reopen(at int) {
	x.nextGW++
	x.gateway[at] = x.nextGW
	var again []socket
	for _, p := range x.phones {
		switch {
		case p.conn == 0 || p.at != at:
		case x.epochs[p.conn] == 0:
			p.conn = 0
		default:
			p.base = p.piped
			again = append(again, p.socket)
		}
	}
	x.ghosts = slices.DeleteFunc(x.ghosts, func(s socket) bool { return s.at == at && x.epochs[s.conn] == 0 })
	for _, s := range x.ghosts {
		if s.at == at {
			again = append(again, s)
		}
	}
	for _, s := range rapid.Permutation(again).Draw(x.t, "order") {
		x.openSocket(s)
	}
}

// process lets the application take frames from its connection.
func (x *model) process(p *phone, n int) {
	for ; n > 0 && len(p.pipe) > 0; n-- {
		o := p.pipe[0]
		p.pipe = p.pipe[1:]
		f := new(wire.Frame)
		if err := f.UnmarshalVT(o.Frame); err != nil {
			x.t.Fatalf("frame: %v", err)
		}
		switch {
		case f.GetCurrent() != nil:
			if got := f.GetCurrent().Delivered + o.base; got != p.processed {
				x.t.Fatalf("%v: current after %d deliveries, has %d", p.key, got, p.processed)
			}
		case f.GetDeliver() != nil:
			x.deliver(p, f.GetDeliver())
		}
	}
}

func (x *model) deliver(p *phone, d *wire.Deliver) {
	p.processed++
	p.inboxSeq = max(p.inboxSeq, d.InboxSeq)
	id := wire.MessageID(d.MessageId)
	if p.seen[id] {
		return
	}
	p.seen[id] = true
	i := slices.IndexFunc(x.convs, func(c *conversation) bool {
		to := uint64(0) // told to the sender's other devices only
		if d.From == p.key.User && d.Group == 0 {
			to = c.to[0]
		}
		return c.from == inbox.Key{User: d.From, Device: d.FromDevice} && c.group == d.Group && d.To == to && c.reaches(p.key)
	})
	if i < 0 {
		x.t.Fatalf("%v got a message of %d/%d to %d in %d", p.key, d.From, d.FromDevice, d.To, d.Group)
	}
	c := x.convs[i]
	if d.Seq != p.last[c]+1 {
		x.t.Fatalf("%v got %d after %d of sender %d in %d", p.key, d.Seq, p.last[c], d.From, d.Group)
	}
	p.last[c] = d.Seq
}

// ack may be cut off by whatever happens in the same turn, or be lost.
func (x *model) ack(p *phone) {
	if p.processed <= p.base {
		return
	}
	g, conn, upto := x.gateway[p.at], p.conn, p.processed-p.base
	x.events = append(x.events, func(c *inbox.Core) { c.Ack(g, conn, p.key.User, upto) })
}

func (x *model) close(p *phone) {
	g, conn := x.gateway[p.at], p.conn
	p.conn = 0
	x.events = append(x.events, func(c *inbox.Core) { c.Close(g, conn, p.key.User) })
}

// gatewayLost is the end of a gateway's stream, or of the gateway.
func (x *model) gatewayLost() {
	i := rapid.IntRange(0, modelGateways-1).Draw(x.t, "lost gateway")
	old := x.gateway[i]
	if rapid.Bool().Draw(x.t, "killed") {
		for _, p := range x.phones {
			if p.at == i {
				p.conn = 0
			}
		}
		x.ghosts = slices.DeleteFunc(x.ghosts, func(s socket) bool { return s.at == i })
	}
	x.events = append(x.events, func(c *inbox.Core) { c.GatewayLost(old) })
	x.reopen(i)
}

// restart is a kill of the owner: nobody is live, and senders send what is
// unanswered again, in order.
func (x *model) restart() {
	x.m.restart()
	x.users, x.events, x.pushes = nil, nil, nil
	for i := range x.gateway {
		x.reopen(i)
	}
	for _, c := range x.convs {
		clear(c.items)
		for _, seq := range c.unanswered {
			x.append(c, seq, false)
		}
	}
}

// turn runs what was gathered.
func (x *model) turn(flush bool) {
	eff, _, err := x.m.turn(x.users, flush, func(c *inbox.Core) {
		for _, f := range x.events {
			f(c)
		}
	})
	x.users, x.events = nil, nil
	if errors.Is(err, inboxtest.ErrInjected) {
		x.restart()
		x.turn(false)
		return
	}
	if err != nil {
		x.t.Fatal(err)
	}
	x.watchPushes(&eff)
	for _, a := range eff.Answers {
		x.answered(a)
	}
	for _, o := range eff.Opened {
		if slices.Contains(x.gateway[:], o.Gateway) {
			x.epochs[o.Conn] = o.Epoch
		}
	}
	for _, k := range eff.Kicks {
		x.kicked(k)
	}
	for _, o := range eff.Frames {
		for _, conn := range o.Conns {
			x.frame(o, conn)
		}
	}
}

func (x *model) answered(a inbox.Answer) {
	if a.Code != 0 {
		x.t.Fatalf("%v: %v", a.Item.Ref, a.Code)
	}
	for _, c := range x.convs {
		seq, ok := c.items[a.Item]
		if !ok {
			continue
		}
		delete(c.items, a.Item)
		if c.copies && a.Item.Users[0] != c.from.User {
			x.append(c, seq, true)
			return
		}
		c.unanswered = slices.DeleteFunc(c.unanswered, func(s uint64) bool { return s == seq })
		// Accepted: every device has it, or a row with it.
		id := a.Item.Msg.ID
		for _, p := range x.phones {
			if c.reaches(p.key) && !p.seen[id] &&
				!slices.ContainsFunc(x.m.store.Rows(p.key), func(r inbox.Row) bool { return r.Message == id }) {
				x.t.Fatalf("%v was answered, %v has neither it nor a row", a.Item.Ref, p.key)
			}
		}
		return
	}
	x.t.Fatalf("an answer to nothing, or a second one: %v", a.Item.Ref)
}

func (x *model) frame(o inbox.Outbound, conn uint64) {
	for _, p := range x.phones {
		if p.conn != conn || x.gateway[p.at] != o.Gateway {
			continue
		}
		p.pipe = append(p.pipe, piped{o, p.base})
		if o.Deliver {
			p.piped++
		}
		if f := new(wire.Frame); !o.Deliver && f.UnmarshalVT(o.Frame) == nil && f.GetCurrent() != nil {
			x.currentMeansEmpty(p)
		}
	}
}

// currentMeansEmpty: a device may be told that it is live only when its inbox
// holds nothing that it has not got on this connection already (a direct
// message that became live in the same turn, a deletion that waits). It may have
// fallen behind again by the end of the turn.
func (x *model) currentMeansEmpty(p *phone) {
	before := p.piped
	x.after = append(x.after, func() {
		if p.piped-before >= modelInFlight {
			return
		}
		sent := map[wire.MessageID]bool{}
		for _, o := range p.pipe {
			f := new(wire.Frame)
			if f.UnmarshalVT(o.Frame) == nil && f.GetDeliver() != nil {
				sent[wire.MessageID(f.GetDeliver().MessageId)] = true
			}
		}
		for _, r := range x.m.store.Rows(p.key) {
			if !p.seen[r.Message] && !sent[r.Message] {
				x.t.Fatalf("%v is live with row %d in its inbox", p.key, r.Seq)
			}
		}
	})
}

// kicked: only connections that their phones have left are closed.
func (x *model) kicked(k inbox.Kick) {
	for _, p := range x.phones {
		if p.conn == k.Conn && x.gateway[p.at] == k.Gateway {
			x.t.Fatalf("%v was kicked from the connection it uses: %v", p.key, k.Code)
		}
	}
	x.ghosts = slices.DeleteFunc(x.ghosts, func(s socket) bool { return s.conn == k.Conn && x.gateway[s.at] == k.Gateway })
}

func (x *model) step() {
	switch rapid.IntRange(0, 22).Draw(x.t, "event") {
	case 0, 1, 2, 3, 4, 5:
		x.send()
	case 6, 7, 8:
		if p := x.phone(false); p != nil {
			x.open(p)
		}
	case 9, 10, 11, 12:
		if p := x.phone(true); p != nil {
			x.process(p, rapid.IntRange(1, 4).Draw(x.t, "frames"))
			x.ack(p)
		}
	case 13:
		if p := x.phone(true); p != nil {
			x.process(p, 9) // and the acknowledgement is lost
		}
	case 14:
		if p := x.phone(true); p != nil {
			x.close(p)
		}
	case 15:
		if p := x.phone(true); p != nil {
			x.open(p) // replaces itself
		}
	case 16:
		x.m.now = x.m.now.Add(time.Duration(rapid.IntRange(10, 2500).Draw(x.t, "ms")) * time.Millisecond)
	case 17:
		if rapid.Bool().Draw(x.t, "gateway") {
			x.gatewayLost()
		}
	case 18:
		if rapid.IntRange(0, 3).Draw(x.t, "kill") == 0 {
			x.restart()
		}
	case 19:
		x.m.store.FailBefore = rapid.IntRange(0, 3).Draw(x.t, "before") == 0
		x.m.store.FailAfter = rapid.IntRange(0, 3).Draw(x.t, "after") == 0
	case 22:
		if p := x.phone(true); p != nil {
			x.leave(p)
		}
	case 20, 21:
		if n := len(x.pushes); n > 0 {
			x.answerPush(x.pushes[rapid.IntRange(0, n-1).Draw(x.t, "push")],
				rpc.PushOutcome(rapid.IntRange(0, len(rpc.PushOutcome_name)-1).Draw(x.t, "outcome")))
		}
	}
}

// settle lets everybody connect, take and acknowledge everything.
func (x *model) settle() {
	x.m.store.FailBefore, x.m.store.FailAfter = false, false
	for range 200 {
		x.m.now = x.m.now.Add(500 * time.Millisecond)
		busy := slices.ContainsFunc(x.convs, func(c *conversation) bool { return len(c.unanswered) > 0 })
		for _, p := range x.phones {
			if p.conn == 0 {
				x.open(p)
				busy = true
				continue
			}
			busy = busy || len(p.pipe) > 0 || len(x.pushes) > 0
			x.process(p, len(p.pipe))
			x.ack(p)
		}
		for _, p := range slices.Clone(x.pushes) {
			x.answerPush(p, rpc.PushOutcome_PUSH_OUTCOME_CANCELLED)
		}
		x.turn(true)
		if !busy {
			break
		}
	}
	for _, c := range x.convs {
		if len(c.unanswered) > 0 {
			x.t.Fatalf("unanswered in %d of %d: %v", c.group, c.from.User, c.unanswered)
		}
		for _, p := range x.phones {
			if got := p.last[c]; c.reaches(p.key) && got != c.next {
				x.t.Fatalf("%v has %d of %d messages of %d in %d", p.key, got, c.next, c.from.User, c.group)
			}
		}
	}
	for _, p := range x.phones {
		if rows := x.m.store.Rows(p.key); len(rows) > 0 {
			x.t.Fatalf("%v is settled and has %d rows", p.key, len(rows))
		}
	}
	if n := x.m.store.Bodies(); n > 0 {
		x.t.Fatalf("%d bodies without a row", n)
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newModel(t)
		for range rapid.IntRange(1, 120).Draw(t, "turns") {
			for range rapid.IntRange(1, 4).Draw(t, "events") {
				x.step()
			}
			x.turn(rapid.IntRange(0, 3).Draw(t, "flush") == 0)
			for _, f := range x.after {
				f()
			}
			x.after = nil
		}
		x.settle()
	})
}
