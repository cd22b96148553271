package inboxtest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"throng/system/internal/inbox"
)

// Conformance runs the suite that every inbox.Store passes. open returns a
// store on the same data each time it is called with the same t, and on empty
// data for a new t. A case named by except is left out.
func Conformance(t *testing.T, open func(t *testing.T) inbox.Store, except ...string) {
	for name, f := range map[string]func(*suite){
		"owner":     (*suite).owner,
		"devices":   (*suite).devices,
		"rows":      (*suite).rows,
		"bodies":    (*suite).bodies,
		"repeated":  (*suite).repeated,
		"ranges":    (*suite).ranges,
		"pages":     (*suite).pages,
		"receipts":  (*suite).receipts,
		"pushes":    (*suite).pushes,
		"scan":      (*suite).scan,
		"privacy":   (*suite).privacy,
		"big batch": (*suite).bigBatch,
	} {
		if slices.Contains(except, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := &suite{T: t, open: open, Store: open(t)}
			s.claim()
			f(s)
		})
	}
}

type suite struct {
	*testing.T
	open func(t *testing.T) inbox.Store
	inbox.Store
	inc uint64
}

var shards = []int{0, 1, 2}

// key has ids that need all 64 and 32 bits.
func key(user uint64, device uint32) inbox.Key {
	return inbox.Key{User: 1<<63 + user, Device: 1<<31 + device}
}

func mid(n byte) [16]byte { return [16]byte{n, 0xff, 15: n} }

func (s *suite) row(k inbox.Key, seq uint64, m byte) inbox.Row {
	return inbox.Row{Key: k, Shard: 1, Seq: seq, Message: mid(m), Body: []byte{m, 0, 0xff}, At: int64(1000 + seq)}
}

func (s *suite) claim() {
	s.Helper()
	inc, _, err := s.Claim(s.Context(), shards, 0)
	if err != nil {
		s.Fatal(err)
	}
	if inc <= s.inc {
		s.Fatalf("incarnation %d after %d", inc, s.inc)
	}
	s.inc = inc
}

func (s *suite) commit(b inbox.Batch) inbox.Result {
	s.Helper()
	if b.Incarnation == 0 {
		b.Incarnation = s.inc
	}
	res, err := s.Commit(s.Context(), &b)
	if err != nil {
		s.Fatal(err)
	}
	return res
}

func (s *suite) page(k inbox.Key, limit int) []inbox.Row {
	s.Helper()
	return s.commit(inbox.Batch{Pages: []inbox.Page{{Key: k, Limit: limit}}}).Pages[0]
}

func seqs(rows []inbox.Row) (out []uint64) {
	for _, r := range rows {
		out = append(out, r.Seq)
	}
	return out
}

func (s *suite) state(k inbox.Key) *inbox.DeviceState {
	s.Helper()
	all, err := s.Load(s.Context(), []uint64{k.User})
	if err != nil {
		s.Fatal(err)
	}
	for _, d := range all {
		if d.Key == k {
			return &d
		}
	}
	return nil
}

