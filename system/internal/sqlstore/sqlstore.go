// Package sqlstore is how the roles that keep state in SQL reach it: opening
// SQLite (modernc.org/sqlite, no cgo) or MySQL by driver and DSN, versioned
// migrations, prepared statements, and counters of what a store was asked. It
// owns connections and nothing else: tables belong to the packages that embed
// their migrations. It may not import a role.
package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/pressly/goose/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"throng/system/internal/obs"
)

// Drivers that Open knows.
const (
	SQLite = "sqlite"
	MySQL  = "mysql"
)

const (
	// maxStatements bounds the prepared statements kept by the writer, and
	// again by the readers. A query text beyond it is prepared for each call.
	maxStatements  = 512
	defaultReaders = 4
	// migrateAttempts bounds how often Migrate runs into another process that
	// is migrating the same database.
	migrateAttempts = 20
	busyTimeout     = 10 * time.Second
)

// Config says which database to open.
type Config struct {
	// Driver is SQLite or MySQL.
	Driver string
	// DSN is a file path for SQLite, a go-sql-driver DSN for MySQL.
	DSN string
	// Name is the value of the label "store" in the metrics.
	Name string
	// Readers bounds the connections that read beside the one writer. 0 means
	// 4; with -1 the writing connection does the reading too, for a store that
	// one goroutine uses: one page cache instead of two.
	Readers int
	// CacheBytes is SQLite's page cache of each connection. Default 16 MiB.
	CacheBytes int
	// ReadCommitted: on MySQL each statement of a transaction sees what others have
	// committed, and no gaps are locked: who looks for a row that is not there
	// keeps nobody from inserting it, or another beside it.
	ReadCommitted bool
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// DB is an open database. It is safe for concurrent use.
//
// With SQLite one connection writes and the others read: SQLite has one writer
// anyway, and waiting in Go's queue is fairer than waiting in its busy loop.
type DB struct {
	driver string
	name   string
	dsn    string
	pool   *sql.DB // SQLite: readers, nil when the writer reads too; MySQL: everything
	writer *writer // SQLite only
	m      counters

	mu    sync.Mutex
	stmts map[Text]*sql.Stmt // SQLite readers
}

type counters struct {
	statements, transactions, written, read prometheus.Counter

	insert, update, remove, query, other, tx *obs.Op // classes of statements, and transactions

	reg  prometheus.Registerer
	pool prometheus.Collector // of DB.pool; nil: not registered
}

// Open opens the database and checks that it answers.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	d := &DB{driver: cfg.Driver, name: cfg.Name, stmts: make(map[Text]*sql.Stmt)}
	err := d.m.register(cfg)
	if err == nil {
		switch cfg.Driver {
		case SQLite:
			err = d.openSQLite(ctx, cfg)
		case MySQL:
			err = d.openMySQL(ctx, cfg)
		default:
			err = fmt.Errorf("unknown driver %q, want %q or %q", cfg.Driver, SQLite, MySQL)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("sqlstore %s: %w", cfg.Name, err)
	}
	d.m.watch(d)
	return d, nil
}

// checkpointPages is after how many pages, of 4 KB, SQLite copies its log into the
// database, while its writer waits: of 2,000 pages that is 0.1 s; of 16,000, which
// saves few, up to a second, most of it in fsync.
const checkpointPages = 2000

// openSQLite opens the writing connection and the pool of readers. WAL lets
// them work at the same time; synchronous=NORMAL survives the kill of any
// process, which is the fault model, and saves an fsync for each commit.
func (d *DB) openSQLite(ctx context.Context, cfg Config) error {
	if strings.ContainsAny(cfg.DSN, "?:") || cfg.DSN == "" {
		return fmt.Errorf("the DSN of SQLite is a file path, not %q", cfg.DSN)
	}
	cache := cfg.CacheBytes
	if cache <= 0 {
		cache = 16 << 20
	}
	q := url.Values{"_txlock": {"immediate"}}
	for _, p := range []string{fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
		"journal_mode(WAL)", "synchronous(NORMAL)", "temp_store(MEMORY)",
		fmt.Sprintf("cache_size(-%d)", cache>>10), fmt.Sprintf("wal_autocheckpoint(%d)", checkpointPages)} {
		q.Add("_pragma", p)
	}
	d.dsn = "file:" + (&url.URL{Path: cfg.DSN}).EscapedPath() + "?" + q.Encode()
	w, err := openWriter(ctx, d.dsn)
	if err != nil {
		return err
	}
	d.writer = w
	if cfg.Readers < 0 {
		return nil
	}
	if d.pool, err = sql.Open(SQLite, d.dsn+"&_query_only=1"); err != nil {
		return errors.Join(fmt.Errorf("open %s for reading: %w", cfg.DSN, err), w.close())
	}
	n := cmp.Or(cfg.Readers, defaultReaders)
	d.pool.SetMaxOpenConns(n)
	d.pool.SetMaxIdleConns(n)
	return nil
}

// openMySQL opens one pool. Placeholders are interpolated by the driver, which
// saves the round trip of a prepare.
func (d *DB) openMySQL(ctx context.Context, cfg Config) error {
	c, err := mysql.ParseDSN(cfg.DSN)
	if err != nil {
		return fmt.Errorf("parse the DSN: %w", err)
	}
	c.InterpolateParams = true
	c.ClientFoundRows = false // RowsAffected means changed, as with SQLite
	if cfg.ReadCommitted {
		if c.Params == nil {
			c.Params = map[string]string{}
		}
		c.Params["transaction_isolation"] = "'READ-COMMITTED'" // set once for each connection
	}
	conn, err := mysql.NewConnector(c)
	if err != nil {
		return fmt.Errorf("connector: %w", err)
	}
	d.pool = sql.OpenDB(conn)
	n := max(cfg.Readers, 1) + 1
	d.pool.SetMaxOpenConns(n)
	d.pool.SetMaxIdleConns(n)
	d.pool.SetConnMaxLifetime(10 * time.Minute)
	if err := d.pool.PingContext(ctx); err != nil {
		return errors.Join(fmt.Errorf("ping: %w", err), d.pool.Close())
	}
	return nil
}

// MySQLSchema makes the schema named as dsn's with suffix, if it is missing, and
// returns its DSN. The account needs the right to create it.
func MySQLSchema(ctx context.Context, dsn, suffix string) (string, error) {
	c, err := mysql.ParseDSN(dsn)
	if err != nil {
		return "", fmt.Errorf("sqlstore: parse the DSN: %w", err)
	}
	name := c.DBName + suffix
	if strings.ContainsAny(name, "`\x00") || c.DBName == "" {
		return "", fmt.Errorf("sqlstore: %q is no name for a schema", name)
	}
	c.DBName = ""
	conn, err := mysql.NewConnector(c)
	if err != nil {
		return "", fmt.Errorf("sqlstore: connector: %w", err)
	}
	db := sql.OpenDB(conn)
	_, err = db.ExecContext(ctx, "CREATE DATABASE IF NOT EXISTS `"+name+"`")
	if err = errors.Join(err, db.Close()); err != nil {
		return "", fmt.Errorf("sqlstore: make schema %s: %w", name, err)
	}
	c.DBName = name
	return c.FormatDSN(), nil
}

// Driver returns SQLite or MySQL, for the few statements that must differ.
func (d *DB) Driver() string { return d.driver }

// Name returns Config.Name.
func (d *DB) Name() string { return d.name }

// Close closes every connection; statements in progress fail.
func (d *DB) Close() error {
	var errs []error
	d.mu.Lock()
	for _, s := range d.stmts {
		errs = append(errs, s.Close())
	}
	clear(d.stmts)
	d.mu.Unlock()
	if d.pool != nil {
		errs = append(errs, d.pool.Close())
	}
	if d.m.pool != nil {
		d.m.reg.Unregister(d.m.pool)
	}
	if d.writer != nil {
		errs = append(errs, d.writer.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sqlstore %s: close: %w", d.name, err)
	}
	return nil
}

// Migrate brings the schema up to the newest of the migrations in fsys, which
// are goose files (00001_name.sql with "-- +goose Up") in its root. It can be
// repeated, and run by several processes at once. Two packages that share one
// database need table names and version numbers of their own; give each its
// own file (SQLite) or schema (MySQL).
func (d *DB) Migrate(ctx context.Context, fsys fs.FS) error {
	dialect := goose.DialectSQLite3
	opts := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	if d.driver == MySQL {
		dialect = goose.DialectMySQL
		opts = append(opts, goose.WithSessionLocker(namedLock{}))
	}
	// goose has no lock for SQLite. Each migration is one transaction there,
	// so the loser of a race fails as a whole and finds the work done when it
	// looks again. On MySQL it looks at its table of versions before it takes the
	// lock, and fails when another process has only half made it.
	var err error
	for i := range migrateAttempts {
		if err = d.migrateOnce(ctx, dialect, fsys, opts); err == nil || ctx.Err() != nil || i == migrateAttempts-1 {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(i+1) * 20 * time.Millisecond):
		}
	}
	if err != nil {
		return fmt.Errorf("sqlstore %s: migrate: %w", d.name, err)
	}
	return nil
}

func (d *DB) migrateOnce(ctx context.Context, dialect goose.Dialect, fsys fs.FS, opts []goose.ProviderOption) (err error) {
	db := d.pool
	if d.driver == SQLite {
		// A connection of its own: goose wants a pool and the writer is one connection.
		if db, err = sql.Open(SQLite, d.dsn); err != nil {
			return err
		}
		db.SetMaxOpenConns(1)
		defer func() { err = errors.Join(err, db.Close()) }()
	}
	p, err := goose.NewProvider(dialect, db, fsys, opts...)
	if err != nil {
		return err
	}
	// Not p.Close, which would close the pool.
	_, err = p.Up(ctx)
	return err
}

// namedLock is goose's lock on MySQL: a named lock of the session, which the
// server releases by itself when the process dies.
type namedLock struct{}

// SessionLock waits for the lock.
func (namedLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	var got sql.NullInt64
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK(CONCAT('throng-migrate-', DATABASE()), 60)").Scan(&got); err != nil {
		return fmt.Errorf("lock for migrations: %w", err)
	}
	if got.Int64 != 1 {
		return errors.New("lock for migrations: another process has held it for a minute")
	}
	return nil
}

