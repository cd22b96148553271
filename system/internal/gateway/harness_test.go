package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

func TestMain(m *testing.M) {
	if childMain() { // this process is a server under benchmark, see bench_test.go
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

func testKey() wire.Key { return wire.Key(strings.Repeat("k", wire.MinKeyBytes)) }

// fakeInbox is an inbox instance that does what the test says. events carries
// what the gateway told it, in order.
type fakeInbox struct {
	rpc.UnimplementedInboxServer
	srv    *grpc.Server
	addr   string
	events chan any // *rpc.GatewayHello, *rpc.SessionOpen, *rpc.SessionAck, *rpc.SessionClose, *rpc.ReceiptUpdate, *rpc.ReceiptsQuery, *rpc.PrivacyUpdate

	mu     sync.Mutex
	stream grpc.BidiStreamingServer[rpc.GatewayBatch, rpc.OwnerBatch]
	inc    uint64
	mute   bool            // sessions are not answered
	epochs uint64          // of sessions, so far
	hidden map[uint64]bool // users who hide
}

func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			return ln
		}
		if time.Now().After(deadline) { // a port just given up may take a moment
			t.Fatalf("listen %s: %v", addr, err)
		}
	}
}

func startInbox(t testing.TB, addr string, incarnation uint64) *fakeInbox {
	t.Helper()
	f := &fakeInbox{srv: rpc.NewServer(), events: make(chan any, 100_000), inc: incarnation}
	ln := listen(t, addr)
	f.addr = ln.Addr().String()
	rpc.RegisterInboxServer(f.srv, f)
	go f.srv.Serve(ln)
	t.Cleanup(f.srv.Stop)
	return f
}

func (f *fakeInbox) Sessions(s grpc.BidiStreamingServer[rpc.GatewayBatch, rpc.OwnerBatch]) error {
	f.mu.Lock()
	f.stream = s
	err := s.Send(&rpc.OwnerBatch{Incarnation: f.inc})
	f.mu.Unlock()
	for err == nil {
		var b *rpc.GatewayBatch
		if b, err = s.Recv(); err != nil {
			break
		}
		if b.Hello != nil {
			f.events <- b.Hello
		}
		for _, e := range b.Opens {
			f.opened(e)
			f.events <- e
		}
		for _, e := range b.Acks {
			f.events <- e
		}
		for _, e := range b.Closes {
			f.events <- e
		}
		for _, e := range b.Reads {
			f.events <- e
		}
		for _, e := range b.Queries {
			f.events <- e
		}
		for _, e := range b.Privacy {
			f.events <- e
		}
	}
	return err
}

// opened answers an open as an owner does.
func (f *fakeInbox) opened(o *rpc.SessionOpen) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mute {
		return
	}
	epoch := o.Epoch
	if epoch == 0 {
		f.epochs++
		epoch = f.inc<<28 + f.epochs
	}
	// A stream that has ended shows as a failed Recv.
	_ = f.stream.Send(&rpc.OwnerBatch{Opened: []*rpc.SessionOpened{{Conn: o.Conn, Epoch: epoch,
		Privacy: &wire.Privacy{HideLastSeen: f.hidden[o.User]}}}})
}

func (f *fakeInbox) send(t testing.TB, b *rpc.OwnerBatch) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.stream.Send(b); err != nil {
		t.Fatalf("fake inbox: send: %v", err)
	}
}

// next returns the next event of type T and drops others before it.
func next[T any](t testing.TB, events <-chan any) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case e := <-events:
			if v, ok := e.(T); ok {
				return v
			}
		case <-timer.C:
			var want T
			t.Fatalf("no %T came", want)
		}
	}
}

// fakeMessage is a message instance. Sends are answered by answer, and not at
// all while it is nil.
type fakeMessage struct {
	rpc.UnimplementedMessageServer
	srv    *grpc.Server
	addr   string
	got    chan *rpc.Submission
	answer func(*rpc.Submission) *rpc.SubmitResult
}

func startMessage(t testing.TB, addr string, answer func(*rpc.Submission) *rpc.SubmitResult) *fakeMessage {
	t.Helper()
	f := &fakeMessage{srv: rpc.NewServer(), got: make(chan *rpc.Submission, 100_000), answer: answer}
	ln := listen(t, addr)
	f.addr = ln.Addr().String()
	rpc.RegisterMessageServer(f.srv, f)
	go f.srv.Serve(ln)
	t.Cleanup(f.srv.Stop)
	return f
}

func (f *fakeMessage) Submit(s grpc.BidiStreamingServer[rpc.SubmitBatch, rpc.SubmitResultBatch]) error {
	for {
		b, err := s.Recv()
		if err != nil {
			return err
		}
		out := &rpc.SubmitResultBatch{}
		for _, it := range b.Items {
			f.got <- it
			if f.answer != nil {
				r := f.answer(it)
				r.Ref = it.Ref
				out.Items = append(out.Items, r)
			}
		}
		if len(out.Items) > 0 {
			if err := s.Send(out); err != nil {
				return err
			}
		}
	}
}

// accept answers every send with Sent.
func accept(it *rpc.Submission) *rpc.SubmitResult {
	id := wire.IDOf(it.User, it.Device, it.Send.ClientMsgId)
	return &rpc.SubmitResult{Sent: &wire.Sent{ClientMsgId: it.Send.ClientMsgId, MessageId: id[:], AcceptedMs: 1}}
}

// rig is a gateway with its fakes.
type rig struct {
	t       testing.TB
	gw      *Gateway
	addr    string
	url     string
	inbox   *fakeInbox
	message *fakeMessage
	reg     *prometheus.Registry
	stop    context.CancelFunc
	done    chan error
}

