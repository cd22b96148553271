package message

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// TestSentMeansDurable: no Sent before the inbox has answered, and its fields.
func TestSentMeansDurable(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Timeout = 800 * time.Millisecond })
	r.inbox.decide = func(_ int, item *rpc.AppendItem) (wire.Code, bool) { return 0, item.Message.Seq != 1 }
	g := r.start()
	first := g.send(2, to(4, 1))
	other := g.send(2, &wire.Send{ClientMsgId: 7, User: 6, Seq: 2, Chain: chain(2, 6, 0, 1)})
	sent := g.awaitSent(other)
	id := wire.IDOf(2, 1, 7)
	if sent.ClientMsgId != 7 || !bytes.Equal(sent.MessageId, id[:]) || sent.AcceptedMs == 0 || !bytes.Equal(sent.Chain, chain(2, 6, 0, 2)) {
		t.Fatalf("Sent is %v", sent)
	}
	if g.answer(first) != nil {
		t.Fatal("answered what the inbox has not taken")
	}
	for _, item := range r.inbox.items() {
		if len(item.Users) != 1 || item.Message.From != 2 || item.Message.FromDevice != 1 || item.Message.Group != 0 {
			t.Fatalf("inbox got %v", item)
		}
	}
}

func chain(user, peer, group, seq uint64) []byte {
	c := wire.Chain(testKey(), user, 1, wire.Conversation{User: peer, Group: group}, seq)
	return c[:]
}

// TestOrderOfAConversation: sends that do not wait for each other are stored
// and answered in order.
func TestOrderOfAConversation(t *testing.T) {
	const n = 100
	r := newRig(t, nil)
	g := r.start()
	var refs []uint64
	for seq := uint64(1); seq <= n; seq++ {
		refs = append(refs, g.send(2, to(4, seq)), g.send(2, toGroup(9, seq)))
	}
	for _, ref := range refs {
		g.awaitSent(ref)
	}
	items := r.inbox.items()
	records := r.log.records(placement.GroupPartition(9, 4))
	if len(items) != n || len(records) != n {
		t.Fatalf("%d rows and %d records of %d", len(items), len(records), n)
	}
	for i := range n {
		if items[i].Message.Seq != uint64(i+1) || records[i].Seq != uint64(i+1) {
			t.Fatalf("place %d has %d and %d", i, items[i].Message.Seq, records[i].Seq)
		}
	}
	if m := records[0]; m.Group != 9 || m.From != 2 || string(m.Body) != "hello all" || len(m.MessageId) != 16 || m.AcceptedMs == 0 {
		t.Fatalf("record is %v", m)
	}
	if d := testutil.ToFloat64(r.service.m.acceptedGroup); d != n {
		t.Fatalf("%v group sends counted", d)
	}
}

// TestGapAndFailure: after n fails nothing later is accepted until n comes again.
func TestGapAndFailure(t *testing.T) {
	r := newRig(t, nil)
	full := true
	r.inbox.decide = func(_ int, item *rpc.AppendItem) (wire.Code, bool) {
		if item.Message.Seq == 2 && full {
			full = false
			return wire.Code_CODE_INBOX_FULL, true
		}
		return 0, true
	}
	g := r.start()
	one, two, three := g.send(2, to(4, 1)), g.send(2, to(4, 2)), g.send(2, to(4, 3))
	g.awaitSent(one)
	g.awaitCode(two, wire.Code_CODE_INBOX_FULL)
	g.awaitCode(three, wire.Code_CODE_RETRY)
	if e := g.awaitCode(g.send(2, to(4, 3)), wire.Code_CODE_SEQUENCE); e.ExpectedSeq != 2 || e.ClientMsgId != 1003 {
		t.Fatalf("error %v, want expected_seq 2", e)
	}
	two, three = g.send(2, to(4, 2)), g.send(2, to(4, 3))
	g.awaitSent(two)
	g.awaitSent(three)
	var seqs []uint64
	for _, item := range r.inbox.items() {
		seqs = append(seqs, item.Message.Seq)
	}
	if len(seqs) != 4 || seqs[1] != 2 || seqs[2] != 2 || seqs[3] != 3 {
		t.Fatalf("the inbox saw %v: 3 may not go before 2 is durable", seqs)
	}
}

