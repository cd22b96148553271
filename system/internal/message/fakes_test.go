package message

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeInbox answers Append as its decide says and remembers what came.
type fakeInbox struct {
	rpc.UnimplementedInboxServer
	mu     sync.Mutex
	got    []*rpc.AppendItem                                   // for addressees
	copies []*rpc.AppendItem                                   // for senders
	decide func(n int, item *rpc.AppendItem) (wire.Code, bool) // false: no answer
}

func (f *fakeInbox) Append(stream rpc.Inbox_AppendServer) error {
	for {
		batch, err := stream.Recv()
		if err != nil {
			return nil
		}
		var out rpc.AppendResultBatch
		for _, item := range batch.Items {
			f.mu.Lock()
			if item.Users[0] == item.Message.From {
				f.copies = append(f.copies, item)
			} else {
				f.got = append(f.got, item)
			}
			n, decide := len(f.got), f.decide
			f.mu.Unlock()
			code, answer := wire.Code(0), true
			if decide != nil {
				code, answer = decide(n, item)
			}
			if answer {
				out.Items = append(out.Items, &rpc.AppendResult{Ref: item.Ref, Code: code})
			}
		}
		if err := stream.Send(&out); err != nil {
			return nil
		}
	}
}

func (f *fakeInbox) items() []*rpc.AppendItem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*rpc.AppendItem(nil), f.got...)
}

func (f *fakeInbox) ownCopies() []*rpc.AppendItem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*rpc.AppendItem(nil), f.copies...)
}

// fakeGroup says that even users are members of every group.
type fakeGroup struct {
	rpc.UnimplementedGroupServer
	mu   sync.Mutex
	down bool
}

func (f *fakeGroup) Check(_ context.Context, req *rpc.CheckRequest) (*rpc.CheckResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errors.New("down")
	}
	res := &rpc.CheckResponse{}
	for _, u := range req.Users {
		code := wire.Code(0)
		if u%2 == 1 {
			code = wire.Code_CODE_NOT_MEMBER
		}
		res.Codes = append(res.Codes, code)
	}
	return res, nil
}

func (f *fakeGroup) setDown(down bool) {
	f.mu.Lock()
	f.down = down
	f.mu.Unlock()
}

// fakeLog is a Producer: a slice for each partition.
type fakeLog struct {
	mu   sync.Mutex
	got  map[int][][]byte
	fail func(n int) error
	n    int
	jobs chan func()
}

func newFakeLog(t testing.TB) *fakeLog {
	f := &fakeLog{got: map[int][][]byte{}, jobs: make(chan func(), 1<<16)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for job := range f.jobs {
			job()
		}
	})
	t.Cleanup(func() { close(f.jobs); wg.Wait() })
	return f
}

func (f *fakeLog) Produce(partition int, _ uint64, value []byte, done func(int64, error)) error {
	f.jobs <- func() {
		f.mu.Lock()
		f.n++
		var err error
		if f.fail != nil {
			err = f.fail(f.n)
		}
		offset := int64(len(f.got[partition]))
		if err == nil {
			f.got[partition] = append(f.got[partition], value)
		}
		f.mu.Unlock()
		done(offset, err)
	}
	return nil
}

func (f *fakeLog) records(partition int) []*rpc.Envelope {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*rpc.Envelope
	for _, v := range f.got[partition] {
		var rec rpc.GroupRecord
		if err := rec.UnmarshalVT(v); err != nil {
			panic(err)
		}
		out = append(out, rec.GetMessage())
	}
	return out
}

