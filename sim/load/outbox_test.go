package load

import (
	"slices"
	"testing"
	"time"
	"unsafe"

	"throng/system/wire"
)

// What is kept for a user who is away: at most 64 bytes for what they have
// written in a conversation, and as much for each device that they hear there.
func TestAwayUserIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(outbox{}); n > 64 {
		t.Errorf("an outbox has %d bytes", n)
	}
	if n := unsafe.Sizeof(heard{}); n > 64 {
		t.Errorf("a stream has %d bytes", n)
	}
}

func message(d *device, c conv, clientID uint64) *outMsg {
	m := &outMsg{conv: c, seq: d.number(c), send: &wire.Send{ClientMsgId: clientID, Body: make([]byte, bodyHeader)}}
	d.note(m)
	return m
}

func seqs(sends []*outMsg) (out []uint64) {
	for _, m := range sends {
		out = append(out, m.seq)
	}
	return out
}

// A refused send with a chain keeps its number, and the next one proves that it
// follows it.
func TestRefusedSendKeepsItsNumber(t *testing.T) {
	d, a, e := &device{}, conv{group: 2}, &Engine{start: time.Now()}
	one, two := message(d, a, 1), message(d, a, 2)
	one.written, two.written = -1, -1
	if e.frame(d, one); one.again {
		t.Error("the first write is taken for another one")
	}
	if e.frame(d, one); !one.again {
		t.Error("the second write is taken for the first")
	}
	e.refuse(d, one, []byte("chain of one...."))
	if f := e.frame(d, two).GetSend(); f.Seq != 2 || string(f.Chain) != "chain of one...." {
		t.Errorf("the next is %d after %q", f.Seq, f.Chain)
	}
	if len(d.unacked) != 1 || d.number(a) != 3 {
		t.Errorf("unanswered are %v", seqs(d.unacked))
	}
}

// Each conversation has its own numbers, its own unanswered sends and its own
// chain, whatever the order of the answers.
func TestOutboxesAreApart(t *testing.T) {
	d, a, b := &device{}, conv{peer: 2}, conv{group: 2}
	one, two, three, other := message(d, a, 1), message(d, a, 2), message(d, a, 3), message(d, b, 4)
	if got := seqs(d.waiting(a)); !slices.Equal(got, []uint64{1, 2, 3}) || other.seq != 1 {
		t.Fatalf("numbers %v and %d", got, other.seq)
	}
	d.accepted(one, []byte("chain of one...."))
	d.accepted(three, []byte("chain of three.."))
	d.accepted(two, []byte("chain of two...."))
	if o := d.outboxOf(a); o.acked != 3 || string(o.chain[:]) != "chain of three.." {
		t.Errorf("answered up to %d with %q: an older answer has replaced a newer one", o.acked, o.chain)
	}
	if d.unanswered(2) != nil || d.unanswered(4) != other || len(d.waiting(a)) != 0 {
		t.Errorf("unanswered are %v", seqs(d.unacked))
	}
	e := &Engine{start: time.Now()}
	four := message(d, a, 5)
	if f := e.frame(d, four).GetSend(); f.Seq != 4 || string(f.Chain) != "chain of three.." {
		t.Errorf("the next is %d after %q", f.Seq, f.Chain)
	}
	if f := e.frame(d, message(d, b, 6)).GetSend(); f.Seq != 2 || f.Chain != nil {
		t.Errorf("the next behind an unanswered one is %d after %q", f.Seq, f.Chain)
	}
}
