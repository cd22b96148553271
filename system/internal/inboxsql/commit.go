package inboxsql

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"

	"throng/system/internal/inbox"
	"throng/system/internal/sqlstore"
)

// Commit implements inbox.Store.
func (st *store) Commit(ctx context.Context, b *inbox.Batch) (inbox.Result, error) {
	var res inbox.Result
	if b.ReadOnly() {
		for _, p := range b.Pages {
			if err := st.page(ctx, st.db, p, &res); err != nil {
				return inbox.Result{}, fmt.Errorf("inboxsql: %w", err)
			}
		}
		return res, nil
	}
	err := st.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		res = inbox.Result{}
		for _, step := range []func(context.Context, *sqlstore.Tx, *inbox.Batch, *inbox.Result) error{
			st.fence, st.register, st.insert, st.delete, st.pushed, st.privacy, st.marks, st.read,
		} {
			if err := step(ctx, tx, b, &res); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return inbox.Result{}, fmt.Errorf("inboxsql: commit: %w", err)
	}
	return res, nil
}

// fence checks that nobody has claimed the shards since. The database belongs
// to one set of shards, which are claimed together: one of them speaks for all.
// With MySQL a claim waits for the end of the transaction.
func (st *store) fence(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, _ *inbox.Result) error {
	return st.fenceBy(ctx, tx, b, 1, st.q.fence, st.shards[0], int64(b.Incarnation))
}

func (st *store) fenceBy(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, want int, query sqlstore.Text, args ...any) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	n := 0
	for rows.Next() {
		n++
	}
	if err := rows.Close(); err != nil {
		return err
	}
	if n != want {
		return fmt.Errorf("%w (incarnation %d)", inbox.ErrFenced, b.Incarnation)
	}
	return nil
}

// exec runs query for n groups, as many in a statement as chunk allows.
func (st *store) exec(ctx context.Context, tx *sqlstore.Tx, n int, head, group, tail sqlstore.Text, arg func(i int, args []any) []any) (int, error) {
	total := int64(0)
	for i := 0; i < n; {
		k := chunk(n - i)
		st.args = st.args[:0]
		for j := range k {
			st.args = arg(i+j, st.args)
		}
		changed, err := tx.Exec(ctx, head+sqlstore.List(k, group)+tail, st.args...)
		if err != nil {
			return 0, err
		}
		total += changed
		i += k
	}
	return int(total), nil
}

func (st *store) register(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, _ *inbox.Result) error {
	_, err := st.exec(ctx, tx, len(b.Register), "INSERT INTO inbox_devices (usr, dev, token, pushed) VALUES ", "(?,?,?,0)",
		st.q.upsertDeviceEnd, func(i int, args []any) []any {
			r := &b.Register[i]
			return append(args, int64(r.User), int64(r.Device), r.Token)
		})
	return err
}

func (st *store) insert(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, res *inbox.Result) error {
	if _, err := st.exec(ctx, tx, len(b.Bodies), "INSERT INTO inbox_bodies (id, refs, body) VALUES ", "(?,?,?)",
		st.q.upsertBodyEnd, func(i int, args []any) []any {
			x := &b.Bodies[i]
			return append(args, int64(x.ID), x.Refs, x.Data)
		}); err != nil {
		return err
	}
	n, err := st.exec(ctx, tx, len(b.Rows), st.q.insertRows, "(?,?,?,?,?,?,?,?)", st.q.insertRowsEnd, func(i int, args []any) []any {
		r := &b.Rows[i]
		var body any
		if r.BodyID == 0 {
			body = r.Body
		}
		return append(args, int64(r.Seq), r.Shard, int64(r.User), int64(r.Device), r.Message[:], int64(r.BodyID), body, r.At)
	})
	res.Inserted = n
	if err != nil || n == len(b.Rows) || len(b.Bodies) == 0 {
		return err
	}
	return st.uncount(ctx, tx, b)
}

// uncount takes back the references of rows that were left out because the
// device has the message already.
func (st *store) uncount(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch) error {
	for i := range b.Rows {
		r := &b.Rows[i]
		if r.BodyID == 0 {
			continue
		}
		rows, err := tx.Query(ctx, "SELECT 1 FROM inbox_rows WHERE seq = ?", int64(r.Seq))
		if err != nil {
			return err
		}
		there := rows.Next()
		if err := rows.Close(); err != nil {
			return err
		}
		if there {
			continue
		}
		if err := st.unref(ctx, tx, map[int64]int{int64(r.BodyID): 1}); err != nil {
			return err
		}
	}
	return nil
}

