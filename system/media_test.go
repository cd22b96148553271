package system_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"throng/system"
	"throng/system/wire"
)

// withMedia adds a media service to a topology.
func withMedia(t *testing.T, addr func() string, n int, edit ...func(*system.Settings)) func(*system.Config) {
	return func(cfg *system.Config) {
		dir := t.TempDir()
		for range n {
			cfg.Medias = append(cfg.Medias, system.MediaInstance{Listen: addr(), Debug: addr()})
		}
		cfg.MediaStore = system.MediaStore{SQL: system.SQL{Driver: "sqlite", DSN: filepath.Join(dir, "media.db")}, Blobs: "file://" + filepath.Join(dir, "blobs")}
		cfg.Settings.MediaMinFree = 1 << 20 // the machine that tests run on may be nearly full
		cfg.Settings.MediaTimeout = system.Duration(2 * time.Second)
		cfg.Settings.MediaSweepEvery = system.Duration(50 * time.Millisecond)
		for _, f := range edit {
			f(&cfg.Settings)
		}
	}
}

func anyPort() string { return "127.0.0.1:0" }

// mediaUser is a user as the media service sees one.
type mediaUser struct {
	d    *deployment
	id   uint64
	http *http.Client
	base string
}

func (d *deployment) mediaUser(id uint64) *mediaUser {
	tr := &http.Transport{}
	d.t.Cleanup(tr.CloseIdleConnections)
	return &mediaUser{d: d, id: id, http: &http.Client{Transport: tr, Timeout: 30 * time.Second}, base: "http://" + d.cfg.Medias[0].Listen}
}

