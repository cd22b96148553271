package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Authority signs certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// authorityLife is how long an authority is good for.
const authorityLife = 10 * 365 * 24 * time.Hour

// clockSkew is how far the clock of who is shown a certificate may be behind.
const clockSkew = time.Hour

// NewAuthority makes an authority.
func NewAuthority(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	t, err := template(name, time.Now().Add(authorityLife))
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	return &Authority{cert, key}, nil
}

// OpenAuthority reads the authority in ca.pem and ca.key of a folder, or makes
// one there.
func OpenAuthority(dir, name string) (*Authority, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if errors.Is(err, os.ErrNotExist) {
		a, err := NewAuthority(name)
		if err != nil {
			return nil, err
		}
		return a, a.write(dir)
	}
	keyPEM, kerr := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err := errors.Join(err, kerr); err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("certs: ca.pem and ca.key in %s: %w", dir, errNoCA)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certs: ca.pem: %w", err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certs: ca.key: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("certs: ca.key in %s is not the ECDSA key of ca.pem: %w", dir, errNoCA)
	}
	return &Authority{cert, ec}, nil
}

func (a *Authority) write(dir string) error {
	keyPEM, err := pemKey(a.key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("certs: %w", err)
	}
	return errors.Join(replace(filepath.Join(dir, "ca.key"), keyPEM), replace(filepath.Join(dir, "ca.pem"), a.PEM()))
}

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return pemCert(a.cert.Raw) }

// Issue returns a certificate with these DNS names, good until notAfter for
// clients and servers, and its key.
func (a *Authority) Issue(notAfter time.Time, names ...string) (certPEM, keyPEM []byte, err error) {
	t, err := template(names[0], notAfter)
	if err != nil {
		return nil, nil, err
	}
	t.DNSNames, t.KeyUsage = names, x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("certs: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("certs: %w", err)
	}
	keyPEM, err = pemKey(key)
	return pemCert(der), keyPEM, err
}

// IssueTo writes what Issue returns to name.pem and name.key of a folder, each
// at once and the key first: who reads in between finds that they do not belong
// together, and keeps what there was.
func (a *Authority) IssueTo(dir, name string, notAfter time.Time, names ...string) error {
	certPEM, keyPEM, err := a.Issue(notAfter, names...)
	if err != nil {
		return err
	}
	return errors.Join(replace(filepath.Join(dir, name+".key"), keyPEM), replace(filepath.Join(dir, name+".pem"), certPEM))
}

func template(name string, notAfter time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-clockSkew), NotAfter: notAfter}, nil
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func pemKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// replace puts a new file into the place of name.
func replace(name string, data []byte) error {
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return fmt.Errorf("certs: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("certs: %w", err)
	}
	return nil
}
