package groupsql

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"throng/system/internal/group"
	"throng/system/internal/sqlstore"
	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// factory opens a store; opening the same name again opens the same data.
type factory func(t testing.TB, name string) *Store

// TestConformance runs the suite on SQLite, and on MySQL where
// THRONG_MYSQL_DSN names a schema that may be written to.
func TestConformance(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { suite(t, sqlite(t.TempDir())) })
	t.Run("mysql", func(t *testing.T) {
		dsn := os.Getenv("THRONG_MYSQL_DSN")
		if dsn == "" {
			t.Skip("THRONG_MYSQL_DSN is not set")
		}
		suite(t, func(t testing.TB, _ string) *Store { return open(t, sqlstore.MySQL, dsn) })
		t.Run("replica", func(t *testing.T) {
			suite(t, func(t testing.TB, _ string) *Store { return upToDate(t, sqlstore.MySQL, dsn) })
		})
	})
	dir := t.TempDir()
	t.Run("replica", func(t *testing.T) {
		suite(t, func(t testing.TB, name string) *Store {
			return upToDate(t, sqlstore.SQLite, filepath.Join(dir, name+".db"))
		})
	})
	// It has nothing but a heartbeat that is not old.
	t.Run("replica behind", func(t *testing.T) {
		copied := open(t, sqlstore.SQLite, filepath.Join(dir, "copy"))
		if _, err := copied.db.Exec(t.Context(), "UPDATE chat_heartbeat SET at_us = ?", math.MaxInt64/1000); err != nil {
			t.Fatal(err)
		}
		suite(t, func(t testing.TB, name string) *Store {
			return openWith(t, Config{Driver: sqlstore.SQLite, DSN: filepath.Join(dir, "behind-"+name+".db"),
				Replicas: []Replica{{DSN: filepath.Join(dir, "copy")}}})
		})
	})
}

func sqlite(dir string) factory {
	return func(t testing.TB, name string) *Store {
		return open(t, sqlstore.SQLite, filepath.Join(dir, name+".db"))
	}
}

func open(t testing.TB, driver, dsn string) *Store {
	t.Helper()
	return openWith(t, Config{Driver: driver, DSN: dsn})
}

// upToDate returns a store that is its own replica.
func upToDate(t testing.TB, driver, dsn string) *Store {
	t.Helper()
	return openWith(t, Config{Driver: driver, DSN: dsn, Replicas: []Replica{{DSN: dsn}}})
}

func openWith(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) {
			t.Error(err)
		}
	})
	return s
}

// newID returns a group that no other test uses, with the top bit set half of
// the time.
func newID() uint64 { return rand.Uint64() | 1 }

// addRemove is a decision as the service makes it: members to add and others
// to remove are left out.
func addRemove(add, remove []uint64) func(*group.State) (*group.Edit, error) {
	return func(st *group.State) (*group.Edit, error) {
		if st == nil {
			return nil, group.ErrNoGroup
		}
		in := func(u uint64) bool {
			return slices.ContainsFunc(st.Members, func(m group.Member) bool { return m.User == u })
		}
		c := &wire.GroupChange{Version: st.Version + 1,
			Add:    slices.DeleteFunc(slices.Clone(add), in),
			Remove: slices.DeleteFunc(slices.Clone(remove), func(u uint64) bool { return !in(u) })}
		if len(c.Add)+len(c.Remove) == 0 {
			return nil, nil
		}
		return &group.Edit{Change: c, Record: recordOf(c.Version, c.Add, c.Remove)}, nil
	}
}

// recordOf stands for what the service puts into the outbox.
func recordOf(version uint64, add, remove []uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, version)
	for _, u := range append(slices.Clone(add), remove...) {
		b = binary.BigEndian.AppendUint64(b, u)
	}
	return b
}

// tryChange adds and removes, and reports whether that made a version.
func tryChange(s *Store, id uint64, add, remove []uint64) (changed bool, err error) {
	decide := addRemove(add, remove)
	err = s.Update(context.Background(), id, group.Request{}, func(st *group.State) (*group.Edit, error) {
		e, err := decide(st)
		changed = e != nil
		return e, err
	})
	return changed && err == nil, err
}