// do makes a request and returns the answer with its body read.
func (u *mediaUser) do(method, url string, body io.Reader, header ...string) (*http.Response, []byte) {
	u.d.t.Helper()
	resp, data, err := u.try(method, url, body, header...)
	if err != nil {
		u.d.t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, data
}

func (u *mediaUser) try(method, url string, body io.Reader, header ...string) (*http.Response, []byte, error) {
	token, err := u.d.key.Sign(wire.Claims{User: u.id, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		return nil, nil, err
	}
	if strings.HasPrefix(url, "/") {
		url = u.base + url
	}
	req, err := http.NewRequestWithContext(u.d.t.Context(), method, url, body)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Tus-Resumable", "1.0.0")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := u.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp, data, err
}

func metadata(pairs ...string) string {
	var out []string
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, pairs[i]+" "+base64.StdEncoding.EncodeToString([]byte(pairs[i+1])))
	}
	return strings.Join(out, ",")
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// begin makes an upload of content and returns where it goes.
func (u *mediaUser) begin(content []byte, extra ...string) (location string) {
	u.d.t.Helper()
	resp, body := u.do("POST", wire.MediaUploadsPath, nil, "Upload-Length", strconv.Itoa(len(content)),
		"Upload-Metadata", metadata(append([]string{"kind", "image", "sha256", hexSum(content)}, extra...)...))
	if resp.StatusCode != http.StatusCreated {
		u.d.t.Fatalf("begin an upload: %s: %s", resp.Status, body)
	}
	return resp.Header.Get("Location")
}

func (u *mediaUser) patch(location string, offset int, content []byte) (*http.Response, []byte) {
	u.d.t.Helper()
	return u.do("PATCH", location, bytes.NewReader(content), "Upload-Offset", strconv.Itoa(offset), "Content-Type", "application/offset+octet-stream")
}

func idIn(t *testing.T, location string) wire.MediaID {
	t.Helper()
	id, err := wire.ParseMediaID(path.Base(location))
	if err != nil {
		t.Fatalf("%s: %v", location, err)
	}
	return id
}

// upload uploads content in one piece and returns its id.
func (u *mediaUser) upload(content []byte, extra ...string) wire.MediaID {
	u.d.t.Helper()
	location := u.begin(content, extra...)
	if resp, body := u.patch(location, 0, content); resp.StatusCode != http.StatusNoContent {
		u.d.t.Fatalf("upload: %s: %s", resp.Status, body)
	}
	return idIn(u.d.t, location)
}

func mediaPath(id wire.MediaID) string { return wire.MediaPath + id.String() }

func grantHeader(grant []byte) []string {
	h := http.Header{}
	wire.SetMediaGrant(h, grant)
	return []string{wire.MediaGrantHeader, h.Get(wire.MediaGrantHeader)}
}

func random(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	_, _ = rng.Read(b)
	return b
}

// sendMedia sends a message that refers to media.
func (d *device) sendMedia(conv wire.Conversation, id wire.MediaID, body string) {
	d.update(func() {
		o := d.outbox[conv]
		if o == nil {
			o = &outbox{}
			d.outbox[conv] = o
		}
		d.nextID++
		o.seq++
		o.unacked = append(o.unacked, &wire.Send{ClientMsgId: d.nextID, User: conv.User, Group: conv.Group, Seq: o.seq,
			Kind: wire.Kind_KIND_IMAGE, Body: []byte(body), Media: id[:]})
		if !o.failed {
			d.resend(conv)
		}
	})
}

// gotMedia waits for the message with a body and returns its media and grant.
func (d *device) gotMedia(body string) (id wire.MediaID, grant []byte) {
	d.t.Helper()
	d.await("the message "+body, func() bool {
		for _, m := range d.got {
			if string(m.Body) == body {
				copy(id[:], m.Media)
				grant = m.MediaGrant
				return true
			}
		}
		return false
	})
	if len(grant) != wire.MediaGrantBytes {
		d.t.Fatalf("a grant of %d bytes", len(grant))
	}
	return id, grant
}

// expect makes a request and checks the status of the answer.
func (u *mediaUser) expect(status int, method, url string, header ...string) []byte {
	u.d.t.Helper()
	resp, body := u.do(method, url, nil, header...)
	if resp.StatusCode != status {
		u.d.t.Fatalf("user %d: %s %s: %s, want %d: %.200s", u.id, method, url, resp.Status, status, body)
	}
	return body
}

// TestMedia: what is sent is fetched, by whom it was sent to, whole, by range and
// by link; and is gone when all have it.
func TestMedia(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 2, 1}, withMedia(t, anyPort, 1, func(s *system.Settings) {
		s.MediaFetchedGrace = system.Duration(time.Millisecond)
	}))
	d.provision(5, 1, map[uint64][]uint64{90: {1, 2, 3}})
	var dev [6]*device
	var media [6]*mediaUser
	for u := uint64(1); u <= 5; u++ {
		dev[u], media[u] = d.dial(u, 0), d.mediaUser(u)
		dev[u].awaitCurrent()
	}
	content := random(5<<20 + 11) // more than one part

	t.Run("direct", func(t *testing.T) {
		location := media[1].begin(content)
		const half = 2_000_003
		if resp, body := media[1].patch(location, 0, content[:half]); resp.StatusCode != http.StatusNoContent {
			t.Fatalf("%s: %s", resp.Status, body)
		}
		id := idIn(t, location)
		media[1].expect(http.StatusNotFound, "GET", mediaPath(id)) // not before it is whole
		if resp, _ := media[1].do("HEAD", location, nil); resp.Header.Get("Upload-Offset") != strconv.Itoa(half) {
			t.Fatalf("an interrupted upload is at %q, want %d", resp.Header.Get("Upload-Offset"), half)
		}
		if resp, body := media[1].patch(location, half, content[half:]); resp.StatusCode != http.StatusNoContent {
			t.Fatalf("%s: %s", resp.Status, body)
		}
		dev[1].sendMedia(wire.Conversation{User: 2}, id, "look")
		got, grant := dev[2].gotMedia("look")
		if got != id {
			t.Fatalf("the message refers to %s, want %s", got, id)
		}
		h := grantHeader(grant)
		if body := media[2].expect(http.StatusOK, "GET", mediaPath(id), h...); !bytes.Equal(body, content) {
			t.Error("what was fetched is not what was sent")
		}
		ranged := append([]string{"Range", "bytes=4194300-4194310"}, h...) // over the border of two parts
		if body := media[2].expect(http.StatusPartialContent, "GET", mediaPath(id), ranged...); !bytes.Equal(body, content[4194300:4194311]) {
			t.Error("a range is not what was asked for")
		}
		var link struct{ URL string }
		if err := json.Unmarshal(media[2].expect(http.StatusOK, "POST", mediaPath(id)+wire.MediaLink, h...), &link); err != nil {
			t.Fatal(err)
		}
		if body := media[2].expect(http.StatusOK, "GET", link.URL, "Authorization", ""); !bytes.Equal(body, content) {
			t.Error("what a signed URL gives is not what was sent")
		}
		media[3].expect(http.StatusForbidden, "GET", mediaPath(id), h...) // a grant is nothing in other hands
		media[3].expect(http.StatusNotFound, "GET", mediaPath(id))
		media[2].expect(http.StatusNoContent, "POST", mediaPath(id)+wire.MediaFetched, h...)
		d.mediaGone(id, media[1])
	})

	t.Run("group", func(t *testing.T) {
		id := media[1].upload(content[:1000])
		group := wire.Conversation{Group: 90}
		dev[1].sendMedia(group, id, "to all")
		_, grant := dev[2].gotMedia("to all")
		_, grant3 := dev[3].gotMedia("to all")
		if !bytes.Equal(grant, grant3) {
			t.Error("members of one version have different grants")
		}
		h := grantHeader(grant)
		d.changeMembers(90, []uint64{4}, []uint64{3})
		media[4].expect(http.StatusForbidden, "GET", mediaPath(id), h...) // was no member then
		for _, u := range []int{2, 3} {                                   // 3 was one
			if body := media[u].expect(http.StatusOK, "GET", mediaPath(id), h...); !bytes.Equal(body, content[:1000]) {
				t.Error("what was fetched is not what was sent")
			}
		}
		media[2].expect(http.StatusNoContent, "POST", mediaPath(id)+wire.MediaFetched, h...)
		media[2].expect(http.StatusNoContent, "POST", mediaPath(id)+wire.MediaFetched, h...)
		media[3].expect(http.StatusOK, "GET", mediaPath(id), h...) // one of two has it, twice
		media[3].expect(http.StatusNoContent, "POST", mediaPath(id)+wire.MediaFetched, h...)
		d.mediaGone(id, media[1])
	})

	t.Run("somebody else's", func(t *testing.T) {
		id := media[1].upload(content[:1000])
		dev[3].sendMedia(wire.Conversation{User: 4}, id, "stolen")
		_, grant := dev[4].gotMedia("stolen")
		media[4].expect(http.StatusForbidden, "GET", mediaPath(id), grantHeader(grant)...)
		media[4].expect(http.StatusForbidden, "POST", mediaPath(id)+wire.MediaLink, grantHeader(grant)...)
		media[3].expect(http.StatusNotFound, "GET", mediaPath(id))
		for _, method := range []string{"HEAD", "DELETE"} {
			media[3].expect(http.StatusNotFound, method, wire.MediaUploadsPath+id.String())
		}
		media[1].expect(http.StatusNoContent, "DELETE", wire.MediaUploadsPath+id.String())
		media[1].expect(http.StatusNotFound, "GET", mediaPath(id))
	})
}

