package inbox

import (
	"time"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// Limits are the bounds of a mailbox owner. Zero means the default.
type Limits struct {
	AckTimeout  time.Duration // a delivery not acknowledged for so long is stored; 2 s
	PushDelay   time.Duration // a row waits so long before a push is asked for; 1 s
	PushEvery   time.Duration // least time between two pushes to a device that stays away; 60 s
	ReceiptGap  time.Duration // least time between two Receipts frames to a device; 200 ms
	Expiry      time.Duration // a row is kept so long; 30 days
	InFlight    int           // deliveries to a session not acknowledged yet; 256
	PageRows    int           // rows of one page of a drain; 100
	PageBytes   int           // bytes of one page; 64 KiB
	DeviceRows  int           // rows of a device above which direct messages are refused; 10,000
	Users       int           // users kept in memory; 200,000 for each loop
	Receipts    int           // receipt marks kept in memory, one for each member and message of a ledger too; 200,000 for each loop
	DeviceMarks int           // receipt marks of one device kept in memory; 2,048
	Pushes      int           // pushes asked for and not answered; 10,000 for each loop
	Ahead       int           // seqs known to drains of large inboxes; 2,000,000 for each loop
}

func (l *Limits) defaults() {
	set(&l.AckTimeout, 2*time.Second)
	set(&l.PushDelay, time.Second)
	set(&l.PushEvery, time.Minute)
	set(&l.ReceiptGap, 200*time.Millisecond)
	set(&l.Expiry, 30*24*time.Hour)
	set(&l.InFlight, 256)
	set(&l.PageRows, 100)
	set(&l.PageBytes, 64<<10)
	set(&l.DeviceRows, 10_000)
	set(&l.Users, 200_000)
	set(&l.Receipts, 200_000)
	set(&l.DeviceMarks, 2048)
	set(&l.Pushes, 10_000)
	set(&l.Ahead, 2_000_000)
}

func set[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Item is a message for users of this core's shards, at least one. A direct one
// for its sender alone is the copy for the sender's other devices. The core
// answers it once.
type Item struct {
	Msg   *Message
	Users []uint64
	// Recipients is, where the sender of a group message is among Users, the
	// number of other members that it was addressed to.
	Recipients uint32
	Ref        any // the runner's

	pending, live, stored uint32
	bodyID                uint64 // set when the body is, or was, a row of its own
}

// Answer ends an item. Live and Stored count devices.
type Answer struct {
	Item         *Item
	Code         wire.Code
	Live, Stored uint32
}

// Outbound is one frame for connections of a gateway.
type Outbound struct {
	Gateway uint64
	Frame   []byte
	Conns   []uint64
	Deliver bool
	Stamped bool // it has stamps, and lacks those from here on
	// Traceparent is of what is traced, for the spans of its deliveries.
	Traceparent string
}

// Kick closes a connection of a gateway.
type Kick struct {
	Gateway, Conn uint64
	Code          wire.CloseCode
}

// Effects are what the runner does after the store operations of a turn are
// durable, in the order of the slices.
type Effects struct {
	Answers []Answer
	Opened  []Opened
	Frames  []Outbound
	Kicks   []Kick
	Pushes  []PushRequest
	Cancels []PushCancel         // of this turn's requests too
	Forward []*rpc.ReceiptUpdate // to the shards of the senders, which are elsewhere
}

// Core is the state machine of the mailboxes of one loop: events in, store
// operations and effects out. It has no I/O and no clock.
//
// A turn is Begin, any number of events, End; then, for as long as Urgent, the
// runner takes the batch, commits it and hands back the result with Committed;
// then it takes the effects. Events for a user may come only when Missing says
// that the user is known, or after Loaded.
type Core struct {
	lim         Limits
	incarnation uint64
	seq         uint64
	epoch       uint64 // of the newest session of any device
	now         int64  // Unix nanoseconds
	owns        func(user uint64) bool
	plant       bool
	planted     uint64

	users    map[uint64]*user
	oldest   user // ring of the users, least recently used at oldest.next
	gateways map[uint64]map[*session]struct{}
	wheel    wheel
	stats    Stats

	batch      Batch
	generation uint64 // of batch, from 1
	// pageAfterDelete: a page in batch is of a device with deletions in it.
	pageAfterDelete bool
	bodies          map[uint64]int // index in batch.Bodies
	paging          []*session     // parallel to batch.Pages
	taking          []*device      // parallel to batch.TakeReceipts
	flush           []*device      // receipts to send at the end of the turn
	eff             Effects

	acked map[ackKey]uint64 // receipts made by this turn
	boxes map[Key]*receiptBox
	marks int // in boxes and ledgers
	// ledgers are what devices have sent to groups; ledgerRing lists them, least
	// recently used at next, dirty those that have changed since they were saved.
	ledgers    map[ledgerKey]*ledger
	ledgerRing ledger
	dirty      []*ledger
	pushing    map[uint64]*device
	pushRef    uint64
	ahead      int // seqs that sessions look ahead, in all
}

// Stats counts what the core decided; the runner turns them into metrics.
type Stats struct {
	Direct, Group     uint64
	Own               uint64 // direct, for the sender's other devices
	Live, Stored      uint64 // devices of appended items
	RowBytes          uint64
	DemotedTimeout    uint64
	DemotedOverflow   uint64
	DemotedEnd        uint64
	Opens, Fenced     uint64
	Receipts          uint64
	ReceiptsDropped   uint64
	QueriesDropped    uint64
	Aggregated        uint64
	UnknownMembers    uint64
	Full              uint64
	PushesPostponed   uint64
	PushesCancelled   uint64
	CancelsUnanswered uint64
	Expired           uint64
	Planted           uint64
	LoginsWithoutPage uint64
	Pages             []int64 // ns from each page handed out to its acknowledgement
}

type device struct {
	Key
	user  *user
	token string
	// rows is never less than what the store has, so that 0 means empty. It is
	// more when a repeated append was left out by the store, or when rows were
	// deleted by range; an empty or short page corrects it.
	rows   int
	oldest uint64 // no row has a seq below this one
	newest uint64 // seq of the newest row
	// wanted is the seq of the newest row that asks for a push, which a copy of
	// the user's own message does not, and message is what it holds.
	wanted  uint64
	message [16]byte
	session *session
	epoch   uint64 // of the newest session; 0: none since this owner knows the device

	deleted   uint64 // the newest generation of the batch with a deletion of its rows
	receipts  bool   // some are in the store
	taking    bool   // they are being read
	pushTimer int64  // when a push is due, 0: none is
	pushRef   uint64 // the push in flight, 0: none
	pushSeq   uint64 // what the push in flight covers
	pushToken string // and where it went
	covered   uint64 // rows up to this seq ask for no push (any more)
	pushedAt  int64
	held      *held
}

// session is one connection of a device. Deliveries are numbered from 1;
// flight holds those from acked+1 to sent.
type session struct {
	dev      *device
	gateway  uint64
	conn     uint64
	live     bool // else draining
	closed   bool
	loading  bool // a page is being read
	ackTimer bool
	suspect  bool  // has let a delivery time out; cleared by an acknowledgement
	since    int64 // when it began to drain
	paged    int64 // when the page in flight was handed out, 0: there is none
	sent     uint64
	acked    uint64
	flight   queue

	// ahead are the seqs of the next rows of a drain, where they are known, and
	// asked is how many of them the page that is being read has asked for.
	ahead []uint64
	asked int

	receiptTimer bool
	receiptsAt   int64                   // when the last Receipts frame went out
	queries      []*wire.ReceiptsRequest // not answered yet
}

// NewCore returns the state of an owner that has just claimed its shards.
// now is Unix nanoseconds, owns says whether a user is of these shards, drop
// plants the bug "drop".
func NewCore(lim Limits, incarnation uint64, now int64, owns func(user uint64) bool, drop bool) *Core {
	lim.defaults()
	c := &Core{lim: lim, incarnation: incarnation, now: now, owns: owns, plant: drop,
		// Above every seq of an earlier incarnation: incarnations are seconds
		// or more apart in value, and no loop writes 2^28 rows a second.
		seq:        incarnation << 28,
		epoch:      incarnation << 28, // likewise
		generation: 1,
		users:      make(map[uint64]*user),
		gateways:   make(map[uint64]map[*session]struct{}),
		wheel:      newWheel(now),
		bodies:     make(map[uint64]int),
		acked:      make(map[ackKey]uint64),
		boxes:      make(map[Key]*receiptBox),
		ledgers:    make(map[ledgerKey]*ledger),
		pushing:    make(map[uint64]*device),
	}
	c.ledgerRing.prev, c.ledgerRing.next = &c.ledgerRing, &c.ledgerRing
	c.pushRef = c.seq // so that a result meant for an earlier core finds nothing
	c.oldest.prev, c.oldest.next = &c.oldest, &c.oldest
	return c
}

// Begin starts a turn and fires what is due.
func (c *Core) Begin(now int64) {
	c.now = max(c.now, now)
	c.wheel.advance(c.now, c.fire)
}

func (c *Core) fire(t timer) {
	switch t.kind {
	case timerAck:
		c.ackDue(t.s)
	case timerPush:
		c.pushDue(t.dev)
	case timerHeld:
		c.heldDue(t.dev)
	case timerReceipts:
		t.s.receiptTimer = false
		if !t.s.closed {
			c.flush = append(c.flush, t.dev)
		}
	}
}

// End closes a turn: receipts made by its acknowledgements, receipts to send,
// and users that have to make room.
func (c *Core) End() {
	c.spreadReceipts()
	c.sendReceipts()
	c.evict()
}

// Missing reports whether the user has to be loaded before an event for it.
func (c *Core) Missing(id uint64) bool { return c.users[id] == nil }

// Loaded tells the core what the store knows of users. Each of asked that is
// in no state does not exist.
func (c *Core) Loaded(asked []uint64, states []DeviceState) {
	for _, id := range asked {
		if c.users[id] == nil {
			u := &user{id: id, shard: placement.InboxShard(id)}
			c.users[id] = u
			c.link(u)
		}
	}
	for i := range states {
		st := &states[i]
		u := c.users[st.User]
		if u == nil || u.device(st.Device) != nil {
			continue // known, and newer than what was read
		}
		u.exists, u.hidden = true, st.HideLastSeen
		u.devices = append(u.devices, &device{Key: st.Key, user: u, token: st.Token, rows: st.Rows,
			oldest: st.Oldest, newest: st.Newest, wanted: st.Newest, covered: st.Pushed, receipts: st.Receipts})
	}
}

// Provision registers devices, or changes tokens. It is durable when the batch is.
func (c *Core) Provision(regs []Registration) {
	c.batch.Register = append(c.batch.Register, regs...)
	for _, r := range regs {
		u := c.users[r.User]
		if u == nil {
			continue
		}
		u.exists = true
		if d := u.device(r.Device); d != nil {
			d.token = r.Token
			c.schedulePush(d)
			continue
		}
		u.devices = append(u.devices, &device{Key: r.Key, user: u, token: r.Token})
	}
}

// Append puts a message into the mailboxes of its users.
func (c *Core) Append(it *Item) {
	switch {
	case it.Msg.Group != 0:
		c.appendGroup(it)
	case it.Users[0] == it.Msg.From:
		c.appendOwn(it)
	default:
		c.appendDirect(it)
	}
}

func (c *Core) answer(it *Item, code wire.Code) {
	c.stats.Live += uint64(it.live)
	c.stats.Stored += uint64(it.stored)
	c.eff.Answers = append(c.eff.Answers, Answer{Item: it, Code: code, Live: it.live, Stored: it.stored})
}

// appendDirect stores the message for every device, then delivers it to those
// that are live. All or nothing: one full inbox refuses the message.
func (c *Core) appendDirect(it *Item) {
	c.stats.Direct++
	for _, id := range it.Users {
		u := c.touch(id)
		if !u.exists {
			c.answer(it, wire.Code_CODE_NO_SUCH_USER)
			return
		}
		for _, d := range u.devices {
			if d.rows >= c.lim.DeviceRows {
				c.stats.Full++
				c.answer(it, wire.Code_CODE_INBOX_FULL)
				return
			}
		}
	}
	for _, id := range it.Users {
		for _, d := range c.users[id].devices {
			c.putDirect(d, it)
		}
	}
	c.answer(it, wire.Code_CODE_UNSPECIFIED)
}

// putDirect stores a direct message for a device and sends it if that is live.
func (c *Core) putDirect(d *device, it *Item) {
	if c.drops() {
		it.live++
		return
	}
	s := d.session
	if s != nil && s.live && s.flight.len() >= c.lim.InFlight {
		c.demote(s, &c.stats.DemotedOverflow)
	}
	seq := c.storeInline(d, it.Msg)
	if s == nil || !s.live {
		it.stored++
		return
	}
	it.live++
	c.deliver(s, entry{msg: it.Msg, seq: seq})
	c.eff.Frames = append(c.eff.Frames, Outbound{Gateway: s.gateway, Frame: it.Msg.frameWithSeq(seq),
		Conns: []uint64{s.conn}, Deliver: true, Stamped: it.Msg.stamped(), Traceparent: it.Msg.traceparent})
}

// appendGroup delivers to the live devices, one frame for each gateway, and
// stores for the others. The item is answered when the last live device has
// acknowledged or has been given a row.
func (c *Core) appendGroup(it *Item) {
	c.stats.Group++
	if it.Msg.change != nil {
		c.groupChanged(it)
	}
	first := len(c.eff.Frames) // frames of this item start here
	var offline []*device
	for _, id := range it.Users {
		u := c.touch(id)
		if !u.exists {
			c.stats.UnknownMembers++
			continue
		}
		if id == it.Msg.From {
			c.sentToGroup(u, it)
		}
		for _, d := range u.devices {
			if it.Msg.sentBy(d) {
				continue
			}
			if c.drops() {
				it.live++
				continue
			}
			s := d.session
			if s != nil && s.live && s.flight.len() >= c.lim.InFlight {
				c.demote(s, &c.stats.DemotedOverflow)
			}
			if s == nil || !s.live {
				offline = append(offline, d)
				continue
			}
			it.pending++
			c.deliver(s, entry{msg: it.Msg, item: it})
			c.frameTo(first, s, it.Msg)
		}
	}
	if n := len(it.Msg.Deliver); len(offline) > 1 && (n > inlineBytes || n*len(offline) > inlineTotal) {
		c.seq++
		it.bodyID = c.seq
	}
	for _, d := range offline {
		it.stored++
		c.storeGroup(d, it)
	}
	if it.pending == 0 {
		c.answer(it, wire.Code_CODE_UNSPECIFIED)
	}
}

// A body is stored once for several rows when it, or what its copies would add
// up to, is larger than this. A shared body costs a write of its own and one
// more for each deletion of a row, about 10 us; 200 bytes more in a row cost next
// to nothing.
const (
	inlineBytes = 512
	inlineTotal = 16 << 10
)

// frameTo adds the session to the frame of this message for its gateway.
func (c *Core) frameTo(first int, s *session, m *Message) {
	for i := first; i < len(c.eff.Frames); i++ {
		if f := &c.eff.Frames[i]; f.Gateway == s.gateway {
			f.Conns = append(f.Conns, s.conn)
			return
		}
	}
	c.eff.Frames = append(c.eff.Frames, Outbound{Gateway: s.gateway, Frame: m.frame, Conns: []uint64{s.conn}, Deliver: true,
		Stamped: m.stamped(), Traceparent: m.traceparent})
}

// drops is the planted bug "drop".
func (c *Core) drops() bool {
	if !c.plant {
		return false
	}
	c.planted++
	if c.planted%1000 != 0 {
		return false
	}
	c.stats.Planted++
	return true
}

// storeInline gives the device a row that holds the message.
func (c *Core) storeInline(d *device, m *Message) uint64 { return c.addRow(d, m, 0) }

// storeGroup gives the device a row for a group message, and returns its seq.
func (c *Core) storeGroup(d *device, it *Item) uint64 {
	if it.bodyID == 0 {
		return c.addRow(d, it.Msg, 0)
	}
	if i, ok := c.bodies[it.bodyID]; ok {
		c.batch.Bodies[i].Refs++
	} else {
		c.bodies[it.bodyID] = len(c.batch.Bodies)
		c.batch.Bodies = append(c.batch.Bodies, Body{ID: it.bodyID, Data: it.Msg.Deliver, Refs: 1})
		c.stats.RowBytes += uint64(len(it.Msg.Deliver))
	}
	return c.addRow(d, it.Msg, it.bodyID)
}

func (c *Core) addRow(d *device, m *Message, body uint64) uint64 {
	c.seq++
	r := Row{Key: d.Key, Shard: d.user.shard, Seq: c.seq, Message: m.ID, BodyID: body, At: c.now / int64(time.Second)}
	if body == 0 {
		r.Body = m.row(d)
		c.stats.RowBytes += uint64(len(r.Body))
	}
	c.batch.Rows = append(c.batch.Rows, r)
	if d.rows == 0 {
		d.oldest = c.seq
	}
	d.rows++
	d.newest = c.seq
	if m.From == d.User {
		c.quiet(d)
	} else {
		d.wanted, d.message = c.seq, m.ID
		c.schedulePush(d)
	}
	return c.seq
}

// dropRow deletes a row that the device had, now or when no push attempt can
// start any more.
func (c *Core) dropRow(d *device, seq, body uint64) {
	d.rows = max(d.rows-1, 0)
	if c.hold(d) {
		d.held.rows = append(d.held.rows, heldRow{seq, body})
		return
	}
	c.deleteRow(d, seq, body)
}

func (c *Core) deleteRow(d *device, seq, body uint64) {
	if body == 0 {
		c.batch.Delete = append(c.batch.Delete, seq)
	} else {
		c.batch.DeletePtr = append(c.batch.DeletePtr, seq)
	}
	d.deleted = c.generation
}

// dropUpTo deletes the rows of a device up to a seq, likewise.
func (c *Core) dropUpTo(d *device, seq uint64) {
	if c.hold(d) {
		d.held.upTo = max(d.held.upTo, seq)
		return
	}
	c.batch.DeleteUpTo = append(c.batch.DeleteUpTo, UpTo{Key: d.Key, Seq: seq})
}
