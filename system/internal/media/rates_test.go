package media_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"throng/system/internal/media"
	"throng/system/internal/media/mediatest"
)

// TestRates: who has moved more bytes than they may is told to wait, by user and by
// address, up and down; somebody else is served.
func TestRates(t *testing.T) {
	content := mediatest.Content(3, 100_000)
	refused := func(r *rig, user uint64, method, url string, body io.Reader, header ...string) {
		r.t.Helper()
		resp, text := r.do(user, method, url, body, header...)
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(text, "bytes") {
			r.t.Errorf("user %d: %s %s: %s, %v, %q", user, method, url, resp.Status, resp.Header, text)
		}
	}
	t.Run("user", func(t *testing.T) {
		r := start(t, media.Limits{UserRate: 1, UserBurst: 150_000})
		id := r.upload(1, content)
		r.expect(http.StatusOK, 2, "GET", at(id), r.grant(id, 1, 2)...)
		r.expect(http.StatusOK, 2, "GET", at(id), r.grant(id, 1, 2)...) // there was something left when it began
		refused(r, 2, "GET", at(id), nil, r.grant(id, 1, 2)...)
		r.expect(http.StatusOK, 1, "GET", at(id))
		refused(r, 1, "POST", r.base+"/v1/uploads/", nil)
		other := r.upload(3, content)
		r.expect(http.StatusOK, 3, "GET", at(other))
	})
	t.Run("address", func(t *testing.T) {
		r := start(t, media.Limits{AddressRate: 1, AddressBurst: 50_000})
		id := r.upload(1, content)
		refused(r, 2, "GET", at(id), nil, r.grant(id, 1, 2)...)
		req, err := http.NewRequestWithContext(t.Context(), "GET", r.base+at(id), bytes.NewReader(nil))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", r.token(1))
		resp, err := r.client("127.0.0.3").Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("another address: %s", resp.Status)
		}
	})
}