func TestDuplicates(t *testing.T) {
	r := newRig(t, nil)
	hold := make(chan struct{})
	r.inbox.decide = func(_ int, item *rpc.AppendItem) (wire.Code, bool) {
		if item.Message.Seq == 2 {
			<-hold
		}
		return 0, true
	}
	g := r.start()
	first := g.awaitSent(g.send(2, to(4, 1)))
	again := g.awaitSent(g.send(2, to(4, 1)))
	if !bytes.Equal(first.MessageId, again.MessageId) || !bytes.Equal(first.Chain, again.Chain) {
		t.Fatalf("%v and then %v", first, again)
	}
	impostor := to(4, 1)
	impostor.ClientMsgId = 99
	if e := g.awaitCode(g.send(2, impostor), wire.Code_CODE_SEQUENCE); e.ExpectedSeq != 2 {
		t.Fatalf("another message under a taken number: %v", e)
	}
	two, join := g.send(2, to(4, 2)), g.send(2, to(4, 2))
	waitFor(t, "the join", func() bool { return testutil.ToFloat64(r.service.m.duplicates) == 2 })
	if g.answer(two) != nil || g.answer(join) != nil {
		t.Fatal("a duplicate was answered before the message is durable")
	}
	close(hold)
	g.awaitSent(two)
	g.awaitSent(join)
	if n := len(r.inbox.items()); n != 2 {
		t.Fatalf("%d rows, want 2", n)
	}
}

// TestOwnCopies: the sender's other devices get a direct message after the
// addressee has it, and Sent comes after both. Of a refused one there is no copy.
func TestOwnCopies(t *testing.T) {
	r := newRig(t, nil)
	hold := make(chan struct{})
	r.inbox.decide = func(_ int, item *rpc.AppendItem) (wire.Code, bool) {
		switch {
		case item.Users[0] == 2:
			<-hold
		case item.Message.To == 6:
			return wire.Code_CODE_INBOX_FULL, true
		}
		return 0, true
	}
	g := r.start()
	refused, sent := g.send(2, to(6, 1)), g.send(2, to(4, 1))
	waitFor(t, "the addressees' items", func() bool { return len(r.inbox.items()) == 2 })
	g.awaitCode(refused, wire.Code_CODE_INBOX_FULL)
	if g.answer(sent) != nil {
		t.Fatal("answered before the sender's other devices have it")
	}
	close(hold)
	g.awaitSent(sent)
	g.awaitSent(g.send(2, to(2, 1))) // a note to oneself
	copies := r.inbox.ownCopies()
	if len(copies) != 2 || copies[0].Message.To != 4 || copies[1].Message.To != 2 {
		t.Fatalf("copies are %v", copies)
	}
	if c := copies[0]; len(c.Users) != 1 || c.Users[0] != 2 || !bytes.Equal(c.Message.MessageId, r.inbox.items()[1].Message.MessageId) {
		t.Fatalf("copy is %v", c)
	}
}

// TestRestartNeedsTheChain: an instance that knows nothing accepts what the
// chain proves, and nothing else.
func TestRestartNeedsTheChain(t *testing.T) {
	r := newRig(t, nil)
	g := r.start()
	one := g.awaitSent(g.send(2, to(4, 1)))
	g.stopService()

	g = r.start()
	g.awaitCode(g.send(2, to(4, 2)), wire.Code_CODE_RETRY) // from the first unanswered one
	forged := to(4, 2)
	forged.Chain = make([]byte, wire.ChainBytes)
	g.awaitCode(g.send(2, forged), wire.Code_CODE_SEQUENCE)
	two := to(4, 2)
	two.Chain = one.Chain
	g.awaitSent(g.send(2, two))
	g.awaitSent(g.send(2, to(4, 3)))
}

