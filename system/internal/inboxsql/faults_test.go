package inboxsql_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/inbox"
	"throng/system/internal/inboxsql"
	"throng/system/internal/rpc"
	"throng/system/internal/sqlstore"
	"throng/system/placement"
	"throng/system/wire"
)

// failing is a store that fails when told to, after it has done the work: the
// outcome is as unknown as it can be.
type failing struct {
	inbox.Store
	fail *atomic.Bool
}

func (f failing) Commit(ctx context.Context, b *inbox.Batch) (inbox.Result, error) {
	res, err := f.Store.Commit(ctx, b)
	if f.fail.Load() && len(b.Rows) > 0 {
		return inbox.Result{}, errors.New("injected")
	}
	return res, err
}

// usersOfLoops returns a user of each loop of a single instance with two.
func usersOfLoops() (a, b uint64) {
	for u := uint64(1); a == 0 || b == 0; u++ {
		if placement.InboxShard(u)%2 == 0 {
			a = u
		} else {
			b = u
		}
	}
	return a, b
}

func TestFailedTransactionLooksLikeARestart(t *testing.T) {
	var fail atomic.Bool
	o := start(t, setup{path: filepath.Join(t.TempDir(), "inbox"),
		wrap: func(st inbox.Store) inbox.Store { return failing{st, &fail} }})
	u, other := usersOfLoops()
	o.provision(&wire.ProvisionUser{User: u}, &wire.ProvisionUser{User: other})
	g, a := o.gateway("g"), o.appender()
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: u, Conn: 1}, {User: other, Conn: 2}}})
	o.eventually("live", func() bool { _, n := g.got(1); _, m := g.got(2); return n == 1 && m == 1 })
	fail.Store(true)
	a.send(1, 0, 5, 1, "one", u)
	if _, err := a.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Fatalf("the append stream ended with %v, want Unavailable", err)
	}
	o.eventually("the sessions stream's end", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.ended })
	if b, _ := g.got(1); len(b) != 0 {
		t.Fatalf("delivered %q, whose transaction has failed", b)
	}
	fail.Store(false)
	o.eventually("ready again", func() bool { return o.in.Ready() == nil })
	first := g.incarnation
	if g = o.gateway("g"); g.incarnation <= first {
		t.Fatalf("incarnation %d after %d", g.incarnation, first)
	}
	a = o.appender()
	a.send(2, 0, 5, 1, "one", u)
	want(t, "code", a.result().Code, wire.Code_CODE_UNSPECIFIED)
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: u, Conn: 1}}})
	o.eventually("the message", func() bool { b, _ := g.got(1); return len(b) > 0 })
	g.send(&rpc.GatewayBatch{Acks: []*rpc.SessionAck{{Conn: 1, User: u, Upto: 1}}})
	o.eventually("current", func() bool { _, n := g.got(1); return n == 1 })
	if b, _ := g.got(1); len(b) != 1 {
		t.Fatalf("got %q, want it once", b)
	}
}

func TestOldOwnerStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inbox")
	old := start(t, setup{path: path, fail: true})
	old.provision(&wire.ProvisionUser{User: 7})
	a := old.appender()
	start(t, setup{path: path}) // claims the shards
	a.send(1, 0, 5, 1, "one", 7)
	if _, err := a.stream.Recv(); err == nil {
		t.Fatal("the old owner accepted a message")
	}
	select {
	case err := <-old.err:
		if !errors.Is(err, inbox.ErrFenced) {
			t.Fatalf("run returned %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the old owner still runs")
	}
}

func TestGroupItemIsAnsweredOnceByBothLoops(t *testing.T) {
	o := startOwner(t, filepath.Join(t.TempDir(), "inbox"))
	u, v := usersOfLoops()
	o.provision(&wire.ProvisionUser{User: u}, &wire.ProvisionUser{User: v, Devices: []*wire.ProvisionDevice{{Device: 0}, {Device: 3}}})
	g, a := o.gateway("g"), o.appender()
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: u, Conn: 1}, {User: v, Device: 3, Conn: 2}}})
	o.eventually("live", func() bool { _, n := g.got(1); _, m := g.got(2); return n == 1 && m == 1 })
	a.send(1, 9, 5, 1, "one", u, v, 12345)
	o.eventually("delivered", func() bool { b, _ := g.got(1); c, _ := g.got(2); return len(b) == 1 && len(c) == 1 })
	g.send(&rpc.GatewayBatch{Acks: []*rpc.SessionAck{{Conn: 1, User: u, Upto: 1}, {Conn: 2, User: v, Upto: 1}}})
	r := a.result()
	if r.Live != 2 || r.Stored != 1 {
		t.Fatalf("result %v, want two live and one stored", r)
	}
	a.send(2, 9, 5, 2, "nobody", 12345)
	want(t, "code", a.result().Code, wire.Code_CODE_UNSPECIFIED)
}

func TestNewStreamOfAGatewayReplacesTheOld(t *testing.T) {
	o := startOwner(t, filepath.Join(t.TempDir(), "inbox"))
	o.provision(&wire.ProvisionUser{User: 7})
	g1, a := o.gateway("g"), o.appender()
	g1.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: 7, Conn: 1}}})
	o.eventually("live", func() bool { _, n := g1.got(1); return n == 1 })
	a.send(1, 9, 5, 1, "one", 7)
	o.eventually("delivered", func() bool { b, _ := g1.got(1); return len(b) == 1 })
	g2 := o.gateway("g")
	want(t, "stored when the old stream ended", a.result().Stored, uint32(1))
	o.eventually("the old stream's end", func() bool { g1.mu.Lock(); defer g1.mu.Unlock(); return g1.ended })
	g2.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: 7, Conn: 1}}})
	o.eventually("drained", func() bool { b, _ := g2.got(1); return len(b) == 1 })
}

