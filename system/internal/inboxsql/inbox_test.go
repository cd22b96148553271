package inboxsql_test

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"throng/system/internal/inbox"
	"throng/system/internal/inboxsql"
	"throng/system/internal/rpc"
	"throng/system/internal/sqlstore"
	"throng/system/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/pressly/goose/v3.init.0.func1"))
}

const patience = 20 * time.Second

// owner is an inbox instance in this process, on a store that outlives it.
type owner struct {
	t    *testing.T
	in   *inbox.Inbox
	conn *grpc.ClientConn
	stop func()
	err  chan error // what Run returned
}

type setup struct {
	path string
	cfg  inbox.Config                  // without stores
	wrap func(inbox.Store) inbox.Store // nil: as they are
	ln   net.Listener                  // nil: any
	fail bool                          // Run may fail
}

func start(t *testing.T, s setup) *owner {
	t.Helper()
	stores, err := inboxsql.Open(t.Context(), inboxsql.Config{Driver: sqlstore.SQLite, DSN: s.path})
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Instances = max(s.cfg.Instances, 1)
	for _, st := range stores.Stores() {
		if s.wrap != nil {
			st = s.wrap(st)
		}
		s.cfg.Stores = append(s.cfg.Stores, st)
	}
	o := &owner{t: t, err: make(chan error, 1)}
	if o.in, err = inbox.New(s.cfg); err != nil {
		t.Fatal(err)
	}
	if s.ln == nil {
		s.ln = listen(t)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := o.in.Run(ctx, s.ln)
		if err != nil && !s.fail {
			t.Errorf("run: %v", err)
		}
		o.err <- err
	})
	if o.conn, err = rpc.Dial(s.ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	o.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := stores.Close(); err != nil {
			t.Error(err)
		}
		o.conn.Close()
	})
	t.Cleanup(o.stop)
	o.eventually("ready", func() bool { return o.in.Ready() == nil })
	return o
}

func startOwner(t *testing.T, path string) *owner { return start(t, setup{path: path}) }

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (o *owner) eventually(what string, ok func() bool) {
	o.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			o.t.Fatalf("not in time: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (o *owner) provision(users ...*wire.ProvisionUser) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	if _, err := rpc.NewInboxClient(o.conn).Provision(ctx, &rpc.ProvisionUsersRequest{Users: users}); err != nil {
		o.t.Fatal(err)
	}
}

// gateway is a Sessions stream; received frames by conn.
type gateway struct {
	t           *testing.T
	stream      rpc.Inbox_SessionsClient
	incarnation uint64

	mu     sync.Mutex
	frames map[uint64][]*wire.Frame
	// stamped holds the bodies of the frames that the gateway is to stamp.
	stamped map[uint64][]string
	kicks   map[uint64]uint32
	ended   bool
}

func (o *owner) gateway(name string) *gateway {
	o.t.Helper()
	stream, err := rpc.NewInboxClient(o.conn).Sessions(context.Background())
	if err != nil {
		o.t.Fatal(err)
	}
	g := &gateway{t: o.t, stream: stream, frames: map[uint64][]*wire.Frame{}, stamped: map[uint64][]string{}, kicks: map[uint64]uint32{}}
	g.send(&rpc.GatewayBatch{Hello: &rpc.GatewayHello{Gateway: name, Incarnation: 1}})
	first, err := stream.Recv()
	if err != nil {
		o.t.Fatal(err)
	}
	g.incarnation = first.Incarnation
	go g.receive()
	o.t.Cleanup(func() { _ = stream.CloseSend() })
	return g
}

func (g *gateway) receive() {
	for {
		b, err := g.stream.Recv()
		g.mu.Lock()
		if err != nil {
			g.ended = true
			g.mu.Unlock()
			return
		}
		for _, o := range b.Out {
			f := new(wire.Frame)
			if err := f.UnmarshalVT(o.Frame); err != nil {
				g.t.Error(err)
			}
			f.CollectStamps()
			for _, c := range o.Conns {
				g.frames[c] = append(g.frames[c], f)
				if o.Stamped {
					g.stamped[c] = append(g.stamped[c], string(f.GetDeliver().GetBody()))
				}
			}
		}
		for _, k := range b.Kicks {
			g.kicks[k.Conn] = k.CloseCode
		}
		g.mu.Unlock()
	}
}