// newRig starts a gateway; change may alter its Config first.
func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, reg: prometheus.NewRegistry(), done: make(chan error, 1)}
	r.inbox = startInbox(t, "127.0.0.1:0", 1)
	r.message = startMessage(t, "127.0.0.1:0", accept)
	cfg := Config{ID: "gw-test", Key: testKey(), Messages: []string{r.message.addr}, Inboxes: []string{r.inbox.addr},
		Metrics: r.reg, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		Limits: Limits{DrainTimeout: 200 * time.Millisecond}}
	switch os.Getenv(frontEnv) {
	case "streams":
		cfg.Streams = true
	case "tls":
		var err error
		if cfg.TLS, err = selfSigned(); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(&cfg)
	}
	gw, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.gw = gw
	ln := listen(t, "127.0.0.1:0")
	r.addr = ln.Addr().String()
	r.url = "ws://" + r.addr + wire.Path
	if cfg.TLS != nil {
		r.url = "wss://" + r.addr + wire.Path
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.done <- gw.Run(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-r.done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	r.until("ready", func() bool { return gw.Ready() == nil })
	return r
}

// until waits for a condition that nothing announces.
func (r *rig) until(what string, cond func() bool) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited %v for: %s", patience, what)
		}
		<-tick.C
	}
}

// metric returns the sum of a metric over the series that have all the labels,
// given as "name=value".
func (r *rig) metric(name string, labels ...string) float64 {
	r.t.Helper()
	fams, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range fams {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if hasLabels(m, labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func hasLabels(m *dto.Metric, labels []string) bool {
	have := map[string]bool{}
	for _, l := range m.GetLabel() {
		have[l.GetName()+"="+l.GetValue()] = true
	}
	for _, l := range labels {
		if !have[l] {
			return false
		}
	}
	return true
}

func token(t testing.TB, user uint64, device uint32) string {
	t.Helper()
	s, err := testKey().Sign(wire.Claims{User: user, Device: device, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dialer() *websocket.Dialer {
	return &websocket.Dialer{HandshakeTimeout: patience, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
}

// selfSigned returns a certificate that nobody has to believe.
func selfSigned() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}

// client is a client of the tests over gorilla.
type client struct {
	t      testing.TB
	ws     *websocket.Conn
	format wire.Format
}

func (r *rig) dial(user uint64, device uint32, format wire.Format) *client {
	r.t.Helper()
	h := http.Header{"Authorization": {"Bearer " + token(r.t, user, device)}}
	d := dialer()
	d.Subprotocols = []string{format.Subprotocol()}
	ws, resp, err := d.Dial(r.url, h)
	if err != nil {
		r.t.Fatalf("dial: %v (%v)", err, resp)
	}
	r.t.Cleanup(func() { ws.Close() })
	return &client{t: r.t, ws: ws, format: format}
}

// login dials, syncs, and waits for the session to reach the inbox.
func (r *rig) login(user uint64, device uint32, format wire.Format) (*client, *rpc.SessionOpen) {
	r.t.Helper()
	c := r.dial(user, device, format)
	c.send(&wire.Frame{Kind: &wire.Frame_Sync{Sync: &wire.Sync{InboxSeq: 7}}})
	open := next[*rpc.SessionOpen](r.t, r.inbox.events)
	if open.User != user || open.Device != device || open.InboxSeq != 7 || open.Conn == 0 {
		r.t.Fatalf("session opened as %v", open)
	}
	return c, open
}

func (c *client) send(f *wire.Frame) {
	c.t.Helper()
	b, err := c.format.Encode(f)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.ws.WriteMessage(int(c.format.Opcode()), b); err != nil {
		c.t.Fatalf("client write: %v", err)
	}
}

func (c *client) read() (*wire.Frame, error) {
	if err := c.ws.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	op, b, err := c.ws.ReadMessage()
	if err != nil {
		return nil, err
	}
	if byte(op) != c.format.Opcode() {
		return nil, fmt.Errorf("message of type %d", op)
	}
	if c.format == wire.JSON && !json.Valid(b) {
		return nil, fmt.Errorf("not JSON: %q", b)
	}
	return c.format.Decode(b)
}

func (c *client) recv() *wire.Frame {
	c.t.Helper()
	f, err := c.read()
	if err != nil {
		c.t.Fatalf("client read: %v", err)
	}
	f.CollectStamps()
	return f
}

// closed reads until the connection ends and returns the close code, 0 if it
// ended without one.
func (c *client) closed() wire.CloseCode {
	c.t.Helper()
	for {
		_, err := c.read()
		var ce *websocket.CloseError
		var ne net.Error
		switch {
		case err == nil:
		case errors.As(err, &ce):
			if ce.Code == websocket.CloseAbnormalClosure {
				return 0
			}
			return wire.CloseCode(ce.Code)
		case errors.As(err, &ne) && ne.Timeout():
			c.t.Fatalf("connection was not closed")
		default:
			return 0
		}
	}
}

func deliverFrame(t testing.TB, seq uint64, body string) []byte {
	t.Helper()
	id := wire.IDOf(9, 0, seq)
	b, err := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_Deliver{Deliver: &wire.Deliver{
		MessageId: id[:], From: 9, Seq: seq, Body: []byte(body)}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func deliverTo(t testing.TB, seq uint64, body string, conns ...uint64) *rpc.Outbound {
	return &rpc.Outbound{Frame: deliverFrame(t, seq, body), Conns: conns, Deliver: true}
}
