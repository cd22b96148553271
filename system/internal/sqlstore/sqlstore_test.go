package sqlstore

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func migrations() fstest.MapFS {
	return fstest.MapFS{
		"00001_first.sql":  {Data: []byte("-- +goose Up\nCREATE TABLE things (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(20) NOT NULL);\n")},
		"00002_second.sql": {Data: []byte("-- +goose Up\nINSERT INTO things (id, name) VALUES (1, 'one');\n")},
	}
}

func open(t *testing.T, path string, readers int, reg prometheus.Registerer) *DB {
	t.Helper()
	db, err := Open(t.Context(), Config{Driver: SQLite, DSN: path, Name: "test", Readers: readers, Metrics: reg})
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

func ids(t *testing.T, db *DB) []int64 {
	t.Helper()
	rows, err := db.Query(t.Context(), "SELECT id FROM things ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	var out []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		out = append(out, id)
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMigrateTwiceAndConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b.db")
	var wg sync.WaitGroup
	for range 4 {
		db := open(t, path, 0, nil)
		wg.Go(func() {
			for range 2 {
				if err := db.Migrate(t.Context(), migrations()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := ids(t, open(t, path, 0, nil)); len(got) != 1 || got[0] != 1 {
		t.Fatalf("rows after the migrations: %v, want [1]", got)
	}
}

func TestMigrateReportsBrokenMigration(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "x.db"), 0, nil)
	bad := fstest.MapFS{"00001_bad.sql": {Data: []byte("-- +goose Up\nCREATE TABEL x;\n")}}
	if err := db.Migrate(t.Context(), bad); err == nil {
		t.Fatal("a broken migration passed")
	}
}

func TestTxCommitsOrRollsBackAndCounts(t *testing.T) {
	for name, readers := range map[string]int{"readers": 2, "writer reads": -1} {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			db := open(t, filepath.Join(t.TempDir(), "x.db"), readers, reg)
			if err := db.Migrate(t.Context(), migrations()); err != nil {
				t.Fatal(err)
			}
			insert := func(id int64, fail error) error {
				return db.Tx(t.Context(), func(tx *Tx) error {
					if n, err := tx.Exec(t.Context(), "INSERT INTO things (id, name) VALUES (?, ?)", id, "x"); err != nil || n != 1 {
						return errors.Join(errors.New("insert"), err)
					}
					return fail
				})
			}
			refused := errors.New("refused")
			if err := insert(2, nil); err != nil {
				t.Fatal(err)
			}
			if err := insert(3, refused); !errors.Is(err, refused) {
				t.Fatalf("got %v, want the function's error", err)
			}
			if err := insert(2, nil); err == nil {
				t.Fatal("a duplicate key was accepted")
			}
			if err := insert(4, nil); err != nil {
				t.Fatalf("after a failed transaction: %v", err)
			}
			if got := ids(t, db); len(got) != 3 || got[2] != 4 {
				t.Fatalf("ids %v, want [1 2 4]", got)
			}
			if n := testutil.ToFloat64(db.m.transactions); n != 2 {
				t.Errorf("transactions %v, want 2", n)
			}
			if n := testutil.ToFloat64(db.m.read); n != 3 {
				t.Errorf("rows read %v, want 3", n)
			}
			if n := testutil.ToFloat64(db.m.written); n != 3 {
				t.Errorf("rows written %v, want 3 (the rolled back one counts as work)", n)
			}
		})
	}
}

func TestCancelledTxLeavesTheWriterUsable(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "x.db"), 0, nil)
	if err := db.Migrate(t.Context(), migrations()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := db.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO things (id, name) VALUES (9, 'x')"); err != nil {
			return err
		}
		cancel()
		return nil
	})
	if err == nil {
		t.Fatal("a cancelled transaction was committed")
	}
	if _, err := db.Exec(t.Context(), "INSERT INTO things (id, name) VALUES (?, 'y')", 5); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, db); len(got) != 2 || got[1] != 5 {
		t.Fatalf("ids %v, want [1 5]", got)
	}
}

func TestTwoStoresShareMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	open(t, filepath.Join(t.TempDir(), "a.db"), 0, reg)
	open(t, filepath.Join(t.TempDir(), "b.db"), 0, reg)
}

func TestOpenRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"driver":  {Driver: "oracle", DSN: "x"},
		"dsn":     {Driver: SQLite, DSN: "file:x?mode=ro"},
		"no file": {Driver: SQLite, DSN: "/nonexistent/dir/x.db"},
		"mysql":   {Driver: MySQL, DSN: "not a dsn"},
	} {
		if _, err := Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: opened %+v", name, cfg)
		}
	}
}
