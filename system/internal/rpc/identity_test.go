package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"throng/system/internal/certs"
)

// openInbox answers whoever gets as far as that.
type openInbox struct{ UnimplementedInboxServer }

func (openInbox) Unknown(context.Context, *Users) (*Users, error) {
	return &Users{Users: []uint64{7}}, nil
}
func (openInbox) Append(s grpc.BidiStreamingServer[AppendBatch, AppendResultBatch]) error {
	_, err := s.Recv()
	return err
}

// lockedLog is a log that several goroutines write.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// office issues certificates into a folder of the test.
type office struct {
	t   *testing.T
	dir string
	*certs.Authority
}

func newOffice(t *testing.T) *office {
	t.Helper()
	dir := t.TempDir()
	a, err := certs.OpenAuthority(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	return &office{t, dir, a}
}

// issue makes or renews the certificate of that file name.
func (o *office) issue(file string, notAfter time.Time, names ...string) certs.Files {
	o.t.Helper()
	if err := o.IssueTo(o.dir, file, notAfter, names...); err != nil {
		o.t.Fatal(err)
	}
	return certs.Files{CA: filepath.Join(o.dir, "ca.pem"), Cert: filepath.Join(o.dir, file+".pem"), Key: filepath.Join(o.dir, file+".key")}
}

func (o *office) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(o.PEM())
	return pool
}

func identity(t *testing.T, role string, f certs.Files, log *lockedLog) *Identity {
	t.Helper()
	id, err := NewIdentity(role, f, slog.New(slog.NewTextHandler(log, nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// serveInbox serves an inbox that shows id.
func serveInbox(t *testing.T, id *Identity) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(id.Serving()...)
	RegisterInboxServer(srv, openInbox{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return ln.Addr().String()
}

func dialInbox(t *testing.T, addr string, opts ...grpc.DialOption) InboxClient {
	t.Helper()
	conn, err := Dial(addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return NewInboxClient(conn)
}

func ask(t *testing.T, c InboxClient) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := c.Unknown(ctx, &Users{})
	return err
}

// TestStrangersAreRefused: who has no certificate, a wrong or an old one, or one
// of a role that has no business here, is refused with a line that says why, and
// who has a good one goes on being served.
func TestStrangersAreRefused(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	later := time.Now().Add(time.Hour)
	o, elsewhere, log := newOffice(t), newOffice(t), &lockedLog{}
	addr := serveInbox(t, identity(t, "inbox", o.issue("inbox", later, "inbox.throng"), log))
	good := dialInbox(t, addr, identity(t, "group", o.issue("group", later, "group.throng"), log).Dialling("inbox"))
	if err := ask(t, good); err != nil {
		t.Fatalf("the group service: %v\n%s", err, log)
	}
	foreign := elsewhere.issue("group", later, "group.throng")
	foreign.CA = filepath.Join(o.dir, "ca.pem") // it believes the inbox
	without := grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: o.pool(), ServerName: "inbox.throng"}))
	for name, c := range map[string]struct {
		opt  grpc.DialOption
		says string
	}{
		"no TLS":         {grpc.EmptyDialOption{}, "does not look like a TLS handshake"},
		"no certificate": {without, "didn't provide a certificate"},
		"another CA":     {identity(t, "group", foreign, log).Dialling("inbox"), "unknown authority"},
		"expired":        {identity(t, "group", o.issue("old", time.Now().Add(-time.Minute), "group.throng"), log).Dialling("inbox"), "expired"},
		"wrong role":     {identity(t, "media", o.issue("media", later, "media.throng"), log).Dialling("inbox"), `inbox may not be called by [\"media.throng\"]`},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(log.String())
			if err := ask(t, dialInbox(t, addr, c.opt)); err == nil {
				t.Fatal("was served")
			}
			waitUntil(t, func() bool {
				said := log.String()[before:]
				return strings.Contains(said, "a caller is refused") && strings.Contains(said, c.says)
			})
			if err := ask(t, good); err != nil {
				t.Errorf("the group service: %v", err)
			}
		})
	}
}

