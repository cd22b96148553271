package groupsql

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"throng/system/internal/group"
	"throng/system/internal/sqlstore"
	"throng/system/wire"
)

// querier is a transaction, or the database outside of one.
type querier interface {
	Query(ctx context.Context, query sqlstore.Text, args ...any) (*sqlstore.Rows, error)
}

// Update implements group.Store. Of two calls at the same time that create the
// same group on MySQL one fails, and can be repeated.
func (s *Store) Update(ctx context.Context, id uint64, by group.Request, decide func(*group.State) (*group.Edit, error)) error {
	var decided error
	err := s.db.Tx(ctx, func(tx *sqlstore.Tx) error {
		decided = nil
		state, err := read(ctx, tx, id, s.lock)
		if err != nil {
			return err
		}
		if state != nil && by.ID != 0 {
			versions, err := numbers(tx.Query(ctx, `SELECT version FROM chat_change
WHERE group_id = ? AND by_user = ? AND by_device = ? AND request_id = ?`, int64(id), int64(by.User), int64(by.Device), int64(by.ID)))
			if err != nil {
				return err
			}
			state.Done = len(versions) > 0
		}
		var edit *group.Edit
		if edit, decided = decide(state); decided != nil || edit == nil {
			return decided
		}
		if state == nil {
			if err := found(ctx, tx, id, by.User); err != nil {
				return err
			}
		}
		return write(ctx, tx, id, by, edit)
	})
	switch {
	case err == nil:
		return nil
	case decided != nil:
		return decided // the caller's own
	}
	return fmt.Errorf("groupsql: update: %w", err)
}

// Current implements group.Store.
func (s *Store) Current(ctx context.Context, id uint64) (*group.State, error) {
	state, err := read(ctx, s.db, id, "")
	switch {
	case err != nil:
		return nil, fmt.Errorf("groupsql: current: %w", err)
	case state == nil:
		return nil, group.ErrNoGroup
	}
	return state, nil
}

// read returns a group in its current version, nil if there is none. Outside a
// transaction its administrators may be those of a newer one.
func read(ctx context.Context, q querier, id uint64, lock sqlstore.Text) (*group.State, error) {
	rows, err := q.Query(ctx, "SELECT version, name, description, icon, inactive FROM chat_group WHERE group_id = ?"+lock, int64(id))
	if err != nil {
		return nil, err
	}
	var version, inactive int64
	st := &group.State{}
	there := rows.Next()
	if there {
		err = rows.Scan(&version, &st.Name, &st.Description, &st.Icon, &inactive)
	}
	if err = errors.Join(err, rows.Close()); err != nil || !there {
		return nil, err
	}
	st.Version, st.Inactive = uint64(version), inactive != 0
	rows, err = q.Query(ctx, `SELECT user_id, admin, joined_version FROM chat_member
WHERE group_id = ? AND joined_version <= ? AND (left_version = 0 OR left_version > ?)`, int64(id), version, version)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var user, admin, since int64
		if err := rows.Scan(&user, &admin, &since); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		st.Members = append(st.Members, group.Member{User: uint64(user), Admin: admin != 0, Since: uint64(since)})
	}
	slices.SortFunc(st.Members, func(a, b group.Member) int { return cmp.Compare(a.User, b.User) })
	return st, rows.Close()
}

// found makes version FirstVersion of a group with its founder in it.
func found(ctx context.Context, tx *sqlstore.Tx, id, founder uint64) error {
	if _, err := tx.Exec(ctx, "INSERT INTO chat_group (group_id, name, owner_id, version) VALUES (?, '', ?, 1)", int64(id), int64(founder)); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "INSERT INTO chat_member (group_id, user_id, joined_version, left_version, admin) VALUES (?, ?, 1, 0, 1)", int64(id), int64(founder))
	return err
}

// write stores an edit.
func write(ctx context.Context, tx *sqlstore.Tx, groupID uint64, by group.Request, e *group.Edit) error {
	c := e.Change
	id, version := int64(groupID), int64(c.Version)
	of := func(set sqlstore.Text, users []uint64, first ...any) error {
		return chunks(len(users), func(from, to int) error {
			args := append(slices.Clone(first), id)
			for _, u := range users[from:to] {
				args = append(args, int64(u))
			}
			_, err := tx.Exec(ctx, "UPDATE chat_member SET "+set+" WHERE group_id = ? AND left_version = 0 AND user_id IN ("+
				sqlstore.List(to-from, "?")+")", args...)
			return err
		})
	}
	if err := of("left_version = ?", c.Remove, version); err != nil {
		return err
	}
	err := chunks(len(c.Add), func(from, to int) error {
		args := make([]any, 0, 3*(to-from))
		for _, u := range c.Add[from:to] {
			args = append(args, id, int64(u), version)
		}
		_, err := tx.Exec(ctx, "INSERT INTO chat_member (group_id, user_id, joined_version, left_version) VALUES "+
			sqlstore.List(to-from, "(?,?,?,0)"), args...)
		return err
	})
	if err != nil {
		return err
	}
	if err := errors.Join(of("admin = 1", c.Promote), of("admin = 0", c.Demote)); err != nil {
		return err
	}
	if err := describe(ctx, tx, id, c); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO chat_change (group_id, version, by_user, by_device, request_id) VALUES (?, ?, ?, ?, ?)",
		id, version, int64(by.User), int64(by.Device), int64(by.ID)); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO chat_outbox (group_id, version, record) VALUES (?, ?, ?)", id, version, e.Record)
	return err
}

// describe stores what a change says about the group itself.
func describe(ctx context.Context, tx *sqlstore.Tx, id int64, c *wire.GroupChange) error {
	set, args := sqlstore.Text("version = ?"), []any{int64(c.Version)}
	for _, f := range []struct {
		column sqlstore.Text
		to     *string
	}{{"name", c.Name}, {"description", c.Description}, {"icon", c.Icon}} {
		if f.to != nil {
			set += ", " + f.column + " = ?"
			args = append(args, *f.to)
		}
	}
	if c.Deactivated {
		set += ", inactive = 1"
	}
	_, err := tx.Exec(ctx, "UPDATE chat_group SET "+set+" WHERE group_id = ?", append(args, id)...)
	return err
}