// mediaGone waits until not even the owner can fetch it.
func (d *deployment) mediaGone(id wire.MediaID, owner *mediaUser) {
	d.t.Helper()
	d.eventually("media that all have fetched is gone", func() error {
		resp, _, err := owner.try("GET", mediaPath(id), nil)
		if err == nil && resp.StatusCode != http.StatusNotFound {
			err = fmt.Errorf("%s", resp.Status)
		}
		return err
	})
}

// TestMediaExpires: what nobody has fetched goes when its time is over, as does an
// upload that was never finished; no byte of them is left, and their owner has room
// again.
func TestMediaExpires(t *testing.T) {
	content := random(100_000)
	d := startAll(t, counts{1, 1, 1, 1, 1, 1}, withMedia(t, anyPort, 1, func(s *system.Settings) {
		s.MediaExpiry, s.MediaUploadExpiry = system.Duration(4*time.Second), system.Duration(4*time.Second)
		s.MediaUserBytes = int64(len(content))
	}))
	locations := map[uint64]string{}
	for user, sent := range map[uint64]int{1: len(content), 2: 1000} { // the second never ends
		u := d.mediaUser(user)
		locations[user] = u.begin(content)
		if resp, body := u.patch(locations[user], 0, content[:sent]); resp.StatusCode != http.StatusNoContent {
			t.Fatalf("%s: %s", resp.Status, body)
		}
	}
	for user, location := range locations {
		u := d.mediaUser(user)
		again := func() error {
			resp, _, err := u.try("POST", wire.MediaUploadsPath, nil, "Upload-Length", strconv.Itoa(len(content)),
				"Upload-Metadata", metadata("kind", "image", "sha256", hexSum(content)))
			if err == nil && resp.StatusCode != http.StatusCreated {
				err = fmt.Errorf("%s", resp.Status)
			}
			return err
		}
		d.eventually("the owner has room again", again)
		u.expect(http.StatusNotFound, "GET", mediaPath(idIn(t, location)))
		u.expect(http.StatusNotFound, "HEAD", location)
	}
	d.eventually("the blobs are gone", func() error {
		return filepath.WalkDir(strings.TrimPrefix(d.cfg.MediaStore.Blobs, "file://"), func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				err = fmt.Errorf("%s is left", path)
			}
			return err
		})
	})
}

