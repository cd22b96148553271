package groupsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"

	"throng/system/internal/group"
	"throng/system/internal/sqlstore"
)

// Versions implements group.Store. Only the primary knows for certain what is
// in force at an offset: the log does not say how new the answer must be.
func (s *Store) Versions(ctx context.Context, id uint64, offset int64) (v group.Versions, err error) {
	err = s.near.exact(ctx, func(ctx context.Context, db *sqlstore.DB) error {
		v, err = versions(ctx, db, id, offset)
		return err
	})
	return v, err
}

// Head implements group.Store.
func (s *Store) Head(ctx context.Context, id uint64) (v group.Versions, members []uint64, err error) {
	err = s.near.exact(ctx, func(ctx context.Context, db *sqlstore.DB) error {
		v, members, err = head(ctx, db, id)
		return err
	})
	return v, members, err
}

// head is one statement, which sees one state of the database.
func head(ctx context.Context, db *sqlstore.DB, id uint64) (group.Versions, []uint64, error) {
	rows, err := db.Query(ctx, `SELECT g.version, g.inactive, c.log_offset, m.user_id FROM chat_group g
LEFT JOIN chat_change c ON c.group_id = g.group_id AND c.version = g.version
LEFT JOIN chat_member m ON m.group_id = g.group_id AND m.left_version = 0 WHERE g.group_id = ? LIMIT ?`, int64(id), group.SmallGroup+1)
	if err != nil {
		return group.Versions{}, nil, fmt.Errorf("groupsql: head: %w", err)
	}
	var current, inactive int64
	var position, user sql.NullInt64
	members, found := []uint64{}, false
	for rows.Next() {
		if err := rows.Scan(&current, &inactive, &position, &user); err != nil {
			return group.Versions{}, nil, errors.Join(fmt.Errorf("groupsql: head: %w", err), rows.Close())
		}
		if found = true; user.Valid {
			members = append(members, uint64(user.Int64))
		}
	}
	switch err := rows.Close(); {
	case err != nil:
		return group.Versions{}, nil, fmt.Errorf("groupsql: head: %w", err)
	case !found:
		return group.Versions{}, nil, group.ErrNoGroup
	case len(members) > group.SmallGroup:
		members = nil
	}
	slices.Sort(members)
	return versionsOf(current, position, inactive), members, nil
}

// versionsOf returns what a row of a group says; At is left out.
func versionsOf(current int64, position sql.NullInt64, inactive int64) group.Versions {
	v := group.Versions{Current: uint64(current), CurrentOffset: position.Int64, Known: position.Valid, Inactive: inactive != 0}
	if v.Current == group.FirstVersion {
		v.CurrentOffset, v.Known = -1, true
	}
	return v
}

// Recent implements group.Store.
func (s *Store) Recent(ctx context.Context, id, least uint64) (v group.Versions, err error) {
	err = s.near.read(ctx, func(ctx context.Context, db *sqlstore.DB) error {
		v, err = versions(ctx, db, id, math.MaxInt64)
		if db != s.db && (errors.Is(err, group.ErrNoGroup) || err == nil && v.Current < least) {
			return errBehind
		}
		return err
	})
	return v, err
}

func versions(ctx context.Context, db *sqlstore.DB, id uint64, offset int64) (group.Versions, error) {
	rows, err := db.Query(ctx, `SELECT g.version, g.inactive,
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
	v := versionsOf(current, position, inactive)
	if v.At = group.FirstVersion; at.Valid {
		v.At = uint64(at.Int64)
	}
	return v, nil
}

// Members implements group.Store. A version never changes, so who has it has
// its members.
func (s *Store) Members(ctx context.Context, id, version uint64) (members []uint64, err error) {
	err = s.near.read(ctx, func(ctx context.Context, db *sqlstore.DB) error {
		if members, err = membersOf(ctx, db, id, version); db == s.db && errors.Is(err, errBehind) {
			return nil // nobody has it: it has no members
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("groupsql: members: %w", err)
	}
	slices.Sort(members) // the database sorts signed numbers
	return members, nil
}

// membersOf returns errBehind where the database does not have the version. One
// statement sees one state of the database.
func membersOf(ctx context.Context, db *sqlstore.DB, id, version uint64) ([]uint64, error) {
	rows, err := db.Query(ctx, `SELECT g.version, m.user_id FROM chat_group g LEFT JOIN chat_member m
ON m.group_id = g.group_id AND m.joined_version <= ? AND (m.left_version = 0 OR m.left_version > ?) WHERE g.group_id = ?`,
		int64(version), int64(version), int64(id))
	if err != nil {
		return nil, err
	}
	var current int64
	var members []uint64
	for rows.Next() {
		var user sql.NullInt64
		if err := rows.Scan(&current, &user); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		if user.Valid {
			members = append(members, uint64(user.Int64))
		}
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	if uint64(current) < version {
		return nil, errBehind
	}
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
