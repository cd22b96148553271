package media_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"throng/system/internal/blob"
	"throng/system/internal/media"
	"throng/system/internal/media/mediatest"
	"throng/system/internal/mediasql"
	"throng/system/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a media service on a socket, with real stores.
type rig struct {
	t    testing.TB
	key  wire.Key
	addr string
	base string
	disk *disk
	reg  *prometheus.Registry
}

// disk is a blob store that can be full. The last bytes of a blob come with its
// end, as they do from S3.
type disk struct {
	media.Blobs
	full atomic.Bool
}

func (d *disk) Read(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	b, err := d.Blobs.Read(ctx, key, offset)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{iotest.DataErrReader(b), b}, nil
}

func (d *disk) Write(ctx context.Context, key string, r io.Reader) (int64, error) {
	if !d.full.Load() {
		return d.Blobs.Write(ctx, key, r)
	}
	n, err := d.Blobs.Write(ctx, key, io.MultiReader(io.LimitReader(r, 100), noSpace{}))
	if errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w: %w", media.ErrFull, err)
	}
	return n, err
}

type noSpace struct{}

func (noSpace) Read([]byte) (int, error) { return 0, syscall.ENOSPC }

func start(t testing.TB, limits media.Limits) *rig {
	t.Helper()
	dir := t.TempDir()
	store, err := mediasql.Open(t.Context(), mediasql.Config{Driver: "sqlite", DSN: filepath.Join(dir, "media.db")})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := blob.Open(t.Context(), "file://"+filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, key: bytes.Repeat([]byte("k"), wire.MinKeyBytes), disk: &disk{Blobs: blobs}, reg: prometheus.NewRegistry()}
	if limits.MinFree == 0 {
		limits.MinFree = 1
	}
	s, err := media.New(media.Config{Key: r.key, Store: store, Blobs: r.disk, Groups: []string{"127.0.0.1:1"}, Limits: limits, Metrics: r.reg})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	r.base = "http://" + r.addr
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, store.Close(), blobs.Close()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return r
}

