package group

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"throng/system/wire"
)

// refusal is why a client's request is not carried out.
type refusal struct {
	code   wire.Code
	detail string
	retry  time.Duration // when it may be carried out; 0: nobody knows
}

func (r *refusal) Error() string { return fmt.Sprintf("group: refused: %s: %s", r.code, r.detail) }

func refuse(code wire.Code, detail string) error { return &refusal{code: code, detail: detail} }

func (st *State) member(user uint64) *Member {
	i, found := slices.BinarySearchFunc(st.Members, user, func(m Member, user uint64) int { return cmp.Compare(m.User, user) })
	if !found {
		return nil
	}
	return &st.Members[i]
}

// those returns the users for which ok says true of what they are in the
// group, nil: no members.
func (st *State) those(users []uint64, ok func(*Member) bool) []uint64 {
	var out []uint64
	for _, u := range users {
		if ok(st.member(u)) {
			out = append(out, u)
		}
	}
	return out
}

func isMember(m *Member) bool { return m != nil }
func isNone(m *Member) bool   { return m == nil }
func isAdmin(m *Member) bool  { return m != nil && m.Admin }
func isPlain(m *Member) bool  { return m != nil && !m.Admin }

// decide says what a client's request changes in a group, which is nil if
// there is none; nil: nothing. What is so already is left out. The error is a
// *refusal.
func decide(before *State, user uint64, req *wire.GroupRequest) (*wire.GroupChange, error) {
	create := req.Action == wire.GroupRequest_ACTION_CREATE
	switch {
	case before == nil && create:
		return &wire.GroupChange{By: user, Add: req.Users, Name: req.Name, Description: req.Description, Icon: req.Icon}, nil
	case before == nil:
		return nil, refuse(wire.Code_CODE_NO_SUCH_GROUP, "")
	case before.Done:
		return nil, nil
	case create: // two ids of 63 bits are the same
		return nil, refuse(wire.Code_CODE_INVALID, "choose another request_id")
	}
	me := before.member(user)
	if me == nil {
		return nil, refuse(wire.Code_CODE_NOT_MEMBER, "")
	}
	if req.Action == wire.GroupRequest_ACTION_LEAVE {
		return &wire.GroupChange{By: user, Remove: []uint64{user}}, nil
	}
	if before.Inactive {
		return nil, refuse(wire.Code_CODE_GROUP_INACTIVE, "")
	}
	if req.Action == wire.GroupRequest_ACTION_UPDATE {
		return describe(before, user, req), nil
	}
	if !me.Admin {
		return nil, refuse(wire.Code_CODE_NOT_ADMIN, "")
	}
	c := &wire.GroupChange{By: user}
	switch req.Action {
	case wire.GroupRequest_ACTION_ADD:
		c.Add = before.those(req.Users, isNone)
		if len(before.Members)+len(c.Add) > MaxMembers {
			return nil, refuse(wire.Code_CODE_GROUP_FULL, "")
		}
	case wire.GroupRequest_ACTION_REMOVE:
		c.Remove = before.those(req.Users, isMember)
	case wire.GroupRequest_ACTION_PROMOTE:
		c.Promote = before.those(req.Users, isPlain)
	case wire.GroupRequest_ACTION_DEMOTE:
		c.Demote = before.those(req.Users, isAdmin)
		if len(c.Demote) == len(before.admins()) {
			return nil, refuse(wire.Code_CODE_INVALID, "a group keeps an administrator")
		}
	case wire.GroupRequest_ACTION_DEACTIVATE:
		c.Deactivated = true
		return c, nil
	}
	if len(c.Add)+len(c.Remove)+len(c.Promote)+len(c.Demote) == 0 {
		return nil, nil
	}
	return c, nil
}

// describe says what an ACTION_UPDATE changes.
func describe(before *State, user uint64, req *wire.GroupRequest) *wire.GroupChange {
	differs := func(to *string, from string) *string {
		if to == nil || *to == from {
			return nil
		}
		return to
	}
	c := &wire.GroupChange{By: user, Name: differs(req.Name, before.Name),
		Description: differs(req.Description, before.Description), Icon: differs(req.Icon, before.Icon)}
	if c.Name == nil && c.Description == nil && c.Icon == nil {
		return nil
	}
	return c
}

// decideMembers says what an administrator of the system changes.
func decideMembers(before *State, add, remove []uint64) (*wire.GroupChange, error) {
	if before == nil {
		return nil, ErrNoGroup
	}
	c := &wire.GroupChange{Add: before.those(add, isNone), Remove: before.those(remove, isMember)}
	switch {
	case len(c.Add)+len(c.Remove) == 0:
		return nil, nil
	case len(before.Members)+len(c.Add)-len(c.Remove) > MaxMembers:
		return nil, ErrTooMany
	}
	return c, nil
}

func (st *State) admins() []Member {
	return slices.DeleteFunc(slices.Clone(st.Members), func(m Member) bool { return !m.Admin })
}

// complete fills in a change of before (nil: none) what follows from it: its
// version, the size, and the administrator who succeeds the last one: the
// oldest member. It returns the state after it.
func complete(before *State, c *wire.GroupChange) *State {
	after := &State{Version: FirstVersion, Members: []Member{{User: c.By, Admin: true, Since: FirstVersion}}}
	if before != nil {
		*after = *before
	}
	after.Version++
	after.Members = slices.DeleteFunc(slices.Clone(after.Members), func(m Member) bool { return slices.Contains(c.Remove, m.User) })
	for _, u := range c.Add {
		after.Members = append(after.Members, Member{User: u, Since: after.Version})
	}
	slices.SortFunc(after.Members, func(a, b Member) int { return cmp.Compare(a.User, b.User) })
	for _, u := range c.Promote {
		after.member(u).Admin = true
	}
	for _, u := range c.Demote {
		after.member(u).Admin = false
	}
	if len(after.Members) > 0 && len(after.admins()) == 0 {
		oldest := slices.MinFunc(after.Members, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.User, b.User)) })
		c.Promote = append(c.Promote, oldest.User)
		after.member(oldest.User).Admin = true
	}
	for _, f := range []struct{ to, from *string }{{&after.Name, c.Name}, {&after.Description, c.Description}, {&after.Icon, c.Icon}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	after.Inactive = after.Inactive || c.Deactivated
	c.Version, c.Size = after.Version, uint32(len(after.Members))
	return after
}
