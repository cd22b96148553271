package system_test

import (
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"throng/system/wire"
)

// provider accepts every push, unless it is told how to answer. It remembers
// every request, and the last message accepted for each token.
type provider struct {
	url string

	mu       sync.Mutex
	answer   func(token string) (status int, retryAfter string) // nil: 200
	requests []request
	last     map[string]wire.MessageID
	changed  chan struct{}
}

// request is one attempt to push.
type request struct {
	token  string
	at     time.Time
	status int
}

// answers makes the provider answer so from now on; nil: 200.
func (p *provider) answers(f func(token string) (status int, retryAfter string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = f
}

// log returns the requests for a token so far; "" stands for all.
func (p *provider) log(token string) (out []request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.requests {
		if token == "" || r.token == token {
			out = append(out, r)
		}
	}
	return out
}

func startProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{last: map[string]wire.MessageID{}, changed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/devices/{token}", func(w http.ResponseWriter, r *http.Request) {
		var note struct {
			MessageID string `json:"message_id"`
		}
		if err := json.NewDecoder(r.Body).Decode(&note); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		id, err := hex.DecodeString(note.MessageID)
		if err != nil || len(id) != len(wire.MessageID{}) {
			http.Error(w, "message_id", http.StatusBadRequest)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		token, status, retryAfter := r.PathValue("token"), http.StatusOK, ""
		if p.answer != nil {
			status, retryAfter = p.answer(token)
		}
		p.requests = append(p.requests, request{token, time.Now(), status})
		if status == http.StatusOK {
			p.last[token] = wire.MessageID(id)
		} else {
			if retryAfter != "" {
				w.Header().Set("Retry-After", retryAfter)
			}
			w.WriteHeader(status)
		}
		close(p.changed)
		p.changed = make(chan struct{})
	})
	srv := httptest.NewUnstartedServer(mux)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv.Config.Protocols = protocols
	srv.Start()
	t.Cleanup(srv.Close)
	p.url = srv.URL
	return p
}

// await returns the message that was last pushed to token.
func (p *provider) await(t *testing.T, token string) (id wire.MessageID) {
	t.Helper()
	p.awaitThat(t, "a push for "+token, func() (ok bool) {
		id, ok = p.last[token]
		return ok
	})
	return id
}

// awaitThat waits until ok, which is called with p.mu held.
func (p *provider) awaitThat(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	for {
		p.mu.Lock()
		done, changed := ok(), p.changed
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("it never came: %s", what)
		case <-changed:
		}
	}
}