// TestImpostor: a caller refuses who does not have the name of the role it calls.
func TestImpostor(t *testing.T) {
	later, o, log := time.Now().Add(time.Hour), newOffice(t), &lockedLog{}
	addr := serveInbox(t, identity(t, "inbox", o.issue("inbox", later, "inbox.throng"), &lockedLog{}))
	id := identity(t, "inbox", o.issue("other", later, "inbox.throng"), log)
	if err := ask(t, dialInbox(t, addr, id.Dialling("push"))); err == nil {
		t.Fatal("an inbox passed for a push instance")
	}
	if said := log.String(); !strings.Contains(said, "what answers is refused") || !strings.Contains(said, "valid for inbox.throng, not push.throng") {
		t.Errorf("the log says %s", said)
	}
	if _, err := NewIdentity("push", o.issue("mine", later, "inbox.throng"), slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil || !strings.Contains(err.Error(), "not push.throng") {
		t.Errorf("a role with the certificate of another one: %v", err)
	}
}

// TestCallsAreRefused: who may call a role may not call all of it.
func TestCallsAreRefused(t *testing.T) {
	later, o, log := time.Now().Add(time.Hour), newOffice(t), &lockedLog{}
	addr := serveInbox(t, identity(t, "inbox", o.issue("inbox", later, "inbox.throng"), log))
	gateway := dialInbox(t, addr, identity(t, "gateway", o.issue("gateway", later, "gateway.throng"), log).Dialling("inbox"))
	if err := ask(t, gateway); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a gateway asked who is not provisioned: %v", err)
	}
	stream, err := gateway.Append(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a gateway appended: %v", err)
	}
	if said := log.String(); !strings.Contains(said, "/throng.rpc.Inbox/Append may not be called by gateway") {
		t.Errorf("the log says %s", said)
	}
	// A process of several roles may do what one of them may.
	both := identity(t, "gateway", o.issue("both", later, "gateway.throng", "group.throng"), log)
	if err := ask(t, dialInbox(t, addr, both.Dialling("inbox"))); err != nil {
		t.Errorf("a process that is a group service too: %v", err)
	}
}

// TestRenewal: a certificate that is renewed on disk is used without a restart, a
// connection does not outlive the one it began with, and what is in the middle of
// being written hurts nobody.
func TestRenewal(t *testing.T) {
	o, log := newOffice(t), &lockedLog{}
	server := o.issue("inbox", time.Now().Add(time.Hour), "inbox.throng")
	addr := serveInbox(t, identity(t, "inbox", server, log))
	soon := time.Now().Add(2 * time.Second)
	client := identity(t, "group", o.issue("group", soon, "group.throng"), log)
	conn := dialInbox(t, addr, client.Dialling("inbox"))
	if err := ask(t, conn); err != nil && time.Now().Before(soon.Add(-time.Second)) {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { return time.Now().After(soon) && ask(t, conn) != nil })
	waitUntil(t, func() bool { return strings.Contains(log.String(), "certificate has expired") })

	valid := o.issue("group", time.Now().Add(time.Hour), "group.throng")
	waitUntil(t, func() bool { return ask(t, conn) == nil })
	if err := os.WriteFile(valid.Cert, []byte("half of a certif"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, dialInbox(t, addr, client.Dialling("inbox"))); err != nil {
		t.Errorf("with files that are being written: %v", err)
	}
	if said := log.String(); !strings.Contains(said, "cannot be used") {
		t.Errorf("the log says nothing of it: %s", said)
	}
}

// TestProfileIsWhole: every method has callers, and nobody else is in the profile.
func TestProfileIsWhole(t *testing.T) {
	methods := 0
	for _, d := range []grpc.ServiceDesc{Message_ServiceDesc, Inbox_ServiceDesc, Receipts_ServiceDesc, Push_ServiceDesc, Group_ServiceDesc} {
		var names []string
		for _, m := range d.Methods {
			names = append(names, m.MethodName)
		}
		for _, s := range d.Streams {
			names = append(names, s.StreamName)
		}
		for _, n := range names {
			methods++
			if _, ok := callers["/"+d.ServiceName+"/"+n]; !ok {
				t.Errorf("%s.%s: who may call it?", d.ServiceName, n)
			}
		}
	}
	if methods != len(callers) {
		t.Errorf("%d methods, %d entries", methods, len(callers))
	}
	if got := Reaches("inbox"); !slices.Equal(got, []string{"inbox", "push"}) {
		t.Errorf("the inbox reaches %v", got)
	}
}
