package inboxsql_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"throng/system/internal/inbox"
	"throng/system/internal/inbox/inboxtest"
	"throng/system/internal/inboxsql"
	"throng/system/internal/sqlstore"
)

// mysqlDSN names the variable with the DSN of an empty MySQL schema for tests.
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

func TestMySQLConformance(t *testing.T) {
	dsn := os.Getenv(mysqlDSN)
	if dsn == "" {
		t.Skip(mysqlDSN + " is not set")
	}
	seen := map[*testing.T]bool{}
	inboxtest.Conformance(t, func(t *testing.T) inbox.Store {
		st := open(t, inboxsql.Config{Driver: sqlstore.MySQL, DSN: dsn})
		if !seen[t] {
			seen[t] = true
			empty(t, dsn)
		}
		return st
	})
}

func empty(t *testing.T, dsn string) {
	t.Helper()
	db, err := sqlstore.Open(context.Background(), sqlstore.Config{Driver: sqlstore.MySQL, DSN: dsn, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, table := range []string{"owners", "devices", "rows", "bodies", "marks"} {
		if _, err := db.Exec(t.Context(), "DELETE FROM inbox_"+table); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileOfOtherShardsIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inbox")
	for i, shards := range [][]int{{0, 2}, {0, 1}} {
		_, _, err := open(t, inboxsql.Config{Driver: sqlstore.SQLite, DSN: path}).Claim(t.Context(), shards, 0)
		if wrong := errors.Is(err, inbox.ErrOtherShards); wrong != (i == 1) {
			t.Fatalf("claim of %v: %v", shards, err)
		}
	}
}