func (st *store) delete(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, res *inbox.Result) error {
	refs := make(map[int64]int)
	for part := range slices.Chunk(b.DeletePtr, maxGroups) {
		args := make([]any, padded(len(part)))
		for i := range args {
			args[i] = int64(part[min(i, len(part)-1)])
		}
		if err := bodiesOf(ctx, tx, refs, "seq IN ("+sqlstore.List(len(args), "?")+")", args); err != nil {
			return err
		}
	}
	for _, seqs := range [][]uint64{b.Delete, b.DeletePtr} {
		n, err := st.exec(ctx, tx, len(seqs), "DELETE FROM inbox_rows WHERE seq IN (", "?", ")", func(i int, args []any) []any {
			return append(args, int64(seqs[i]))
		})
		if err != nil {
			return err
		}
		res.Deleted += n
	}
	for _, u := range b.DeleteUpTo {
		args := []any{int64(u.User), int64(u.Device), int64(u.Seq)}
		if err := bodiesOf(ctx, tx, refs, "usr = ? AND dev = ? AND seq <= ?", args); err != nil {
			return err
		}
		n, err := tx.Exec(ctx, "DELETE FROM inbox_rows WHERE usr = ? AND dev = ? AND seq <= ?", args...)
		if err != nil {
			return err
		}
		res.Deleted += int(n)
	}
	return st.unref(ctx, tx, refs)
}

// bodiesOf counts in refs the bodies that rows point to.
func bodiesOf(ctx context.Context, tx *sqlstore.Tx, refs map[int64]int, where sqlstore.Text, args []any) error {
	rows, err := tx.Query(ctx, "SELECT body_id FROM inbox_rows WHERE "+where+" AND body_id <> 0", args...)
	if err != nil {
		return err
	}
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return closing(rows, err)
		}
		refs[id]++
	}
	return rows.Close()
}

// unref lowers the counts of bodies and deletes those that nobody needs.
func (st *store) unref(ctx context.Context, tx *sqlstore.Tx, refs map[int64]int) error {
	if len(refs) == 0 {
		return nil
	}
	ids := slices.Sorted(maps.Keys(refs))
	for _, id := range ids {
		if _, err := tx.Exec(ctx, "UPDATE inbox_bodies SET refs = refs - ? WHERE id = ?", refs[id], id); err != nil {
			return err
		}
	}
	_, err := st.exec(ctx, tx, len(ids), "DELETE FROM inbox_bodies WHERE refs <= 0 AND id IN (", "?", ")", func(i int, args []any) []any {
		return append(args, ids[i])
	})
	return err
}

func (st *store) pushed(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, _ *inbox.Result) error {
	// The devices exist: this is an update of many rows in one statement.
	if _, err := st.exec(ctx, tx, len(b.Pushed), "INSERT INTO inbox_devices (usr, dev, token, pushed) VALUES ", "(?,?,'',?)",
		st.q.upsertPushedEnd, func(i int, args []any) []any {
			p := &b.Pushed[i]
			return append(args, int64(p.User), int64(p.Device), int64(p.Seq))
		}); err != nil {
		return err
	}
	for _, d := range b.DeadTokens {
		if _, err := tx.Exec(ctx, "UPDATE inbox_devices SET token = '' WHERE usr = ? AND dev = ? AND token = ?", int64(d.User), int64(d.Device), d.Token); err != nil {
			return err
		}
	}
	return nil
}

func (st *store) privacy(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, _ *inbox.Result) error {
	for _, p := range b.Privacy {
		var query sqlstore.Text = "DELETE FROM inbox_hidden WHERE usr = ?"
		if p.HideLastSeen {
			query = st.q.hide
		}
		if _, err := tx.Exec(ctx, query, int64(p.User)); err != nil {
			return err
		}
	}
	return nil
}

func (st *store) marks(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, _ *inbox.Result) error {
	if b.ExpireMarks > 0 {
		if _, err := tx.Exec(ctx, "DELETE FROM inbox_marks WHERE at < ?", b.ExpireMarks); err != nil {
			return err
		}
	}
	_, err := st.exec(ctx, tx, len(b.Marks), "INSERT INTO inbox_marks (usr, dev, grp, peer, delivered, seen, at, ledger) VALUES ", "(?,?,?,?,?,?,?,?)",
		st.q.upsertMarkEnd, func(i int, args []any) []any {
			m := &b.Marks[i]
			var ledger any
			if len(m.Ledger) > 0 {
				ledger = m.Ledger
			}
			return append(args, int64(m.User), int64(m.Device), int64(m.Group), int64(m.Peer), int64(m.Delivered), int64(m.Read), b.Now, ledger)
		})
	return err
}

func (st *store) read(ctx context.Context, tx *sqlstore.Tx, b *inbox.Batch, res *inbox.Result) error {
	for _, p := range b.Pages {
		if err := st.page(ctx, tx, p, res); err != nil {
			return err
		}
	}
	for _, k := range b.TakeReceipts {
		marks, err := st.take(ctx, tx, k)
		if err != nil {
			return err
		}
		res.Receipts = append(res.Receipts, marks)
	}
	return nil
}

// querier is a transaction, or the database outside of one.
type querier interface {
	Query(ctx context.Context, query sqlstore.Text, args ...any) (*sqlstore.Rows, error)
}

