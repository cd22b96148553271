package system_test

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"throng/system"
	"throng/system/wire"
)

// upgrade asks a gateway for a connection and returns the status of its answer
// and, of TLS, the serial number of its certificate.
func upgrade(t *testing.T, url, token, origin string) (status int, serial string) {
	t.Helper()
	dialer := websocket.Dialer{HandshakeTimeout: 10 * time.Second, Subprotocols: []string{wire.SubprotocolProto},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	h := http.Header{"Authorization": {"Bearer " + token}}
	if origin != "" {
		h.Set("Origin", origin)
	}
	ws, resp, err := dialer.DialContext(t.Context(), url+wire.Path, h)
	if resp == nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err != nil {
		return resp.StatusCode, ""
	}
	defer ws.Close()
	if c, ok := ws.NetConn().(*tls.Conn); ok {
		serial = c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	return resp.StatusCode, serial
}

// TestRoleTLS: everything works with TLS between the roles, and certificates are
// renewed under it.
func TestRoleTLS(t *testing.T) {
	dir := t.TempDir()
	d := startAll(t, counts{gateways: 1, messages: 2, fanouts: 1, groups: 2, inboxes: 2, pushes: 1}, func(c *system.Config) {
		set, err := system.WriteCertificates(dir, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c.RPCTLS = set
	})
	inbox, err := tls.Dial("tcp", d.cfg.Inboxes[0].RPC, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatalf("the inbox does not speak TLS: %v", err)
	}
	if err := inbox.ConnectionState().PeerCertificates[0].VerifyHostname("inbox.throng"); err != nil {
		t.Error(err)
	}
	inbox.Close()
	d.provision(6, 1, map[uint64][]uint64{9: {1, 2, 3, 4}})
	a, b := d.dial(1, 0), d.dial(2, 0)
	b.awaitCurrent()
	a.send(wire.Conversation{User: 2}, "direct")
	a.send(wire.Conversation{Group: 9}, "group")
	b.awaitBodies(1, 0, "direct")
	b.awaitBodies(1, 9, "group")
	if res := d.changeMembers(9, []uint64{5}, nil); res.Version == 0 { // group service to the inboxes, and to its peer
		t.Error("no version")
	}
	a.send(wire.Conversation{User: 6}, "to somebody who is away") // inbox to push
	d.in.provider.await(t, "token-6")

	if _, err := system.WriteCertificates(dir, time.Hour); err != nil {
		t.Fatal(err)
	}
	a.send(wire.Conversation{User: 2}, "renewed")
	b.awaitBodies(1, 0, "direct", "renewed")
}

// TestGatewayTLS: a gateway with a certificate speaks wss, and what is renewed on
// disk is what the next client sees.
func TestGatewayTLS(t *testing.T) {
	dir := t.TempDir()
	renew := func() {
		if _, err := system.WriteCertificates(dir, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	renew()
	d := startAll(t, counts{1, 1, 1, 1, 1, 1}, func(c *system.Config) {
		c.Gateways[0].TLSCert, c.Gateways[0].TLSKey = filepath.Join(dir, "gateway.pem"), filepath.Join(dir, "gateway.key")
	})
	token, err := d.key.Sign(wire.Claims{User: 1, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	status, first := upgrade(t, "wss://"+d.gateways()[0], token, "")
	if status != http.StatusSwitchingProtocols || first == "" {
		t.Fatalf("status %d", status)
	}
	renew()
	if status, second := upgrade(t, "wss://"+d.gateways()[0], token, ""); status != http.StatusSwitchingProtocols || second == first {
		t.Errorf("after the renewal: status %d, the same certificate %v", status, second == first)
	}
	if err := os.WriteFile(filepath.Join(dir, "gateway.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _ := upgrade(t, "wss://"+d.gateways()[0], token, ""); status != http.StatusSwitchingProtocols {
		t.Errorf("with a certificate that is being written: status %d", status)
	}
	if status, _ := upgrade(t, "wss://"+d.gateways()[0], token+"x", ""); status != http.StatusUnauthorized {
		t.Errorf("a token that is wrong: status %d", status)
	}
}

// badTokens are tokens that no part of the backend may take.
func badTokens(t *testing.T, key wire.Key) map[string]string {
	t.Helper()
	sign := func(k wire.Key, c wire.Claims) string {
		token, err := k.Sign(c)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	later := time.Now().Add(time.Hour)
	good := sign(key, wire.Claims{User: 1, Admin: true, Expires: later})
	header, rest, _ := strings.Cut(good, ".")
	payload, mac, _ := strings.Cut(rest, ".")
	b64 := base64.RawURLEncoding
	another := b64.EncodeToString([]byte(fmt.Sprintf(`{"sub":"2","exp":%d,"dev":0,"adm":true}`, later.Unix())))
	claims := jwt.MapClaims{"sub": "1", "exp": later.Unix(), "dev": 0, "adm": true}
	with := func(m jwt.SigningMethod, k any) string {
		token, err := jwt.NewWithClaims(m, claims).SignedString(k)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	// What is signed with the public half of a key, as if it were a secret.
	confused := b64.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + payload
	sum := hmac.New(sha256.New, key)
	sum.Write([]byte(confused))
	wrong := make(wire.Key, wire.MinKeyBytes)
	rand.Read(wrong)
	return map[string]string{
		"none at all":      "",
		"garbage":          "a.b.c",
		"forged claims":    header + "." + another + "." + mac,
		"cut signature":    good[:len(good)-4],
		"no signature":     header + "." + payload + ".",
		"expired":          sign(key, wire.Claims{User: 1, Admin: true, Expires: time.Now().Add(-time.Minute)}),
		"wrong key":        sign(wrong, wire.Claims{User: 1, Admin: true, Expires: later}),
		"alg none":         with(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType),
		"alg RS256":        with(jwt.SigningMethodRS256, rsaKey),
		"alg HS512":        with(jwt.SigningMethodHS512, []byte(key)),
		"alg in name only": confused + "." + b64.EncodeToString(sum.Sum(nil)),
	}
}

// TestBadTokens: neither the gateways nor the provisioning API nor the media
// service takes a token that is not what it should be, and pages of others are
// refused.
func TestBadTokens(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 1, 1}, withMedia(t, anyPort, 1))
	gateway := "ws://" + d.gateways()[0]
	doors := map[string]string{
		"provisioning": "http://" + d.cfg.Groups[0].HTTP + "/admin/v1/provision",
		"media":        "http://" + d.cfg.Medias[0].Listen + wire.MediaUploadsPath,
	}
	post := func(url, token string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Tus-Resumable", "1.0.0")
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for name, token := range badTokens(t, d.key) {
		if status, _ := upgrade(t, gateway, token, ""); status != http.StatusUnauthorized {
			t.Errorf("%s: the gateway answers %d", name, status)
		}
		for door, url := range doors {
			if status := post(url, token); status != http.StatusUnauthorized {
				t.Errorf("%s: %s answers %d", name, door, status)
			}
		}
	}
	good, err := d.key.Sign(wire.Claims{User: 1, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for origin, want := range map[string]int{"": 101, gateway: 101, "https://evil.example": 403} {
		if status, _ := upgrade(t, gateway, good, origin); status != want {
			t.Errorf("origin %q: %d, want %d", origin, status, want)
		}
	}
	for door, url := range doors {
		if status := post(url, good); status == http.StatusOK || door == "provisioning" && status != http.StatusUnauthorized && status != http.StatusForbidden {
			t.Errorf("%s answers %d to a user who brings nothing", door, status)
		}
	}
}
