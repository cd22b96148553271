package inbox_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"throng/system/internal/inbox"
	"throng/system/internal/inbox/inboxtest"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a core with a store in memory and a clock that stands still: it
// does what a loop does, one turn at a time.
type machine struct {
	store *inboxtest.Memory
	lim   inbox.Limits
	core  *inbox.Core
	inc   uint64
	now   time.Time
	plant bool
	// foreign users' receipts are forwarded.
	foreign map[uint64]bool
}

func newMachine(lim inbox.Limits) *machine {
	m := &machine{store: inboxtest.NewMemory(), lim: lim, now: time.Unix(1_000_000, 0), foreign: map[uint64]bool{}}
	m.restart()
	return m
}

func (m *machine) restart() {
	inc, _, err := m.store.Claim(context.Background(), []int{0}, 0)
	if err != nil {
		panic(err)
	}
	m.inc = inc
	m.core = inbox.NewCore(m.lim, inc, m.now.UnixNano(), func(u uint64) bool { return !m.foreign[u] }, m.plant)
}

// turn runs events as one turn; users are those that the events are about.
// flush writes what could wait, too.
func (m *machine) turn(users []uint64, flush bool, events func(c *inbox.Core)) (inbox.Effects, []*inbox.Batch, error) {
	var missing []uint64
	for _, u := range users {
		if m.core.Missing(u) && !slices.Contains(missing, u) {
			missing = append(missing, u)
		}
	}
	states, err := m.store.Load(context.Background(), missing)
	if err != nil {
		return inbox.Effects{}, nil, err
	}
	m.core.Loaded(missing, states)
	m.core.Begin(m.now.UnixNano())
	events(m.core)
	m.core.End()
	var batches []*inbox.Batch
	for m.core.Urgent() || flush && m.core.Waiting() > 0 {
		b := m.core.TakeBatch(flush)
		batches = append(batches, b)
		res, err := m.store.Commit(context.Background(), b)
		if err != nil {
			return inbox.Effects{}, batches, err
		}
		if err := m.core.Committed(&res); err != nil {
			return inbox.Effects{}, batches, err
		}
	}
	return m.core.TakeEffects(), batches, nil
}

// TestTranscripts runs testdata/*.txt: each block is a turn, what stands below
// the line is what came of it. THRONG_UPDATE=1 writes the files anew.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := transcript(t, string(text))
			if os.Getenv("THRONG_UPDATE") == "1" {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("%s changed; got:\n%s", file, got)
			}
		})
	}
}

func transcript(t *testing.T, text string) string {
	t.Helper()
	s := &script{t: t, m: newMachine(inbox.Limits{}), gateways: map[string]uint64{}, epochs: map[string]uint64{}}
	var out strings.Builder
	for _, block := range strings.Split(strings.TrimSpace(text), "\n\n") {
		commands, _, found := strings.Cut(block, "----")
		out.WriteString(commands)
		if found || !strings.HasPrefix(block, "#") {
			if !strings.HasSuffix(commands, "\n") {
				out.WriteString("\n")
			}
			out.WriteString("----\n" + s.run(commands))
		} else {
			out.WriteString("\n")
		}
		out.WriteString("\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// script interprets the commands of a transcript.
type script struct {
	t        *testing.T
	m        *machine
	gateways map[string]uint64
	pushes   []uint64
	// epochs of connections, "g1.5", as the gateway last heard of them.
	epochs     map[string]uint64
	showOpened bool
}

var wordRE = regexp.MustCompile(`\S+`)

func (s *script) run(commands string) string {
	s.t.Helper()
	var events []func(*inbox.Core)
	var users []uint64
	flush := false
	for line := range strings.Lines(commands) {
		line, _, _ = strings.Cut(line, "#")
		words := wordRE.FindAllString(line, -1)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "limits":
			s.limits(words[1:])
			s.m.restart()
			continue
		case "restart":
			s.m.restart()
			continue
		case "sleep":
			d, err := time.ParseDuration(words[1])
			s.must(err)
			s.m.now = s.m.now.Add(d)
			continue
		case "flush":
			flush = true
			continue
		case "show":
			s.showOpened = true
			continue
		case "foreign":
			s.m.foreign[s.num(words[1])] = true
			continue
		}
		us, f := s.event(words)
		users = append(users, us...)
		events = append(events, f)
	}
	eff, batches, err := s.m.turn(users, flush, func(c *inbox.Core) {
		for _, f := range events {
			f(c)
		}
	})
	s.must(err)
	return s.print(eff, batches)
}

func (s *script) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) num(w string) uint64 {
	s.t.Helper()
	n, err := strconv.ParseUint(w, 10, 64)
	s.must(err)
	return n
}

func (s *script) key(w string) inbox.Key {
	user, device, _ := strings.Cut(w, "/")
	return inbox.Key{User: s.num(user), Device: uint32(s.num(cmp.Or(device, "0")))}
}

func (s *script) limits(words []string) {
	for _, w := range words {
		name, v, _ := strings.Cut(w, "=")
		n := int(s.num(v))
		*map[string]*int{"inflight": &s.m.lim.InFlight, "page": &s.m.lim.PageRows, "rows": &s.m.lim.DeviceRows,
			"users": &s.m.lim.Users, "marks": &s.m.lim.DeviceMarks}[name] = n
	}
}

func (s *script) gateway(w string) uint64 {
	if s.gateways[w] == 0 {
		s.gateways[w] = uint64(len(s.gateways) + 1)
	}
	return s.gateways[w]
}

// args reads name=value words.
func args(words []string) map[string]string {
	out := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		out[k] = v
	}
	return out
}

