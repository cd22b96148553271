package wan

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"throng/system"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// halfPipe is an end of a net.Pipe, whose every write is one read at the other
// end and takes no time.
type halfPipe struct{ net.Conn }

func (h halfPipe) CloseWrite() error { return h.Close() }

func testLine(t *testing.T, delay, jitter time.Duration) *line {
	t.Helper()
	m, err := newMeter(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return newLine(Link{From: "far", To: "near", Delay: system.Duration(delay), Jitter: system.Duration(jitter)}, m)
}

// TestDirection: in virtual time every piece arrives exactly one delay after it
// was sent, whatever is ahead of it, and so does the end.
func TestDirection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 40 * time.Millisecond
		in, from := net.Pipe()
		to, out := net.Pipe()
		ended := make(chan error, 1)
		start := time.Now()
		since := start.Add(5 * time.Millisecond)
		go func() { ended <- testLine(t, delay, 0).direction(t.Context(), from, halfPipe{to}, since) }()
		sent := []time.Duration{0, 0, 10 * time.Millisecond, 11 * time.Millisecond, 300 * time.Millisecond}
		go func() {
			for i, at := range sent {
				time.Sleep(time.Until(start.Add(at)))
				if _, err := in.Write([]byte{byte(i)}); err != nil {
					t.Error(err)
				}
			}
			in.Close()
		}()
		for i, at := range sent {
			var b [1]byte
			if _, err := io.ReadFull(out, b[:]); err != nil {
				t.Fatal(err)
			}
			want := max(at, since.Sub(start)) + delay
			if got := time.Since(start); b[0] != byte(i) || got != want {
				t.Errorf("piece %d came as %d after %s, want %s", i, b[0], got, want)
			}
		}
		if _, err := out.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(start) != 340*time.Millisecond {
			t.Errorf("the end came after %s: %v", time.Since(start), err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestJitter: delays differ, each between the delay and delay + jitter after it
// was sent or with the one ahead, and nothing overtakes.
func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay, jitter, n, gap = 40 * time.Millisecond, 20 * time.Millisecond, 200, 5 * time.Millisecond
		in, from := net.Pipe()
		to, out := net.Pipe()
		go func() { _ = testLine(t, delay, jitter).direction(t.Context(), from, halfPipe{to}, time.Now()) }()
		start := time.Now()
		go func() {
			for i := range n {
				_, _ = in.Write([]byte{byte(i)})
				time.Sleep(gap)
			}
			in.Close()
		}()
		took := map[time.Duration]bool{}
		for i := range n {
			var b [1]byte
			if _, err := io.ReadFull(out, b[:]); err != nil {
				t.Fatal(err)
			}
			d := time.Since(start) - time.Duration(i)*gap
			if b[0] != byte(i) || d < delay || d > delay+jitter {
				t.Fatalf("piece %d came as %d after %s", i, b[0], d)
			}
			took[d] = true
		}
		if len(took) < n/4 {
			t.Errorf("%d different delays of %d", len(took), n)
		}
		_, _ = out.Read(make([]byte, 1))
	})
}

// TestWindow: who sends faster than the line takes has to wait, and what is on
// its way stays bounded.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, from := net.Pipe()
		to, out := net.Pipe()
		go func() { _ = testLine(t, time.Second, 0).direction(t.Context(), from, halfPipe{to}, time.Now()) }()
		written := 0
		var mu sync.Mutex
		go func() {
			defer in.Close()
			for range 3 * windowChunks {
				if _, err := in.Write([]byte{1}); err != nil {
					return
				}
				mu.Lock()
				written++
				mu.Unlock()
			}
		}()
		synctest.Wait()
		mu.Lock()
		first := written
		mu.Unlock()
		if first < windowChunks || first > windowChunks+4 {
			t.Errorf("%d pieces were taken at once, the window is %d", first, windowChunks)
		}
		n, err := io.Copy(io.Discard, out)
		if n != 3*windowChunks || err != nil {
			t.Errorf("%d of %d bytes came: %v", n, 3*windowChunks, err)
		}
	})
}

