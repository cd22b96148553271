package client

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type failing struct{ tries []time.Duration }

func (f *failing) RoundTrip(r *http.Request) (*http.Response, error) {
	deadline, _ := r.Context().Deadline()
	f.tries = append(f.tries, time.Minute-time.Until(deadline))
	return &http.Response{StatusCode: http.StatusServiceUnavailable, Status: "503", Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
}

// TestUploadsBackOff: at a service that answers nothing but 503 an upload tries less
// and less often, and not at the same moments as that of another object.
func TestUploadsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upload := func(object byte) []time.Duration {
			f := &failing{}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			m := &Media{HTTP: &http.Client{Transport: f}, Bases: []string{"http://media"}}
			_, resumed, err := m.Upload(ctx, 0, "token", MediaObject{Kind: "image", Size: 3, SHA256: [32]byte{object}, Content: strings.NewReader("abc")})
			if err == nil || resumed != len(f.tries) {
				t.Errorf("%d interruptions in %d tries, %v", resumed, len(f.tries), err)
			}
			return f.tries
		}
		a, b := upload(1), upload(2)
		// 0.2 s, doubled up to 10 s, drawn from half of that on: 13 to 21 tries in a minute.
		if len(a) < 10 || len(a) > 21 {
			t.Fatalf("%d tries in a minute: %v", len(a), a)
		}
		for i := 2; i < len(a); i++ {
			if pause := a[i] - a[i-1]; pause < retryLeast/2 || pause > retryMost {
				t.Errorf("pause %d: %v", i, pause)
			}
		}
		if last := a[len(a)-1] - a[len(a)-2]; last < retryMost/2 {
			t.Errorf("after a minute it still tries every %v", last)
		}
		if a[1] == b[1] {
			t.Error("two uploads try again at the same moment")
		}
	})
}
