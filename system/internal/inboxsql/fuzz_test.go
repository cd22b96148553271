package inboxsql

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"throng/system/internal/inbox"
)

// FuzzReplay reads any bytes as a file of the log. It must not panic nor make more
// than it was given, and what it takes for a record must be one: written again it
// is read as the same.
func FuzzReplay(f *testing.F) {
	dir := f.TempDir()
	l, err := openRowLog(filepath.Join(dir, "seed"))
	if err != nil {
		f.Fatal(err)
	}
	name, err := l.start(1)
	if err != nil {
		f.Fatal(err)
	}
	rows := []inbox.Row{{Seq: 1, Key: inbox.Key{User: 2, Device: 1}, At: 3, Body: []byte("body")}, {Seq: 2, Key: inbox.Key{User: 3}, BodyID: 9, Body: []byte("large")},
		{Seq: 3, Key: inbox.Key{User: 4}, BodyID: 9, Body: []byte("large")}}
	for _, dead := range [][]uint64{nil, {1, 2}} {
		if err := l.append(rows, dead); err != nil {
			f.Fatal(err)
		}
	}
	if err := l.close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(whole[recordHead:])
	f.Fuzz(func(t *testing.T, b []byte) {
		// As a file, whose sums guard it, and as a record of its own.
		name := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		_ = replay(name, func(rows []inbox.Row, dead []uint64) { n += len(rows) + len(dead) })
		d := decoder{b: b}
		rows, dead := d.record()
		if n > len(b) || len(rows)+len(dead) > len(b) {
			t.Fatalf("%d rows and deletions of %d bytes", max(n, len(rows)+len(dead)), len(b))
		}
		if d.failed {
			return
		}
		l, err := openRowLog(filepath.Join(t.TempDir(), "again"))
		if err != nil {
			t.Fatal(err)
		}
		again, err := l.start(1)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.append(rows, dead); err != nil {
			t.Fatal(err)
		}
		if err := l.close(); err != nil {
			t.Fatal(err)
		}
		seen := 0
		err = replay(again, func(r []inbox.Row, d []uint64) {
			seen++
			if len(r) != len(rows) || len(d) != len(dead) {
				t.Fatalf("%d rows and %d deletions are read as %d and %d", len(rows), len(dead), len(r), len(d))
			}
			for i := range r {
				if r[i].Seq != rows[i].Seq || r[i].Key != rows[i].Key || r[i].Message != rows[i].Message || r[i].At != rows[i].At || !bytes.Equal(r[i].Body, rows[i].Body) {
					t.Fatalf("row %d: %+v is read as %+v", i, rows[i], r[i])
				}
			}
		})
		if err != nil || seen != 1 {
			t.Fatalf("%d records, %v", seen, err)
		}
	})
}