// eventually waits until ok returns nil.
func (d *deployment) eventually(what string, ok func() error) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			d.t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// TestMediaSurvivesKills: an upload goes on after each kill of the service, also
// at another instance, and what comes out is whole.
func TestMediaSurvivesKills(t *testing.T) {
	if testing.Short() {
		t.Skip("processes of their own")
	}
	in := startInfrastructure(t)
	addr := freePort(t)
	cfg := in.topology(t, counts{1, 1, 1, 1, 1, 1}, addr)
	withMedia(t, addr, 2)(&cfg)
	processes := startEach(t, cfg)[system.Media]
	d := describe(t, cfg, in)
	u := d.mediaUser(7)
	content := random(9 << 20)
	location := u.begin(content)
	urls := []string{"http://" + cfg.Medias[0].Listen, "http://" + cfg.Medias[1].Listen}
	id := idIn(t, location)

	const piece = 1 << 20
	for round := range 4 {
		at := urls[round%2] + wire.MediaUploadsPath + id.String()
		offset := u.offset(at)
		if offset < round*piece {
			t.Fatalf("after %d kills the upload is at %d: what was answered is lost", round, offset)
		}
		if resp, body := u.patch(at, offset, content[offset:offset+piece]); resp.StatusCode != http.StatusNoContent {
			t.Fatalf("%s: %s", resp.Status, body)
		}
		offset += piece
		// The body never ends by itself: the process is killed in the middle of it.
		pr, pw := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _ = u.try("PATCH", at, pr, "Upload-Offset", strconv.Itoa(offset), "Content-Type", "application/offset+octet-stream")
			pr.Close()
		}()
		_, _ = pw.Write(content[offset : offset+piece])
		processes[round%2].kill()
		pw.Close()
		<-done
		u.expect(http.StatusNotFound, "GET", urls[1-round%2]+mediaPath(id))
		processes[round%2].start()
		processes[round%2].awaitReady()
	}
	offset := u.offset(urls[1] + wire.MediaUploadsPath + id.String())
	if resp, body := u.patch(urls[1]+wire.MediaUploadsPath+id.String(), offset, content[offset:]); resp.StatusCode != http.StatusNoContent {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	for _, base := range urls {
		if got := u.expect(http.StatusOK, "GET", base+mediaPath(id)); !bytes.Equal(got, content) {
			t.Error("what comes out is not what went in")
		}
	}
}

func (u *mediaUser) offset(at string) int {
	u.d.t.Helper()
	resp, body := u.do("HEAD", at, nil)
	n, err := strconv.Atoi(resp.Header.Get("Upload-Offset"))
	if err != nil {
		u.d.t.Fatalf("HEAD %s: %s %v %s", at, resp.Status, err, body)
	}
	return n
}
