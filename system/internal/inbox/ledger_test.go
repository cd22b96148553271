package inbox

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"throng/system/wire"
)

// groupModel is a group as it is, of which a ledger knows only numbers,
// watermarks and changes.
type groupModel struct {
	t       *rapid.T
	l       *ledger
	seq     uint64
	version uint64
	members map[uint64]bool
	to      map[uint64][]uint64 // who each message was addressed to and has not left since
	inbox   map[uint64][]uint64 // addressed to a member and not received
	got     map[uint64]uint64   // newest received
	left    map[uint64]bool     // has ever left: what it had may be forgotten
	read    map[uint64]uint64   // what the client claims to have read
}

func (g *groupModel) user(members bool) (uint64, bool) {
	var some []uint64
	for u := uint64(1); u <= 5; u++ {
		if g.members[u] == members {
			some = append(some, u)
		}
	}
	if len(some) == 0 {
		return 0, false
	}
	return rapid.SampledFrom(some).Draw(g.t, "user"), true
}

func (g *groupModel) send() {
	g.seq++
	for u, in := range g.members {
		if in {
			g.to[g.seq] = append(g.to[g.seq], u)
			g.inbox[u] = append(g.inbox[u], g.seq)
		}
	}
	// A member may receive the message, and its receipt arrive, before the
	// sender's shard has heard of it.
	if rapid.Bool().Draw(g.t, "overtaken") {
		if u, ok := g.user(true); ok {
			g.receive(u, len(g.inbox[u]))
		}
	}
	n := uint32(len(g.to[g.seq]))
	g.l.sent(g.seq, n)
	if rapid.IntRange(0, 3).Draw(g.t, "repeated") == 0 {
		g.l.sent(g.seq, n)
	}
}

func (g *groupModel) receive(u uint64, n int) {
	for ; n > 0 && len(g.inbox[u]) > 0; n-- {
		g.got[u] = g.inbox[u][0]
		g.inbox[u] = g.inbox[u][1:]
	}
	if g.got[u] > 0 {
		g.l.mark(u, marks{delivered: g.got[u]})
	}
}

func (g *groupModel) change(c *wire.GroupChange) {
	g.version++
	c.Version = g.version
	for _, u := range c.Remove {
		g.members[u], g.left[u] = false, true
		g.read[u] = min(g.read[u], g.got[u])
		for seq := range g.to {
			g.to[seq] = slices.DeleteFunc(g.to[seq], func(x uint64) bool { return x == u })
		}
	}
	for _, u := range c.Add {
		g.members[u] = true
	}
	g.l.change(c)
	g.l.change(c) // said again after a restart of the fan-out
}

// upTo returns the newest message that everybody it still counts for has, by what.
func (g *groupModel) upTo(has map[uint64]uint64) uint64 {
	for seq := g.seq; seq > 0; seq-- {
		if !slices.ContainsFunc(g.to[seq], func(u uint64) bool { return has[u] < seq }) {
			return seq
		}
	}
	return 0
}

func (g *groupModel) check() {
	seen := map[uint64]uint64{} // nobody has read what they have not received
	for u, read := range g.read {
		seen[u] = min(read, g.got[u])
	}
	want := marks{g.upTo(g.got), g.upTo(seen)}
	if g.l.all != want {
		g.t.Fatalf("everybody has %+v, the ledger says %+v: %+v", want, g.l.all, g.l)
	}
	for _, r := range g.l.receipts() {
		if r.DeliveredSeq > g.got[r.Peer] || r.ReadSeq > seen[r.Peer] || !g.left[r.Peer] && (r.DeliveredSeq != g.got[r.Peer] || r.ReadSeq != seen[r.Peer]) {
			g.t.Fatalf("%d has received %d and read %d, the list says %v", r.Peer, g.got[r.Peer], seen[r.Peer], r)
		}
	}
}

// TestLedgerModel: whoever joins, leaves, comes back, receives and reads in
// whatever order, the ledger says exactly what everybody has, and being stored
// and read back changes nothing.
func TestLedgerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := &groupModel{t: t, l: &ledger{}, version: 1, members: map[uint64]bool{1: true, 2: true, 3: true},
			to: map[uint64][]uint64{}, inbox: map[uint64][]uint64{}, got: map[uint64]uint64{}, left: map[uint64]bool{}, read: map[uint64]uint64{}}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1, 2:
				if len(g.to) < ledgerPending && slices.Contains([]bool{g.members[1], g.members[2], g.members[3], g.members[4], g.members[5]}, true) {
					g.send()
				}
			case 3, 4, 5:
				g.receive(rapid.Uint64Range(1, 5).Draw(t, "receiver"), rapid.IntRange(1, 4).Draw(t, "messages"))
			case 6:
				if u := rapid.Uint64Range(1, 5).Draw(t, "reader"); g.got[u] > 0 {
					g.read[u] = max(g.read[u], g.got[u])
					if g.members[u] && rapid.Bool().Draw(t, "claims more") {
						g.read[u]++
					}
					g.l.mark(u, marks{read: g.read[u]})
				}
			case 7:
				if u, ok := g.user(false); ok {
					g.change(&wire.GroupChange{Add: []uint64{u}})
				}
			case 8:
				if u, ok := g.user(true); ok {
					g.change(&wire.GroupChange{Remove: []uint64{u}})
				}
			case 9:
				back, err := decodeLedger(g.l.encode())
				if err != nil {
					t.Fatal(err)
				}
				back.early = g.l.early
				if rapid.Bool().Draw(t, "merge") {
					g.l.merge(back)
				} else {
					g.l = back
				}
			}
			g.check()
		}
	})
}
