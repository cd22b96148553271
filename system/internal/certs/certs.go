// Package certs keeps a TLS certificate that others renew on disk: it is read
// again when its files have changed, so that nobody has to restart anything. It
// knows PEM files alone, no role and no protocol.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Files are PEM files.
type Files struct {
	CA   string // who signs the certificates of others; empty: nobody is checked against it
	Cert string // the own certificate, with those between it and the CA
	Key  string
}

// Material is what the files held when they were read last.
type Material struct {
	Cert tls.Certificate
	CAs  *x509.CertPool // nil without Files.CA
}

// Store is the certificate in some files. Its methods can be called from several
// goroutines.
type Store struct {
	files Files
	log   *slog.Logger

	mu    sync.Mutex
	stamp [3]stamp // of the files when they were last tried
	now   *Material
}

// stamp tells one state of a file from another.
type stamp struct {
	at   time.Time
	size int64
}

// Open reads the files, which must be whole. log is told of later changes.
func Open(f Files, log *slog.Logger) (*Store, error) {
	s := &Store{files: f, log: log, stamp: f.stamps()}
	var err error
	if s.now, err = f.read(); err != nil {
		return nil, err
	}
	s.warn()
	return s, nil
}

// Current returns what is in the files now. While they cannot be read or do not
// belong together, as in the middle of a renewal, it returns what was in them
// before. It costs a look at each file.
func (s *Store) Current() *Material {
	stamps := s.files.stamps()
	s.mu.Lock()
	defer s.mu.Unlock()
	if stamps == s.stamp {
		return s.now
	}
	m, err := s.files.read()
	s.stamp = stamps
	if err != nil {
		s.log.Warn("certificate: the files have changed and cannot be used, going on with what was in them", "err", err)
		return s.now
	}
	s.now = m
	s.log.Info("certificate: read again", "file", s.files.Cert, "expires", m.Cert.Leaf.NotAfter)
	s.warn()
	return m
}

// warn says what others will say of a certificate that has expired.
func (s *Store) warn() {
	if leaf := s.now.Cert.Leaf; time.Now().After(leaf.NotAfter) {
		s.log.Error("certificate: it has expired, others will refuse it", "file", s.files.Cert, "expired", leaf.NotAfter)
	}
}

func (f Files) stamps() (out [3]stamp) {
	for i, name := range []string{f.CA, f.Cert, f.Key} {
		if info, err := os.Stat(name); err == nil {
			out[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return out
}

func (f Files) read() (*Material, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("certs: %s and %s: %w", f.Cert, f.Key, err)
	}
	m := &Material{Cert: cert}
	if f.CA == "" {
		return m, nil
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	m.CAs = x509.NewCertPool()
	if !m.CAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certs: %s: %w", f.CA, errNoCA)
	}
	return m, nil
}

var errNoCA = errors.New("no certificate in it")