func (s *script) event(words []string) (users []uint64, f func(*inbox.Core)) {
	s.t.Helper()
	a := args(words[1:])
	opt := func(name string) uint64 { return s.num(cmp.Or(a[name], "0")) }
	switch words[0] {
	case "provision":
		r := inbox.Registration{Key: s.key(words[1]), Token: a["token"]}
		return nil, func(c *inbox.Core) { c.Provision([]inbox.Registration{r}) }
	case "append":
		from := s.key(a["from"])
		for w := range strings.SplitSeq(a["to"], ",") {
			users = append(users, s.num(w))
		}
		body := cmp.Or(a["body"], "body")
		if n := opt("size"); n > 0 {
			body = strings.Repeat("x", int(n))
		}
		it := item(opt("group"), from, opt("seq"), body, users...)
		if to := opt("copy"); to != 0 {
			it = ownCopy(from, opt("seq"), body, to)
		}
		it.Recipients = uint32(opt("recipients"))
		return users, func(c *inbox.Core) { c.Append(it) }
	case "open":
		g, conn, k := s.gateway(words[1]), s.num(words[2]), s.key(words[3])
		have := opt("have")
		if have > 0 {
			have += s.m.inc << 28
		}
		o := &rpc.SessionOpen{User: k.User, Device: k.Device, Conn: conn, InboxSeq: have, Epoch: s.epochs[a["epoch"]]}
		return []uint64{k.User}, func(c *inbox.Core) { c.Open(g, o) }
	case "privacy":
		user, hide := s.num(words[1]), words[2] == "hide"
		return []uint64{user}, func(c *inbox.Core) { c.Privacy(user, hide) }
	case "ack":
		g, conn, user, upto := s.gateway(words[1]), s.num(words[2]), s.num(words[3]), s.num(words[4])
		return nil, func(c *inbox.Core) { c.Ack(g, conn, user, upto) }
	case "close":
		g, conn, user := s.gateway(words[1]), s.num(words[2]), s.num(words[3])
		return nil, func(c *inbox.Core) { c.Close(g, conn, user) }
	case "lost":
		g := s.gateway(words[1])
		return nil, func(c *inbox.Core) { c.GatewayLost(g) }
	case "read":
		to := s.key(a["to"])
		u := &rpc.ReceiptUpdate{To: to.User, ToDevice: to.Device, Group: opt("group"), Peer: opt("peer"),
			ReadSeq: opt("seq"), DeliveredSeq: opt("delivered")}
		return nil, func(c *inbox.Core) { c.Receipt(u) }
	case "change":
		it := changeItem(opt("group"), opt("version"), s.nums(a["to"]), s.nums(a["add"]), s.nums(a["remove"]))
		return it.Users, func(c *inbox.Core) { c.Append(it) }
	case "query":
		g, conn, user, group := s.gateway(words[1]), s.num(words[2]), s.num(words[3]), s.num(words[4])
		return nil, func(c *inbox.Core) {
			c.Query(g, conn, user, &wire.ReceiptsRequest{RequestId: 1, Group: group})
		}
	case "save":
		return nil, func(c *inbox.Core) { c.SaveReceipts(len(words) > 1) }
	case "pushed":
		ref := s.pushes[len(s.pushes)-1]
		outcome := rpc.PushOutcome(rpc.PushOutcome_value["PUSH_OUTCOME_"+strings.ToUpper(words[1])])
		return nil, func(c *inbox.Core) { c.PushResult(ref, outcome) }
	case "scan":
		rows, err := s.m.store.Scan(context.Background(), 0, 100)
		s.must(err)
		for _, r := range rows {
			users = append(users, r.User)
		}
		return users, func(c *inbox.Core) { c.Scanned(rows) }
	case "stop":
		return nil, func(c *inbox.Core) { c.Unhold() }
	case "tick":
		return nil, func(*inbox.Core) {}
	}
	s.t.Fatalf("unknown command %q", words)
	return nil, nil
}