func suite(t *testing.T, open factory) {
	t.Run("CreateIsRepeatable", func(t *testing.T) {
		s := open(t, "create")
		const big = uint64(math.MaxUint64)
		a, b := newID(), newID()
		if n, err := s.Create(t.Context(), []group.NewGroup{{ID: a, Name: "a", Members: []uint64{big, 5, 1}}}); err != nil || n != 1 {
			t.Fatalf("created %d, %v", n, err)
		}
		n, err := s.Create(t.Context(), []group.NewGroup{{ID: a, Members: []uint64{9}}, {ID: b, Members: []uint64{7}}, {ID: b, Members: []uint64{8}}})
		if err != nil || n != 1 {
			t.Fatalf("created %d, %v; want the one that did not exist", n, err)
		}
		wantMembers(t, s, a, 1, 1, 5, big)
		wantMembers(t, s, b, 1, 7)
		v, err := s.Versions(t.Context(), a, -1)
		if want := (group.Versions{Current: 1, CurrentOffset: -1, Known: true, At: 1}); err != nil || v != want {
			t.Fatalf("versions %+v, %v; want %+v", v, err, want)
		}
		if _, err := s.Versions(t.Context(), newID(), 0); !errors.Is(err, group.ErrNoGroup) {
			t.Fatalf("versions of no group: %v", err)
		}
	})
	t.Run("ManyAtOnce", func(t *testing.T) {
		s := open(t, "many")
		var groups []group.NewGroup
		for i := range 700 {
			g := group.NewGroup{ID: newID(), Name: fmt.Sprint(i)}
			for u := range 1 + i%7 {
				g.Members = append(g.Members, uint64(u+1))
			}
			groups = append(groups, g)
		}
		if n, err := s.Create(t.Context(), groups); err != nil || n != len(groups) {
			t.Fatalf("created %d, %v", n, err)
		}
		for _, g := range groups {
			wantMembers(t, s, g.ID, 1, g.Members...)
		}
	})
	t.Run("ChangeMakesVersions", func(t *testing.T) { testChange(t, open(t, "change")) })
	t.Run("Head", func(t *testing.T) { testHead(t, open(t, "head")) })
	t.Run("ClientsChange", func(t *testing.T) { testClients(t, open(t, "clients")) })
	t.Run("Outbox", func(t *testing.T) { testOutbox(t, open(t, "outbox")) })
	t.Run("ConcurrentChanges", func(t *testing.T) { testConcurrent(t, open(t, "concurrent")) })
	t.Run("FoundersAtOnce", func(t *testing.T) { testFounders(t, open(t, "founders")) })
	t.Run("LikeTheModel", func(t *testing.T) { testModel(t, open(t, "model")) })
	t.Run("Reopen", func(t *testing.T) {
		s, id := open(t, "reopen"), newID()
		create(t, s, id, 1, 2)
		change(t, s, id, []uint64{3}, nil)
		again := open(t, "reopen")
		wantMembers(t, again, id, 2, 1, 2, 3)
		if p := pendingOf(t, again, id); len(p) != 1 {
			t.Fatalf("the outbox has %d entries after a restart, want 1", len(p))
		}
	})
}

func testChange(t *testing.T, s *Store) {
	id := newID()
	create(t, s, id, 1, 2, 3)
	if v := change(t, s, id, []uint64{4, 2}, []uint64{1, 99}); v != 2 {
		t.Fatalf("version %d", v)
	}
	if v := change(t, s, id, []uint64{1}, nil); v != 3 { // comes back
		t.Fatalf("version %d", v)
	}
	wantMembers(t, s, id, 1, 1, 2, 3)
	wantMembers(t, s, id, 2, 2, 3, 4)
	wantMembers(t, s, id, 3, 1, 2, 3, 4)
	if changed, err := tryChange(s, id, []uint64{1}, []uint64{77}); err != nil || changed {
		t.Fatalf("nothing to change: changed %v, %v", changed, err)
	}
	if _, err := tryChange(s, newID(), []uint64{5}, nil); !errors.Is(err, group.ErrNoGroup) {
		t.Fatalf("change of no group: %v", err)
	}
	boom := errors.New("boom")
	if err := s.Update(t.Context(), id, group.Request{}, func(*group.State) (*group.Edit, error) { return nil, boom }); err != boom {
		t.Fatalf("failed decision: %v", err)
	}
	if v, err := s.Versions(t.Context(), id, 0); err != nil || v.Current != 3 {
		t.Fatalf("versions %+v, %v: a failed change left something", v, err)
	}
}

