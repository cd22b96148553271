package inboxsql_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"throng/system/internal/inbox"
	"throng/system/internal/inbox/inboxtest"
	"throng/system/internal/inboxsql"
	"throng/system/internal/sqlstore"
)

// mysqlDSN names the variable with the DSN of a MySQL schema for tests; the account
// may make others beside it.
const mysqlDSN = "THRONG_MYSQL_DSN"

func open(t *testing.T, cfg inboxsql.Config) inbox.Store {
	t.Helper()
	cfg.Loops = 1
	st, err := inboxsql.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st.Stores()[0]
}

func TestSQLiteConformance(t *testing.T) {
	dirs := map[*testing.T]string{}
	inboxtest.Conformance(t, func(t *testing.T) inbox.Store {
		if dirs[t] == "" {
			dirs[t] = t.TempDir()
		}
		return open(t, inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(dirs[t], "inbox")})
	})
}

// TestMovedConformance has every row in the tables before the next transaction. A
// repeated append is not looked for there.
func TestMovedConformance(t *testing.T) {
	dirs := map[*testing.T]string{}
	inboxtest.Conformance(t, func(t *testing.T) inbox.Store {
		if dirs[t] == "" {
			dirs[t] = t.TempDir()
		}
		return open(t, inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(dirs[t], "inbox"), KeepBytes: 1})
	}, "repeated")
}

func TestMySQLConformance(t *testing.T) {
	dsn := emptyMySQL(t)
	seen := map[*testing.T]bool{}
	inboxtest.Conformance(t, func(t *testing.T) inbox.Store {
		if !seen[t] {
			seen[t] = true
			emptyMySQL(t)
		}
		return open(t, inboxsql.Config{Driver: sqlstore.MySQL, DSN: dsn})
	})
}

// emptyMySQL returns the DSN that the environment names, without the schemas of
// loops that were made from it.
func emptyMySQL(t *testing.T) string {
	t.Helper()
	dsn := os.Getenv(mysqlDSN)
	if dsn == "" {
		t.Skip(mysqlDSN + " is not set")
	}
	db, err := sqlstore.Open(t.Context(), sqlstore.Config{Driver: sqlstore.MySQL, DSN: dsn, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var schema string
	rows, err := db.Query(t.Context(), "SELECT DATABASE()")
	if err != nil {
		t.Fatal(err)
	}
	if !rows.Next() {
		t.Fatal("no schema")
	}
	if err := errors.Join(rows.Scan(&schema), rows.Close()); err != nil {
		t.Fatal(err)
	}
	for loop := range inbox.DefaultLoops {
		if _, err := db.Exec(t.Context(), sqlstore.Text(fmt.Sprintf("DROP DATABASE IF EXISTS `%s_%d`", schema, loop))); err != nil {
			t.Fatal(err)
		}
	}
	return dsn
}

// TestLoopsShareNothing: loops number their rows alike.
func TestLoopsShareNothing(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		loopsShareNothing(t, inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(t.TempDir(), "inbox")})
	})
	t.Run("mysql", func(t *testing.T) {
		loopsShareNothing(t, inboxsql.Config{Driver: sqlstore.MySQL, DSN: emptyMySQL(t)})
	})
}

func loopsShareNothing(t *testing.T, cfg inboxsql.Config) {
	cfg.Loops = 2
	st, err := inboxsql.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}()
	key := func(loop int) inbox.Key { return inbox.Key{User: uint64(loop + 1)} }
	incarnations := make([]uint64, 2)
	for loop, s := range st.Stores() {
		if incarnations[loop], _, err = s.Claim(t.Context(), []int{loop}, 100); err != nil {
			t.Fatal(err)
		}
		res, err := s.Commit(t.Context(), &inbox.Batch{Incarnation: incarnations[loop], Register: []inbox.Registration{{Key: key(loop)}},
			Rows: []inbox.Row{{Key: key(loop), Shard: loop, Seq: 7, Message: [16]byte{byte(loop)}, Body: []byte{byte(loop)}}}})
		if err != nil || res.Inserted != 1 {
			t.Fatalf("loop %d: %d rows inserted, %v", loop, res.Inserted, err)
		}
	}
	if _, err := st.Stores()[0].Commit(t.Context(), &inbox.Batch{Incarnation: incarnations[0], Delete: []uint64{7}}); err != nil {
		t.Fatal(err)
	}
	for loop, s := range st.Stores() {
		res, err := s.Commit(t.Context(), &inbox.Batch{Pages: []inbox.Page{{Key: key(loop), Limit: 10}}})
		if err != nil || len(res.Pages[0]) != loop {
			t.Errorf("loop %d: %+v, %v; only loop 0 has deleted its row", loop, res.Pages, err)
		}
	}
}

func TestOtherShardsAreRefused(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		otherShardsAreRefused(t, inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(t.TempDir(), "inbox")})
	})
	t.Run("mysql", func(t *testing.T) {
		otherShardsAreRefused(t, inboxsql.Config{Driver: sqlstore.MySQL, DSN: emptyMySQL(t)})
	})
}

func otherShardsAreRefused(t *testing.T, cfg inboxsql.Config) {
	for i, shards := range [][]int{{0, 2}, {0, 1}} {
		_, _, err := open(t, cfg).Claim(t.Context(), shards, 0)
		if wrong := errors.Is(err, inbox.ErrOtherShards); wrong != (i == 1) {
			t.Fatalf("claim of %v: %v", shards, err)
		}
	}
}
