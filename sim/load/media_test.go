package load

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/metrics"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/workload"
	"throng/system/wire"
)

// oneToken is the entrance of a deployment that only hands out tokens.
type oneToken struct{ Entrance }

func (oneToken) Token(uint64, uint32) (string, error) { return "token", nil }

// mediaEngine returns an engine that can do nothing but media, at a server.
func mediaEngine(t *testing.T, url string) *Engine {
	t.Helper()
	spec, err := scenario.Parse("t.yaml", []byte("name: t\nquestion: is what is fetched what was sent?\nscale: 1/1000000\nmedia: {share: 1, byte_scale: 0.01}\nphases: {ramp: 1s, backlog: 0s, warmup: 1s, steady: 5s}\n"))
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{spec: spec, start: time.Now(), nonce: 7, access: oneToken{}, rec: metrics.NewRecorder(0)}
	pop := population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices)
	if e.sched, err = workload.Build(spec, pop); err != nil {
		t.Fatal(err)
	}
	if e.media, err = newMedia(e, []string{url}, nil); err != nil {
		t.Fatal(err)
	}
	e.media.ctx = t.Context()
	return e
}

// TestMediaAudit: what is fetched is proved, corrupt or missing, by its hash.
func TestMediaAudit(t *testing.T) {
	const size = 3 << 20
	var e *Engine
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		right, err := io.ReadAll(io.NewSectionReader(e.media.contentOf(3), 0, size))
		if err != nil {
			t.Error(err)
		}
		switch {
		case strings.HasSuffix(r.URL.Path, wire.MediaFetched):
			w.WriteHeader(http.StatusNoContent)
		case strings.Contains(r.URL.Path, "/01"):
			_, _ = w.Write(right)
		case strings.Contains(r.URL.Path, "/02"):
			right[size-1]++
			_, _ = w.Write(right)
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	e = mediaEngine(t, server.URL)
	sum := e.media.contentOf(3).sum(size)
	arrive := func(id byte, user uint64, class audit.Class) {
		u := uploaded{id: wire.MediaID{id}, sum: sum}
		send := &wire.Send{Body: makeBody(200, 7, header{index: 3})}
		u.refer(send)
		d := &wire.Deliver{From: 99, Body: send.Body, Media: send.Media, MediaGrant: make([]byte, wire.MediaGrantBytes)}
		e.media.arrived(audit.Device{User: user}, d, header{index: 3}, class, e.now())
	}
	arrive(1, 1, audit.Live)
	arrive(1, 1, audit.Live)  // the same user's other device
	arrive(1, 99, audit.Live) // the sender
	arrive(1, 2, audit.Proof)
	arrive(2, 3, audit.Drain)
	arrive(3, 4, audit.Live)
	got := e.media.prove(t.Context())
	e.readers.Wait()
	want := history.MediaAudit{Pairs: 4, Proved: 2, Corrupt: 1, Missing: 1, BytesDown: 3 * size}
	if got.Examples == nil {
		t.Error("nothing says what went wrong")
	}
	got.Examples = nil
	if got.Pairs != want.Pairs || got.Proved != want.Proved || got.Corrupt != want.Corrupt || got.Missing != want.Missing || got.BytesDown != want.BytesDown {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestMediaContent: objects differ by their index, and reads agree with each other.
func TestMediaContent(t *testing.T) {
	e := mediaEngine(t, "http://127.0.0.1:1")
	a, b := e.media.contentOf(1), e.media.contentOf(2)
	if a.sum(1000) == b.sum(1000) {
		t.Error("two objects are the same")
	}
	whole, piece := make([]byte, mediaBlock+100), make([]byte, 50)
	for at, p := range map[int64][]byte{0: whole, mediaBlock - 20: piece} {
		if _, err := a.ReadAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(piece, whole[mediaBlock-20:mediaBlock+30]) {
		t.Error("a piece is not what the whole has there")
	}
}
