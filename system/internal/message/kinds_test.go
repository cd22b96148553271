package message

import (
	"bytes"
	"testing"

	"throng/system/placement"
	"throng/system/wire"
)

// TestKindsPass: what names another message keeps its kind and the name, on
// both ways; a kind that names none is refused with one.
func TestKindsPass(t *testing.T) {
	r := newRig(t, nil)
	g := r.start()
	offer := wire.IDOf(3, 0, 9)
	kinds := []wire.Kind{wire.Kind_KIND_REACTION, wire.Kind_KIND_EDIT, wire.Kind_KIND_DELETE, wire.Kind_KIND_CALL_ANSWER, wire.Kind_KIND_CALL_HANGUP}
	for i, k := range kinds {
		seq := uint64(i + 1)
		g.awaitSent(g.send(2, &wire.Send{ClientMsgId: 100 + seq, User: 4, Seq: seq, Kind: k, About: offer[:]}))
		g.awaitSent(g.send(2, &wire.Send{ClientMsgId: 200 + seq, Group: 9, Seq: seq, Kind: k, About: offer[:]}))
	}
	items, records := r.inbox.items(), r.log.records(placement.GroupPartition(9, 4))
	if len(items) != len(kinds) || len(records) != len(kinds) {
		t.Fatalf("%d direct and %d group messages of %d", len(items), len(records), len(kinds))
	}
	for i, k := range kinds {
		if e := items[i].Message; e.Kind != k || !bytes.Equal(e.About, offer[:]) {
			t.Errorf("direct %v arrived as %v about %x", k, e.Kind, e.About)
		}
		if e := records[i]; e.Kind != k || !bytes.Equal(e.About, offer[:]) {
			t.Errorf("group %v arrived as %v about %x", k, e.Kind, e.About)
		}
	}
	g.awaitCode(g.send(2, &wire.Send{ClientMsgId: 300, User: 4, Seq: 6, About: offer[:]}), wire.Code_CODE_INVALID)
	g.awaitCode(g.send(2, &wire.Send{ClientMsgId: 301, User: 4, Seq: 6, Kind: wire.Kind_KIND_SYSTEM}), wire.Code_CODE_INVALID)
}
