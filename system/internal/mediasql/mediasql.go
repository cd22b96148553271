// Package mediasql keeps what is known of media in SQL: it is the media.Store of
// a deployment, on SQLite or MySQL. It owns the tables media_*. It may not
// import a role other than media, whose port it implements.
package mediasql

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/media"
	"throng/system/internal/sqlstore"
	"throng/system/wire"
)

//go:embed migrations
var migrations embed.FS

// Config says where the tables are.
type Config struct {
	Driver string // sqlstore.SQLite or sqlstore.MySQL
	// DSN is the path of a file for SQLite, whose folder must exist; for MySQL a
	// DSN, whose schema is made if it is missing. All media instances share it.
	DSN     string
	Metrics prometheus.Registerer // may be nil
}

// Store is a media.Store.
type Store struct {
	db     *sqlstore.DB
	lock   sqlstore.Text // appended to a SELECT whose row is about to be changed
	insert sqlstore.Text // begins an INSERT that leaves what is there alone
}

var _ media.Store = (*Store)(nil)

// Open opens and migrates the store.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := &Store{insert: "INSERT OR IGNORE INTO "}
	if cfg.Driver == sqlstore.MySQL {
		var err error
		if cfg.DSN, err = sqlstore.MySQLSchema(ctx, cfg.DSN, ""); err != nil {
			return nil, fmt.Errorf("mediasql: %w", err)
		}
		s.lock, s.insert = " FOR UPDATE", "INSERT IGNORE INTO "
	}
	db, err := sqlstore.Open(ctx, sqlstore.Config{Driver: cfg.Driver, DSN: cfg.DSN, Name: "media", Metrics: cfg.Metrics})
	if err != nil {
		return nil, fmt.Errorf("mediasql: %w", err)
	}
	dir, err := fs.Sub(migrations, "migrations/"+cfg.Driver)
	if err == nil {
		err = db.Migrate(ctx, dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mediasql: %w", err), db.Close())
	}
	s.db = db
	return s, nil
}

// Close closes the connections. The media role must have stopped.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("mediasql: %w", err)
	}
	return nil
}

// Create implements media.Store.
func (s *Store) Create(ctx context.Context, o media.Object, q media.Quota) error {
	err := s.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		n, err := numbers(2)(tx.Query(ctx, "SELECT COUNT(*), COALESCE(SUM(size),0) FROM media_object WHERE owner_id=?", int64(o.Owner)))
		if err != nil {
			return err
		}
		if n[0] >= int64(q.Objects) || n[1]+o.Size > q.Bytes {
			return media.ErrQuota
		}
		_, err = tx.Exec(ctx, "INSERT INTO media_object (media_id, owner_id, kind, size, sha256, messages, received, hash_state, ready, expires_ms) VALUES (?,?,?,?,?,?,0,?,0,?)",
			o.ID[:], int64(o.Owner), int(o.Kind), o.Size, o.SHA256[:], o.Messages, o.HashState, o.Expires.UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("mediasql: create: %w", err)
	}
	return nil
}

// Find implements media.Store.
func (s *Store) Find(ctx context.Context, id wire.MediaID) (media.Object, error) {
	o, err := s.find(ctx, id)
	if err != nil {
		return media.Object{}, fmt.Errorf("mediasql: find %s: %w", id, err)
	}
	return o, nil
}

func (s *Store) find(ctx context.Context, id wire.MediaID) (o media.Object, err error) {
	rows, err := s.db.Query(ctx, "SELECT owner_id, kind, size, sha256, messages, received, hash_state, ready, expires_ms FROM media_object WHERE media_id=?", id[:])
	if err != nil {
		return o, err
	}
	var owner, expires int64
	var kind, ready int
	var sum []byte
	found := rows.Next()
	if found {
		err = rows.Scan(&owner, &kind, &o.Size, &sum, &o.Messages, &o.Received, &o.HashState, &ready, &expires)
	}
	if err = errors.Join(err, rows.Close()); err != nil {
		return o, err
	}
	if !found {
		return o, media.ErrNotFound
	}
	o.ID, o.Owner, o.Kind, o.Ready, o.Expires = id, uint64(owner), wire.Kind(kind), ready != 0, time.UnixMilli(expires)
	copy(o.SHA256[:], sum)
	if rows, err = s.db.Query(ctx, "SELECT start, size, blob_key FROM media_part WHERE media_id=? ORDER BY start", id[:]); err != nil {
		return o, err
	}
	for rows.Next() {
		var p media.Part
		if err := rows.Scan(&p.Start, &p.Size, &p.Blob); err != nil {
			return o, errors.Join(err, rows.Close())
		}
		if p.Start < o.Received { // another instance may have added one in between
			o.Parts = append(o.Parts, p)
		}
	}
	return o, rows.Close()
}