func (s *script) nums(list string) (out []uint64) {
	for w := range strings.SplitSeq(list, ",") {
		if w != "" {
			out = append(out, s.num(w))
		}
	}
	return out
}

// changeItem is a system message.
func changeItem(group, version uint64, to, add, remove []uint64) *inbox.Item {
	id := wire.IDOf(0, 0, group<<32|version)
	m, err := inbox.NewMessage(&rpc.Envelope{MessageId: id[:], Group: group, Seq: version, Kind: wire.Kind_KIND_SYSTEM,
		Change: &wire.GroupChange{Version: version, Add: add, Remove: remove}}, false)
	if err != nil {
		panic(err)
	}
	return &inbox.Item{Msg: m, Users: to, Ref: fmt.Sprintf("change %d of %d", version, group)}
}

func item(group uint64, from inbox.Key, seq uint64, body string, users ...uint64) *inbox.Item {
	e := envelope(from, seq, body)
	e.Group, e.To = group, users[0]
	if group != 0 {
		e.To = 0
	}
	return itemOf(e, false, users...)
}

// ownCopy is the copy of a direct message to a user for the sender's other devices.
func ownCopy(from inbox.Key, seq uint64, body string, to uint64) *inbox.Item {
	e := envelope(from, seq, body)
	e.To = to
	return itemOf(e, true, from.User)
}

func envelope(from inbox.Key, seq uint64, body string) *rpc.Envelope {
	return &rpc.Envelope{From: from.User, FromDevice: from.Device, Seq: seq, Body: []byte(body)}
}

func itemOf(e *rpc.Envelope, own bool, users ...uint64) *inbox.Item {
	conv := e.Group
	if e.Group == 0 {
		conv = 1000 + e.To
	}
	id := wire.IDOf(e.From, e.FromDevice, conv<<32|e.Seq)
	e.MessageId = id[:]
	m, err := inbox.NewMessage(e, own)
	if err != nil {
		panic(err)
	}
	return &inbox.Item{Msg: m, Users: users, Ref: fmt.Sprintf("%d/%d:%d#%d", e.From, e.FromDevice, e.Group, e.Seq)}
}

// rel shortens a seq to its number in the incarnation that made it.
func (s *script) rel(seq uint64) string {
	if inc := seq >> 28; inc != s.m.inc && seq != 0 {
		return fmt.Sprintf("old:%d", seq&(1<<28-1))
	}
	return strconv.FormatUint(seq&(1<<28-1), 10)
}