func (r *rig) client(from string) *http.Client {
	tr := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (r *rig) token(user uint64) string {
	token, err := r.key.Sign(wire.Claims{User: user, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		r.t.Fatal(err)
	}
	return "Bearer " + token
}

// do makes a request of user, 0: without a token.
func (r *rig) do(user uint64, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	r.t.Helper()
	if !strings.Contains(url, "://") {
		url = r.base + url
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, url, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if user != 0 {
		req.Header.Set("Authorization", r.token(user))
	}
	req.Header.Set("Tus-Resumable", "1.0.0")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client("127.0.0.1").Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, string(data)
}

func (r *rig) expect(status int, user uint64, method, url string, header ...string) string {
	r.t.Helper()
	resp, body := r.do(user, method, url, nil, header...)
	if resp.StatusCode != status {
		r.t.Errorf("%s %s: %s, want %d: %.200s", method, url, resp.Status, status, body)
	}
	return body
}

func metadata(pairs ...string) string {
	var out []string
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, pairs[i]+" "+base64.StdEncoding.EncodeToString([]byte(pairs[i+1])))
	}
	return strings.Join(out, ",")
}

func describe(kind string, content []byte) string {
	sum := sha256.Sum256(content)
	return metadata("kind", kind, "sha256", hex.EncodeToString(sum[:]))
}

func (r *rig) create(user uint64, size int, meta string) (*http.Response, string) {
	r.t.Helper()
	return r.do(user, "POST", wire.MediaUploadsPath, nil, "Upload-Length", strconv.Itoa(size), "Upload-Metadata", meta)
}

func (r *rig) patch(user uint64, location string, offset int, body io.Reader) (*http.Response, string) {
	r.t.Helper()
	return r.do(user, "PATCH", location, body, "Upload-Offset", strconv.Itoa(offset), "Content-Type", "application/offset+octet-stream")
}

// begin makes an upload and returns where it goes and its id.
func (r *rig) begin(user uint64, content []byte) (string, wire.MediaID) {
	r.t.Helper()
	resp, body := r.create(user, len(content), describe("image", content))
	id, err := wire.ParseMediaID(path.Base(resp.Header.Get("Location")))
	if resp.StatusCode != http.StatusCreated || err != nil {
		r.t.Fatalf("begin: %s, %v: %s", resp.Status, err, body)
	}
	return resp.Header.Get("Location"), id
}

func (r *rig) upload(user uint64, content []byte) wire.MediaID {
	r.t.Helper()
	location, id := r.begin(user, content)
	if resp, body := r.patch(user, location, 0, bytes.NewReader(content)); resp.StatusCode != http.StatusNoContent {
		r.t.Fatalf("upload: %s: %s", resp.Status, body)
	}
	return id
}

func (r *rig) grant(id wire.MediaID, from, to uint64) []string {
	h := http.Header{}
	wire.SetMediaGrant(h, wire.SignMediaGrant(r.key, id, wire.MediaGrant{Message: wire.MessageID{1}, From: from, To: to}))
	return []string{wire.MediaGrantHeader, h.Get(wire.MediaGrantHeader)}
}

func at(id wire.MediaID) string { return wire.MediaPath + id.String() }

// TestForeign: ids, grants and signatures that are not one's own, or not valid.
func TestForeign(t *testing.T) {
	r := start(t, media.Limits{})
	content := mediatest.Content(1, 5000)
	id := r.upload(1, content)
	other := r.upload(3, content)
	if got := r.expect(http.StatusOK, 2, "GET", at(id), r.grant(id, 1, 2)...); got != string(content) {
		t.Error("an addressee got something else")
	}
	forged := func(change func([]byte)) []string {
		grant := wire.SignMediaGrant(r.key, id, wire.MediaGrant{Message: wire.MessageID{1}, From: 1, To: 2})
		change(grant)
		h := http.Header{}
		wire.SetMediaGrant(h, grant)
		return []string{wire.MediaGrantHeader, h.Get(wire.MediaGrantHeader)}
	}
	for _, i := range []int{0, 16, 24, 32, 40, 63} { // message, from, to, version, group or not, MAC
		for _, path := range []string{"", wire.MediaLink, wire.MediaFetched} {
			method := "POST"
			if path == "" {
				method = "GET"
			}
			r.expect(http.StatusForbidden, 2, method, at(id)+path, forged(func(b []byte) { b[i] ^= 1 })...)
		}
	}
	for _, h := range [][]string{r.grant(other, 3, 2), r.grant(id, 3, 2), r.grant(id, 1, 4), {wire.MediaGrantHeader, "!"}, {wire.MediaGrantHeader, "AAAA"}} {
		r.expect(http.StatusForbidden, 2, "GET", at(id), h...)
	}
	r.expect(http.StatusNotFound, 2, "GET", at(id))
	r.expect(http.StatusNotFound, 2, "GET", at(wire.MediaID{9}))
	r.expect(http.StatusUnauthorized, 0, "GET", at(id), r.grant(id, 1, 2)...)
	r.expect(http.StatusUnauthorized, 0, "GET", at(id), "Authorization", "Bearer nonsense")
	r.expect(http.StatusUnauthorized, 0, "POST", wire.MediaUploadsPath)
	expired, err := r.key.Sign(wire.Claims{User: 1, Expires: time.Now().Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	r.expect(http.StatusUnauthorized, 0, "GET", at(id), "Authorization", "Bearer "+expired)

	good := wire.MediaURL(r.key, id, 2, time.Now().Add(time.Minute))
	if got := r.expect(http.StatusOK, 0, "GET", good); got != string(content) {
		t.Error("a signed URL gave something else")
	}
	_, query, _ := strings.Cut(good, "?")
	for _, url := range []string{
		wire.MediaURL(r.key, id, 2, time.Now().Add(-time.Second)),
		wire.MediaURL(bytes.Repeat([]byte("x"), 32), id, 2, time.Now().Add(time.Minute)),
		at(other) + "?" + query, strings.Replace(good, "user=2", "user=3", 1),
		strings.Replace(good, "expires=", "expires=9", 1), at(id) + "?signature=", at(id) + "?signature=%00&user=-1&expires=x",
	} {
		r.expect(http.StatusForbidden, 0, "GET", url)
	}
}

// TestPaths: nothing but an id is a path to anything.
func TestPaths(t *testing.T) {
	r := start(t, media.Limits{})
	id := r.upload(1, []byte("something"))
	for _, p := range []string{
		"..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/media.db", "....//", id.String() + "/..", id.String() + "%00", strings.ToUpper(id.String()) + "A",
		id.String()[:2] + "/" + id.String()[2:4], "", "-", strings.Repeat("f", 4000), id.String() + "/link/x", "\u202e" + id.String(),
	} {
		for _, prefix := range []string{wire.MediaPath, wire.MediaUploadsPath} {
			for _, method := range []string{"GET", "HEAD", "PATCH", "DELETE", "POST", "PUT"} {
				resp, body := r.do(1, method, r.base+prefix+p, nil, "Upload-Offset", "0", "Content-Type", "application/offset+octet-stream")
				if resp.StatusCode < 300 || resp.StatusCode >= 500 || strings.Contains(body, "something") {
					t.Errorf("%s %s: %s %.100s", method, prefix+p, resp.Status, body)
				}
			}
		}
	}
	r.expect(http.StatusOK, 1, "GET", at(id))
}

// TestUploadsRefused: what an upload may not be, or do.
func TestUploadsRefused(t *testing.T) {
	r := start(t, media.Limits{ImageBytes: 1000, VideoBytes: 3000, UserBytes: 2500, UserObjects: 3})
	content := mediatest.Content(2, 1000)
	good := describe("image", content)
	for _, c := range []struct {
		size   int
		meta   string
		status int
	}{
		{1001, good, http.StatusRequestEntityTooLarge}, {1 << 40, describe("video", content), http.StatusRequestEntityTooLarge},
		{0, good, http.StatusBadRequest}, {-1, good, http.StatusBadRequest},
		{10, "", http.StatusBadRequest}, {10, describe("program", content), http.StatusBadRequest}, {10, metadata("kind", "image"), http.StatusBadRequest},
		{10, metadata("kind", "image", "sha256", "abc"), http.StatusBadRequest}, {10, good + "," + metadata("messages", "0"), http.StatusBadRequest},
		{10, good + "," + metadata("messages", "257"), http.StatusBadRequest}, {10, "kind !!!,sha256", http.StatusBadRequest},
		{2501, describe("video", content), http.StatusForbidden},
	} {
		if resp, body := r.create(1, c.size, c.meta); resp.StatusCode != c.status || body == "" {
			t.Errorf("%d bytes, %q: %s %q, want %d", c.size, c.meta, resp.Status, body, c.status)
		}
	}
	if resp, _ := r.do(1, "POST", wire.MediaUploadsPath, nil, "Upload-Defer-Length", "1", "Upload-Metadata", good); resp.StatusCode < 400 {
		t.Errorf("an upload of unknown length: %s", resp.Status)
	}
	location, id := r.begin(1, content)
	if resp, _ := r.patch(1, location, 5, bytes.NewReader(content)); resp.StatusCode != http.StatusConflict {
		t.Errorf("beyond what is there: %s", resp.Status)
	}
	if resp, _ := r.patch(2, location, 0, bytes.NewReader(content)); resp.StatusCode != http.StatusNotFound {
		t.Errorf("somebody else's upload: %s", resp.Status)
	}
	if resp, _ := r.patch(1, location, 0, bytes.NewReader(append(content, 1))); resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("more than was announced: %s", resp.Status)
	}
	wrong := mediatest.Content(3, 1000)
	resp, body := r.patch(1, location, 0, bytes.NewReader(wrong))
	if resp.StatusCode != 460 || !strings.Contains(body, "ERR_HASH_MISMATCH") {
		t.Errorf("content that is not what was announced: %s %s", resp.Status, body)
	}
	r.expect(http.StatusNotFound, 1, "GET", at(id))
	r.expect(http.StatusNotFound, 1, "HEAD", location)
	r.upload(1, content)
	r.upload(1, content)
	resp, body = r.create(1, 600, good)
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "ERR_QUOTA") {
		t.Errorf("over the quota: %s %s", resp.Status, body)
	}
	r.upload(2, content) // others have their own
}

// endless is a body that does not end by itself.
type endless struct{ sent atomic.Int64 }

func (e *endless) Read(b []byte) (int, error) {
	e.sent.Add(int64(len(b)))
	return len(b), nil
}

// TestEndlessBody: a body without a length ends where the upload does.
func TestEndlessBody(t *testing.T) {
	r := start(t, media.Limits{})
	location, id := r.begin(1, make([]byte, 100_000))
	body := &endless{}
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", location, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Authorization": r.token(1), "Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"} {
		req.Header.Set(k, v)
	}
	resp, err := r.client("127.0.0.1").Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s", resp.Status)
		}
	}
	if n := body.sent.Load(); n > 64<<20 {
		t.Errorf("%d bytes were taken for an upload of 100,000", n)
	}
	// What was announced is there all the same: it had the right hash.
	r.expect(http.StatusOK, 1, "GET", at(id))
}

