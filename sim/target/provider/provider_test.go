package provider

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

type served struct {
	*Provider
	t      *testing.T
	url    string
	client *http.Client
}

func serve(t *testing.T, cfg Config) *served {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s := &served{Provider: p, t: t, url: "http://" + ln.Addr().String(), client: &http.Client{Transport: &http.Transport{Protocols: protocols}}}
	t.Cleanup(func() { s.client.CloseIdleConnections(); cancel(); wg.Wait() })
	return s
}

func (s *served) push(token, key, message string) *http.Response {
	s.t.Helper()
	body := fmt.Sprintf(`{"collapse_key":%q,"message_id":%q,"waiting":1,"user":"18446744073709551615","device":2}`, key, message)
	resp, err := s.client.Post(s.url+"/v1/devices/"+token, "application/json", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp
}

func (s *served) get(path string) string {
	s.t.Helper()
	resp, err := s.client.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

func TestAcceptsOverHTTP2AndCollapses(t *testing.T) {
	s := serve(t, Config{})
	for _, m := range []string{"aa", "bb"} {
		resp := s.push("tok", "k", m)
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Fatalf("%s over %s, want 200 over HTTP/2", resp.Status, resp.Proto)
		}
	}
	s.push("tok", "other", "cc")
	if st := s.Stats(); st.Accepted != 3 || st.Collapsed != 1 || st.Devices != 1 {
		t.Fatalf("stats %+v", st)
	}
	if shown := s.get("/v1/devices/tok"); !strings.Contains(shown, `"bb"`) || strings.Contains(shown, `"aa"`) {
		t.Fatalf("the device shows %s", shown)
	}
	if m := s.get("/metrics"); !strings.Contains(m, `throng_provider_requests_total{outcome="accepted"} 3`) {
		t.Fatalf("metrics:\n%s", m)
	}
	resp, err := s.client.Post(s.url+"/v1/devices/t", "", bytes.NewReader(nil))
	if err != nil || resp.StatusCode != 400 {
		t.Fatalf("an empty body: %v %v", resp, err)
	}
	resp.Body.Close()
}

func TestDeadTokensAreDecidedByTheSeed(t *testing.T) {
	a, b, other := serve(t, Config{DeadShare: 0.3, Seed: 1}), serve(t, Config{DeadShare: 0.3, Seed: 1}), serve(t, Config{DeadShare: 0.3, Seed: 2})
	dead, differ := 0, 0
	for i := range 2000 {
		tok := fmt.Sprint("token-", i)
		if a.Dead(tok) != b.Dead(tok) {
			t.Fatalf("%s is dead for one of two equal providers", tok)
		}
		if a.Dead(tok) != other.Dead(tok) {
			differ++
		}
		if a.Dead(tok) {
			if dead == 0 && a.push(tok, "k", "aa").StatusCode != http.StatusGone {
				t.Fatal("a dead token was not answered 410")
			}
			dead++
		}
	}
	if dead < 500 || dead > 700 || differ == 0 {
		t.Fatalf("%d of 2000 dead, want about 600; %d differ with another seed", dead, differ)
	}
}

func TestQuotaAndFaults(t *testing.T) {
	s := serve(t, Config{QuotaPerMinute: 60})
	codes := map[int]int{}
	for range 5 {
		resp := s.push("tok", "k", "aa")
		codes[resp.StatusCode]++
		if resp.StatusCode == 429 && resp.Header.Get("Retry-After") == "" {
			t.Fatal("429 without Retry-After")
		}
	}
	if codes[200] < 1 || codes[429] < 2 {
		t.Fatalf("answers %v", codes)
	}
	f := serve(t, Config{ErrorShare: 1})
	if c := f.push("tok", "k", "aa").StatusCode; c != 503 {
		t.Fatalf("got %d, want a fault", c)
	}
}

func TestLatencyIsLognormal(t *testing.T) {
	p, err := New(Config{Latency: Latency{Median: 100 * time.Millisecond, Sigma: 0.5}, Seed: 9})
	if err != nil {
		t.Fatal(err)
	}
	below, above := 0, 0
	for n := range uint64(4000) {
		switch d := p.delay(n); {
		case d < 100*time.Millisecond:
			below++
		case d > 228*time.Millisecond: // the 95th percentile: median times exp(1.645 sigma)
			above++
		}
	}
	if below < 1900 || below > 2100 || above < 150 || above > 250 {
		t.Fatalf("%d of 4000 below the median, %d above the 95th percentile", below, above)
	}
}

func TestFeed(t *testing.T) {
	s := serve(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	started := make(chan struct{})
	got := make(chan Push, 10)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := ReadFeed(ctx, nil, s.url, func() { close(started) }, func(p Push) { got <- p }); err != nil {
			t.Error(err)
		}
	})
	<-started
	s.push("tok", "k", "aa")
	select {
	case p := <-got:
		if p.Token != "tok" || p.User != 1<<64-1 || p.Device != 2 || p.MessageID != "aa" || p.AtUnixUS == 0 || p.Lost != 0 {
			t.Fatalf("feed: %+v", p)
		}
	case <-ctx.Done():
		t.Fatal("nothing in the feed")
	}
	cancel()
	wg.Wait()
}

func TestFeedTellsOfEveryAnswer(t *testing.T) {
	for want, cfg := range map[string]Config{Dead: {DeadShare: 1}, Failed: {ErrorShare: 1}, Throttled: {QuotaPerMinute: 1}} {
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		r := &reader{limit: 10, wake: make(chan struct{}, 1)}
		p.readers[r] = struct{}{}
		for range 3 {
			req := httptest.NewRequest(http.MethodPost, "/v1/devices/tok", strings.NewReader(`{"collapse_key":"k","message_id":"aa","user":"5"}`))
			req.SetPathValue("token", "tok")
			p.push(httptest.NewRecorder(), req)
		}
		lines := r.take()
		if len(lines) != 3 || lines[2].Outcome != want || lines[2].User != 5 || lines[2].Token != "tok" {
			t.Errorf("want %s, the feed is %+v", want, lines)
		}
	}
}

func TestSlowReaderIsToldWhatItLost(t *testing.T) {
	r := &reader{limit: 2, wake: make(chan struct{}, 1)}
	fits := 0
	for i := range 5 {
		if r.put(Push{Device: uint32(i)}) {
			fits++
		}
	}
	lines := r.take()
	if fits != 2 || len(lines) != 3 || lines[1].Device != 1 || lines[2].Lost != 3 {
		t.Fatalf("%d fit, lines %+v", fits, lines)
	}
	r.put(Push{Device: 9})
	if lines = r.take(); len(lines) != 1 || lines[0].Device != 9 {
		t.Fatalf("after the note: %+v", lines)
	}
}

func TestNotificationsAreBounded(t *testing.T) {
	p, err := New(Config{Devices: 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		p.accept(fmt.Sprint(i), Notification{CollapseKey: "k"})
	}
	if n := p.Stats().Devices; n > 10 {
		t.Fatalf("%d devices kept, limit 10", n)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []Config{{DeadShare: 2}, {ErrorShare: -1}, {Latency: Latency{Median: -1}}, {QuotaPerMinute: -1}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}
