package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Text is SQL. A constant is one by itself, and what is put together of Texts; a
// string is none, so that a value reaches the database as an argument or not at all.
// Nobody but this package converts one (tidy_test.go).
type Text string

// Tx is a write transaction. It belongs to the function it was given to.
type Tx struct {
	db *DB
	tx *sql.Tx // MySQL; nil with SQLite, whose writer is the transaction
}

// Tx runs fn in one write transaction and commits it when fn returns nil. With
// SQLite the write lock is held from the start, so that what fn reads cannot be
// overtaken by another writer before fn writes.
func (d *DB) Tx(ctx context.Context, fn func(*Tx) error) error {
	var err error
	began := time.Now()
	defer func() { d.m.tx.Done(time.Since(began), err != nil) }()
	if d.writer != nil {
		err = d.writer.tx(ctx, func() error { return fn(&Tx{db: d}) })
	} else {
		err = d.poolTx(ctx, fn)
	}
	if err != nil {
		return fmt.Errorf("sqlstore %s: %w", d.name, err)
	}
	d.m.transactions.Inc()
	return nil
}

func (d *DB) poolTx(ctx context.Context, fn func(*Tx) error) error {
	tx, err := d.pool.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := fn(&Tx{db: d, tx: tx}); err != nil {
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, sql.ErrTxDone) {
			err = errors.Join(err, fmt.Errorf("rollback: %w", rerr))
		}
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// Exec runs a statement in the transaction and returns the number of rows it
// changed.
func (t *Tx) Exec(ctx context.Context, query Text, args ...any) (int64, error) {
	began := time.Now()
	n, err := t.exec(ctx, query, args)
	t.db.m.class(string(query)).Done(time.Since(began), err != nil)
	return n, err
}

func (t *Tx) exec(ctx context.Context, query Text, args []any) (int64, error) {
	if t.tx != nil {
		return t.db.count(t.tx.ExecContext(ctx, string(query), args...))
	}
	s, done, err := t.db.writer.prepare(ctx, query)
	if err != nil {
		return 0, err
	}
	defer done()
	return t.db.count(s.ExecContext(ctx, args...))
}

// Query runs a query in the transaction. The caller closes the rows before the
// next statement.
func (t *Tx) Query(ctx context.Context, query Text, args ...any) (*Rows, error) {
	began := time.Now()
	if t.tx != nil {
		rows, err := t.tx.QueryContext(ctx, string(query), args...)
		return t.db.rows(rows, err, began, func() {})
	}
	s, done, err := t.db.writer.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(ctx, args...)
	return t.db.rows(rows, err, began, done)
}

// Exec runs one statement as a transaction of its own.
func (d *DB) Exec(ctx context.Context, query Text, args ...any) (int64, error) {
	var n int64
	err := d.Tx(ctx, func(tx *Tx) (err error) {
		n, err = tx.Exec(ctx, query, args...)
		return err
	})
	return n, err
}

// Query runs a query outside of a transaction. It sees what was committed
// before it started. Config.Readers -1: the database is locked until Close.
func (d *DB) Query(ctx context.Context, query Text, args ...any) (*Rows, error) {
	began := time.Now()
	switch {
	case d.driver == MySQL:
		rows, err := d.pool.QueryContext(ctx, string(query), args...)
		return d.rows(rows, err, began, func() {})
	case d.pool == nil:
		d.writer.mu.Lock()
		rows, err := (&Tx{db: d}).Query(ctx, query, args...)
		if err != nil {
			d.writer.mu.Unlock()
			return nil, err
		}
		done := rows.done
		rows.done = func() { done(); d.writer.mu.Unlock() }
		return rows, nil
	default:
		s, done, err := d.prepareReader(ctx, query)
		if err != nil {
			return nil, err
		}
		rows, err := s.QueryContext(ctx, args...)
		return d.rows(rows, err, began, done)
	}
}

// Rows counts the rows it hands out. Close reports the error of the iteration
// too, so that it is enough to check Close. Close it once.
type Rows struct {
	*sql.Rows
	db    *DB
	done  func()
	n     int
	began time.Time
}

// Next is sql.Rows.Next, counted.
func (r *Rows) Next() bool {
	ok := r.Rows.Next()
	if ok {
		r.n++
	}
	return ok
}

// Close ends the query.
func (r *Rows) Close() error {
	r.db.m.read.Add(float64(r.n))
	err := errors.Join(r.Err(), r.Rows.Close())
	r.done()
	r.db.m.query.Done(time.Since(r.began), err != nil)
	if err != nil {
		return fmt.Errorf("sqlstore %s: read rows: %w", r.db.name, err)
	}
	return nil
}

func (d *DB) rows(rows *sql.Rows, err error, began time.Time, done func()) (*Rows, error) {
	d.m.statements.Inc()
	if err != nil {
		done()
		d.m.query.Done(time.Since(began), true)
		return nil, fmt.Errorf("query: %w", err)
	}
	return &Rows{Rows: rows, db: d, done: done, began: began}, nil
}

func (d *DB) count(res sql.Result, err error) (int64, error) {
	d.m.statements.Inc()
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, fmt.Errorf("rows affected: %w", err)
	}
	d.m.written.Add(float64(n))
	return n, nil
}

