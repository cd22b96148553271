// Package groupsql keeps groups in SQL: it is the group.Store of a deployment,
// on SQLite or MySQL. It owns the tables chat_*. It may not import a role
// other than group, whose port it implements.
package groupsql

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/group"
	"throng/system/internal/sqlstore"
)

//go:embed migrations
var migrations embed.FS

// Config says where groups are kept.
type Config struct {
	Driver string // sqlstore.SQLite or sqlstore.MySQL
	// DSN is the path of a file for SQLite, whose folder must exist; for MySQL
	// a DSN. All group instances of a deployment share it.
	DSN string
	// Replicas follow the primary, which DSN is, and are read from where the
	// version that is needed is known; those nearest to At, where this process is,
	// first.
	Replicas      []Replica
	At, PrimaryAt Place
	// MaxLag is how far a replica may be behind and still be asked; default 5 s.
	MaxLag  time.Duration
	Metrics prometheus.Registerer // may be nil
}

// primaryConns bounds the connections of an instance to a primary on MySQL. A change
// holds one for a dozen round trips: from 40 ms away that is a second, and with
// two connections everything else, the reads of Check too, waited behind.
const primaryConns = 16

// Store is a group.Store.
type Store struct {
	db   *sqlstore.DB
	near *replicas
	lock sqlstore.Text // appended to a SELECT whose row is about to be changed
}

var _ group.Store = (*Store)(nil)

// Open opens and migrates the store.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	// A change locks the row of its group first. Founders, who find none, would
	// lock the same gap and run into a deadlock, the more so the farther they are.
	primary := sqlstore.Config{Driver: cfg.Driver, DSN: cfg.DSN, Name: "group", ReadCommitted: true, Metrics: cfg.Metrics}
	if cfg.Driver == sqlstore.MySQL {
		primary.Readers = primaryConns
	}
	db, err := sqlstore.Open(ctx, primary)
	if err != nil {
		return nil, fmt.Errorf("groupsql: %w", err)
	}
	dir, err := fs.Sub(migrations, "migrations/"+cfg.Driver)
	if err == nil {
		err = db.Migrate(ctx, dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("groupsql: %w", err), db.Close())
	}
	near, err := newReplicas(cfg, db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("groupsql: %w", err), db.Close())
	}
	near.start(ctx)
	s := &Store{db: db, near: near}
	if cfg.Driver == sqlstore.MySQL {
		s.lock = " FOR UPDATE" // a SQLite transaction holds the write lock from its start
	}
	return s, nil
}

// Close closes the connections. The group service must have stopped.
func (s *Store) Close() error {
	if err := errors.Join(s.near.close(), s.db.Close()); err != nil {
		return fmt.Errorf("groupsql: %w", err)
	}
	return nil
}

// chunks calls fn for parts of [0, n) whose lengths are powers of two up to
// 256: few enough lengths for every statement to stay prepared.
func chunks(n int, fn func(from, to int) error) error {
	for from := 0; from < n; {
		size := 256
		for size > n-from {
			size /= 2
		}
		if err := fn(from, from+size); err != nil {
			return err
		}
		from += size
	}
	return nil
}

// numbers reads a result of one column.
func numbers(rows *sqlstore.Rows, err error) ([]uint64, error) {
	if err != nil {
		return nil, err
	}
	var out []uint64
	for rows.Next() {
		var v int64
		if err := rows.Scan(&v); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		out = append(out, uint64(v))
	}
	return out, rows.Close()
}