// Append implements media.Store.
func (s *Store) Append(ctx context.Context, id wire.MediaID, p media.Part, hashState []byte, readyUntil time.Time) error {
	err := s.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		query, args := sqlstore.Text("UPDATE media_object SET received=?, hash_state=?"), []any{p.Start + p.Size, hashState}
		if !readyUntil.IsZero() {
			query, args = query+", ready=1, expires_ms=?", append(args, readyUntil.UnixMilli())
		}
		n, err := tx.Exec(ctx, query+" WHERE media_id=? AND received=? AND ready=0", append(args, id[:], p.Start)...)
		if err != nil {
			return err
		}
		if n == 0 {
			there, err := numbers(1)(tx.Query(ctx, "SELECT COUNT(*) FROM media_object WHERE media_id=?", id[:]))
			if err != nil {
				return err
			}
			if there[0] == 0 {
				return media.ErrNotFound
			}
			return media.ErrConflict
		}
		_, err = tx.Exec(ctx, "INSERT INTO media_part (media_id, start, size, blob_key) VALUES (?,?,?,?)", id[:], p.Start, p.Size, p.Blob)
		return err
	})
	if err != nil {
		return fmt.Errorf("mediasql: append to %s: %w", id, err)
	}
	return nil
}

// Fetched implements media.Store.
func (s *Store) Fetched(ctx context.Context, f media.Fetch, until time.Time) (complete bool, err error) {
	err = s.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		// The object's row is the lock of its messages and fetches.
		rows, err := tx.Query(ctx, "SELECT messages, expires_ms FROM media_object WHERE media_id=?"+s.lock, f.ID[:])
		o, err := numbers(2)(rows, err)
		if err != nil {
			return err
		}
		if o == nil {
			return media.ErrNotFound
		}
		id, message := f.ID[:], f.Message[:]
		n, err := tx.Exec(ctx, s.insert+"media_fetch (media_id, message_id, user_id) VALUES (?,?,?)", id, message, int64(f.User))
		if err != nil || n == 0 {
			return err
		}
		if _, err := tx.Exec(ctx, s.insert+"media_message (media_id, message_id, waiting) VALUES (?,?,?)", id, message, f.Addressees); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "UPDATE media_message SET waiting=waiting-1 WHERE media_id=? AND message_id=?", id, message); err != nil {
			return err
		}
		done, err := numbers(1)(tx.Query(ctx, "SELECT COUNT(*) FROM media_message WHERE media_id=? AND waiting<=0", id))
		if err != nil || done[0] < o[0] {
			return err
		}
		complete = true
		_, err = tx.Exec(ctx, "UPDATE media_object SET expires_ms=? WHERE media_id=?", min(o[1], until.UnixMilli()), id)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("mediasql: fetched %s: %w", f.ID, err)
	}
	return complete, nil
}

// Expired implements media.Store.
func (s *Store) Expired(ctx context.Context, now time.Time, limit int) ([]wire.MediaID, error) {
	rows, err := s.db.Query(ctx, "SELECT media_id FROM media_object WHERE expires_ms<=? ORDER BY expires_ms LIMIT ?", now.UnixMilli(), limit)
	if err != nil {
		return nil, fmt.Errorf("mediasql: expired: %w", err)
	}
	var out []wire.MediaID
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil || len(b) != len(wire.MediaID{}) {
			return nil, errors.Join(fmt.Errorf("mediasql: expired: id of %d bytes", len(b)), err, rows.Close())
		}
		out = append(out, wire.MediaID(b))
	}
	if err := rows.Close(); err != nil {
		return nil, fmt.Errorf("mediasql: expired: %w", err)
	}
	return out, nil
}

// Remove implements media.Store.
func (s *Store) Remove(ctx context.Context, id wire.MediaID) error {
	err := s.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		for _, query := range []sqlstore.Text{
			"DELETE FROM media_fetch WHERE media_id=?", "DELETE FROM media_message WHERE media_id=?",
			"DELETE FROM media_part WHERE media_id=?", "DELETE FROM media_object WHERE media_id=?",
		} {
			if _, err := tx.Exec(ctx, query, id[:]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("mediasql: remove %s: %w", id, err)
	}
	return nil
}

// Usage implements media.Store.
func (s *Store) Usage(ctx context.Context) (objects, bytes int64, err error) {
	n, err := numbers(2)(s.db.Query(ctx, "SELECT COUNT(*), COALESCE(SUM(received),0) FROM media_object"))
	if err != nil {
		return 0, 0, fmt.Errorf("mediasql: usage: %w", err)
	}
	return n[0], n[1], nil
}

// numbers reads the one row of a result; nil without one.
func numbers(columns int) func(*sqlstore.Rows, error) ([]int64, error) {
	return func(rows *sqlstore.Rows, err error) ([]int64, error) {
		if err != nil {
			return nil, err
		}
		var out []int64
		if rows.Next() {
			out = make([]int64, columns)
			to := make([]any, columns)
			for i := range out {
				to[i] = &out[i]
			}
			err = rows.Scan(to...)
		}
		if err = errors.Join(err, rows.Close()); err != nil {
			return nil, err
		}
		return out, nil
	}
}
