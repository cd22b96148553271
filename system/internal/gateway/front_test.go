package gateway

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"throng/system/wire"
)

// frontEnv says in front of what the tests' gateways are: "streams", "tls", or
// the cheapest there is.
const frontEnv = "THRONG_GATEWAY_TEST_FRONT"

// TestFronts runs all the tests of this package again, in a process of their
// own, with the fronts that they do not have by themselves on Linux.
func TestFronts(t *testing.T) {
	if os.Getenv(frontEnv) != "" {
		t.Skip("runs in itself")
	}
	fronts := []string{"tls", "streams"} // the first has all the code of the second
	if testing.Short() {
		fronts = fronts[:1]
	}
	for _, front := range fronts {
		t.Run(front, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.count=1", "-test.timeout=5m")
			cmd.Env = append(os.Environ(), frontEnv+"="+front)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// tcpOf returns the socket under a client.
func tcpOf(c *client) *net.TCPConn {
	nc := c.ws.NetConn()
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return nc.(*net.TCPConn)
}

func (r *rig) raw() net.Conn {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.addr)
	if err == nil && strings.HasPrefix(r.url, "wss:") {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
	}
	if err == nil {
		err = nc.SetDeadline(time.Now().Add(patience))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { nc.Close() })
	return nc
}

func upgradeRequest(t testing.TB, user uint64) string {
	return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: %s\r\nAuthorization: Bearer %s\r\n\r\n",
		wire.Path, wire.SubprotocolProto, token(t, user, 0))
}

// A request may come in any pieces, and what is no request is answered.
func TestHandshakes(t *testing.T) {
	r := newRig(t, nil)
	good := upgradeRequest(t, 1)
	for _, tc := range []struct {
		name   string
		pieces []string
		want   string
	}{
		{"in one piece", []string{good}, "HTTP/1.1 101 "},
		{"in three", []string{good[:30], good[30 : len(good)-1], good[len(good)-1:]}, "HTTP/1.1 101 "},
		{"not HTTP", []string{"\x16\x03\x01 hello\r\n\r\n"}, "HTTP/1.1 400 "},
		{"another path", []string{"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"}, "HTTP/1.1 404 "},
		{"no WebSocket", []string{strings.Replace(good, "Upgrade: websocket", "X: y", 1)}, "HTTP/1.1 400 "},
		{"too long", []string{good[:len(good)-2], "X: " + strings.Repeat("y", 4*maxHeaderBytes) + "\r\n\r\n"}, "HTTP/1.1 431 "},
		{"more than the request", []string{good + "\x82\x82\x00\x00\x00\x00\x0a\x00"}, ""},
		{"the end", []string{good[:30], ""}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nc := r.raw()
			for _, p := range tc.pieces {
				if p == "" {
					nc.(interface{ CloseWrite() error }).CloseWrite()
					break
				}
				if _, err := nc.Write([]byte(p)); err != nil {
					t.Fatal(err)
				}
			}
			got, _ := io.ReadAll(io.LimitReader(nc, int64(max(len(tc.want), 1))))
			if tc.want != "" && string(got) != tc.want || tc.want == "" && bytes.Contains(got, []byte("101")) {
				t.Errorf("answer %q, want %q", got, tc.want)
			}
		})
	}
	r.until("no handshake is under way", func() bool { return r.gw.handshakes.Load() == 0 })
}

// A client that ends in the middle of everything leaves nothing behind.
func TestHalfOpen(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Limits.HandshakeTimeout = 300 * time.Millisecond
		cfg.Limits.MaxHandshakes = 8
	})
	silent := r.raw()
	if _, err := silent.Write([]byte("GET ")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, silent); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("an unfinished request was waited for")
	}
	r.until("no handshake is under way", func() bool { return r.gw.handshakes.Load() == 0 })
	half, _ := r.login(1, 0, wire.Proto)
	if _, err := half.ws.NetConn().Write([]byte{0x82, 0xfe, 0x10, 0x00, 1, 2}); err != nil { // most of a frame
		t.Fatal(err)
	}
	tcpOf(half).CloseWrite()
	if code := half.closed(); code != 0 {
		t.Errorf("closed with %v", code)
	}
	reset, _ := r.login(2, 0, wire.Proto)
	tcpOf(reset).SetLinger(0)
	tcpOf(reset).Close()
	r.until("nobody is connected", func() bool { return r.metric("throng_ws_connections") == 0 })
	if resp, err := http.Get("http://" + r.addr + "/"); err == nil { // still takes requests; TLS refuses this one
		resp.Body.Close()
	}
}

// One connection that sends without a pause does not keep the others waiting.
func TestFlood(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Limits.FramesPerSecond, cfg.Limits.FrameBurst, cfg.Limits.UserByteRate = 1<<20, 1<<20, -1
	})
	flood, _ := r.login(1, 0, wire.Proto)
	ping := bytes.Repeat(wire.AppendClientMessage(nil, wire.OpPong, make([]byte, 100), [4]byte{1, 2, 3, 4}), 1000)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := flood.ws.NetConn().Write(ping); err != nil {
					t.Errorf("the flood was cut off: %v", err)
					return
				}
			}
		}
	}()
	for i := range uint64(8) { // some share the flood's loop
		c, _ := r.login(10+i, 0, wire.Proto)
		c.pingPong()
	}
	close(stop)
	<-done
}