// What is refused for good has used up its number: the chain of the refusal lets
// the next one follow, here and elsewhere. Nobody takes the refused one for
// durable, and a failure that passes uses up nothing.
func TestRefusalUsesUpItsNumber(t *testing.T) {
	r := newRig(t, nil)
	r.inbox.decide = func(_ int, item *rpc.AppendItem) (wire.Code, bool) {
		switch item.Message.Seq {
		case 2:
			return wire.Code_CODE_INBOX_FULL, true
		case 4:
			return wire.Code_CODE_INTERNAL, true
		}
		return 0, true
	}
	g := r.start()
	g.awaitSent(g.send(2, to(4, 1)))
	refused := g.awaitCode(g.send(2, to(4, 2)), wire.Code_CODE_INBOX_FULL)
	if want := wire.Chain(testKey(), 2, 1, wire.Conversation{User: 4}, 2); !bytes.Equal(refused.Chain, want[:]) {
		t.Fatalf("refused with chain %x, want %x", refused.Chain, want)
	}
	g.awaitCode(g.send(2, to(4, 2)), wire.Code_CODE_INBOX_FULL) // the answer was lost
	g.awaitCode(g.send(2, to(4, 3)), wire.Code_CODE_SEQUENCE)   // without proof
	for range 2 {
		three := to(4, 3)
		three.Chain = refused.Chain
		g.awaitSent(g.send(2, three))
		if e := g.awaitCode(g.send(2, to(4, 4)), wire.Code_CODE_RETRY); len(e.Chain) > 0 {
			t.Fatalf("a failure that passes has chain %x", e.Chain)
		}
		g.stopService()
		g = r.start() // an instance that knows nothing
	}
}

// An inbox that died may have stored what it did not answer. What the next one
// refuses is the client's to send again, so that it knows that it did.
func TestRefusedByTheSecondInbox(t *testing.T) {
	r := newRig(t, nil)
	r.inbox.decide = func(int, *rpc.AppendItem) (wire.Code, bool) { return 0, false }
	g := r.start()
	ref := g.send(2, to(4, 1))
	waitFor(t, "the inbox to have it", func() bool { return len(r.inbox.items()) == 1 })
	r.stopInbox()
	full := &fakeInbox{decide: func(int, *rpc.AppendItem) (wire.Code, bool) { return wire.Code_CODE_INBOX_FULL, true }}
	_, stop := serve(t, r.inboxAddr, func(s *grpc.Server) { rpc.RegisterInboxServer(s, full) })
	defer stop()
	g.awaitCode(ref, wire.Code_CODE_RETRY)
	g.awaitCode(g.send(2, to(4, 1)), wire.Code_CODE_INBOX_FULL)
}

func TestGroupRefusals(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Timeout = 400 * time.Millisecond })
	both := make(chan struct{}) // are in flight, one behind the other
	r.log.fail = func(n int) error {
		if n == 1 {
			<-both
			return errors.New("no")
		}
		return nil
	}
	g := r.start()
	g.awaitCode(g.send(3, toGroup(9, 1)), wire.Code_CODE_NOT_MEMBER)
	one, two := g.send(2, toGroup(9, 1)), g.send(2, toGroup(9, 2))
	func() {
		defer close(both)
		waitFor(t, "both in flight", func() bool { return r.service.inFlight.Load() == 2 })
	}()
	g.awaitCode(one, wire.Code_CODE_RETRY)
	g.awaitCode(two, wire.Code_CODE_RETRY)
	g.awaitSent(g.send(2, toGroup(9, 1)))

	r.group.setDown(true)
	g.awaitCode(g.send(2, toGroup(9, 2)), wire.Code_CODE_RETRY)
	r.group.setDown(false)
	g.awaitSent(g.send(2, toGroup(9, 2)))
}