func TestReceiptsBetweenInstances(t *testing.T) {
	lns := []net.Listener{listen(t), listen(t)}
	peers := []string{lns[0].Addr().String(), lns[1].Addr().String()}
	owners := make([]*owner, 2)
	for i := range owners {
		owners[i] = start(t, setup{path: filepath.Join(t.TempDir(), "inbox"), ln: lns[i],
			cfg: inbox.Config{Instance: i, Instances: 2, Peers: peers}})
	}
	var users [2]uint64
	for u := uint64(1); users[0] == 0 || users[1] == 0; u++ {
		users[placement.UserInboxInstance(u, 2)] = u
	}
	gs := make([]*gateway, 2)
	for i, o := range owners {
		o.provision(&wire.ProvisionUser{User: users[i]})
		gs[i] = o.gateway("g")
		gs[i].send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: users[i], Conn: 1}}})
		o.eventually("live", func() bool { _, n := gs[i].got(1); return n == 1 })
	}
	a := owners[1].appender()
	a.send(1, 0, users[0], 1, "hello", users[1])
	a.result()
	gs[1].send(&rpc.GatewayBatch{Acks: []*rpc.SessionAck{{Conn: 1, User: users[1], Upto: 1}}})
	owners[0].eventually("a delivered receipt", func() bool {
		gs[0].mu.Lock()
		defer gs[0].mu.Unlock()
		for _, f := range gs[0].frames[1] {
			for _, r := range f.GetReceipts().GetReceipts() {
				return r.Peer == users[1] && r.DeliveredSeq == 1
			}
		}
		return false
	})
	// What belongs to the other instance is refused, not lost in silence.
	a.send(2, 0, 5, 1, "misrouted", users[0])
	want(t, "code", a.result().Code, wire.Code_CODE_INTERNAL)
}

func load(t *testing.T, st inbox.Store, user uint64) []inbox.DeviceState {
	t.Helper()
	all, err := st.Load(t.Context(), []uint64{user})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// pushRole records requests and answers when told to.
type pushRole struct {
	rpc.UnimplementedPushServer
	answer atomic.Bool
	mu     sync.Mutex
	got    []*rpc.PushRequest
}

func (p *pushRole) Notify(stream rpc.Push_NotifyServer) error {
	for {
		b, err := stream.Recv()
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.got = append(p.got, b.Items...)
		p.mu.Unlock()
		if !p.answer.Load() {
			return status.Error(codes.Unavailable, "going away")
		}
		out := new(rpc.PushResultBatch)
		for _, r := range b.Items {
			out.Items = append(out.Items, &rpc.PushResult{Ref: r.Ref, Outcome: rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED})
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

func (p *pushRole) requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.got)
}

func startPush(t *testing.T) (*pushRole, string) {
	t.Helper()
	p, ln, srv := new(pushRole), listen(t), rpc.NewServer()
	rpc.RegisterPushServer(srv, p)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return p, ln.Addr().String()
}

func TestPushIsAskedForAgainUntilAnswered(t *testing.T) {
	p, addr := startPush(t)
	path := filepath.Join(t.TempDir(), "inbox")
	cfg := inbox.Config{Push: []string{addr}, Limits: inbox.Limits{PushDelay: 100 * time.Millisecond, PushEvery: 100 * time.Millisecond}}
	o := start(t, setup{path: path, cfg: cfg})
	o.provision(&wire.ProvisionUser{User: 7, Devices: []*wire.ProvisionDevice{{Device: 0, PushToken: "tok"}, {Device: 1}}})
	a := o.appender()
	a.send(1, 0, 5, 1, "one", 7)
	a.result()
	o.eventually("asked twice, as the first stream broke", func() bool { return p.requests() >= 2 })
	o.stop()
	// A restart forgets nothing: the row is found by the scan.
	p.answer.Store(true)
	before := p.requests()
	o = start(t, setup{path: path, cfg: cfg})
	o.eventually("asked after a restart", func() bool { return p.requests() > before })
	p.mu.Lock()
	r := p.got[len(p.got)-1]
	p.mu.Unlock()
	id := wire.IDOf(5, 0, 1)
	if r.User != 7 || r.Device != 0 || r.Token != "tok" || wire.MessageID(r.MessageId) != id || r.Waiting != 1 || r.CollapseKey == "" {
		t.Fatalf("request %v", r)
	}
	// It was accepted: a later restart asks no more.
	stores, err := inboxsql.Open(t.Context(), inboxsql.Config{Driver: sqlstore.SQLite, DSN: path})
	if err != nil {
		t.Fatal(err)
	}
	defer stores.Close()
	o.eventually("the answer is stored", func() bool {
		for _, st := range stores.Stores() {
			for _, d := range load(t, st, 7) {
				if d.Pushed > 0 {
					return true
				}
			}
		}
		return false
	})
	o.stop()
	o = start(t, setup{path: path, cfg: cfg})
	o.provision(&wire.ProvisionUser{User: 8, Devices: []*wire.ProvisionDevice{{Device: 0, PushToken: "other"}}})
	a = o.appender()
	a.send(1, 0, 5, 2, "two", 8)
	a.result()
	o.eventually("the other device's push", func() bool { return p.requests() > before+1 })
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.got[len(p.got)-1]; last.User != 8 {
		t.Fatalf("asked again for %v, which was accepted", last)
	}
}
