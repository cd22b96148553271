package groupsql

import (
	"context"
	"errors"
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
		var pairs []any
		for _, g := range fresh {
			for _, u := range g.Members {
				pairs = append(pairs, int64(g.ID), int64(u))
			}
		}
		return chunks(len(pairs)/2, func(from, to int) error {
			_, err := tx.Exec(ctx, "INSERT INTO chat_member (group_id, user_id, joined_version, left_version) VALUES "+
				sqlstore.List(to-from, "(?,?,1,0)"), pairs[2*from:2*to]...)
			return err
		})
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

// Change implements group.Store.
func (s *Store) Change(ctx context.Context, id uint64, add, remove []uint64, limit int,
	encode func(version uint64, add, remove []uint64) ([]byte, error),
) (version uint64, changed bool, err error) {
	err = s.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		version, changed = 0, false
		versions, err := numbers(tx.Query(ctx, "SELECT version FROM chat_group WHERE group_id = ?"+s.lock, int64(id)))
		if err != nil {
			return err
		}
		if len(versions) == 0 {
			return group.ErrNoGroup
		}
		version = versions[0]
		current, err := numbers(tx.Query(ctx, "SELECT user_id FROM chat_member WHERE group_id = ? AND left_version = 0", int64(id)))
		if err != nil {
			return err
		}
		joining, leaving := effective(current, add, remove)
		if len(joining)+len(leaving) == 0 {
			return nil
		}
		if len(current)+len(joining)-len(leaving) > limit {
			return group.ErrTooMany
		}
		version, changed = version+1, true
		record, err := encode(version, joining, leaving)
		if err != nil {
			return err
		}
		return write(ctx, tx, group.Pending{Group: id, Version: version, Record: record}, joining, leaving)
	})
	if errors.Is(err, group.ErrNoGroup) || errors.Is(err, group.ErrTooMany) {
		return 0, false, err
	}
	if err != nil {
		return 0, false, fmt.Errorf("groupsql: change: %w", err)
	}
	return version, changed, nil
}

// effective leaves out who is a member already, or is none.
func effective(current, add, remove []uint64) (joining, leaving []uint64) {
	member := make(map[uint64]bool, len(current))
	for _, u := range current {
		member[u] = true
	}
	for _, u := range add {
		if !member[u] {
			joining = append(joining, u)
		}
	}
	for _, u := range remove {
		if member[u] {
			leaving = append(leaving, u)
		}
	}
	return joining, leaving
}

// write stores a change.
func write(ctx context.Context, tx *sqlstore.Tx, p group.Pending, joining, leaving []uint64) error {
	id, version := int64(p.Group), int64(p.Version)
	err := chunks(len(leaving), func(from, to int) error {
		args := []any{version, id}
		for _, u := range leaving[from:to] {
			args = append(args, int64(u))
		}
		_, err := tx.Exec(ctx, "UPDATE chat_member SET left_version = ? WHERE group_id = ? AND left_version = 0 AND user_id IN ("+
			sqlstore.List(to-from, "?")+")", args...)
		return err
	})
	if err != nil {
		return err
	}
	err = chunks(len(joining), func(from, to int) error {
		args := make([]any, 0, 3*(to-from))
		for _, u := range joining[from:to] {
			args = append(args, id, int64(u), version)
		}
		_, err := tx.Exec(ctx, "INSERT INTO chat_member (group_id, user_id, joined_version, left_version) VALUES "+
			sqlstore.List(to-from, "(?,?,?,0)"), args...)
		return err
	})
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE chat_group SET version = ? WHERE group_id = ?", version, id); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO chat_change (group_id, version) VALUES (?, ?)", id, version); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO chat_outbox (group_id, version, record) VALUES (?, ?, ?)", id, version, p.Record)
	return err
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