// prepareReader returns the kept statement for query on the readers, and what
// to call when done with it.
func (d *DB) prepareReader(ctx context.Context, query Text) (*sql.Stmt, func(), error) {
	d.mu.Lock()
	s, full := d.stmts[query], len(d.stmts) >= maxStatements
	d.mu.Unlock()
	if s != nil {
		return s, func() {}, nil
	}
	s, err := d.pool.PrepareContext(ctx, string(query))
	if err != nil {
		return nil, nil, fmt.Errorf("sqlstore %s: prepare %.80q: %w", d.name, query, err)
	}
	if full {
		return s, func() { _ = s.Close() }, nil // nothing to learn from it
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if have := d.stmts[query]; have != nil { // another goroutine was faster
		_ = s.Close()
		return have, func() {}, nil
	}
	d.stmts[query] = s
	return s, func() {}, nil
}

// writer is the one connection that writes to a SQLite file. Statements are
// prepared on it and kept, in or outside of a transaction.
type writer struct {
	mu    sync.Mutex // held for a transaction or a query
	db    *sql.DB
	conn  *sql.Conn
	stmts map[Text]*sql.Stmt
}

func openWriter(ctx context.Context, dsn string) (*writer, error) {
	db, err := sql.Open(SQLite, dsn)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect: %w", err), db.Close())
	}
	return &writer{db: db, conn: conn, stmts: make(map[Text]*sql.Stmt)}, nil
}

// tx runs fn between BEGIN IMMEDIATE and COMMIT. Plain statements rather than
// database/sql's Tx, which starts a goroutine for each transaction.
func (w *writer) tx(ctx context.Context, fn func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.run(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := fn()
	if err == nil {
		if err = w.run(ctx, "COMMIT"); err == nil {
			return nil
		}
	}
	// An error may have ended the transaction by itself (a full disk does).
	if rerr := w.run(context.WithoutCancel(ctx), "ROLLBACK"); rerr != nil &&
		!strings.Contains(rerr.Error(), "no transaction is active") {
		err = errors.Join(err, rerr)
	}
	return err
}

func (w *writer) run(ctx context.Context, statement Text) error {
	s, done, err := w.prepare(ctx, statement)
	if err != nil {
		return err
	}
	defer done()
	if _, err := s.ExecContext(ctx); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

func (w *writer) prepare(ctx context.Context, query Text) (*sql.Stmt, func(), error) {
	if s := w.stmts[query]; s != nil {
		return s, func() {}, nil
	}
	s, err := w.conn.PrepareContext(ctx, string(query))
	if err != nil {
		return nil, nil, fmt.Errorf("prepare %.80q: %w", query, err)
	}
	if len(w.stmts) >= maxStatements {
		return s, func() { _ = s.Close() }, nil // nothing to learn from it
	}
	w.stmts[query] = s
	return s, func() {}, nil
}

func (w *writer) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for _, s := range w.stmts {
		errs = append(errs, s.Close())
	}
	clear(w.stmts)
	return errors.Join(append(errs, w.conn.Close(), w.db.Close())...)
}

// List returns n groups of placeholders: List(2, "(?,?)") is "(?,?),(?,?)".
func List(n int, group Text) Text {
	if n <= 0 {
		return ""
	}
	return Text(strings.Repeat(string(group)+",", n-1)) + group
}
