package fanout

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLog is the partitions of a topic, a Consumer for each process that joins
// it, and the offsets they commit.
type fakeLog struct {
	mu        sync.Mutex
	more      *sync.Cond
	parts     [][][]byte
	committed []int64
	hold      bool // nothing more is handed out
}

func newFakeLog(partitions int) *fakeLog {
	l := &fakeLog{parts: make([][][]byte, partitions), committed: make([]int64, partitions)}
	l.more = sync.NewCond(&l.mu)
	return l
}

func (l *fakeLog) append(partition int, value []byte) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parts[partition] = append(l.parts[partition], value)
	l.more.Broadcast()
	return int64(len(l.parts[partition]) - 1)
}

func (l *fakeLog) message(partition int, group, from, seq uint64) int64 {
	return l.append(partition, encoded(&rpc.GroupRecord{Kind: &rpc.GroupRecord_Message{Message: &rpc.Envelope{
		MessageId: fmt.Appendf(nil, "%08d%08d", from, seq), Group: group, From: from, FromDevice: 1, Seq: seq, Body: []byte("hello all"),
	}}}))
}

func (l *fakeLog) change(partition int, group, version uint64) int64 {
	return l.append(partition, encoded(&rpc.GroupRecord{Kind: &rpc.GroupRecord_Membership{Membership: &rpc.Membership{
		Group: group, Version: version}}}))
}

func encoded(r *rpc.GroupRecord) []byte {
	b, err := r.MarshalVT()
	if err != nil {
		panic(err)
	}
	return b
}

func (l *fakeLog) committedAt(partition int) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.committed[partition]
}

// consumer takes all partitions, until revoke is called or ctx ends.
func (l *fakeLog) consumer() *fakeConsumer {
	return &fakeConsumer{log: l, revoked: make(chan struct{})}
}

type fakeConsumer struct {
	log     *fakeLog
	revoked chan struct{}
}

func (c *fakeConsumer) Run(ctx context.Context, handle func(context.Context, Partition)) error {
	gen, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for i := range c.log.parts {
		wg.Go(func() {
			c.log.mu.Lock()
			next := c.log.committed[i]
			c.log.mu.Unlock()
			handle(gen, &fakePartition{log: c.log, id: i, next: next, gen: gen})
		})
	}
	select {
	case <-c.revoked:
		cancel()
	case <-ctx.Done():
	}
	wg.Wait()
	<-ctx.Done()
	return nil
}

type fakePartition struct {
	log  *fakeLog
	id   int
	next int64
	gen  context.Context
}

func (p *fakePartition) Name() string { return strconv.Itoa(p.id) }

func (p *fakePartition) Fetch(ctx context.Context) ([]int64, [][]byte, int64, error) {
	defer context.AfterFunc(ctx, func() {
		p.log.mu.Lock()
		p.log.more.Broadcast()
		p.log.mu.Unlock()
	})()
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	for p.log.hold || int64(len(p.log.parts[p.id])) <= p.next {
		if ctx.Err() != nil {
			return nil, nil, 0, ctx.Err()
		}
		p.log.more.Wait()
	}
	if ctx.Err() != nil {
		return nil, nil, 0, ctx.Err()
	}
	var offsets []int64
	values := p.log.parts[p.id][p.next:]
	for range values {
		offsets = append(offsets, p.next)
		p.next++
	}
	return offsets, values, int64(len(p.log.parts[p.id])), nil
}

// Commit of a partition that was taken away counts for nothing, as in Kafka.
func (p *fakePartition) Commit(next int64) {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	if p.gen.Err() == nil {
		p.log.committed[p.id] = max(p.log.committed[p.id], next)
	}
}

// delivered is one message of an AppendItem as the inbox saw it.
type delivered struct {
	group, from, seq uint64
	offset           int64
	users            []uint64
	id               []byte
	kind             wire.Kind
	acceptedMS       int64
	change           *wire.GroupChange
	recipients       uint32
	stamps           *wire.Stamps
}

// fakeInbox answers as decide says; false: not (yet).
type fakeInbox struct {
	rpc.UnimplementedInboxServer
	mu     sync.Mutex
	got    []delivered
	decide func(d delivered) (wire.Code, bool)
	held   []func() // answers not given
}