func TestInvalid(t *testing.T) {
	r := newRig(t, nil)
	g := r.start()
	for name, c := range map[string]struct {
		send *wire.Send
		code wire.Code
	}{
		"both":      {&wire.Send{ClientMsgId: 1, User: 1, Group: 1, Seq: 1}, wire.Code_CODE_INVALID},
		"neither":   {&wire.Send{ClientMsgId: 1, Seq: 1}, wire.Code_CODE_INVALID},
		"no seq":    {&wire.Send{ClientMsgId: 1, User: 1}, wire.Code_CODE_INVALID},
		"no id":     {&wire.Send{User: 1, Seq: 1}, wire.Code_CODE_INVALID},
		"too large": {&wire.Send{ClientMsgId: 1, User: 1, Seq: 1, Body: make([]byte, wire.MaxBodyBytes+1)}, wire.Code_CODE_TOO_LARGE},
	} {
		t.Run(name, func(t *testing.T) { g.awaitCode(g.send(2, c.send), c.code) })
	}
	g.awaitCode(g.send(2, nil), wire.Code_CODE_INVALID)
	if n := len(r.inbox.items()); n != 0 {
		t.Fatalf("%d rows of nothing valid", n)
	}
}

// TestInboxRestart: what was in flight to an inbox that dies is sent again.
func TestInboxRestart(t *testing.T) {
	r := newRig(t, nil)
	r.inbox.decide = func(int, *rpc.AppendItem) (wire.Code, bool) { return 0, false }
	g := r.start()
	var refs []uint64
	for peer := uint64(4); peer < 14; peer++ {
		refs = append(refs, g.send(2, to(peer, 1)))
	}
	waitFor(t, "the inbox to have all", func() bool { return len(r.inbox.items()) == 10 })
	r.stopInbox()
	fresh := &fakeInbox{}
	serve(t, r.inboxAddr, func(s *grpc.Server) { rpc.RegisterInboxServer(s, fresh) })
	for _, ref := range refs {
		g.awaitSent(ref)
	}
	for i, item := range fresh.items() {
		if item.Users[0] != uint64(4+i) {
			t.Fatalf("place %d has user %d", i, item.Users[0])
		}
	}
	if n := testutil.ToFloat64(r.service.m.resent); n != 10 {
		t.Fatalf("%v counted as sent again", n)
	}
}

func TestInFlightLimit(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxInFlight, c.Timeout = 3, 800*time.Millisecond })
	r.inbox.decide = func(int, *rpc.AppendItem) (wire.Code, bool) { return 0, false }
	g := r.start()
	for peer := uint64(4); peer < 7; peer++ {
		g.send(2, to(peer, 1))
	}
	if e := g.awaitCode(g.send(2, to(8, 1)), wire.Code_CODE_RETRY); e.RetryAfterMs == 0 {
		t.Fatalf("%v without retry_after_ms", e)
	}
}

func TestForgetsTheOldest(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxConversations = shards }) // one in each shard
	g := r.start()
	for peer := uint64(1); peer <= 500; peer++ {
		g.awaitSent(g.send(2, to(peer, 1)))
	}
	known := 0
	for i := range r.service.convs.shards {
		sh := &r.service.convs.shards[i]
		sh.mu.Lock()
		known += len(sh.all)
		sh.mu.Unlock()
	}
	if known > shards {
		t.Fatalf("%d conversations known, limit %d", known, shards)
	}
	if d := testutil.ToFloat64(r.service.m.conversations.Depth); d != float64(known) {
		t.Fatalf("the metric says %v of %d", d, known)
	}
	two := to(500, 2)
	two.Chain = chain(2, 500, 0, 1)
	g.awaitSent(g.send(2, two))
}

func TestPlantAckEarly(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Plant = PlantAckEarly })
	g := r.start()
	g.awaitSent(g.send(2, to(4, 1)))
	if n := len(r.inbox.items()); n != 0 {
		t.Fatal("durable already: the plant does nothing")
	}
	waitFor(t, "the row", func() bool { return len(r.inbox.items()) == 1 })
	r.cfg.Plant = "no such"
	if _, err := New(r.cfg); err == nil {
		t.Fatal("an unknown planted bug was taken")
	}
}

// TestCheckFailsOver: any group instance can answer.
func TestCheckFailsOver(t *testing.T) {
	r := newRig(t, nil)
	down, stop := serve(t, "", func(*grpc.Server) {})
	stop()
	r.cfg.Groups = []string{down, r.cfg.Groups[0], down}
	g := r.start()
	for group := uint64(1); group <= 20; group++ {
		g.awaitSent(g.send(2, toGroup(group, 1)))
	}
}
