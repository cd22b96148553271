package inboxsql

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"

	"throng/system/internal/inbox"
	"throng/system/internal/sqlstore"
)

// Numbers of the protocol are unsigned, columns signed: they are stored as the
// same 64 bits. Only seqs and incarnations, below 2^63 for the next decade, are
// compared by the database.

// store is an inbox.Store for one loop.
type store struct {
	db     *sqlstore.DB
	shards []int
	q      queries
	args   []any // reused
	// upTo is the newest row that can be seen: those above it are copies of rows
	// in the log. claimed, where set, is part of the transaction of a claim.
	upTo    int64
	claimed func(ctx context.Context, tx *sqlstore.Tx, incarnation uint64) error
}

// queries are the statements that the dialects write differently.
type queries struct {
	owners, fence                   sqlstore.Text
	insertRows, insertRowsEnd       sqlstore.Text
	upsertDeviceEnd                 sqlstore.Text
	upsertBodyEnd, upsertMarkEnd    sqlstore.Text
	upsertOwnerEnd, upsertPushedEnd sqlstore.Text
	hide                            sqlstore.Text
}

const (
	selectOwners = "SELECT shard, incarnation FROM inbox_owners ORDER BY shard"
	selectFence  = "SELECT shard FROM inbox_owners WHERE shard = ? AND incarnation = ?"
)

func newStore(db *sqlstore.DB) *store {
	st := &store{db: db, upTo: math.MaxInt64}
	if db.Driver() == sqlstore.MySQL {
		st.q = queries{
			owners:          selectOwners + " FOR UPDATE", // of two that claim at once, one waits or fails
			fence:           selectFence + " FOR SHARE",
			insertRows:      "INSERT INTO inbox_rows (seq, shard, usr, dev, mid, body_id, body, at) VALUES ",
			insertRowsEnd:   " ON DUPLICATE KEY UPDATE seq = inbox_rows.seq", // unlike IGNORE, it lets other errors through
			upsertDeviceEnd: " ON DUPLICATE KEY UPDATE token = VALUES(token)",
			upsertPushedEnd: " ON DUPLICATE KEY UPDATE pushed = VALUES(pushed)",
			upsertBodyEnd:   " ON DUPLICATE KEY UPDATE refs = refs + VALUES(refs)",
			upsertMarkEnd:   " ON DUPLICATE KEY UPDATE delivered = GREATEST(delivered, VALUES(delivered)), seen = GREATEST(seen, VALUES(seen)), at = VALUES(at), ledger = COALESCE(VALUES(ledger), ledger)",
			upsertOwnerEnd:  " ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation)",
			hide:            "INSERT INTO inbox_hidden (usr) VALUES (?) ON DUPLICATE KEY UPDATE usr = inbox_hidden.usr",
		}
		return st
	}
	st.q = queries{
		owners:          selectOwners,
		fence:           selectFence,
		insertRows:      "INSERT OR IGNORE INTO inbox_rows (seq, shard, usr, dev, mid, body_id, body, at) VALUES ",
		upsertDeviceEnd: " ON CONFLICT (usr, dev) DO UPDATE SET token = excluded.token WHERE token <> excluded.token",
		upsertPushedEnd: " ON CONFLICT (usr, dev) DO UPDATE SET pushed = excluded.pushed",
		upsertBodyEnd:   " ON CONFLICT (id) DO UPDATE SET refs = refs + excluded.refs",
		upsertMarkEnd:   " ON CONFLICT (usr, dev, grp, peer) DO UPDATE SET delivered = MAX(delivered, excluded.delivered), seen = MAX(seen, excluded.seen), at = excluded.at, ledger = COALESCE(excluded.ledger, ledger)",
		upsertOwnerEnd:  " ON CONFLICT (shard) DO UPDATE SET incarnation = excluded.incarnation",
		hide:            "INSERT OR IGNORE INTO inbox_hidden (usr) VALUES (?)",
	}
	return st
}

// Claim implements inbox.Store.
func (st *store) Claim(ctx context.Context, shards []int, atLeast uint64) (incarnation uint64, rows int, err error) {
	st.shards = slices.Clone(shards)
	slices.Sort(st.shards)
	err = st.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		owned, newest, err := owners(ctx, tx, st.q.owners)
		if err != nil {
			return err
		}
		if len(owned) > 0 && !slices.Equal(owned, st.shards) {
			return fmt.Errorf("%w: the database has shards %v, asked for %v", inbox.ErrOtherShards, owned, st.shards)
		}
		incarnation = max(newest+1, atLeast)
		args := make([]any, 0, 2*len(st.shards))
		for _, s := range st.shards {
			args = append(args, s, int64(incarnation))
		}
		if _, err = tx.Exec(ctx, "INSERT INTO inbox_owners (shard, incarnation) VALUES "+
			sqlstore.List(len(st.shards), "(?,?)")+st.q.upsertOwnerEnd, args...); err != nil {
			return err
		}
		if st.claimed != nil {
			if err := st.claimed(ctx, tx, incarnation); err != nil {
				return err
			}
		}
		rows, err = st.count(ctx, tx)
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("inboxsql: claim: %w", err)
	}
	return incarnation, rows, nil
}

