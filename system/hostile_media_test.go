package system_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"throng/system"
	"throng/system/wire"
)

// request writes a request as it stands and returns the status line and the body.
func (h *hostile) request(addr, method, text string) (status, body string) {
	h.d.t.Helper()
	nc := h.raw(addr, text)
	defer nc.Close()
	resp, err := http.ReadResponse(bufio.NewReader(nc), &http.Request{Method: method})
	if err != nil {
		h.d.t.Fatalf("%.80q: %v", text, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.d.t.Fatal(err)
	}
	return resp.Status, string(b)
}

// TestHostileMedia: what can be done to the media service, by people without a token,
// with one, and with somebody else's grant.
func TestHostileMedia(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 1, 1}, withMedia(t, anyPort, 1, func(s *system.Settings) {
		s.ExemptAddresses = []string{"127.0.0.1"}
		s.MediaAddressConnections = 20
		s.MediaUserBytes = 8 << 20
		s.MediaUserBytesPerSecond, s.MediaUserByteBurst = 1000, 2<<20
	}))
	d.provision(10, 1, nil)
	people := d.chat(1, 2)
	content := random(200_000)
	// A picture from 1 to 2, beside all that follows.
	picture := func(t *testing.T, d *deployment) (wire.MediaID, []byte) {
		t.Helper()
		a, b := d.mediaUser(1), d.mediaUser(2)
		id := a.upload(content)
		body := "picture " + id.String()
		people.a.sendMedia(direct(2), id, body)
		_, grant := people.b.gotMedia(body)
		if got := b.expect(http.StatusOK, "GET", mediaPath(id), grantHeader(grant)...); !bytes.Equal(got, content) {
			t.Error("what was fetched is not what was sent")
		}
		return id, grant
	}
	id, grant := picture(t, d)
	before := heap()
	t.Run("paths", func(t *testing.T) { testMediaPaths(t, d.in2(t)) })
	t.Run("ids", func(t *testing.T) { testForeignMedia(t, d.in2(t), id, grant) })
	t.Run("uploads", func(t *testing.T) { testHostileUploads(t, d.in2(t)) })
	t.Run("slow uploads", func(t *testing.T) {
		d := d.in2(t)
		testSlowUploads(t, d, func() { picture(t, d) })
	})
	t.Run("bytes", func(t *testing.T) { testMediaBytes(t, d.in2(t), content) })
	picture(t, d)
	if grown := heap() - before; grown > 64 {
		t.Errorf("%d MiB more are alive than before", grown)
	}
}