func (s *suite) equal(what string, got, want any) {
	s.Helper()
	if !reflect.DeepEqual(got, want) {
		s.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func (s *suite) owner() {
	s.commit(inbox.Batch{Rows: []inbox.Row{s.row(key(1, 0), 5, 1)}})
	old, oldInc := s.Store, s.inc
	s.Store = s.open(s.T)
	inc, rows, err := s.Claim(s.Context(), shards, 1<<40)
	if err != nil || inc != 1<<40 || rows != 1 {
		s.Fatalf("claim: %d, %d rows, %v", inc, rows, err)
	}
	s.inc = inc
	_, err = old.Commit(s.Context(), &inbox.Batch{Incarnation: oldInc, Delete: []uint64{5}})
	if !errors.Is(err, inbox.ErrFenced) {
		s.Fatalf("the old owner wrote: %v", err)
	}
	s.equal("rows", seqs(s.page(key(1, 0), 10)), []uint64{5})
	s.claim()
}

func (s *suite) devices() {
	s.commit(inbox.Batch{Register: []inbox.Registration{{Key: key(1, 0), Token: "a"}, {Key: key(1, 1)}, {Key: key(2, 0), Token: "c"}}})
	s.commit(inbox.Batch{Register: []inbox.Registration{{Key: key(1, 0), Token: "b"}, {Key: key(1, 1)}}})
	all, err := s.Load(s.Context(), []uint64{key(1, 0).User, key(3, 0).User, key(2, 0).User})
	if err != nil {
		s.Fatal(err)
	}
	s.equal("devices", len(all), 3)
	s.equal("replaced", s.state(key(1, 0)).Token, "b")
	s.equal("kept", s.state(key(2, 0)).Token, "c")
	if s.state(key(1, 2)) != nil {
		s.Fatal("a device that was never registered")
	}
}

func (s *suite) rows() {
	k := key(1, 0)
	s.commit(inbox.Batch{Register: []inbox.Registration{{Key: k}}})
	res := s.commit(inbox.Batch{Rows: []inbox.Row{s.row(k, 20, 1), s.row(k, 30, 2), s.row(key(1, 1), 25, 1)}})
	s.equal("inserted", res.Inserted, 3)
	want := s.row(k, 20, 1)
	got := s.page(k, 10)
	got[0].Shard = want.Shard
	s.equal("first row", got[0], want)
	st := s.state(k)
	s.equal("state", []uint64{uint64(st.Rows), st.Oldest, st.Newest}, []uint64{2, 20, 30})
	res = s.commit(inbox.Batch{Delete: []uint64{20, 999}})
	s.equal("deleted", res.Deleted, 1)
	s.equal("left", seqs(s.page(k, 10)), []uint64{30})
	s.equal("other device", seqs(s.page(key(1, 1), 10)), []uint64{25})
	res = s.commit(inbox.Batch{Rows: []inbox.Row{s.row(k, 40, 4)}, Delete: []uint64{40, 30}})
	s.equal("inserted and deleted in one", []int{res.Inserted, res.Deleted}, []int{1, 2})
	s.equal("rows of an empty inbox", s.state(k).Rows, 0)
}

func (s *suite) pointer(k inbox.Key, seq uint64, m byte, body uint64) inbox.Row {
	r := s.row(k, seq, m)
	r.Body, r.BodyID = nil, body
	return r
}

func (s *suite) bodies() {
	data := []byte("a body for two")
	s.commit(inbox.Batch{Bodies: []inbox.Body{{ID: 7, Data: data, Refs: 2}},
		Rows: []inbox.Row{s.pointer(key(1, 0), 20, 1, 7), s.pointer(key(2, 0), 21, 1, 7)}})
	s.commit(inbox.Batch{Bodies: []inbox.Body{{ID: 7, Data: data, Refs: 1}}, Rows: []inbox.Row{s.pointer(key(3, 0), 22, 1, 7)}})
	s.commit(inbox.Batch{DeletePtr: []uint64{20, 20}})
	s.commit(inbox.Batch{DeletePtr: []uint64{20, 21}})
	got := s.page(key(3, 0), 1)
	s.equal("body", string(got[0].Body), string(data))
	s.equal("body id", got[0].BodyID, uint64(7))
	s.commit(inbox.Batch{DeletePtr: []uint64{22}})
	// Gone with the last row: a row that points to it again needs it again.
	s.commit(inbox.Batch{Bodies: []inbox.Body{{ID: 7, Data: []byte("new"), Refs: 1}}, Rows: []inbox.Row{s.pointer(key(3, 0), 30, 2, 7)}})
	s.equal("body after its deletion", string(s.page(key(3, 0), 1)[0].Body), "new")
}

func (s *suite) repeated() {
	k, other := key(1, 0), key(2, 0)
	s.commit(inbox.Batch{Bodies: []inbox.Body{{ID: 7, Data: []byte("first"), Refs: 1}}, Rows: []inbox.Row{s.pointer(k, 20, 1, 7)}})
	res := s.commit(inbox.Batch{Bodies: []inbox.Body{{ID: 8, Data: []byte("again"), Refs: 2}},
		Rows: []inbox.Row{s.pointer(k, 21, 1, 8), s.pointer(other, 22, 1, 8)}})
	s.equal("inserted", res.Inserted, 1)
	s.equal("rows", seqs(s.page(k, 10)), []uint64{20})
	s.commit(inbox.Batch{DeletePtr: []uint64{21}}) // believes it exists
	s.equal("the other one's body", string(s.page(other, 1)[0].Body), "again")
	s.commit(inbox.Batch{DeletePtr: []uint64{20, 22}})
	res = s.commit(inbox.Batch{Rows: []inbox.Row{s.row(k, 40, 1), s.row(k, 41, 1)}})
	s.equal("inserted after deletion, once of two", res.Inserted, 1)
}

func (s *suite) ranges() {
	k := key(1, 0)
	s.commit(inbox.Batch{Bodies: []inbox.Body{{ID: 7, Data: []byte("x"), Refs: 2}},
		Rows: []inbox.Row{s.row(k, 20, 1), s.pointer(k, 21, 2, 7), s.row(k, 22, 3), s.pointer(key(1, 1), 19, 2, 7)}})
	res := s.commit(inbox.Batch{DeleteUpTo: []inbox.UpTo{{Key: k, Seq: 21}}})
	s.equal("deleted", res.Deleted, 2)
	s.equal("left", seqs(s.page(k, 10)), []uint64{22})
	s.equal("the other device's body", string(s.page(key(1, 1), 1)[0].Body), "x")
}

func (s *suite) pages() {
	k := key(1, 0)
	var b inbox.Batch
	for i := range uint64(30) {
		// Message ids against the order of seqs, because an index is on them.
		b.Rows = append(b.Rows, s.row(k, 100+i, byte(200-i)))
	}
	s.commit(b)
	s.equal("first page", seqs(s.page(k, 3)), []uint64{100, 101, 102})
	res := s.commit(inbox.Batch{Delete: []uint64{100, 101}, Rows: []inbox.Row{s.row(key(2, 0), 500, 1)},
		Pages: []inbox.Page{{Key: k, Limit: 2}, {Key: key(9, 9), Limit: 2}, {Key: key(2, 0), Limit: 2}}})
	s.equal("a page sees the deletions", seqs(res.Pages[0]), []uint64{102, 103})
	s.equal("nobody's page", len(res.Pages[1]), 0)
	s.equal("a page sees the rows", seqs(res.Pages[2]), []uint64{500})
	res = s.commit(inbox.Batch{Pages: []inbox.Page{{Key: k, Limit: 2, Ahead: 3}, {Key: key(2, 0), Limit: 2, Ahead: 3}}})
	s.equal("a page", seqs(res.Pages[0]), []uint64{102, 103})
	s.equal("what follows", res.Ahead[0], []uint64{104, 105, 106})
	s.equal("nothing follows", len(res.Ahead[1]), 0)
	res = s.commit(inbox.Batch{Delete: []uint64{105}, Pages: []inbox.Page{{Key: k, Seqs: []uint64{104, 105, 106}}}})
	s.equal("rows by their seqs", seqs(res.Pages[0]), []uint64{104, 106})
	s.equal("their bodies", string(res.Pages[0][1].Body), string(b.Rows[6].Body))
	s.equal("nothing follows them", len(res.Ahead[0]), 0)
	var left []uint64
	for i := range uint64(30) {
		if i != 0 && i != 1 && i != 5 {
			left = append(left, 100+i)
		}
	}
	res = s.commit(inbox.Batch{Pages: []inbox.Page{{Key: k, Limit: 27, All: true}, {Key: key(9, 9), Limit: 2, All: true}}})
	s.equal("all rows", seqs(res.Pages[0]), left)
	s.equal("all of nobody", len(res.Pages[1]), 0)
}

func (s *suite) receipts() {
	k := key(1, 0)
	s.commit(inbox.Batch{Register: []inbox.Registration{{Key: k}}})
	mark := func(peer, delivered, read uint64) inbox.Mark {
		return inbox.Mark{Key: k, Group: 1 << 63, Peer: peer, Delivered: delivered, Read: read}
	}
	s.equal("none yet", s.state(k).Receipts, false)
	s.commit(inbox.Batch{Now: 1000, Marks: []inbox.Mark{mark(5, 9, 0), mark(6, 1, 0)}})
	s.commit(inbox.Batch{Now: 2000, Marks: []inbox.Mark{mark(5, 4, 3)}})
	s.equal("waiting", s.state(k).Receipts, true)
	s.commit(inbox.Batch{ExpireMarks: 1500})
	res := s.commit(inbox.Batch{Marks: []inbox.Mark{mark(7, 1, 1)}, TakeReceipts: []inbox.Key{key(2, 0), k}})
	s.equal("nobody's", len(res.Receipts[0]), 0)
	s.equal("merged, and those not expired", res.Receipts[1], []inbox.Mark{mark(5, 9, 3), mark(7, 1, 1)})
	s.equal("taken", s.state(k).Receipts, false)

	all := inbox.Mark{Key: k, Group: 1<<63 + 1, Delivered: 3, Ledger: []byte("ledger")}
	s.commit(inbox.Batch{Marks: []inbox.Mark{all, mark(5, 2, 1)}})
	s.commit(inbox.Batch{Marks: []inbox.Mark{{Key: k, Group: 1<<63 + 1, Delivered: 2, Read: 1}}})
	all.Read = 1
	s.equal("a ledger stays when none comes", s.commit(inbox.Batch{TakeReceipts: []inbox.Key{k}}).Receipts[0], []inbox.Mark{mark(5, 2, 1), all})
	s.equal("it is still there", s.state(k).Receipts, true)
	all.Delivered, all.Read = 0, 0
	s.equal("without what was taken", s.commit(inbox.Batch{TakeReceipts: []inbox.Key{k}}).Receipts[0], []inbox.Mark{all})
	all.Ledger = []byte("newer")
	s.commit(inbox.Batch{Now: 3000, Marks: []inbox.Mark{all}})
	s.equal("replaced", s.commit(inbox.Batch{TakeReceipts: []inbox.Key{k}}).Receipts[0], []inbox.Mark{all})
	s.commit(inbox.Batch{ExpireMarks: 3001})
	s.equal("expired", s.state(k).Receipts, false)
}

func (s *suite) pushes() {
	k := key(1, 0)
	s.commit(inbox.Batch{Register: []inbox.Registration{{Key: k, Token: "a"}}})
	s.commit(inbox.Batch{Pushed: []inbox.Pushed{{Key: k, Seq: 1 << 60}}})
	s.equal("pushed", s.state(k).Pushed, uint64(1<<60))
	s.commit(inbox.Batch{DeadTokens: []inbox.Registration{{Key: k, Token: "older"}}})
	s.equal("another token is dead", s.state(k).Token, "a")
	s.commit(inbox.Batch{DeadTokens: []inbox.Registration{{Key: k, Token: "a"}}})
	s.equal("this token is dead", s.state(k).Token, "")
	s.equal("pushed survives", s.state(k).Pushed, uint64(1<<60))
}

func (s *suite) scan() {
	s.commit(inbox.Batch{Bodies: []inbox.Body{{ID: 7, Data: []byte("x"), Refs: 1}},
		Rows: []inbox.Row{s.row(key(2, 0), 30, 3), s.row(key(1, 0), 20, 1), s.pointer(key(1, 0), 25, 2, 7)}})
	got, err := s.Scan(s.Context(), 20, 1)
	if err != nil {
		s.Fatal(err)
	}
	s.equal("scan", got, []inbox.ScanRow{{Key: key(1, 0), Seq: 25, Message: mid(2), BodyID: 7, At: 1025}})
	got, err = s.Scan(s.Context(), 25, 10)
	if err != nil || len(got) != 1 || got[0].Seq != 30 {
		s.Fatalf("scan: %v %v", got, err)
	}
}

// privacy is the user's: all devices have it, also later ones.
func (s *suite) privacy() {
	s.commit(inbox.Batch{Register: []inbox.Registration{{Key: key(1, 0)}, {Key: key(1, 1)}, {Key: key(2, 0)}}})
	hide := func(user uint64, on bool) inbox.Privacy {
		return inbox.Privacy{User: key(user, 0).User, HideLastSeen: on}
	}
	hidden := func(k inbox.Key) bool {
		s.Helper()
		st := s.state(k)
		if st == nil {
			s.Fatalf("%v is not there", k)
		}
		return st.HideLastSeen
	}
	s.commit(inbox.Batch{Privacy: []inbox.Privacy{hide(1, true), hide(2, true), hide(2, false)}})
	s.commit(inbox.Batch{Privacy: []inbox.Privacy{hide(1, true)}}) // again
	s.commit(inbox.Batch{Register: []inbox.Registration{{Key: key(1, 2)}}})
	s.Store = s.open(s.T)
	s.claim()
	for k, want := range map[inbox.Key]bool{key(1, 0): true, key(1, 1): true, key(1, 2): true, key(2, 0): false} {
		s.equal(fmt.Sprint(k, " is hidden"), hidden(k), want)
	}
	s.commit(inbox.Batch{Privacy: []inbox.Privacy{hide(1, false)}})
	s.equal("is hidden", hidden(key(1, 0)), false)
}

func (s *suite) bigBatch() {
	for _, n := range []int{1, 7, 9, 100, 500, 777} {
		var b inbox.Batch
		var del []uint64
		var users []uint64
		for i := range n {
			k := key(uint64(i), 0)
			seq := uint64(n*10_000 + i)
			b.Register = append(b.Register, inbox.Registration{Key: k, Token: "t"})
			b.Rows = append(b.Rows, s.row(k, seq, 1))
			b.Marks = append(b.Marks, inbox.Mark{Key: k, Peer: 1, Delivered: 1})
			del = append(del, seq)
			users = append(users, k.User)
		}
		s.equal("inserted", s.commit(b).Inserted, n)
		states, err := s.Load(s.Context(), users)
		if err != nil {
			s.Fatal(err)
		}
		s.equal("loaded", len(states), n)
		if slices.ContainsFunc(states, func(d inbox.DeviceState) bool { return d.Rows != 1 || !d.Receipts }) {
			s.Fatalf("states %v", states)
		}
		s.equal("deleted", s.commit(inbox.Batch{Delete: del}).Deleted, n)
	}
}