func testOutbox(t *testing.T, s *Store) {
	a, b := newID(), newID()
	create(t, s, a, 1)
	create(t, s, b, 1)
	for u := uint64(2); u < 6; u++ {
		change(t, s, a, []uint64{u}, nil)
	}
	change(t, s, b, []uint64{2}, nil)
	got := pendingOf(t, s, a)
	if len(got) != 4 || !slices.IsSortedFunc(got, func(x, y group.Pending) int { return int(x.Version) - int(y.Version) }) {
		t.Fatalf("outbox of a: %v", got)
	}
	if want := recordOf(2, []uint64{2}, nil); !slices.Equal(got[0].Record, want) {
		t.Fatalf("record %x, want %x", got[0].Record, want)
	}
	if len(pendingOf(t, s, b)) != 1 {
		t.Fatal("outbox of b")
	}
	at := func(offset int64) group.Versions {
		v, err := s.Versions(t.Context(), a, offset)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := at(math.MaxInt64); v.At != 1 || v.Known || v.Current != 5 {
		t.Fatalf("nothing is in the log: %+v", v)
	}
	settle := func(ps ...group.Position) {
		if err := s.Settle(t.Context(), ps); err != nil {
			t.Fatal(err)
		}
	}
	settle(group.Position{Group: a, Version: 2, Offset: 30}, group.Position{Group: a, Version: 3, Offset: 20})
	settle(group.Position{Group: a, Version: 2, Offset: 10}) // the fan-out saw an earlier one
	settle(group.Position{Group: a, Version: 2, Offset: 40}) // and a later one, which does not count
	settle(group.Position{Group: newID(), Version: 2, Offset: 1})
	for offset, want := range map[int64]uint64{-1: 1, 9: 1, 10: 2, 19: 2, 20: 3, 1000: 3} {
		if v := at(offset); v.At != want {
			t.Errorf("at %d version %d, want %d", offset, v.At, want)
		}
	}
	if n := len(pendingOf(t, s, a)); n != 2 {
		t.Fatalf("%d of a in the outbox, want 2", n)
	}
	settle(group.Position{Group: a, Version: 4, Offset: group.NoOffset})
	if n, v := len(pendingOf(t, s, a)), at(1000); n != 1 || v.At != 3 {
		t.Fatalf("in the log at an unknown place: %d in the outbox, %+v", n, v)
	}
	settle(group.Position{Group: a, Version: 5, Offset: 50})
	if v := at(49); !v.Known || v.CurrentOffset != 50 || v.At != 3 {
		t.Fatalf("%+v", v)
	}
}

// testConcurrent: changes at the same time make one sequence of versions.
func testConcurrent(t *testing.T, s *Store) {
	id := newID()
	create(t, s, id, 1)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 5 {
				for {
					// MySQL may pick one of two as the victim of a deadlock.
					if _, err := tryChange(s, id, []uint64{uint64(100 + 10*i + j)}, nil); err == nil {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	v, err := s.Versions(t.Context(), id, 0)
	if err != nil || v.Current != 21 {
		t.Fatalf("%+v, %v: want version 21", v, err)
	}
	for version := uint64(1); version <= 21; version++ {
		m, err := s.Members(t.Context(), id, version)
		if err != nil || len(m) != int(version) {
			t.Fatalf("version %d has %d members, %v", version, len(m), err)
		}
	}
}

// testModel compares members at every version with a plain model.
func testModel(t *testing.T, s *Store) {
	rapid.Check(t, func(rt *rapid.T) {
		users := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 12), 0, 6, rapid.ID[uint64])
		id := newID()
		state := map[uint64]bool{1: true}
		if _, err := s.Create(context.Background(), []group.NewGroup{{ID: id, Members: []uint64{1}}}); err != nil {
			rt.Fatal(err)
		}
		history := [][]uint64{nil, {1}}
		for range rapid.IntRange(1, 8).Draw(rt, "changes") {
			add := users.Draw(rt, "add")
			remove := slices.DeleteFunc(users.Draw(rt, "remove"), func(u uint64) bool { return slices.Contains(add, u) })
			changed, err := tryChange(s, id, add, remove)
			if err != nil {
				rt.Fatal(err)
			}
			before := len(state)
			moved := false
			for _, u := range add {
				moved = moved || !state[u]
				state[u] = true
			}
			for _, u := range remove {
				moved = moved || state[u]
				delete(state, u)
			}
			if moved != changed {
				rt.Fatalf("changed is %v with %d members before", changed, before)
			}
			if changed {
				var now []uint64
				for u := range state {
					now = append(now, u)
				}
				slices.Sort(now)
				history = append(history, now)
			}
		}
		for version := 1; version < len(history); version++ {
			got, err := s.Members(context.Background(), id, uint64(version))
			if err != nil || !slices.Equal(got, history[version]) {
				rt.Fatalf("version %d: %v, %v; want %v", version, got, err, history[version])
			}
		}
	})
}

func create(t *testing.T, s *Store, id uint64, members ...uint64) {
	t.Helper()
	if n, err := s.Create(t.Context(), []group.NewGroup{{ID: id, Members: members}}); err != nil || n != 1 {
		t.Fatalf("created %d, %v", n, err)
	}
}

func change(t *testing.T, s *Store, id uint64, add, remove []uint64) uint64 {
	t.Helper()
	if changed, err := tryChange(s, id, add, remove); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	v, err := s.Versions(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	return v.Current
}

func wantMembers(t *testing.T, s *Store, id, version uint64, want ...uint64) {
	t.Helper()
	got, err := s.Members(t.Context(), id, version)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("members of version %d: %v, %v; want %v", version, got, err, want)
	}
}

// pendingOf pages through the outbox and returns what is of one group.
func pendingOf(t *testing.T, s *Store, id uint64) []group.Pending {
	t.Helper()
	var out []group.Pending
	var after *group.Pending
	for {
		page, err := s.Pending(t.Context(), after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page {
			if p.Group == id {
				out = append(out, p)
			}
		}
		if len(page) < 2 {
			return out
		}
		after = &page[len(page)-1]
	}
}

func BenchmarkCreateMembers(b *testing.B) {
	s := sqlite(b.TempDir())(b, "bench")
	next := uint64(1)
	members := make([]uint64, 10)
	for i := range members {
		members[i] = uint64(1000 * (i + 1))
	}
	for b.Loop() {
		groups := make([]group.NewGroup, 1000)
		for i := range groups {
			groups[i] = group.NewGroup{ID: next, Name: "n", Members: members}
			next++
		}
		if _, err := s.Create(context.Background(), groups); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*10000/b.Elapsed().Seconds(), "members/s")
}
