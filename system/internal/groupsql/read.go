package groupsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"

	"throng/system/internal/group"
)

// Versions implements group.Store.
func (s *Store) Versions(ctx context.Context, id uint64, offset int64) (group.Versions, error) {
	rows, err := s.db.Query(ctx, `SELECT g.version, g.inactive,
  (SELECT c.log_offset FROM chat_change c WHERE c.group_id = g.group_id AND c.version = g.version),
  (SELECT MAX(c.version) FROM chat_change c WHERE c.group_id = g.group_id AND c.log_offset <= ?)
FROM chat_group g WHERE g.group_id = ?`, offset, int64(id))
	if err != nil {
		return group.Versions{}, fmt.Errorf("groupsql: versions: %w", err)
	}
	var current, inactive int64
	var position, at sql.NullInt64
	found := rows.Next()
	if found {
		err = rows.Scan(&current, &inactive, &position, &at)
	}
	if err = errors.Join(err, rows.Close()); err != nil {
		return group.Versions{}, fmt.Errorf("groupsql: versions: %w", err)
	}
	if !found {
		return group.Versions{}, group.ErrNoGroup
	}
	v := group.Versions{Current: uint64(current), CurrentOffset: position.Int64, Known: position.Valid,
		At: group.FirstVersion, Inactive: inactive != 0}
	if v.Current == group.FirstVersion {
		v.CurrentOffset, v.Known = -1, true
	}
	if at.Valid {
		v.At = uint64(at.Int64)
	}
	return v, nil
}

// Members implements group.Store.
func (s *Store) Members(ctx context.Context, id, version uint64) ([]uint64, error) {
	members, err := numbers(s.db.Query(ctx, `SELECT user_id FROM chat_member
WHERE group_id = ? AND joined_version <= ? AND (left_version = 0 OR left_version > ?)`,
		int64(id), int64(version), int64(version)))
	if err != nil {
		return nil, fmt.Errorf("groupsql: members: %w", err)
	}
	slices.Sort(members) // the database sorts signed numbers
	return members, nil
}

// Pending implements group.Outbox.
func (s *Store) Pending(ctx context.Context, after *group.Pending, limit int) ([]group.Pending, error) {
	fromGroup, fromVersion := int64(math.MinInt64), int64(0)
	if after != nil {
		fromGroup, fromVersion = int64(after.Group), int64(after.Version)
	}
	rows, err := s.db.Query(ctx, `SELECT group_id, version, record FROM chat_outbox
WHERE group_id > ? OR (group_id = ? AND version > ?) ORDER BY group_id, version LIMIT ?`,
		fromGroup, fromGroup, fromVersion, limit)
	if err != nil {
		return nil, fmt.Errorf("groupsql: outbox: %w", err)
	}
	var out []group.Pending
	for rows.Next() {
		var id, version int64
		var p group.Pending
		if err := rows.Scan(&id, &version, &p.Record); err != nil {
			return nil, errors.Join(fmt.Errorf("groupsql: outbox: %w", err), rows.Close())
		}
		p.Group, p.Version = uint64(id), uint64(version)
		out = append(out, p)
	}
	if err := rows.Close(); err != nil {
		return nil, fmt.Errorf("groupsql: outbox: %w", err)
	}
	return out, nil
}