// page reads rows of a device. Where there may be more than the page, the oldest
// ones are found by the index alone, so a mailbox of 10,000 rows costs a sort of
// numbers; those that are known by their seqs cost the same however many there are.
func (st *store) page(ctx context.Context, tx querier, p inbox.Page, res *inbox.Result) (err error) {
	var page []inbox.Row
	var ahead []uint64
	switch seqs := p.Seqs; {
	case len(seqs) == 0 && p.All:
		page, err = readRows(ctx, tx, p.Key, "r.usr = ? AND r.dev = ? AND r.seq <= ?", []any{int64(p.User), int64(p.Device), st.upTo}, nil)
		page = page[:min(p.Limit, len(page))]
	case len(seqs) == 0:
		if seqs, err = st.oldest(ctx, tx, p.Key, p.Limit+p.Ahead); err != nil {
			return err
		}
		cut := min(p.Limit, len(seqs))
		page, err = readSeqs(ctx, tx, p.Key, seqs[:cut])
		ahead = seqs[cut:]
	default:
		page, err = readSeqs(ctx, tx, p.Key, seqs)
	}
	res.Pages, res.Ahead = append(res.Pages, page), append(res.Ahead, ahead)
	return err
}

// oldest returns the lowest seqs of a device's rows.
func (st *store) oldest(ctx context.Context, tx querier, k inbox.Key, limit int) (seqs []uint64, err error) {
	rows, err := tx.Query(ctx, "SELECT seq FROM inbox_rows WHERE usr = ? AND dev = ? AND seq <= ? ORDER BY seq LIMIT ?",
		int64(k.User), int64(k.Device), st.upTo, limit)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var seq int64
		if err := rows.Scan(&seq); err != nil {
			return nil, closing(rows, err)
		}
		seqs = append(seqs, uint64(seq))
	}
	return seqs, rows.Close()
}

// readSeqs returns rows by their seqs, which are in order.
func readSeqs(ctx context.Context, tx querier, k inbox.Key, seqs []uint64) (out []inbox.Row, err error) {
	for part := range slices.Chunk(seqs, maxGroups) {
		args := make([]any, padded(len(part)))
		for i := range args {
			args[i] = int64(part[min(i, len(part)-1)])
		}
		if out, err = readRows(ctx, tx, k, "r.seq IN ("+sqlstore.List(len(args), "?")+")", args, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readRows appends the rows of a device that where selects, with their bodies, in
// order. It sorts them itself: SQLite would make a table to sort a handful of rows.
func readRows(ctx context.Context, tx querier, k inbox.Key, where sqlstore.Text, args []any, out []inbox.Row) ([]inbox.Row, error) {
	rows, err := tx.Query(ctx, "SELECT r.seq, r.mid, r.body_id, COALESCE(r.body, b.body), r.at"+
		" FROM inbox_rows r LEFT JOIN inbox_bodies b ON b.id = r.body_id WHERE "+where, args...)
	if err != nil {
		return nil, err
	}
	first := len(out)
	for rows.Next() {
		r := inbox.Row{Key: k}
		var seq, body int64
		var mid sql.RawBytes
		if err := rows.Scan(&seq, &mid, &body, &r.Body, &r.At); err != nil {
			return nil, closing(rows, err)
		}
		if r.Body == nil {
			return nil, closing(rows, fmt.Errorf("row %d has lost its body %d", seq, body))
		}
		r.Seq, r.BodyID = uint64(seq), uint64(body)
		copy(r.Message[:], mid)
		out = append(out, r)
	}
	slices.SortFunc(out[first:], func(x, y inbox.Row) int { return cmp.Compare(x.Seq, y.Seq) })
	return out, rows.Close()
}

func (st *store) take(ctx context.Context, tx *sqlstore.Tx, k inbox.Key) ([]inbox.Mark, error) {
	rows, err := tx.Query(ctx, "SELECT grp, peer, delivered, seen, ledger FROM inbox_marks WHERE usr = ? AND dev = ? ORDER BY grp, peer", int64(k.User), int64(k.Device))
	if err != nil {
		return nil, err
	}
	var out []inbox.Mark
	for rows.Next() {
		var g, p, d, r int64
		var ledger []byte
		if err := rows.Scan(&g, &p, &d, &r, &ledger); err != nil {
			return nil, closing(rows, err)
		}
		out = append(out, inbox.Mark{Key: k, Group: uint64(g), Peer: uint64(p), Delivered: uint64(d), Read: uint64(r), Ledger: ledger})
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	for _, done := range []struct {
		does sqlstore.Text
		some func(inbox.Mark) bool
	}{
		{"DELETE FROM inbox_marks WHERE usr = ? AND dev = ? AND ledger IS NULL", func(m inbox.Mark) bool { return len(m.Ledger) == 0 }},
		{"UPDATE inbox_marks SET delivered = 0, seen = 0 WHERE usr = ? AND dev = ?",
			func(m inbox.Mark) bool { return len(m.Ledger) > 0 && (m.Delivered > 0 || m.Read > 0) }},
	} {
		if !slices.ContainsFunc(out, done.some) {
			continue
		}
		if _, err := tx.Exec(ctx, done.does, int64(k.User), int64(k.Device)); err != nil {
			return nil, err
		}
	}
	return slices.Clip(out), nil
}
