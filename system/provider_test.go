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

// provider accepts every push and remembers the last of each token.
type provider struct {
	url string

	mu      sync.Mutex
	last    map[string]wire.MessageID
	changed chan struct{}
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
		p.last[r.PathValue("token")] = wire.MessageID(id)
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
func (p *provider) await(t *testing.T, token string) wire.MessageID {
	t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	for {
		p.mu.Lock()
		id, ok := p.last[token]
		changed := p.changed
		p.mu.Unlock()
		if ok {
			return id
		}
		select {
		case <-deadline.C:
			t.Fatalf("no push for %s", token)
		case <-changed:
		}
	}
}