// TestFullDisk: who uploads is told; who fetches, and what is there, is not touched.
func TestFullDisk(t *testing.T) {
	r := start(t, media.Limits{})
	content := mediatest.Content(4, 200_000)
	id := r.upload(1, content)
	location, half := r.begin(2, content)
	r.disk.full.Store(true)
	resp, body := r.patch(2, location, 0, bytes.NewReader(content))
	if resp.StatusCode != http.StatusInsufficientStorage || !strings.Contains(body, "ERR_STORAGE_FULL") || strings.Contains(body, "ENOSPC") {
		t.Errorf("on a full disk: %s %s", resp.Status, body)
	}
	if got := r.expect(http.StatusOK, 3, "GET", at(id), r.grant(id, 1, 3)...); got != string(content) {
		t.Error("what is there cannot be fetched")
	}
	r.expect(http.StatusNotFound, 2, "GET", at(half))
	r.disk.full.Store(false)
	if resp, body := r.patch(2, location, 0, bytes.NewReader(content)); resp.StatusCode != http.StatusNoContent {
		t.Errorf("with room again: %s %s", resp.Status, body)
	}
	r.expect(http.StatusOK, 2, "GET", at(half))
}

// TestNearlyFullDisk: uploads stop before the disk is full for everybody.
func TestNearlyFullDisk(t *testing.T) {
	r := start(t, media.Limits{MinFree: 1 << 62})
	if resp, body := r.create(1, 10, describe("image", nil)); resp.StatusCode != http.StatusInsufficientStorage {
		t.Errorf("%s %s", resp.Status, body)
	}
}