// testMediaPaths: no path leads out of the store, and none is a blob of it.
func testMediaPaths(t *testing.T, d *deployment) {
	addr := d.cfg.Medias[0].Listen
	blobs := strings.TrimPrefix(d.cfg.MediaStore.Blobs, "file://")
	files := func() (n int) {
		err := filepath.WalkDir(filepath.Dir(blobs), func(_ string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && !strings.HasPrefix(e.Name(), "media.db") {
				n++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	secret := filepath.Join(filepath.Dir(blobs), "secret")
	if err := os.WriteFile(secret, []byte("root:x"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := files()
	h := d.hostile("127.0.0.1")
	token := d.tokenOf(3, time.Hour)
	for _, root := range []string{wire.MediaPath, wire.MediaUploadsPath} {
		for _, p := range []string{
			"../secret", "../../secret", "..%2fsecret", "%2e%2e/secret", "%2e%2e%2fsecret", "..%5csecret", "....//secret", "%252e%252e%252fsecret", "/" + secret,
			"%2f" + strings.ReplaceAll(secret, "/", "%2f"), "./../secret", "00000000000000000000000000000000/../../secret", "secret%00", "file:///" + secret, "media.db", "*", "",
			strings.Repeat("../", 1000) + "etc/passwd", strings.Repeat("0", 32) + ".", strings.ToUpper("0123456789abcdef0123456789abcdef"), "%", "%zz",
		} {
			for _, method := range []string{"GET", "HEAD", "DELETE", "PATCH", "POST"} {
				status, body := h.request(addr, method, fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\nTus-Resumable: 1.0.0\r\n"+
					"Upload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\nContent-Length: 0\r\n\r\n", method, root, p, token))
				if status[0] != '4' && status[0] != '3' || strings.Contains(body, "root:") {
					t.Errorf("%s %s%s: %s, %.80q", method, root, p, status, body)
				}
			}
		}
	}
	if after := files(); after != before {
		t.Errorf("there are %d files, and were %d", after, before)
	}
}

// refused makes a request that must not be answered with anything.
func (u *mediaUser) refused(method, url string, header ...string) {
	u.d.t.Helper()
	resp, body := u.do(method, url, nil, header...)
	if resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusBadRequest {
		u.d.t.Errorf("user %d: %s %.120s %q: %s, %.80q", u.id, method, url, header, resp.Status, body)
	}
}

// testForeignMedia: an id opens nothing, and neither does a grant that was changed,
// is of another key or for somebody else, or a link that was changed.
func testForeignMedia(t *testing.T, d *deployment, id wire.MediaID, grant []byte) {
	stranger, addressee := d.mediaUser(3), d.mediaUser(2)
	stranger.refused("GET", mediaPath(id))
	stranger.refused("GET", mediaPath(id), grantHeader(grant)...)
	stranger.refused("HEAD", wire.MediaUploadsPath+id.String())
	stranger.refused("DELETE", wire.MediaUploadsPath+id.String())
	for bit := range 8 * len(grant) {
		forged := bytes.Clone(grant)
		forged[bit/8] ^= 1 << (bit % 8)
		addressee.refused("GET", mediaPath(id), grantHeader(forged)...)
	}
	other := append(wire.Key(nil), d.key...)
	other[0] ^= 1
	mine := wire.SignMediaGrant(other, id, wire.MediaGrant{From: 1, To: 3})
	stranger.refused("GET", mediaPath(id), grantHeader(mine)...)
	stranger.refused("POST", mediaPath(id)+wire.MediaLink, grantHeader(mine)...)
	stranger.refused("POST", mediaPath(id)+wire.MediaFetched, grantHeader(grant)...)
	for _, text := range []string{"x", strings.Repeat("A", 86) + "=", strings.Repeat("A", 4096), "' OR 1=1 --"} {
		addressee.refused("GET", mediaPath(id), wire.MediaGrantHeader, text)
	}
	var link struct{ URL string }
	if err := json.Unmarshal(addressee.expect(http.StatusOK, "POST", mediaPath(id)+wire.MediaLink, grantHeader(grant)...), &link); err != nil {
		t.Fatal(err)
	}
	elsewhere := stranger.upload(random(1000))
	for _, url := range []string{
		strings.Replace(link.URL, "user=2", "user=3", 1), strings.Replace(link.URL, id.String(), elsewhere.String(), 1),
		strings.Replace(link.URL, "expires=", "expires=9", 1), strings.Replace(link.URL, "signature=", "signature=AA", 1),
		mediaPath(id) + "?signature=", mediaPath(id) + "?signature=%00&user=2&expires=99999999999",
		wire.MediaURL(other, id, 3, time.Now().Add(time.Hour)), wire.MediaURL(d.key, id, 2, time.Now().Add(-time.Second)),
	} {
		stranger.refused("GET", url, "Authorization", "")
	}
	if got := addressee.expect(http.StatusOK, "GET", link.URL, "Authorization", ""); len(got) == 0 {
		t.Error("the link itself gives nothing")
	}
}

// testHostileUploads: what an upload says of itself is believed only as far as it goes.
func testHostileUploads(t *testing.T, d *deployment) {
	u := d.mediaUser(4)
	for _, tc := range []struct{ length, meta string }{
		{"99999999999999999999999", metadata("kind", "image", "sha256", hexSum(nil))},
		{"-1", metadata("kind", "image", "sha256", hexSum(nil))},
		{strconv.Itoa(17 << 20), metadata("kind", "image", "sha256", hexSum(nil))},
		{"100", metadata("kind", "../../image", "sha256", hexSum(nil))},
		{"100", metadata("kind", "image", "sha256", "' OR 1=1 --")},
		{"100", metadata("kind", "image", "sha256", strings.Repeat("0", 63))},
		{"100", metadata("kind", "image", "sha256", hexSum(nil), "messages", "1000000000000")},
		{"100", metadata("kind", "image", "sha256", hexSum(nil), "messages", "-1")},
		{"100", "kind !!!,sha256"},
		{"100", ""},
	} {
		resp, body := u.do("POST", wire.MediaUploadsPath, nil, "Upload-Length", tc.length, "Upload-Metadata", tc.meta)
		if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("length %s, %q: %s, %.80q", tc.length, tc.meta, resp.Status, body)
		}
	}
	// A bomb is what it is: nothing is taken out of it.
	var bomb bytes.Buffer
	zip := gzip.NewWriter(&bomb)
	if _, err := zip.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	location := u.begin(bomb.Bytes())
	resp, body := u.do("PATCH", location, bytes.NewReader(bomb.Bytes()), "Upload-Offset", "0", "Content-Type", "application/offset+octet-stream", "Content-Encoding", "gzip")
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("a compressed upload: %s, %s", resp.Status, body)
	}
	if got := u.expect(http.StatusOK, "GET", mediaPath(idIn(t, location)), "Accept-Encoding", "gzip"); !bytes.Equal(got, bomb.Bytes()) {
		t.Errorf("%d bytes went in, and %d come out", bomb.Len(), len(got))
	}
	// More than was announced, from elsewhere than it was at, and of another content.
	content := random(1000)
	location = u.begin(content)
	for _, offset := range []int{1, 999, 1000, 1 << 40, -1} {
		if resp, _ := u.patch(location, offset, content); resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("from offset %d: %s", offset, resp.Status)
		}
	}
	if resp, _ := u.patch(location, 0, random(1001)[1:]); resp.StatusCode == http.StatusNoContent {
		t.Error("another content than announced was taken")
	}
	u.expect(http.StatusNotFound, "GET", mediaPath(idIn(t, location)))
	// The quota is the user's own.
	for i := 0; ; i++ {
		if i > 20 {
			t.Fatal("20 MiB were promised room, of 8")
		}
		resp, _ := u.do("POST", wire.MediaUploadsPath, nil, "Upload-Length", strconv.Itoa(1<<20), "Upload-Metadata", metadata("kind", "image", "sha256", hexSum(nil)))
		if resp.StatusCode == http.StatusForbidden {
			break
		}
	}
}

// testSlowUploads: uploads that never end take an address's connections and a user's
// uploads, and end by themselves.
func testSlowUploads(t *testing.T, d *deployment, served func()) {
	u := d.mediaUser(5)
	location := u.begin(random(1 << 20))
	addr := d.cfg.Medias[0].Listen
	h := d.hostile("127.0.0.2")
	head := fmt.Sprintf("PATCH %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"+
		"Content-Type: application/offset+octet-stream\r\nContent-Length: 1048576\r\n\r\nx", mustPath(t, location), d.tokenOf(5, time.Hour))
	var slow []net.Conn
	for i := range 20 {
		text := head
		if i%2 == 0 {
			text = "POST " + wire.MediaUploadsPath + " HTTP/1.1\r\nHost: x\r\nX-Slow: "
		}
		slow = append(slow, h.raw(addr, text))
	}
	served()
	for _, nc := range slow {
		ended(t, nc)
	}
	served()
}

func mustPath(t *testing.T, location string) string {
	t.Helper()
	i := strings.Index(location, wire.MediaUploadsPath)
	if i < 0 {
		t.Fatalf("location %q", location)
	}
	return location[i:]
}

// testMediaBytes: who fetches without an end is told to wait.
func testMediaBytes(t *testing.T, d *deployment, content []byte) {
	u := d.mediaUser(6)
	id := u.upload(content)
	for range 100 {
		resp, body := u.do("GET", mediaPath(id), nil)
		if resp.StatusCode == http.StatusTooManyRequests {
			if resp.Header.Get("Retry-After") == "" {
				t.Errorf("no Retry-After: %v", resp.Header)
			}
			return
		}
		if resp.StatusCode != http.StatusOK || !bytes.Equal(body, content) {
			t.Fatalf("%s: %d bytes", resp.Status, len(body))
		}
	}
	t.Error("20 MB of 2 were given")
}
