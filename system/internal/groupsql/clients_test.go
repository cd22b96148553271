package groupsql

import (
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"throng/system/internal/group"
	"throng/system/internal/sqlstore"
	"throng/system/wire"
)

// update carries out a change of a client; the state before it must be want.
func update(t *testing.T, s *Store, id uint64, by group.Request, want *group.State, c *wire.GroupChange) {
	t.Helper()
	err := s.Update(t.Context(), id, by, func(st *group.State) (*group.Edit, error) {
		if !reflect.DeepEqual(st, want) {
			t.Errorf("before version %d: %+v, want %+v", c.GetVersion(), st, want)
		}
		if c == nil {
			return nil, nil
		}
		return &group.Edit{Change: c, Record: []byte{byte(c.Version)}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// testClients: a group's life from its creation by a client, as the store
// keeps it.
func testHead(t *testing.T, s *Store) {
	if _, _, err := s.Head(t.Context(), newID()); !errors.Is(err, group.ErrNoGroup) {
		t.Fatalf("no group: %v", err)
	}
	id := newID()
	create(t, s, id, 3, 1, math.MaxUint64)
	want := func(v group.Versions, members ...uint64) {
		t.Helper()
		got, list, err := s.Head(t.Context(), id)
		if err != nil || got != v || !slices.Equal(list, members) {
			t.Fatalf("%+v with %v, %v; want %+v with %v", got, list, err, v, members)
		}
	}
	want(group.Versions{Current: 1, CurrentOffset: -1, Known: true}, 1, 3, math.MaxUint64)
	change(t, s, id, nil, []uint64{1})
	change(t, s, id, []uint64{1, 2}, []uint64{3})
	want(group.Versions{Current: 3}, 1, 2, math.MaxUint64)
	if err := s.Settle(t.Context(), []group.Position{{Group: id, Version: 3, Offset: 40}}); err != nil {
		t.Fatal(err)
	}
	want(group.Versions{Current: 3, CurrentOffset: 40, Known: true}, 1, 2, math.MaxUint64)
	var many []uint64
	for u := uint64(1000); len(many) < group.SmallGroup-3; u++ {
		many = append(many, u)
	}
	change(t, s, id, many, nil)
	if v, list, err := s.Head(t.Context(), id); err != nil || v.Current != 4 || len(list) != group.SmallGroup {
		t.Fatalf("%+v with %d members, %v", v, len(list), err)
	}
	change(t, s, id, []uint64{5000}, nil)
	if v, list, err := s.Head(t.Context(), id); err != nil || v.Current != 5 || list != nil {
		t.Fatalf("%+v with %d members, %v; want none of a large group", v, len(list), err)
	}
}

func testClients(t *testing.T, s *Store) {
	const big = uint64(1<<63 | 7)
	id := newID()
	text := func(s string) *string { return &s }
	creation := group.Request{User: big, Device: 1, ID: 1 << 63}
	update(t, s, id, creation, nil, &wire.GroupChange{Version: 2, By: big, Add: []uint64{5, 3}, Name: text("Zoë & co"), Icon: text("i")})
	at2 := &group.State{Version: 2, Name: "Zoë & co", Icon: "i",
		Members: []group.Member{{User: 3, Since: 2}, {User: 5, Since: 2}, {User: big, Admin: true, Since: 1}}}
	wantMembers(t, s, id, 1, big)
	wantMembers(t, s, id, 2, 3, 5, big)

	done := *at2
	done.Done = true
	update(t, s, id, creation, &done, nil)
	update(t, s, id, group.Request{User: big, Device: 2, ID: 1 << 63}, at2, nil)
	update(t, s, id, group.Request{User: 3, Device: 1, ID: 1 << 63}, at2, nil)

	long := strings.Repeat("d", 2048)
	update(t, s, id, group.Request{User: 5, ID: 9}, at2, &wire.GroupChange{Version: 3, Add: []uint64{9}, Promote: []uint64{5, 9}, Demote: []uint64{big}, Description: &long})
	at3 := &group.State{Version: 3, Name: at2.Name, Icon: "i", Description: long,
		Members: []group.Member{{User: 3, Since: 2}, {User: 5, Admin: true, Since: 2}, {User: 9, Admin: true, Since: 3}, {User: big, Since: 1}}}
	// An administrator who comes back is none.
	update(t, s, id, group.Request{}, at3, &wire.GroupChange{Version: 4, Remove: []uint64{9}})
	update(t, s, id, group.Request{}, &group.State{Version: 4, Name: at2.Name, Icon: "i", Description: long,
		Members: []group.Member{at3.Members[0], at3.Members[1], at3.Members[3]}}, &wire.GroupChange{Version: 5, Add: []uint64{9}, Deactivated: true, Name: text("x")})
	got, err := s.Current(t.Context(), id)
	want := &group.State{Version: 5, Name: "x", Icon: "i", Description: long, Inactive: true,
		Members: []group.Member{at3.Members[0], at3.Members[1], {User: 9, Since: 5}, at3.Members[3]}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
	if v, err := s.Versions(t.Context(), id, 0); err != nil || !v.Inactive {
		t.Fatalf("%+v, %v: want inactive", v, err)
	}
	if p := pendingOf(t, s, id); len(p) != 4 || p[0].Version != 2 {
		t.Fatalf("outbox %+v", p)
	}
	if _, err := s.Current(t.Context(), newID()); !errors.Is(err, group.ErrNoGroup) {
		t.Fatalf("no group: %v", err)
	}
	// The owner of a provisioned group is its administrator.
	other := newID()
	create(t, s, other, 4, 1)
	update(t, s, other, group.Request{}, &group.State{Version: 1, Members: []group.Member{{User: 1, Since: 1}, {User: 4, Admin: true, Since: 1}}}, nil)
}

// testFounders: clients who create different groups at the same time do not
// stand in each other's way, also where each has seen that its group is not
// there before one of them has made it, which SQLite does not allow.
func testFounders(t *testing.T, s *Store) {
	const n = 4
	base := newID() &^ 7 // neighbours: there is one gap between what is there
	var all, seen sync.WaitGroup
	seen.Add(n)
	for i := range uint64(n) {
		meet := sync.OnceFunc(func() {
			seen.Done()
			if s.db.Driver() == sqlstore.MySQL {
				seen.Wait()
			}
		})
		all.Go(func() {
			err := s.Update(t.Context(), base+i, group.Request{User: 1, ID: newID()}, func(*group.State) (*group.Edit, error) {
				meet()
				return &group.Edit{Change: &wire.GroupChange{Version: 2, Add: []uint64{2, 3}}, Record: []byte{2}}, nil
			})
			meet() // whatever happened, nobody waits for it
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