// SessionUnlock releases it.
func (namedLock) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	var got sql.NullInt64
	if err := conn.QueryRowContext(ctx, "SELECT RELEASE_LOCK(CONCAT('throng-migrate-', DATABASE()))").Scan(&got); err != nil {
		return fmt.Errorf("release the lock for migrations: %w", err)
	}
	return nil
}

// watch registers the state of the pool, go_sql_* with the label db_name: how many
// connections there are, may be and are in use, and who waited for one.
func (c *counters) watch(d *DB) {
	if c.reg == nil || d.pool == nil {
		return
	}
	if pool := collectors.NewDBStatsCollector(d.pool, d.name); c.reg.Register(pool) == nil { // else one of that name is open already
		c.pool = pool
	}
}

// class returns the kind of work that a statement is.
func (c *counters) class(statement string) *obs.Op {
	switch first := strings.TrimLeft(statement, " \t\n("); {
	case first == "":
		return c.other
	case first[0]|0x20 == 's', first[0]|0x20 == 'w': // WITH
		return c.query
	case first[0]|0x20 == 'i', first[0]|0x20 == 'r': // REPLACE
		return c.insert
	case first[0]|0x20 == 'u':
		return c.update
	case first[0]|0x20 == 'd':
		return c.remove
	}
	return c.other
}

