package inboxsql

import (
	"context"

	"throng/system/internal/inbox"
	"throng/system/internal/sqlstore"
)

// copy inserts rows that are in the log; those up to upTo can be seen after it.
func (st *store) copy(ctx context.Context, b *inbox.Batch, upTo int64) error {
	return st.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		if err := st.fence(ctx, tx, b, nil); err != nil {
			return err
		}
		if err := st.insert(ctx, tx, b, new(inbox.Result)); err != nil {
			return err
		}
		if upTo == st.upTo {
			return nil
		}
		_, err := tx.Exec(ctx, "UPDATE inbox_moved SET upto = ?", upTo)
		return err
	})
}

// uncopy deletes the copies that an owner before this one has made of rows in the log.
func (st *store) uncopy(ctx context.Context, tx *sqlstore.Tx, upTo int64) error {
	rows, err := tx.Query(ctx, "SELECT seq FROM inbox_rows WHERE seq > ?", upTo)
	if err != nil {
		return err
	}
	var b inbox.Batch
	for rows.Next() {
		var seq int64
		if err := rows.Scan(&seq); err != nil {
			return closing(rows, err)
		}
		b.DeletePtr = append(b.DeletePtr, uint64(seq))
	}
	if err := rows.Close(); err != nil {
		return err
	}
	return st.delete(ctx, tx, &b, new(inbox.Result))
}

func number(ctx context.Context, tx querier, query sqlstore.Text) (n int64, err error) {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return 0, err
	}
	for rows.Next() {
		if err := rows.Scan(&n); err != nil {
			return 0, closing(rows, err)
		}
	}
	return n, rows.Close()
}