// proxied starts a server and a proxy in front of it, and returns where to
// connect.
func proxied(t *testing.T, delay time.Duration, serve func(*net.TCPConn)) (addr string, stop func()) {
	t.Helper()
	server := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	front := listen(t)
	l := testLine(t, delay, 0)
	l.Addr = server.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.serve(ctx, front) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		server.Close()
		serving.Wait()
	})
	t.Cleanup(stop)
	return front.Addr().String(), stop
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// TestRoundTrips over real sockets: the handshake and each round trip take what
// they should at least, and what is on its way does not queue up.
func TestRoundTrips(t *testing.T) {
	const delay, n = 30 * time.Millisecond, 200
	addr, _ := proxied(t, delay, echo)
	start := time.Now()
	c := dial(t, addr)
	trip := func(i uint32) {
		if err := binary.Write(c, binary.BigEndian, i); err != nil {
			t.Fatal(err)
		}
		var got uint32
		if err := binary.Read(c, binary.BigEndian, &got); err != nil || got != i {
			t.Fatalf("%d came back for %d: %v", got, i, err)
		}
	}
	trip(1)
	if took := time.Since(start); took < 4*delay {
		t.Errorf("connect and a round trip took %s, less than two round trips", took)
	}
	start = time.Now()
	trip(2)
	if took := time.Since(start); took < 2*delay {
		t.Errorf("a round trip took %s, want at least %s", took, 2*delay)
	}
	start = time.Now()
	var sending sync.WaitGroup
	sending.Go(func() {
		for i := range uint32(n) {
			if err := binary.Write(c, binary.BigEndian, i); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range uint32(n) {
		var got uint32
		if err := binary.Read(c, binary.BigEndian, &got); err != nil || got != i {
			t.Fatalf("%d came back for %d: %v", got, i, err)
		}
	}
	sending.Wait()
	if took := time.Since(start); took > n*delay/2 {
		t.Errorf("%d at once took %s, as if each had waited for the one ahead", n, took)
	}
}

// TestServerSpeaksFirst: its greeting is there after the handshake and its own way.
func TestServerSpeaksFirst(t *testing.T) {
	const delay = 20 * time.Millisecond
	addr, _ := proxied(t, delay, func(c *net.TCPConn) {
		fmt.Fprintln(c, "hello")
		_, _ = io.Copy(io.Discard, c)
	})
	start := time.Now()
	c := dial(t, addr)
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 4*delay {
		t.Errorf("the greeting took %s, want two round trips of %s", took, 2*delay)
	}
}

// TestHalfClose: the end of one direction leaves the other open, and nothing
// of a large transfer is lost.
func TestHalfClose(t *testing.T) {
	addr, _ := proxied(t, 10*time.Millisecond, func(c *net.TCPConn) {
		all, err := io.ReadAll(c) // until the client has ended its direction
		if err == nil {
			_, _ = c.Write(all)
		}
	})
	c := dial(t, addr)
	sent := make([]byte, 8<<20) // twice the window
	rand.Read(sent)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back of %d: %v", len(got), len(sent), err)
	}
}

// TestRefused: an endpoint that is down looks as if the connection broke, a
// round trip later.
func TestRefused(t *testing.T) {
	const delay = 20 * time.Millisecond
	addr, stop := proxied(t, delay, echo)
	gone := listen(t)
	gone.Close()
	stop() // of the echo; this test has a line of its own
	front, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	l := testLine(t, delay, 0)
	l.Addr = gone.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.serve(ctx, front) }()
	start := time.Now()
	c := dial(t, addr)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a refused connection ended with %v", err)
	}
	if took := time.Since(start); took < 2*delay {
		t.Errorf("the refusal took %s", took)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestBroken: when one end breaks the connection, the other end learns it.
func TestBroken(t *testing.T) {
	broken := make(chan error, 1)
	addr, _ := proxied(t, 10*time.Millisecond, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		broken <- err
	})
	c := dial(t, addr)
	fmt.Fprintln(c, "hello")
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case err := <-broken:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server saw %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the server did not learn that the client has gone")
	}
}

// TestRun: a deployment's proxies listen, count, and end cleanly with
// connections open and bytes on their way.
func TestRun(t *testing.T) {
	server := listen(t)
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := server.Accept(); err == nil {
			accepted <- c
		}
	}()
	front, debug := listen(t), listen(t)
	bound := map[string]net.Listener{"front": front, "debug": debug}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Debug: "debug", Links: []Link{{From: "far", To: "near", Listen: "front", Addr: server.Addr().String(), Delay: system.Duration(5 * time.Millisecond)}}},
			func(addr string) (net.Listener, error) { return bound[addr], nil })
	}()
	c := dial(t, front.Addr().String())
	fmt.Fprint(c, "12345")
	in := <-accepted
	if _, err := io.ReadFull(in, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + debug.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := `throng_wan_bytes_total{from="far",to="near"} 5`; err != nil || !strings.Contains(string(page), want) {
		t.Errorf("no %q: %v\n%s", want, err, page)
	}
	fmt.Fprint(c, "on its way")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if late, err := io.ReadAll(c); len(late) > 0 {
		t.Errorf("%q, %v after the end", late, err)
	}
	in.Close()
	server.Close()
}

// TestRunCannotListen: the address that is taken is named.
func TestRunCannotListen(t *testing.T) {
	taken := errors.New("taken")
	err := Run(t.Context(), Config{Debug: "d", Links: []Link{{Listen: "a"}}}, func(string) (net.Listener, error) { return nil, taken })
	if !errors.Is(err, taken) || !strings.Contains(err.Error(), "listen on a") {
		t.Error(err)
	}
}
