package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"throng/system/internal/certs"
	"throng/system/internal/obs"
)

// domain ends the names in certificates: that of an inbox instance has the DNS
// name inbox.throng, that of a process of several roles has several.
const domain = ".throng"

// NameOf returns the name of a role in its certificate.
func NameOf(role string) string { return role + domain }

// Identity is how one role shows the others who it is, and what it demands of
// them: mutual TLS with certificates of one CA that name the role, renewed
// without a restart (certs). Both sides refuse who is not whom they expect, see
// callers. A nil Identity is none: the roles then speak without TLS.
type Identity struct {
	role    string
	certs   *certs.Store
	log     *slog.Logger
	said    rate.Sometimes // somebody refused comes again and again
	refused *prometheus.CounterVec
}

// NewIdentity reads the certificate of a role. It is an error if it is not for
// that role.
func NewIdentity(role string, files certs.Files, log *slog.Logger, reg prometheus.Registerer) (*Identity, error) {
	store, err := certs.Open(files, log)
	if err != nil {
		return nil, err
	}
	if err := store.Current().Cert.Leaf.VerifyHostname(NameOf(role)); err != nil {
		return nil, fmt.Errorf("rpc: %s: %w", files.Cert, err)
	}
	refused, err := obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_rpc_refused_total", Help: "Other roles refused for their certificate, by side (client: what was called, server: who called) and at (connect or call)."},
		[]string{"side", "at"}))
	if err != nil {
		return nil, fmt.Errorf("rpc: metrics: %w", err)
	}
	return &Identity{role: role, certs: store, log: log, said: rate.Sometimes{First: 20, Interval: time.Second}, refused: refused}, nil
}

// Dialling is for connections to a role.
func (id *Identity) Dialling(callee string) grpc.DialOption {
	if id == nil {
		return grpc.EmptyDialOption{}
	}
	return grpc.WithTransportCredentials(&handshaker{id, callee})
}

// Serving is for the server of the own role.
func (id *Identity) Serving() []grpc.ServerOption {
	if id == nil {
		return nil
	}
	return []grpc.ServerOption{
		grpc.Creds(&handshaker{id: id}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if err := id.authorise(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return handle(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if err := id.authorise(s.Context(), info.FullMethod); err != nil {
				return err
			}
			return handle(srv, s)
		}),
	}
}

// authorise checks that the caller's role may call a method.
func (id *Identity) authorise(ctx context.Context, method string) error {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "no connection")
	}
	info, ok := from.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return status.Error(codes.Unauthenticated, "no certificate")
	}
	roles := rolesOf(info.State.PeerCertificates[0])
	if mayCall(roles, method) {
		return nil
	}
	err := fmt.Errorf("%s may not be called by %s", method, strings.Join(roles, ", "))
	id.refuse("server", "call", from.Addr, err)
	return status.Error(codes.PermissionDenied, err.Error())
}

// rolesOf returns the roles that a certificate names.
func rolesOf(c *x509.Certificate) (roles []string) {
	for _, name := range c.DNSNames {
		if role, ok := strings.CutSuffix(name, domain); ok {
			roles = append(roles, role)
		}
	}
	return roles
}

// refuse notes that somebody was refused.
func (id *Identity) refuse(side, at string, addr net.Addr, err error) {
	id.refused.WithLabelValues(side, at).Inc()
	id.said.Do(func() {
		if side == "server" {
			id.log.Warn("rpc: a caller is refused", "remote", addr.String(), "err", err)
		} else {
			id.log.Warn("rpc: what answers is refused", "remote", addr.String(), "err", err)
		}
	})
}

// handshaker does the handshakes of an Identity, each with the certificate that
// there is at that moment.
type handshaker struct {
	id     *Identity
	callee string // of a client
}

func (h *handshaker) ClientHandshake(ctx context.Context, _ string, nc net.Conn) (net.Conn, credentials.AuthInfo, error) {
	m := h.id.certs.Current()
	conn, info, err := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: m.CAs,
		// Whatever CAs the server names: it says better what is wrong with a certificate.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.Cert, nil },
	}).ClientHandshake(ctx, NameOf(h.callee), nc)
	return h.shaken("client", nc, conn, info, err)
}

func (h *handshaker) ServerHandshake(nc net.Conn) (net.Conn, credentials.AuthInfo, error) {
	m := h.id.certs.Current()
	conn, info, err := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: m.CAs, Certificates: []tls.Certificate{m.Cert},
		SessionTicketsDisabled: true, // a connection lasts, and its certificate is looked at
		VerifyConnection: func(s tls.ConnectionState) error {
			if roles := rolesOf(s.PeerCertificates[0]); !anyReaches(roles, h.id.role) {
				return fmt.Errorf("rpc: %s may not be called by %q", h.id.role, s.PeerCertificates[0].DNSNames)
			}
			return nil
		},
	}).ServerHandshake(nc)
	return h.shaken("server", nc, conn, info, err)
}

// shaken notes a handshake that failed, and has a connection end with the
// certificate of the other side.
func (h *handshaker) shaken(side string, nc, conn net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
			h.id.refuse(side, "connect", nc.RemoteAddr(), err)
		}
		return nil, nil, err
	}
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		end := time.AfterFunc(time.Until(t.State.PeerCertificates[0].NotAfter), func() { conn.Close() })
		conn = expiring{conn, end}
	}
	return conn, info, nil
}

// expiring is a connection that a timer ends.
type expiring struct {
	net.Conn
	end *time.Timer
}

func (e expiring) Close() error {
	e.end.Stop()
	return e.Conn.Close()
}

func (h *handshaker) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (h *handshaker) Clone() credentials.TransportCredentials { c := *h; return &c }
func (h *handshaker) OverrideServerName(string) error         { return nil }
