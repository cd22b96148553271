package media_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"throng/system/internal/media"
	"throng/system/internal/media/mediatest"
	"throng/system/wire"
)

// dialFrom opens a connection from an address of the loopback network.
func (r *rig) dialFrom(from string) net.Conn {
	r.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(r.t.Context(), "tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// closed waits until the server has closed c, and says what it sent before.
func closed(t *testing.T, c net.Conn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Error("the connection is still open")
	}
	return string(got)
}

// TestSlowClients: connections that never say anything, stop in a header, drip a
// body or do not read end by themselves, and meanwhile others are served.
func TestSlowClients(t *testing.T) {
	const offender, offenders = "127.0.0.2", 20
	r := start(t, media.Limits{NetworkTimeout: 2 * time.Second, AddressConnections: offenders, MinRate: 100_000, PartBytes: 64 << 10})
	content := mediatest.Content(5, 8<<20)
	big := r.upload(1, content)
	location, _ := r.begin(2, content)

	header := func(method, path, more string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nTus-Resumable: 1.0.0\r\n%s", method, path, r.token(2), more)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	// Fast enough for each read, too slow for the whole.
	drip := func(c net.Conn, text string) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Millisecond):
				}
				if _, err := c.Write([]byte{text[i%len(text)]}); err != nil {
					return
				}
			}
		})
	}
	var slow []net.Conn
	for i := range offenders {
		c := r.dialFrom(offender)
		slow = append(slow, c)
		var err error
		switch i % 5 {
		case 0: // says nothing
		case 1: // stops in the header
			_, err = io.WriteString(c, "POST /v1/uploads/ HTTP/1.1\r\nHost: x\r\nX-")
		case 2: // drips the header
			_, err = io.WriteString(c, "POST /v1/uploads/ HTTP/1.1\r\nHost: x\r\n")
			drip(c, "X-A: b\r\n")
		case 3: // drips the body
			path := location[len(r.base):]
			_, err = io.WriteString(c, header("PATCH", path, "Upload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\nContent-Length: 8388608\r\n\r\n"))
			drip(c, "x")
		case 4: // asks for much and reads nothing
			_, err = io.WriteString(c, header("GET", at(big), wire.MediaGrantHeader+": "+r.grant(big, 1, 2)[1]+"\r\n\r\n"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// One more from there is turned away at once.
	if got := closed(t, r.dialFrom(offender)); got != "" {
		t.Errorf("over the limit of an address: %q", got)
	}
	id := r.upload(3, content[:300_000])
	if got := r.expect(http.StatusOK, 4, "GET", at(id), r.grant(id, 3, 4)...); got != string(content[:300_000]) {
		t.Error("somebody else got something wrong")
	}
	for i, c := range slow {
		if i%5 != 4 {
			closed(t, c)
			continue
		}
		// Not read from until the server has given up: its buffers and ours are full,
		// and 8 MiB do not fit into them.
		r.awaitDepth("media_downloads", 0)
		if got := closed(t, c); len(got) >= len(content) {
			t.Errorf("who does not read was waited for: %d bytes", len(got))
		}
	}
	// The offender has room again, and the user whose upload dripped goes on.
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", location, bytes.NewReader(content[:1000]))
	if err != nil {
		t.Fatal(err)
	}
	resp, _ := r.do(2, "HEAD", location, nil)
	for k, v := range map[string]string{"Authorization": r.token(2), "Tus-Resumable": "1.0.0", "Upload-Offset": resp.Header.Get("Upload-Offset"), "Content-Type": "application/offset+octet-stream"} {
		req.Header.Set(k, v)
	}
	res, err := r.client(offender).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Errorf("going on after that: %s", res.Status)
	}
}

// TestTooManyAtATime: one user has a few uploads at a time, whatever others do.
func TestTooManyAtATime(t *testing.T) {
	r := start(t, media.Limits{UserUploads: 2, Uploads: 3})
	content := mediatest.Content(6, 100_000)
	held := 0
	hold := func(user uint64) (release func()) {
		location, _ := r.begin(user, content)
		pr, pw := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.patch(user, location, 0, pr)
		}()
		if _, err := pw.Write(content[:50_000]); err != nil {
			t.Error(err)
		}
		held++
		r.awaitDepth("media_uploads", held)
		return func() {
			if _, err := pw.Write(content[50_000:]); err != nil {
				t.Error(err)
			}
			pw.Close()
			<-done
		}
	}
	a, b := hold(1), hold(1)
	if resp, _ := r.create(1, 10, describe("image", nil)); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a third of the same user: %s", resp.Status)
	}
	c := hold(2)
	if resp, _ := r.create(3, 10, describe("image", nil)); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a fourth: %s", resp.Status)
	}
	a()
	b()
	c()
	r.upload(1, content)
}

// awaitDepth waits until there is so much in a queue.
func (r *rig) awaitDepth(queue string, n int) {
	r.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		families, err := r.reg.Gather()
		if err != nil {
			r.t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "throng_queue_depth" && m.GetLabel()[0].GetValue() == queue && m.GetGauge().GetValue() == float64(n) {
					return
				}
			}
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			r.t.Fatalf("%s has not come to %d", queue, n)
		}
	}
}

// TestComesBack: a client whose connection hangs comes back on another one, and
// finds what the server has received. The stop of the service interrupts too.
func TestComesBack(t *testing.T) {
	r := start(t, media.Limits{NetworkTimeout: 20 * time.Second, PartBytes: 1000})
	content := mediatest.Content(7, 100_000)
	hang := func(location string, offset int) {
		pr, pw := io.Pipe()
		t.Cleanup(func() { pw.Close() })
		go func() {
			req, err := http.NewRequest("PATCH", location, pr)
			if err != nil {
				t.Error(err)
				return
			}
			for k, v := range map[string]string{"Authorization": r.token(1), "Tus-Resumable": "1.0.0", "Upload-Offset": fmt.Sprint(offset), "Content-Type": "application/offset+octet-stream"} {
				req.Header.Set(k, v)
			}
			if resp, err := r.client("127.0.0.1").Do(req); err == nil {
				resp.Body.Close()
			}
		}()
		if _, err := pw.Write(content[offset : offset+50_000]); err != nil {
			t.Error(err)
		}
		r.awaitDepth("media_uploads", 1)
	}
	location, id := r.begin(1, content)
	hang(location, 0)
	resp, body := r.do(1, "HEAD", location, nil)
	var offset int
	if _, err := fmt.Sscan(resp.Header.Get("Upload-Offset"), &offset); err != nil || offset > 50_000 {
		t.Fatalf("%s: %q, %v %s", resp.Status, resp.Header.Get("Upload-Offset"), err, body)
	}
	if resp, body := r.patch(1, location, offset, bytes.NewReader(content[offset:])); resp.StatusCode != http.StatusNoContent {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if got := r.expect(http.StatusOK, 1, "GET", at(id)); got != string(content) {
		t.Error("what comes out is not what went in")
	}
	location, _ = r.begin(1, content)
	hang(location, 0) // until the service is stopped
}