// owners returns the shards that anybody has claimed and the highest incarnation.
func owners(ctx context.Context, tx *sqlstore.Tx, query sqlstore.Text) (shards []int, newest uint64, err error) {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return nil, 0, err
	}
	for rows.Next() {
		var shard int
		var inc int64
		if err := rows.Scan(&shard, &inc); err != nil {
			return nil, 0, closing(rows, err)
		}
		shards = append(shards, shard)
		newest = max(newest, uint64(inc))
	}
	return shards, newest, rows.Close()
}

func (st *store) count(ctx context.Context, tx *sqlstore.Tx) (int, error) {
	rows, err := tx.Query(ctx, "SELECT COUNT(*) FROM inbox_rows")
	if err != nil {
		return 0, err
	}
	n := 0
	if rows.Next() {
		if err := rows.Scan(&n); err != nil {
			return 0, closing(rows, err)
		}
	}
	return n, rows.Close()
}

// closing closes rows after an error, which is the one to report.
func closing(rows *sqlstore.Rows, err error) error {
	_ = rows.Close()
	return err
}

// Load implements inbox.Store.
func (st *store) Load(ctx context.Context, users []uint64) ([]inbox.DeviceState, error) {
	var out []inbox.DeviceState
	for part := range slices.Chunk(users, maxGroups) {
		var err error
		if out, err = st.load(ctx, part, out); err != nil {
			return nil, fmt.Errorf("inboxsql: load: %w", err)
		}
	}
	return out, nil
}

func (st *store) load(ctx context.Context, users []uint64, out []inbox.DeviceState) ([]inbox.DeviceState, error) {
	n := padded(len(users))
	st.args = append(st.args[:0], st.upTo)
	for i := range n {
		st.args = append(st.args, int64(users[min(i, len(users)-1)]))
	}
	rows, err := st.db.Query(ctx, "SELECT d.usr, d.dev, d.token, d.pushed, COUNT(r.seq), COALESCE(MIN(r.seq), 0), COALESCE(MAX(r.seq), 0),"+
		" EXISTS (SELECT 1 FROM inbox_marks m WHERE m.usr = d.usr AND m.dev = d.dev),"+
		" EXISTS (SELECT 1 FROM inbox_hidden h WHERE h.usr = d.usr)"+
		" FROM inbox_devices d LEFT JOIN inbox_rows r ON r.usr = d.usr AND r.dev = d.dev AND r.seq <= ?"+
		" WHERE d.usr IN ("+sqlstore.List(n, "?")+") GROUP BY d.usr, d.dev, d.token, d.pushed", st.args...)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var d inbox.DeviceState
		var user, pushed, oldest, newest int64
		if err := rows.Scan(&user, &d.Device, &d.Token, &pushed, &d.Rows, &oldest, &newest, &d.Receipts, &d.HideLastSeen); err != nil {
			return nil, closing(rows, err)
		}
		d.User, d.Pushed, d.Oldest, d.Newest = uint64(user), uint64(pushed), uint64(oldest), uint64(newest)
		out = append(out, d)
	}
	return out, rows.Close()
}

// Scan implements inbox.Store.
func (st *store) Scan(ctx context.Context, after uint64, limit int) ([]inbox.ScanRow, error) {
	args := []any{int64(after), st.upTo}
	for _, s := range st.shards {
		args = append(args, s)
	}
	args = append(args, limit)
	rows, err := st.db.Query(ctx, "SELECT seq, usr, dev, mid, body_id, at FROM inbox_rows WHERE seq > ? AND seq <= ? AND shard IN ("+
		sqlstore.List(len(st.shards), "?")+") ORDER BY seq LIMIT ?", args...)
	if err != nil {
		return nil, fmt.Errorf("inboxsql: scan: %w", err)
	}
	var out []inbox.ScanRow
	for rows.Next() {
		var r inbox.ScanRow
		var seq, user, body int64
		var mid sql.RawBytes
		if err := rows.Scan(&seq, &user, &r.Device, &mid, &body, &r.At); err != nil {
			return nil, fmt.Errorf("inboxsql: scan: %w", closing(rows, err))
		}
		r.Seq, r.User, r.BodyID = uint64(seq), uint64(user), uint64(body)
		copy(r.Message[:], mid)
		out = append(out, r)
	}
	if err := rows.Close(); err != nil {
		return nil, fmt.Errorf("inboxsql: scan: %w", err)
	}
	return out, nil
}

// maxGroups bounds the groups of placeholders in one statement.
const maxGroups = 128

// padded rounds up to a number of placeholders, so that few texts of a
// statement exist; the caller repeats its last value.
func padded(n int) int {
	if n <= 4 {
		return n
	}
	p := 8
	for p < n {
		p *= 2
	}
	return p
}

// chunk returns how many of n groups the next statement takes: all up to 8,
// else the largest power of two, at most maxGroups.
func chunk(n int) int {
	if n <= 8 {
		return n
	}
	p := 8
	for p*2 <= n && p < maxGroups {
		p *= 2
	}
	return p
}
