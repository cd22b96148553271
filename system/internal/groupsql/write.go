package groupsql

import (
	"context"
	"fmt"

	"throng/system/internal/group"
	"throng/system/internal/sqlstore"
)

// Create implements group.Store. Of two calls at the same time that create the
// same group on MySQL one fails, and can be repeated.
func (s *Store) Create(ctx context.Context, groups []group.NewGroup) (int, error) {
	added := 0
	err := s.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		fresh, err := missing(ctx, tx, groups)
		if err != nil {
			return err
		}
		added = len(fresh)
		args := make([]any, 0, 1024)
		err = chunks(len(fresh), func(from, to int) error {
			args = args[:0]
			for _, g := range fresh[from:to] {
				args = append(args, int64(g.ID), g.Name, int64(g.Members[0]))
			}
			_, err := tx.Exec(ctx, "INSERT INTO chat_group (group_id, name, owner_id, version) VALUES "+
				sqlstore.List(to-from, "(?,?,?,1)"), args...)
			return err
		})
		if err != nil {
			return err
		}
		var owners, others []any
		for _, g := range fresh {
			owners = append(owners, int64(g.ID), int64(g.Members[0]))
			for _, u := range g.Members[1:] {
				others = append(others, int64(g.ID), int64(u))
			}
		}
		insert := func(pairs []any, row sqlstore.Text) error {
			return chunks(len(pairs)/2, func(from, to int) error {
				_, err := tx.Exec(ctx, "INSERT INTO chat_member (group_id, user_id, joined_version, left_version, admin) VALUES "+
					sqlstore.List(to-from, row), pairs[2*from:2*to]...)
				return err
			})
		}
		if err := insert(owners, "(?,?,1,0,1)"); err != nil {
			return err
		}
		return insert(others, "(?,?,1,0,0)")
	})
	if err != nil {
		return 0, fmt.Errorf("groupsql: create: %w", err)
	}
	return added, nil
}

// missing returns the groups that do not exist, each once.
func missing(ctx context.Context, tx *sqlstore.Tx, groups []group.NewGroup) ([]group.NewGroup, error) {
	exists := make(map[uint64]bool, len(groups))
	err := chunks(len(groups), func(from, to int) error {
		args := make([]any, 0, to-from)
		for _, g := range groups[from:to] {
			args = append(args, int64(g.ID))
		}
		ids, err := numbers(tx.Query(ctx, "SELECT group_id FROM chat_group WHERE group_id IN ("+
			sqlstore.List(len(args), "?")+")", args...))
		for _, id := range ids {
			exists[id] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	fresh := make([]group.NewGroup, 0, len(groups))
	for _, g := range groups {
		if !exists[g.ID] {
			exists[g.ID] = true
			fresh = append(fresh, g)
		}
	}
	return fresh, nil
}

// Settle implements group.Outbox.
func (s *Store) Settle(ctx context.Context, positions []group.Position) error {
	err := s.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		for _, p := range positions {
			id, version := int64(p.Group), int64(p.Version)
			if p.Offset != group.NoOffset {
				if _, err := tx.Exec(ctx, `UPDATE chat_change SET log_offset = ?
WHERE group_id = ? AND version = ? AND (log_offset IS NULL OR log_offset > ?)`, p.Offset, id, version, p.Offset); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(ctx, "DELETE FROM chat_outbox WHERE group_id = ? AND version = ?", id, version); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("groupsql: settle: %w", err)
	}
	return nil
}