func (f *fakeInbox) Append(stream rpc.Inbox_AppendServer) error {
	var sendMu sync.Mutex
	for {
		batch, err := stream.Recv()
		if err != nil {
			return nil
		}
		var out rpc.AppendResultBatch
		f.mu.Lock()
		for _, item := range batch.Items {
			m := item.Message
			d := delivered{group: m.Group, from: m.From, seq: m.Seq, offset: m.Offset, users: item.Users,
				id: m.MessageId, kind: m.Kind, acceptedMS: m.AcceptedMs, change: m.Change, recipients: item.Recipients, stamps: m.Stamps}
			f.got = append(f.got, d)
			code, answer := wire.Code(0), true
			if f.decide != nil {
				code, answer = f.decide(d)
			}
			res := &rpc.AppendResult{Ref: item.Ref, Code: code}
			if answer {
				out.Items = append(out.Items, res)
				continue
			}
			f.held = append(f.held, func() {
				sendMu.Lock()
				defer sendMu.Unlock()
				_ = stream.Send(&rpc.AppendResultBatch{Items: []*rpc.AppendResult{res}})
			})
		}
		f.mu.Unlock()
		sendMu.Lock()
		err = stream.Send(&out)
		sendMu.Unlock()
		if err != nil {
			return nil
		}
	}
}

func (f *fakeInbox) items() []delivered {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got)
}

// release gives the held answers, the newest first.
func (f *fakeInbox) release() {
	f.mu.Lock()
	held := f.held
	f.held = nil
	f.decide = nil
	f.mu.Unlock()
	for _, answer := range slices.Backward(held) {
		answer()
	}
}

// fakeGroup keeps members by version and the positions it was told.
type fakeGroup struct {
	rpc.UnimplementedGroupServer
	mu       sync.Mutex
	versions map[uint64][][]uint64 // by group; [i] is version i+1
	applied  map[uint64]map[uint64]int64
	down     bool
	lookups  int
}

func newFakeGroup() *fakeGroup {
	return &fakeGroup{versions: map[uint64][][]uint64{}, applied: map[uint64]map[uint64]int64{}}
}

func (f *fakeGroup) set(group uint64, versions ...[]uint64) {
	f.mu.Lock()
	f.versions[group] = versions
	f.mu.Unlock()
}

func (f *fakeGroup) setDown(down bool) {
	f.mu.Lock()
	f.down = down
	f.mu.Unlock()
}

func (f *fakeGroup) position(group, version uint64) (int64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o, ok := f.applied[group][version]
	return o, ok
}

func (f *fakeGroup) Members(_ context.Context, req *rpc.MembersRequest) (*rpc.MembersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errors.New("down")
	}
	f.lookups++
	version := max(req.Version, 1)
	for v, o := range f.applied[req.Group] {
		if o <= req.Offset {
			version = max(version, v)
		}
	}
	return &rpc.MembersResponse{Version: version, Members: f.versions[req.Group][version-1]}, nil
}

func (f *fakeGroup) Applied(_ context.Context, req *rpc.AppliedRequest) (*rpc.AppliedResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errors.New("down")
	}
	if f.applied[req.Group] == nil {
		f.applied[req.Group] = map[uint64]int64{}
	}
	if o, known := f.applied[req.Group][req.Version]; !known || req.Offset < o {
		f.applied[req.Group][req.Version] = req.Offset
	}
	return &rpc.AppliedResponse{}, nil
}

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

// rig is a log, a group service and inbox instances; fan-outs are started on it.
type rig struct {
	t          testing.TB
	log        *fakeLog
	group      *fakeGroup
	groupAddr  string
	inboxes    []*fakeInbox
	inboxAddrs []string
	stopInbox  []func()
}

func newRig(t testing.TB, partitions, inboxes int) *rig {
	r := &rig{t: t, log: newFakeLog(partitions), group: newFakeGroup()}
	r.groupAddr, _ = serve(t, "", func(s *grpc.Server) { rpc.RegisterGroupServer(s, r.group) })
	for range inboxes {
		in := &fakeInbox{}
		addr, stop := serve(t, "", func(s *grpc.Server) { rpc.RegisterInboxServer(s, in) })
		r.inboxes, r.inboxAddrs, r.stopInbox = append(r.inboxes, in), append(r.inboxAddrs, addr), append(r.stopInbox, stop)
	}
	return r
}

// start runs a fan-out; stop ends it and waits.
func (r *rig) start(c Consumer, edit func(*Config)) (f *Fanout, stop func()) {
	r.t.Helper()
	cfg := Config{Consumer: c, Inboxes: r.inboxAddrs, Groups: []string{r.groupAddr}}
	if edit != nil {
		edit(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx, nil); err != nil {
			r.t.Errorf("run: %v", err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	r.t.Cleanup(stop)
	return f, stop
}

// received returns what all inboxes got for a group: user to the seqs in order.
// It leaves out what users sent themselves.
func (r *rig) received(group uint64) map[uint64][]uint64 {
	out := map[uint64][]uint64{}
	for _, in := range r.inboxes {
		for _, d := range in.items() {
			if d.group != group {
				continue
			}
			for _, u := range d.users {
				if u != d.from {
					out[u] = append(out[u], d.seq)
				}
			}
		}
	}
	return out
}