func (s *script) print(e inbox.Effects, batches []*inbox.Batch) string {
	var out strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&out, format+"\n", a...) }
	for _, b := range batches {
		p("commit:%s", s.printBatch(b))
	}
	for _, a := range e.Answers {
		p("answer %v: %v live %d stored %d", a.Item.Ref, strings.TrimPrefix(a.Code.String(), "CODE_"), a.Live, a.Stored)
	}
	names := map[uint64]string{}
	for n, id := range s.gateways {
		names[id] = n
	}
	for _, o := range e.Opened {
		s.epochs[fmt.Sprintf("%s.%d", names[o.Gateway], o.Conn)] = o.Epoch
		if s.showOpened {
			p("%s opened %d: epoch %s, hidden %v", names[o.Gateway], o.Conn, s.rel(o.Epoch), o.HideLastSeen)
		}
	}
	for _, f := range e.Frames {
		p("%s %v: %s", names[f.Gateway], f.Conns, s.printFrame(f))
	}
	for _, k := range e.Kicks {
		p("%s kick %d: %s", names[k.Gateway], k.Conn, k.Code)
	}
	for _, r := range e.Pushes {
		s.pushes = append(s.pushes, r.Ref)
		p("push %d/%d token %s, %d waiting", r.User, r.Device, r.Token, r.Waiting)
	}
	for _, k := range e.Cancels {
		p("take back push %d of %d", 1+slices.Index(s.pushes, k.Ref), k.User)
	}
	for _, u := range e.Forward {
		p("forward to %d/%d: group %d peer %d delivered %d", u.To, u.ToDevice, u.Group, u.Peer, u.DeliveredSeq)
	}
	if out.Len() == 0 {
		return "nothing\n"
	}
	return out.String()
}

func (s *script) printBatch(b *inbox.Batch) string {
	var out strings.Builder
	for _, r := range b.Register {
		fmt.Fprintf(&out, " register %d/%d", r.User, r.Device)
	}
	for _, x := range b.Bodies {
		fmt.Fprintf(&out, " body %s for %d", s.rel(x.ID), x.Refs)
	}
	for _, r := range b.Rows {
		fmt.Fprintf(&out, " row %d/%d@%s", r.User, r.Device, s.rel(r.Seq))
	}
	for _, d := range append(slices.Clone(b.Delete), b.DeletePtr...) {
		fmt.Fprintf(&out, " delete @%s", s.rel(d))
	}
	for _, u := range b.DeleteUpTo {
		fmt.Fprintf(&out, " delete %d/%d up to @%s", u.User, u.Device, s.rel(u.Seq))
	}
	for _, x := range b.Pushed {
		fmt.Fprintf(&out, " pushed %d/%d@%s", x.User, x.Device, s.rel(x.Seq))
	}
	for _, x := range b.DeadTokens {
		fmt.Fprintf(&out, " dead token %s", x.Token)
	}
	for _, x := range b.Privacy {
		fmt.Fprintf(&out, " hidden %d %v", x.User, x.HideLastSeen)
	}
	for _, x := range b.Marks {
		fmt.Fprintf(&out, " mark for %d/%d", x.User, x.Device)
		if len(x.Ledger) > 0 {
			fmt.Fprintf(&out, " with ledger of %d", x.Group)
		}
	}
	for _, x := range b.Pages {
		fmt.Fprintf(&out, " page %d/%d", x.User, x.Device)
	}
	for _, x := range b.TakeReceipts {
		fmt.Fprintf(&out, " receipts %d/%d", x.User, x.Device)
	}
	return out.String()
}

func (s *script) printFrame(o inbox.Outbound) string {
	f := new(wire.Frame)
	s.must(f.UnmarshalVT(o.Frame))
	if o.Deliver != (f.GetDeliver() != nil) {
		s.t.Errorf("frame %v is marked deliver: %v", f, o.Deliver)
	}
	switch k := f.Kind.(type) {
	case *wire.Frame_Deliver:
		d := k.Deliver
		out := fmt.Sprintf("deliver %d/%d:%d#%d", d.From, d.FromDevice, d.Group, d.Seq)
		if d.To != 0 {
			out += fmt.Sprintf(" to %d", d.To)
		}
		if d.InboxSeq != 0 {
			out += " @" + s.rel(d.InboxSeq)
		}
		return out
	case *wire.Frame_Current:
		return fmt.Sprintf("current after %d", k.Current.Delivered)
	case *wire.Frame_Receipts:
		return "receipts: " + printReceipts(k.Receipts.Receipts)
	case *wire.Frame_ReceiptList:
		return fmt.Sprintf("list %d: %s", k.ReceiptList.RequestId, printReceipts(k.ReceiptList.Receipts))
	}
	return fmt.Sprint(f)
}

func printReceipts(rs []*wire.Receipt) string {
	var out []string
	for _, r := range rs {
		out = append(out, fmt.Sprintf("group %d peer %d delivered %d read %d", r.Group, r.Peer, r.DeliveredSeq, r.ReadSeq))
	}
	return strings.Join(out, "; ")
}
