package group_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/group"
	"throng/system/internal/groupcache"
	"throng/system/internal/groupsql"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLog is a Producer: a slice for each partition.
type fakeLog struct {
	mu   sync.Mutex
	got  map[int][]*rpc.Membership
	fail bool
	// lose has the answer about the next record lost.
	lose bool
	// after, when set, runs when a record is in the log and before that is known.
	after func()
	wg    sync.WaitGroup
}

var errAway = errors.New("the log is away")

func (f *fakeLog) Produce(partition int, _ uint64, value []byte, done func(int64, error)) error {
	f.wg.Go(func() {
		var rec rpc.GroupRecord
		if err := rec.UnmarshalVT(value); err != nil {
			panic(err)
		}
		f.mu.Lock()
		if f.fail {
			f.mu.Unlock()
			done(0, errAway)
			return
		}
		offset := int64(len(f.got[partition]))
		f.got[partition] = append(f.got[partition], rec.GetMembership())
		after, lost := f.after, f.lose
		f.lose = false
		f.mu.Unlock()
		if lost {
			done(0, errAway)
			return
		}
		if after != nil {
			after()
		}
		done(offset, nil)
	})
	return nil
}

func (f *fakeLog) setFail(fail bool) {
	f.mu.Lock()
	f.fail = fail
	f.mu.Unlock()
}

// changes returns the records of a partition.
func (f *fakeLog) changes(partition int) []*rpc.Membership {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got[partition])
}

// versions returns the versions of a group in the order of the log.
func (f *fakeLog) versions(partition int, id uint64) []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []uint64
	for _, m := range f.got[partition] {
		if m.Group == id {
			out = append(out, m.Version)
		}
	}
	return out
}

type fakeInbox struct {
	rpc.UnimplementedInboxServer
	mu    sync.Mutex
	users map[uint64]int
	away  atomic.Bool // looks nobody up
}

func (f *fakeInbox) Provision(_ context.Context, req *rpc.ProvisionUsersRequest) (*rpc.ProvisionUsersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range req.Users {
		f.users[u.User]++
	}
	return &rpc.ProvisionUsersResponse{Users: uint64(len(req.Users))}, nil
}

// Unknown says that users from stranger on do not exist.
func (f *fakeInbox) Unknown(_ context.Context, req *rpc.Users) (*rpc.Users, error) {
	if f.away.Load() {
		return nil, status.Error(codes.Unavailable, "away")
	}
	return &rpc.Users{Users: slices.DeleteFunc(slices.Clone(req.Users), func(u uint64) bool { return u < stranger })}, nil
}

const stranger = 1_000_000

func (f *fakeInbox) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.users)
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

const partitions = 4

// rig is a store, a cache, a log and two inboxes; instances run on them.
type rig struct {
	t       testing.TB
	path    string
	redis   *miniredis.Miniredis
	log     *fakeLog
	inboxes []*fakeInbox
	addrs   []string // of the inboxes
	hourly  int      // groups that a user may make
}

func key() wire.Key { return make(wire.Key, wire.MinKeyBytes) }

func newRig(t testing.TB) *rig {
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "groups.db"), log: &fakeLog{got: map[int][]*rpc.Membership{}}}
	t.Cleanup(r.log.wg.Wait)
	r.redis = miniredis.NewMiniRedis()
	if err := r.redis.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.redis.Close)
	for range 2 {
		in := &fakeInbox{users: map[uint64]int{}}
		ln := listen(t)
		srv := rpc.NewServer()
		rpc.RegisterInboxServer(srv, in)
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Serve(ln) })
		t.Cleanup(func() { srv.Stop(); wg.Wait() })
		r.inboxes, r.addrs = append(r.inboxes, in), append(r.addrs, ln.Addr().String())
	}
	return r
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// instance is a running group service and a client of it.
type instance struct {
	service *group.Service
	rpc.GroupClient
	reg  *prometheus.Registry
	kill func() // ends the service, and leaves what it used
	stop func()
}

// Check, Members and so on are called over the network.
func (r *rig) start(index int, lns []net.Listener) *instance {
	r.t.Helper()
	reg := prometheus.NewRegistry()
	store, err := groupsql.Open(r.t.Context(), groupsql.Config{Driver: "sqlite", DSN: r.path, Metrics: reg})
	if err != nil {
		r.t.Fatal(err)
	}
	cache, err := groupcache.New(groupcache.Config{Addr: r.redis.Addr(), Metrics: reg})
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := group.Config{
		Instance: index, Key: key(), Store: store, Cache: cache, Producer: r.log, Partitions: partitions,
		Inboxes: r.addrs, CreationsPerHour: r.hourly, Metrics: reg,
	}
	for _, ln := range lns {
		cfg.Groups = append(cfg.Groups, ln.Addr().String())
	}
	s, err := group.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx, lns[index]); err != nil {
			r.t.Errorf("run: %v", err)
		}
	})
	conn, err := rpc.Dial(lns[index].Addr().String(), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		r.t.Fatal(err)
	}
	var once sync.Once
	in := &instance{service: s, GroupClient: rpc.NewGroupClient(conn), reg: reg}
	in.kill = func() {
		conn.Close()
		cancel()
		wg.Wait()
	}
	in.stop = func() {
		once.Do(func() {
			in.kill()
			r.log.wg.Wait()
			cache.Close()
			if err := store.Close(); err != nil {
				r.t.Error(err)
			}
		})
	}
	r.t.Cleanup(in.stop)
	return in
}

// one starts a single instance.
func (r *rig) one() *instance { return r.start(0, []net.Listener{listen(r.t)}) }

func (in *instance) create(t testing.TB, id uint64, members ...uint64) {
	t.Helper()
	_, err := in.GroupClient.Provision(t.Context(), &wire.Provision{Groups: []*wire.ProvisionGroup{{Group: id, Members: members}}})
	if err != nil {
		t.Fatal(err)
	}
}

func (in *instance) change(t testing.TB, id uint64, add, remove []uint64) *wire.MembershipResult {
	t.Helper()
	res, err := in.GroupClient.Change(t.Context(), &wire.MembershipChange{Group: id, Add: add, Remove: remove})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (in *instance) check(t testing.TB, id, user uint64) wire.Code {
	t.Helper()
	res, err := in.GroupClient.Check(t.Context(), &rpc.CheckRequest{Groups: []uint64{id}, Users: []uint64{user}})
	if err != nil {
		t.Fatal(err)
	}
	return res.Codes[0]
}

func (in *instance) members(t testing.TB, id uint64, offset int64, seen uint64) *rpc.MembersResponse {
	t.Helper()
	res, err := in.GroupClient.Members(t.Context(), &rpc.MembersRequest{Group: id, Offset: offset, Version: seen})
	if err != nil {
		t.Fatal(err)
	}
	return res
}
