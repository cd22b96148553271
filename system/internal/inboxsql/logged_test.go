package inboxsql_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"throng/system/internal/inbox"
	"throng/system/internal/inbox/inboxtest"
	"throng/system/internal/inboxsql"
	"throng/system/internal/sqlstore"
)

func logs(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "inbox.0.log-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func claim(t *testing.T, st inbox.Store) (incarnation uint64, rows int) {
	t.Helper()
	incarnation, rows, err := st.Claim(t.Context(), []int{0}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return incarnation, rows
}

// pair is the store under test beside the one that keeps everything in memory.
type pair struct {
	*testing.T
	rng   *rand.Rand
	cfg   inboxsql.Config
	st    inbox.Store
	ref   inbox.Store
	inc   uint64
	inc2  uint64
	seq   uint64
	now   int64
	rows  []inbox.Row // appended, also those deleted
	wrote map[inbox.Key]bool
}

func (p *pair) reopen() {
	p.Helper()
	p.st = open(p.T, p.cfg) // the one before is not closed: it was killed
	var n, m int
	p.inc, n = claim(p.T, p.st)
	p.inc2, m = claim(p.T, p.ref)
	if n != m {
		p.Fatalf("%d rows after a restart, want %d", n, m)
	}
}

// batch makes one with rows, deletions of all kinds and pages.
func (p *pair) batch() inbox.Batch {
	p.now += p.rng.Int64N(20)
	b := inbox.Batch{Now: p.now}
	shared := uint64(0)
	for range p.rng.IntN(6) {
		p.seq++
		k := inbox.Key{User: p.rng.Uint64N(8), Device: p.rng.Uint32N(2)}
		r := inbox.Row{Key: k, Seq: p.seq, At: p.now, Body: fmt.Appendf(nil, "body of %d", p.seq)}
		r.Message[0], r.Message[1], r.Message[2] = byte(p.seq), byte(p.seq>>8), byte(p.seq>>16)
		if p.rng.IntN(3) == 0 {
			if shared == 0 {
				shared = p.seq
				b.Bodies = append(b.Bodies, inbox.Body{ID: shared, Data: fmt.Appendf(nil, "shared %d", shared)})
			}
			b.Bodies[0].Refs++
			r.Body, r.BodyID = nil, shared
		}
		p.wrote[k] = true
		b.Rows = append(b.Rows, r)
		p.rows = append(p.rows, r)
	}
	for range p.rng.IntN(5) {
		if len(p.rows) == 0 {
			break
		}
		r := p.rows[max(0, len(p.rows)-1-p.rng.IntN(60))]
		if r.BodyID != 0 {
			b.DeletePtr = append(b.DeletePtr, r.Seq)
		} else {
			b.Delete = append(b.Delete, r.Seq)
		}
	}
	if p.rng.IntN(8) == 0 && len(p.rows) > 0 {
		r := p.rows[max(0, len(p.rows)-1-p.rng.IntN(60))]
		b.DeleteUpTo = append(b.DeleteUpTo, inbox.UpTo{Key: r.Key, Seq: r.Seq})
	}
	for k := range p.wrote {
		switch limit := 1 + p.rng.IntN(20); p.rng.IntN(4) {
		case 0:
			b.Pages = append(b.Pages, inbox.Page{Key: k, Limit: limit, Ahead: p.rng.IntN(10)})
		case 1:
			b.Pages = append(b.Pages, inbox.Page{Key: k, Limit: 1 << 20, All: true})
		case 2:
			var seqs []uint64
			for _, r := range p.rows[max(0, len(p.rows)-100):] {
				if r.Key == k {
					seqs = append(seqs, r.Seq)
				}
			}
			if len(seqs) > 0 {
				b.Pages = append(b.Pages, inbox.Page{Key: k, Seqs: seqs})
			}
		}
	}
	slices.SortFunc(b.Pages, func(x, y inbox.Page) int { return cmp.Or(cmp.Compare(x.User, y.User), cmp.Compare(x.Device, y.Device)) })
	return b
}

func (p *pair) same(what string, got, want any) {
	p.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w { // nil and empty are the same
		p.Fatalf("%s at seq %d:\n got %.2000s\nwant %.2000s", what, p.seq, g, w)
	}
}

func (p *pair) step() {
	p.Helper()
	b := p.batch()
	b2 := b
	b.Incarnation, b2.Incarnation = p.inc, p.inc2
	got, err := p.st.Commit(p.Context(), &b)
	if err != nil {
		p.Fatal(err)
	}
	want, err := p.ref.Commit(p.Context(), &b2)
	if err != nil {
		p.Fatal(err)
	}
	for _, pages := range [][][]inbox.Row{got.Pages, want.Pages} {
		for _, rows := range pages {
			for i := range rows {
				rows[i].Shard = 0
			}
		}
	}
	p.same("result", got, want)
}

// compare looks at everything that is stored.
func (p *pair) compare() {
	p.Helper()
	var users []uint64
	for u := range uint64(8) {
		users = append(users, u)
	}
	got, err := p.st.Load(p.Context(), users)
	if err != nil {
		p.Fatal(err)
	}
	want, err := p.ref.Load(p.Context(), users)
	if err != nil {
		p.Fatal(err)
	}
	for _, all := range [][]inbox.DeviceState{got, want} {
		slices.SortFunc(all, func(x, y inbox.DeviceState) int {
			return cmp.Or(cmp.Compare(x.User, y.User), cmp.Compare(x.Device, y.Device))
		})
	}
	p.same("devices", got, want)
	if len(got) == 0 {
		p.Fatal("no devices")
	}
	after := uint64(p.rng.Int64N(int64(p.seq) + 1))
	gotRows, err := p.st.Scan(p.Context(), after, 50)
	if err != nil {
		p.Fatal(err)
	}
	wantRows, err := p.ref.Scan(p.Context(), after, 50)
	if err != nil {
		p.Fatal(err)
	}
	p.same("scan", gotRows, wantRows)
}

// TestLoggedIsAStore does the same to it and to the store of the tests, while rows
// move into the tables at once, by age or not at all, and it is killed.
func TestLoggedIsAStore(t *testing.T) {
	for name, cfg := range map[string]inboxsql.Config{
		"moved at once": {KeepBytes: 1},
		"by size":       {KeepBytes: 30_000},
		"by age":        {KeepFor: 10 * time.Minute},
		"kept":          {KeepFor: 1e6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cfg.Driver, cfg.DSN = sqlstore.SQLite, filepath.Join(dir, "inbox")
			p := &pair{T: t, rng: rand.New(rand.NewPCG(1, 2)), cfg: cfg, ref: inboxtest.NewMemory(), now: 1_700_000_000, wrote: map[inbox.Key]bool{}}
			p.reopen()
			var regs []inbox.Registration
			for u := range uint64(8) {
				regs = append(regs, inbox.Registration{Key: inbox.Key{User: u}}, inbox.Registration{Key: inbox.Key{User: u, Device: 1}})
			}
			for _, x := range []struct {
				st  inbox.Store
				inc uint64
			}{{p.st, p.inc}, {p.ref, p.inc2}} {
				if _, err := x.st.Commit(t.Context(), &inbox.Batch{Incarnation: x.inc, Register: regs}); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 500 {
				p.step()
				if i%10 == 0 {
					p.compare()
				}
				if i%50 == 49 {
					p.reopen()
					p.compare()
				}
			}
			moved := tableRows(t, cfg.DSN+".0")
			if name == "kept" != (moved == 0) {
				t.Fatalf("%d rows are in the tables", moved)
			}
		})
	}
}

func tableRows(t *testing.T, path string) (n int) {
	t.Helper()
	db, err := sqlstore.Open(t.Context(), sqlstore.Config{Driver: sqlstore.SQLite, DSN: path, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(t.Context(), "SELECT upto FROM inbox_moved")
	if err != nil {
		t.Fatal(err)
	}
	rows.Next()
	if err := errors.Join(rows.Scan(&n), rows.Close()); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestTornLog cuts the last record at every byte: the ones before it are there.
func TestTornLog(t *testing.T) {
	dir := t.TempDir()
	cfg := inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(dir, "inbox")}
	st := open(t, cfg)
	inc, _ := claim(t, st)
	k := inbox.Key{User: 1}
	sizes := []int64{0}
	for seq := uint64(1); seq <= 2; seq++ {
		row := inbox.Row{Key: k, Seq: seq, Message: [16]byte{byte(seq)}, Body: []byte("body")}
		if _, err := st.Commit(t.Context(), &inbox.Batch{Incarnation: inc, Rows: []inbox.Row{row}}); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(logs(t, dir)[0])
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, info.Size())
	}
	whole, err := os.ReadFile(logs(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	for cut := sizes[1]; cut <= sizes[2]; cut++ {
		for _, name := range logs(t, dir) {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		torn := slices.Clone(whole[:cut])
		if cut == sizes[2] {
			torn[cut-1] ^= 1 // whole, but damaged
		}
		if err := os.WriteFile(filepath.Join(dir, "inbox.0.log-0000000000000001-0000"), torn, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, rows := claim(t, open(t, cfg)); rows != 1 {
			t.Fatalf("%d rows from a log cut at byte %d of %d, want the first", rows, cut, sizes[2])
		}
	}
}

// TestLogGoesWithItsRows: rows that are acknowledged before they are moved never
// come into the tables, and the log does not grow.
func TestLogGoesWithItsRows(t *testing.T) {
	dir := t.TempDir()
	st := open(t, inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(dir, "inbox"), KeepFor: 40 * time.Second})
	inc, _ := claim(t, st)
	for seq := uint64(1); seq <= 1000; seq++ {
		row := inbox.Row{Key: inbox.Key{User: seq % 7}, Seq: seq, Message: [16]byte{byte(seq), byte(seq >> 8)}, Body: []byte("body"), At: int64(seq)}
		b := inbox.Batch{Incarnation: inc, Now: int64(seq), Rows: []inbox.Row{row}}
		if seq > 5 {
			b.Delete = []uint64{seq - 5}
		}
		if _, err := st.Commit(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(logs(t, dir)); n > 3 {
		t.Errorf("%d files of the log are left", n)
	}
	if n := tableRows(t, filepath.Join(dir, "inbox.0")); n != 0 {
		t.Errorf("rows up to %d are in the tables", n)
	}
	again := open(t, inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(dir, "inbox")})
	if _, rows := claim(t, again); rows != 5 {
		t.Errorf("%d rows, want the last five", rows)
	}
	if got, err := again.Scan(t.Context(), 0, 10); err != nil || !reflect.DeepEqual(seqsOf(got), []uint64{996, 997, 998, 999, 1000}) {
		t.Errorf("scan: %v, %v", seqsOf(got), err)
	}
}

func seqsOf(rows []inbox.ScanRow) (seqs []uint64) {
	for _, r := range rows {
		seqs = append(seqs, r.Seq)
	}
	return seqs
}
