package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"throng/sim/history"
	"throng/sim/report"
)

// authority returns a certificate for 127.0.0.1 that signs itself, and the file
// that clients need to believe it.
func authority(t *testing.T) (cert tls.Certificate, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "throng test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// terminate takes TLS connections and passes what comes in them on to a plain
// address. It returns where it listens, and counts connections.
func terminate(t *testing.T, cert tls.Certificate, plain string, taken *atomic.Int64) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	wg.Go(func() {
		for {
			outside, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer outside.Close()
				inside, err := net.Dial("tcp", plain)
				if err != nil {
					return
				}
				defer inside.Close()
				taken.Add(1)
				// Where one direction ends, the other has nobody to talk to.
				wg.Go(func() {
					_, _ = io.Copy(inside, outside)
					_, _ = inside.Close(), outside.Close()
				})
				_, _ = io.Copy(outside, inside)
			})
		}
	})
	return ln.Addr().String()
}

// A deployment behind TLS, with a certificate that only the target file vouches
// for: gateways, provisioning and pushes.
func TestExternalTLS(t *testing.T) {
	if raceEnabled {
		t.Skip("the same run as TestExternal, encrypted")
	}
	tgt, key := somebodys(t)
	cert, ca := authority(t)
	var taken atomic.Int64
	gateway := terminate(t, cert, strings.TrimPrefix(tgt.Gateways()[0], "ws://"), &taken)
	https := func(plain string) string {
		u, err := url.Parse(plain)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }, FlushInterval: -1,
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }})
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	file := fmt.Sprintf("gateways: [\"wss://%s\"]\nkey: %s\nprovisioning_url: %s\npushes_url: %s\n",
		gateway, key, https("http://"+tgt.Config().Groups[0].HTTP), https(tgt.Config().Provider.URL))
	code, dir, said := outside(t, fmt.Sprintf(externalScenario, ""), file+"ca_file: "+ca+"\n")
	res, err := report.Read(dir)
	if err != nil {
		t.Fatalf("exit code %d: %v\n%s", code, err, said)
	}
	h, err := history.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	pushes := int64(0)
	for _, s := range h.Seconds {
		pushes += s.Pushes
	}
	if !passed(code, res) || res.Audit.Proved < 300 || pushes == 0 || taken.Load() < 20 {
		t.Errorf("exit code %d, %d connections, %d pushes, audit %+v\n%s", code, taken.Load(), pushes, res.Audit, said)
	}
	if code, _, said = outside(t, fmt.Sprintf(externalScenario, ""), file); code != exitUnavailable || !strings.Contains(said, "certificate signed by unknown authority") {
		t.Errorf("without the certificate: exit code %d\n%s", code, said)
	}
}