func (g *gateway) send(b *rpc.GatewayBatch) {
	g.t.Helper()
	if err := g.stream.Send(b); err != nil {
		g.t.Fatal(err)
	}
}

// got returns the bodies delivered to a conn and the number of Current frames.
func (g *gateway) got(conn uint64) (bodies []string, currents int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.frames[conn] {
		switch {
		case f.GetDeliver() != nil:
			bodies = append(bodies, string(f.GetDeliver().Body))
		case f.GetCurrent() != nil:
			currents++
		}
	}
	return bodies, currents
}

type appender struct {
	t      *testing.T
	stream rpc.Inbox_AppendClient
}

func (o *owner) appender() *appender {
	o.t.Helper()
	stream, err := rpc.NewInboxClient(o.conn).Append(context.Background())
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = stream.CloseSend() })
	return &appender{t: o.t, stream: stream}
}

func (a *appender) send(ref, group, from, seq uint64, body string, users ...uint64) {
	a.t.Helper()
	id := wire.IDOf(from, 0, seq+1000*group)
	if err := a.stream.Send(&rpc.AppendBatch{Items: []*rpc.AppendItem{{Ref: ref, Users: users, Message: &rpc.Envelope{
		MessageId: id[:], Group: group, From: from, Seq: seq, Body: []byte(body)}}}}); err != nil {
		a.t.Fatal(err)
	}
}

func (a *appender) result() *rpc.AppendResult {
	a.t.Helper()
	b, err := a.stream.Recv()
	if err != nil {
		a.t.Fatal(err)
	}
	if len(b.Items) != 1 {
		a.t.Fatalf("%d results at once, want 1", len(b.Items))
	}
	return b.Items[0]
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func TestStoredThenDrainedThenLiveAcrossRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inbox")
	o := startOwner(t, path)
	o.provision(&wire.ProvisionUser{User: 7}, &wire.ProvisionUser{User: 8})
	a := o.appender()
	a.send(1, 0, 5, 1, "direct", 7)
	r := a.result()
	want(t, "stored", r.Stored, uint32(1))
	a.send(2, 9, 5, 1, "group message with a body that is long enough to be stored once for everybody", 7, 8)
	want(t, "stored", a.result().Stored, uint32(2))
	a.send(3, 0, 5, 2, "nobody", 1234)
	want(t, "code", a.result().Code, wire.Code_CODE_NO_SUCH_USER)
	o.stop()

	o = startOwner(t, path)
	g := o.gateway("g1")
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: 7, Conn: 1}, {User: 999, Conn: 2}}})
	o.eventually("the page", func() bool { b, _ := g.got(1); return len(b) == 2 })
	o.eventually("the kick", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.kicks[2] == uint32(wire.CloseNoSuchUser)
	})
	if b, n := g.got(1); b[0] != "direct" || n != 0 {
		t.Fatalf("page %q with %d Currents before it is acknowledged", b, n)
	}
	g.send(&rpc.GatewayBatch{Acks: []*rpc.SessionAck{{Conn: 1, User: 7, Upto: 2}}})
	o.eventually("current", func() bool { _, n := g.got(1); return n == 1 })

	a = o.appender()
	a.send(4, 9, 5, 2, "live", 7, 8)
	o.eventually("the live message", func() bool { b, _ := g.got(1); return len(b) == 3 })
	g.send(&rpc.GatewayBatch{Acks: []*rpc.SessionAck{{Conn: 1, User: 7, Upto: 3}}})
	r = a.result()
	if r.Live != 1 || r.Stored != 1 || r.Code != 0 {
		t.Fatalf("result %v, want one live and one stored", r)
	}
	first := g.incarnation
	o.stop()
	o = startOwner(t, path)
	if g = o.gateway("g1"); g.incarnation <= first {
		t.Fatalf("incarnation %d after %d", g.incarnation, first)
	}
	g.send(&rpc.GatewayBatch{Opens: []*rpc.SessionOpen{{User: 7, Conn: 1}}})
	o.eventually("current at once", func() bool { b, n := g.got(1); return n == 1 && len(b) == 0 })
}
