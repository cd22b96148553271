package sqlstore

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// onMySQL returns the DSN of THRONG_MYSQL_DSN, a schema for tests, after
// emptying it.
func onMySQL(t *testing.T) string {
	t.Helper()
	dsn := os.Getenv("THRONG_MYSQL_DSN")
	if dsn == "" {
		t.Skip("THRONG_MYSQL_DSN is not set")
	}
	db := openMySQL(t, dsn, nil)
	for _, table := range []string{"things", "goose_db_version"} {
		if _, err := db.Exec(t.Context(), Text("DROP TABLE IF EXISTS "+table)); err != nil {
			t.Fatal(err)
		}
	}
	return dsn
}

func openMySQL(t *testing.T, dsn string, reg prometheus.Registerer) *DB {
	t.Helper()
	db, err := Open(t.Context(), Config{Driver: MySQL, DSN: dsn, Name: "test", Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestMySQLMigrateTwiceAndConcurrently(t *testing.T) {
	dsn := onMySQL(t)
	var wg sync.WaitGroup
	for range 4 {
		db := openMySQL(t, dsn, nil)
		wg.Go(func() {
			for range 2 {
				if err := db.Migrate(t.Context(), migrations()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := ids(t, openMySQL(t, dsn, nil)); len(got) != 1 || got[0] != 1 {
		t.Fatalf("rows after the migrations: %v, want [1]", got)
	}
}

func TestMySQLTxCommitsOrRollsBackAndCounts(t *testing.T) {
	dsn := onMySQL(t)
	reg := prometheus.NewRegistry()
	db := openMySQL(t, dsn, reg)
	if err := db.Migrate(t.Context(), migrations()); err != nil {
		t.Fatal(err)
	}
	insert := func(ctx context.Context, id int64, after func() error) error {
		return db.Tx(ctx, func(tx *Tx) error {
			if n, err := tx.Exec(ctx, "INSERT INTO things (id, name) VALUES (?, ?)", id, "x"); err != nil || n != 1 {
				return errors.Join(errors.New("insert"), err)
			}
			return after()
		})
	}
	fine := func() error { return nil }
	refused := errors.New("refused")
	if err := insert(t.Context(), 2, fine); err != nil {
		t.Fatal(err)
	}
	if err := insert(t.Context(), 3, func() error { return refused }); !errors.Is(err, refused) {
		t.Fatalf("got %v, want the function's error", err)
	}
	var number *mysql.MySQLError
	if err := insert(t.Context(), 2, fine); !errors.As(err, &number) || number.Number != 1062 {
		t.Fatalf("a duplicate key: %v, want MySQL's own error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := insert(ctx, 9, func() error { cancel(); return nil }); err == nil {
		t.Fatal("a cancelled transaction was committed")
	}
	if err := insert(t.Context(), 4, fine); err != nil {
		t.Fatalf("after failed transactions: %v", err)
	}
	if got := ids(t, db); len(got) != 3 || got[2] != 4 {
		t.Fatalf("ids %v, want [1 2 4]", got)
	}
	if n := testutil.ToFloat64(db.m.transactions); n != 2 {
		t.Errorf("transactions %v, want 2", n)
	}
	// As with SQLite, a changed row counts and one that stays as it is does not.
	if n, err := db.Exec(t.Context(), "UPDATE things SET name = ? WHERE id IN (2, 4)", "x"); err != nil || n != 0 {
		t.Errorf("an update to the same value changed %d rows, %v", n, err)
	}
}