// serve starts a gRPC server with what register registers; stop ends it. addr
// may name the address to use again.
func serve(t testing.TB, addr string, register func(*grpc.Server)) (string, func()) {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	var ln net.Listener
	waitFor(t, "the address", func() bool {
		var err error
		ln, err = net.Listen("tcp", addr)
		return err == nil
	})
	srv := rpc.NewServer()
	register(srv)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	stop := func() { srv.Stop(); wg.Wait() }
	t.Cleanup(stop)
	return ln.Addr().String(), stop
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

// rig is a message instance with fakes around it.
type rig struct {
	t         testing.TB
	cfg       Config
	inbox     *fakeInbox
	inboxAddr string
	stopInbox func()
	group     *fakeGroup
	log       *fakeLog
	service   *Service
}

func testKey() wire.Key { return make(wire.Key, wire.MinKeyBytes) }

func newRig(t testing.TB, edit func(*Config)) *rig {
	r := &rig{t: t, inbox: &fakeInbox{}, group: &fakeGroup{}, log: newFakeLog(t)}
	r.inboxAddr, r.stopInbox = serve(t, "", func(s *grpc.Server) { rpc.RegisterInboxServer(s, r.inbox) })
	groupAddr, _ := serve(t, "", func(s *grpc.Server) { rpc.RegisterGroupServer(s, r.group) })
	r.cfg = Config{Key: testKey(), Inboxes: []string{r.inboxAddr}, Groups: []string{groupAddr}, Producer: r.log, Partitions: 4}
	if edit != nil {
		edit(&r.cfg)
	}
	return r
}

// start runs an instance and returns a gateway's stream to it.
func (r *rig) start() *gateway {
	r.t.Helper()
	s, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.service = s
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx, ln); err != nil {
			r.t.Errorf("run: %v", err)
		}
	})
	g := &gateway{t: r.t, answers: map[uint64]*rpc.SubmitResult{}}
	g.stopService = func() { cancel(); wg.Wait() }
	r.t.Cleanup(g.stopService)
	g.connect(ln.Addr().String())
	return g
}

// gateway is the other end of a Submit stream.
type gateway struct {
	t           testing.TB
	stream      rpc.Message_SubmitClient
	stopService func()

	mu      sync.Mutex
	next    uint64
	answers map[uint64]*rpc.SubmitResult
	order   []uint64
}

func (g *gateway) connect(addr string) {
	g.t.Helper()
	conn, err := rpc.Dial(addr)
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.stream, err = rpc.NewMessageClient(conn).Submit(ctx, grpc.WaitForReady(true))
	if err != nil {
		g.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			batch, err := g.stream.Recv()
			if err != nil {
				return
			}
			g.mu.Lock()
			for _, item := range batch.Items {
				if g.answers[item.Ref] != nil {
					g.t.Errorf("ref %d answered twice", item.Ref)
				}
				g.answers[item.Ref] = item
				g.order = append(g.order, item.Ref)
			}
			g.mu.Unlock()
		}
	})
	g.t.Cleanup(func() { cancel(); wg.Wait(); conn.Close() })
}

// send submits and returns the ref.
func (g *gateway) send(user uint64, send *wire.Send) uint64 {
	g.mu.Lock()
	g.next++
	ref := g.next
	g.mu.Unlock()
	if err := g.stream.Send(&rpc.SubmitBatch{Items: []*rpc.Submission{{Ref: ref, User: user, Device: 1, Send: send}}}); err != nil {
		g.t.Errorf("submit: %v", err)
	}
	return ref
}

func (g *gateway) answer(ref uint64) *rpc.SubmitResult {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.answers[ref]
}

// await waits for the answer.
func (g *gateway) await(ref uint64) *rpc.SubmitResult {
	g.t.Helper()
	waitFor(g.t, "an answer", func() bool { return g.answer(ref) != nil })
	return g.answer(ref)
}

func (g *gateway) awaitSent(ref uint64) *wire.Sent {
	g.t.Helper()
	res := g.await(ref)
	if res.Sent == nil {
		g.t.Fatalf("ref %d: %v, want Sent", ref, res.Error)
	}
	return res.Sent
}

func (g *gateway) awaitCode(ref uint64, code wire.Code) *wire.Error {
	g.t.Helper()
	res := g.await(ref)
	if res.Error == nil || res.Error.Code != code {
		g.t.Fatalf("ref %d: %v, want %v", ref, res, code)
	}
	return res.Error
}

// to is a direct send; seq is also the client's message id.
func to(user, seq uint64) *wire.Send {
	return &wire.Send{ClientMsgId: 1000 + seq, User: user, Seq: seq, Body: []byte("hello")}
}

func toGroup(group, seq uint64) *wire.Send {
	return &wire.Send{ClientMsgId: 1000 + seq, Group: group, Seq: seq, Body: []byte("hello all")}
}