// register makes the counters of one store; several stores of a process share
// the metric and differ in the label.
func (c *counters) register(cfg Config) error {
	for _, x := range []struct {
		to         *prometheus.Counter
		name, help string
	}{
		{&c.statements, "throng_sql_statements_total", "SQL statements run."},
		{&c.transactions, "throng_sql_transactions_total", "SQL transactions committed."},
		{&c.written, "throng_sql_rows_written_total", "Rows inserted, changed or deleted, as the database counts them."},
		{&c.read, "throng_sql_rows_read_total", "Rows returned by queries."},
	} {
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: x.name, Help: x.help}, []string{"store"})
		if cfg.Metrics != nil {
			if err := cfg.Metrics.Register(vec); err != nil {
				var dup prometheus.AlreadyRegisteredError
				if !errors.As(err, &dup) {
					return fmt.Errorf("metric %s: %w", x.name, err)
				}
				vec = dup.ExistingCollector.(*prometheus.CounterVec)
			}
		}
		*x.to = vec.WithLabelValues(cfg.Name)
	}
	if c.reg = cfg.Metrics; c.reg == nil {
		return nil
	}
	ops, err := obs.NewOps(c.reg)
	if err != nil {
		return err
	}
	for name, to := range map[string]**obs.Op{"select": &c.query, "insert": &c.insert, "update": &c.update,
		"delete": &c.remove, "other": &c.other, "tx": &c.tx} {
		*to = ops.Op("sql." + cfg.Name + "." + name)
	}
	return nil
}
