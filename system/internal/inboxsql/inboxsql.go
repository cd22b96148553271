// Package inboxsql keeps mailboxes in SQL: it is the inbox.Store of a
// deployment, on SQLite (a file for each loop) or MySQL (a schema for each).
// It owns the tables inbox_*. It may not import a role other than inbox, whose
// port it implements.
package inboxsql

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/inbox"
	"throng/system/internal/sqlstore"
)

//go:embed migrations
var migrations embed.FS

// pageCache is what a loop keeps of its tables, in bytes, with SQLite. Rows are
// moved, read and deleted by user, all over them: with an eighth of that, pages
// read again were a tenth of the CPU of an inbox with 240 MB of tables.
const pageCache = 64 << 20

// Config says where the mailboxes of one inbox instance are kept.
type Config struct {
	Driver string // sqlstore.SQLite or sqlstore.MySQL
	// DSN is the path of a file for SQLite, to which ".<loop>" is added for
	// each loop; its folder must exist. For MySQL, a DSN of the instance's own:
	// "_<loop>" is added to the name of its schema for each loop, and what is
	// missing is created. Loops share no table: numbers of rows are unique in a
	// loop only, and none waits for another's locks.
	DSN string
	// Loops of the instance. Default inbox.DefaultLoops. It is fixed for life:
	// each file or schema holds certain shards.
	Loops int
	// KeepFor and KeepBytes bound what a loop keeps of the rows that came last in
	// memory and in a log beside the database, with SQLite: what is older, or more,
	// moves into the tables. Default DefaultKeepFor and DefaultKeepBytes.
	KeepFor   time.Duration
	KeepBytes int
	Metrics   prometheus.Registerer // may be nil
}

// Stores are the open stores of an instance.
type Stores struct {
	dbs    []*sqlstore.DB
	logs   []*logged
	stores []inbox.Store
}

// Open opens and migrates the stores of an instance, one for each loop.
func Open(ctx context.Context, cfg Config) (*Stores, error) {
	if cfg.Loops <= 0 {
		cfg.Loops = inbox.DefaultLoops
	}
	cfg.KeepFor = cmp.Or(cfg.KeepFor, DefaultKeepFor)
	cfg.KeepBytes = cmp.Or(cfg.KeepBytes, DefaultKeepBytes)
	st := new(Stores)
	for loop := range cfg.Loops {
		if err := st.open(ctx, cfg, loop); err != nil {
			return nil, errors.Join(err, st.Close())
		}
	}
	return st, nil
}

func (st *Stores) open(ctx context.Context, cfg Config, loop int) error {
	dsn := fmt.Sprintf("%s.%d", cfg.DSN, loop)
	if cfg.Driver == sqlstore.MySQL {
		var err error
		if dsn, err = sqlstore.MySQLSchema(ctx, cfg.DSN, fmt.Sprintf("_%d", loop)); err != nil {
			return fmt.Errorf("inboxsql: %w", err)
		}
	}
	db, err := sqlstore.Open(ctx, sqlstore.Config{Driver: cfg.Driver, DSN: dsn, Name: "inbox", Readers: -1,
		CacheBytes: pageCache, Metrics: cfg.Metrics})
	if err != nil {
		return fmt.Errorf("inboxsql: %w", err)
	}
	st.dbs = append(st.dbs, db)
	dir, err := fs.Sub(migrations, "migrations/"+cfg.Driver)
	if err != nil {
		return fmt.Errorf("inboxsql: %w", err)
	}
	if err := db.Migrate(ctx, dir); err != nil {
		return fmt.Errorf("inboxsql: %w", err)
	}
	tables := newStore(db)
	if cfg.Driver != sqlstore.SQLite {
		st.stores = append(st.stores, tables)
		return nil
	}
	l, err := newLogged(tables, dsn, cfg)
	if err != nil {
		return fmt.Errorf("inboxsql: %w", err)
	}
	st.logs, st.stores = append(st.logs, l), append(st.stores, l)
	return nil
}

// Stores returns one store for each loop, for inbox.Config.
func (st *Stores) Stores() []inbox.Store { return st.stores }

// Close closes them. The inbox must have stopped.
func (st *Stores) Close() error {
	var errs []error
	for _, l := range st.logs {
		errs = append(errs, l.log.close())
	}
	for _, db := range st.dbs {
		errs = append(errs, db.Close())
	}
	return errors.Join(errs...)
}
