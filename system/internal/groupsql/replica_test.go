package groupsql

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"throng/system/internal/group"
	"throng/system/internal/sqlstore"
)

// pair is a store and its replica, which follows when the test says so.
type pair struct {
	*Store
	copy *Store
}

func newPair(t *testing.T) pair {
	t.Helper()
	dir := t.TempDir()
	p := pair{copy: open(t, sqlstore.SQLite, filepath.Join(dir, "copy.db"))}
	p.Store = openWith(t, Config{Driver: sqlstore.SQLite, DSN: filepath.Join(dir, "primary.db"), Metrics: prometheus.NewRegistry(),
		Replicas: []Replica{{DSN: filepath.Join(dir, "copy.db")}}})
	p.near.stop() // the test says when to measure
	p.near.done.Wait()
	return p
}

// beats gives the copy a heartbeat and measures.
func (p pair) beats(t *testing.T, at time.Time) {
	t.Helper()
	if _, err := p.copy.db.Exec(t.Context(), "UPDATE chat_heartbeat SET at_us = ?", at.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	p.near.watch(t.Context())
}

// want compares the reads so far by who answered, and those that fell back.
func (p pair) want(t *testing.T, replica, primary, behind, failed float64) {
	t.Helper()
	reads, falls := p.near.reads, p.near.fallbacks
	got := []float64{testutil.ToFloat64(reads.WithLabelValues("0")), testutil.ToFloat64(reads.WithLabelValues("primary")),
		testutil.ToFloat64(falls.WithLabelValues("behind")), testutil.ToFloat64(falls.WithLabelValues("failed"))}
	if want := []float64{replica, primary, behind, failed}; !slices.Equal(got, want) {
		t.Fatalf("reads by replica, by primary, replica behind, replica failed: %v, want %v", got, want)
	}
}

func TestReplicaAnswersWhatItHas(t *testing.T) {
	p, id := newPair(t), newID()
	p.beats(t, time.Now())
	create(t, p.Store, id, 1, 2)
	wantMembers(t, p.Store, id, 1, 1, 2)
	p.want(t, 0, 1, 1, 0)
	create(t, p.copy, id, 1, 2)
	wantMembers(t, p.Store, id, 1, 1, 2)
	p.want(t, 1, 1, 1, 0)

	// Who wrote version 2 sees it at once; version 1 is as the replica knows it.
	if changed, err := tryChange(p.Store, id, []uint64{3}, nil); err != nil || !changed {
		t.Fatal(changed, err)
	}
	wantMembers(t, p.Store, id, 2, 1, 2, 3)
	p.want(t, 1, 2, 2, 0)
	wantMembers(t, p.Store, id, 1, 1, 2)
	p.want(t, 2, 2, 2, 0)
	for least, want := range map[uint64]uint64{1: 1, 2: 2} {
		if v, err := p.Recent(t.Context(), id, least); err != nil || v.Current != want {
			t.Fatalf("recent, at least %d: %+v, %v", least, v, err)
		}
	}
	p.want(t, 3, 3, 3, 0)
	if v, err := p.Versions(t.Context(), id, 0); err != nil || v.Current != 2 {
		t.Fatalf("%+v, %v: positions are the primary's to know", v, err)
	}
	p.want(t, 3, 4, 3, 0)
	if _, err := p.Recent(t.Context(), newID(), 1); err != group.ErrNoGroup {
		t.Fatalf("no group: %v", err)
	}
}

func TestReplicaTooFarBehindIsNotAsked(t *testing.T) {
	p, id := newPair(t), newID()
	create(t, p.Store, id, 1)
	create(t, p.copy, id, 1)
	lag := func() float64 { return testutil.ToFloat64(p.near.all[0].lag) }
	p.beats(t, time.Now().Add(-time.Minute))
	if l := lag(); l < 60 || l > 70 {
		t.Fatalf("lag %v, want a minute", l)
	}
	wantMembers(t, p.Store, id, 1, 1)
	p.want(t, 0, 1, 0, 0)
	p.beats(t, time.Now().Add(-2*time.Second)) // less than the bound
	wantMembers(t, p.Store, id, 1, 1)
	p.want(t, 1, 1, 0, 0)
	newest, err := beat(t.Context(), p.db)
	if err != nil {
		t.Fatal(err)
	}
	p.beats(t, newest)
	if l := lag(); l != 0 {
		t.Fatalf("lag %v of a replica that has the newest heartbeat", l)
	}
}

func TestReplicaThatFailsIsLeftUntilItIsWell(t *testing.T) {
	p, id := newPair(t), newID()
	create(t, p.Store, id, 1)
	create(t, p.copy, id, 1)
	p.beats(t, time.Now())
	rename := func(from, to string) {
		if _, err := p.copy.db.Exec(t.Context(), sqlstore.Text("ALTER TABLE "+from+" RENAME TO "+to)); err != nil {
			t.Fatal(err)
		}
	}
	rename("chat_group", "gone")
	for range 2 {
		wantMembers(t, p.Store, id, 1, 1)
	}
	p.want(t, 0, 2, 0, 1) // asked once
	rename("gone", "chat_group")
	p.beats(t, time.Now())
	wantMembers(t, p.Store, id, 1, 1)
	p.want(t, 1, 2, 0, 1)
	rename("chat_heartbeat", "gone")
	p.near.watch(t.Context())
	wantMembers(t, p.Store, id, 1, 1)
	p.want(t, 1, 3, 0, 1)
}

// A replica that is away does not keep the store from opening.
func TestReplicaAwayAtTheStart(t *testing.T) {
	dir := t.TempDir()
	s := openWith(t, Config{Driver: sqlstore.SQLite, DSN: filepath.Join(dir, "primary.db"),
		Replicas: []Replica{{DSN: filepath.Join(dir, "no", "folder.db")}}})
	id := newID()
	create(t, s, id, 1)
	wantMembers(t, s, id, 1, 1)
}

func TestNearestReplicaFirst(t *testing.T) {
	for _, c := range []struct {
		at, primary Place
		want        []string // names of the replicas
	}{
		{Place{Zone: "b"}, Place{Zone: "a"}, []string{"1", "0", "2"}},
		{Place{Zone: "c"}, Place{Zone: "a"}, []string{"2", "0", "1"}},
		{Place{Zone: "a"}, Place{Zone: "b"}, []string{"0", "1", "2"}},
		{Place{Zone: "z"}, Place{Zone: "z"}, nil}, // the primary is nearer than all
		{Place{Zone: "a"}, Place{Zone: "a"}, []string{"0"}},
		{Place{}, Place{}, []string{"0", "1", "2"}},
		{Place{}, Place{Zone: "a"}, []string{"0", "1", "2"}},
		{Place{Zone: "d", Region: "eu"}, Place{Zone: "z", Region: "us"}, []string{"1", "0", "2"}},
		{Place{Zone: "d", Region: "eu"}, Place{Zone: "z", Region: "eu"}, []string{"1"}},
		{Place{Zone: "c", Region: "eu"}, Place{Zone: "z", Region: "us"}, []string{"2", "1", "0"}},
	} {
		rs, err := newReplicas(Config{Driver: sqlstore.SQLite, At: c.at, PrimaryAt: c.primary,
			Replicas: []Replica{{DSN: "0", At: Place{Zone: "a"}}, {DSN: "1", At: Place{Zone: "b", Region: "eu"}}, {DSN: "2", At: Place{Zone: "c"}}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range rs.order {
			got = append(got, r.name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("at %+v, primary at %+v: %v, want %v", c.at, c.primary, got, c.want)
		}
	}
}
