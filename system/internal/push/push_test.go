package push

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"throng/system/internal/rpc"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writesLetters); path != "" {
		writeLetters(path)
		return
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

// fakeProvider answers with what script returns for the nth request (from 1).
type fakeProvider struct {
	*httptest.Server
	mu    sync.Mutex
	paths []string
	notes []notification
	times []time.Time
}

func newProvider(t *testing.T, script func(n int, w http.ResponseWriter)) *fakeProvider {
	t.Helper()
	f := new(fakeProvider)
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var note notification
		if err := json.NewDecoder(r.Body).Decode(&note); err != nil || r.ProtoMajor != 2 {
			t.Errorf("request over %s: %v", r.Proto, err)
		}
		f.mu.Lock()
		f.paths = append(f.paths, r.URL.Path)
		f.notes = append(f.notes, note)
		f.times = append(f.times, time.Now())
		n := len(f.paths)
		f.mu.Unlock()
		script(n, w)
	}))
	f.Config.Protocols = new(http.Protocols)
	f.Config.Protocols.SetUnencryptedHTTP2(true)
	f.Start()
	t.Cleanup(f.Close)
	return f
}

func (f *fakeProvider) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.paths)
}

type asker struct {
	*Push
	t      *testing.T
	stream rpc.Push_NotifyClient
}

func start(t *testing.T, cfg Config) *asker {
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
	conn, err := rpc.Dial(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	streamCtx, stop := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		stop()
		conn.Close()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	stream, err := rpc.NewPushClient(conn).Notify(streamCtx)
	if err != nil {
		t.Fatal(err)
	}
	return &asker{Push: p, t: t, stream: stream}
}

func (a *asker) ask(refs ...uint64) {
	a.t.Helper()
	b := new(rpc.PushBatch)
	for _, r := range refs {
		b.Items = append(b.Items, &rpc.PushRequest{Ref: r, User: 7, Device: 1, Token: fmt.Sprintf("t/%d", r),
			MessageId: []byte{0xab, 0xcd}, CollapseKey: "k", Waiting: 3})
	}
	if err := a.stream.Send(b); err != nil {
		a.t.Fatal(err)
	}
}

func (a *asker) cancel(refs ...uint64) {
	a.t.Helper()
	if err := a.stream.Send(&rpc.PushBatch{Cancel: refs}); err != nil {
		a.t.Fatal(err)
	}
}

// await waits until ok.
func (a *asker) await(ok func() bool) {
	a.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			a.t.Fatal("it never happened")
		}
	}
}

func (a *asker) outcomes(n int) map[uint64]rpc.PushOutcome {
	a.t.Helper()
	got := map[uint64]rpc.PushOutcome{}
	for len(got) < n {
		b, err := a.stream.Recv()
		if err != nil {
			a.t.Fatalf("after %v: %v", got, err)
		}
		for _, r := range b.Items {
			got[r.Ref] = r.Outcome
		}
	}
	return got
}

func TestAcceptedAndDead(t *testing.T) {
	f := newProvider(t, func(n int, w http.ResponseWriter) {
		if n == 2 {
			w.WriteHeader(http.StatusGone)
		}
	})
	a := start(t, Config{Provider: f.URL, Concurrency: 1})
	a.ask(1, 2)
	got := a.outcomes(2)
	if got[1] != rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED || got[2] != rpc.PushOutcome_PUSH_OUTCOME_DEAD_TOKEN {
		t.Fatalf("outcomes %v", got)
	}
	want := notification{CollapseKey: "k", MessageID: "abcd", Waiting: 3, User: 7, Device: 1}
	if f.paths[0] != "/v1/devices/t/1" || f.notes[0] != want {
		t.Fatalf("request %s %+v, want %+v", f.paths[0], f.notes[0], want)
	}
	if n := testutil.ToFloat64(a.m.accepted); n != 1 {
		t.Errorf("accepted %v, want 1", n)
	}
}

func TestRetriesThenAccepted(t *testing.T) {
	f := newProvider(t, func(n int, w http.ResponseWriter) {
		if n < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	a := start(t, Config{Provider: f.URL, Backoff: time.Millisecond})
	a.ask(1)
	if got := a.outcomes(1); got[1] != rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED || f.requests() != 3 {
		t.Fatalf("%v after %d requests", got, f.requests())
	}
}

func TestGivesUpAfterAttempts(t *testing.T) {
	f := newProvider(t, func(n int, w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) })
	a := start(t, Config{Provider: f.URL, Backoff: time.Millisecond, Attempts: 3, DeadLetters: filepath.Join(t.TempDir(), "new", "letters")})
	a.ask(1, 2, 3)
	for ref, o := range a.outcomes(3) {
		if o != rpc.PushOutcome_PUSH_OUTCOME_DEAD_LETTER {
			t.Errorf("ref %d: %v", ref, o)
		}
	}
	if f.requests() != 9 || testutil.ToFloat64(a.m.deadLetters) != 3 {
		t.Errorf("%d requests and %v dead letters, want 9 and 3", f.requests(), testutil.ToFloat64(a.m.deadLetters))
	}
	w := httptest.NewRecorder()
	a.ServeDeadLetters(w, httptest.NewRequest(http.MethodGet, "/dead-letters", nil))
	var all []DeadLetter
	if err := json.Unmarshal(w.Body.Bytes(), &all); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	if len(all) != 3 || all[0].At.After(all[2].At) || all[0].User != 7 || all[0].MessageID != "abcd" || all[0].Reason == "" || testutil.ToFloat64(a.m.kept) != 3 {
		t.Errorf("letters %+v, want three in order", all)
	}
}

func TestRefusedIsNotRetried(t *testing.T) {
	f := newProvider(t, func(n int, w http.ResponseWriter) { w.WriteHeader(http.StatusBadRequest) })
	a := start(t, Config{Provider: f.URL})
	a.ask(1)
	if got := a.outcomes(1); got[1] != rpc.PushOutcome_PUSH_OUTCOME_DEAD_LETTER || f.requests() != 1 {
		t.Fatalf("%v after %d requests", got, f.requests())
	}
}

func TestProviderThatIsDownIsRetried(t *testing.T) {
	a := start(t, Config{Provider: "http://127.0.0.1:1", Backoff: time.Millisecond, Attempts: 2, DeadLetters: filepath.Join(t.TempDir(), "letters")})
	a.ask(1)
	if got := a.outcomes(1); got[1] != rpc.PushOutcome_PUSH_OUTCOME_DEAD_LETTER {
		t.Fatalf("outcome %v", got)
	}
	found, err := a.letters.find(0, time.Time{}, 1)
	if err != nil || len(found) != 1 || found[0].Reason == "" || strings.Contains(found[0].Reason, "t/1") || strings.Contains(found[0].Reason, "t%2F1") {
		t.Errorf("%+v, %v: want a reason that does not tell the token", found, err)
	}
}

func TestThrottlingHoldsEverybodyAndIsNoAttempt(t *testing.T) {
	f := newProvider(t, func(n int, w http.ResponseWriter) {
		if n <= 2 {
			w.Header().Set("Retry-After", "0.2")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	a := start(t, Config{Provider: f.URL, Concurrency: 1, Attempts: 1})
	a.ask(1, 2)
	for ref, o := range a.outcomes(2) {
		if o != rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED {
			t.Errorf("ref %d: %v", ref, o)
		}
	}
	if gap := f.times[1].Sub(f.times[0]); gap < 190*time.Millisecond {
		t.Errorf("asked again after %v, told to wait 200 ms", gap)
	}
	if n := testutil.ToFloat64(a.m.throttled); n != 2 {
		t.Errorf("throttled %v, want 2", n)
	}
}

func TestFullQueueSendsRequestsBack(t *testing.T) {
	release := make(chan struct{})
	f := newProvider(t, func(int, http.ResponseWriter) { <-release })
	a := start(t, Config{Provider: f.URL, Concurrency: 2, Queue: 3, Timeout: patience})
	a.ask(1, 2)
	a.await(func() bool { return f.requests() == 2 })
	a.ask(3, 4, 5, 6, 7)
	got := a.outcomes(2)
	if got[6] != rpc.PushOutcome_PUSH_OUTCOME_UNSPECIFIED || got[7] != rpc.PushOutcome_PUSH_OUTCOME_UNSPECIFIED {
		t.Fatalf("outcomes %v, want 6 and 7 sent back: three fit", got)
	}
	if n := testutil.ToFloat64(a.m.queue.Dropped); n != 2 || f.requests() != 2 {
		t.Errorf("%v sent back and %d requests at once, want 2 and 2", n, f.requests())
	}
	close(release)
	for ref, o := range a.outcomes(5) {
		if o != rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED {
			t.Errorf("ref %d: %v", ref, o)
		}
	}
}

func TestCancelledBeforeTheAttempt(t *testing.T) {
	release := make(chan struct{})
	f := newProvider(t, func(n int, w http.ResponseWriter) {
		if n == 1 {
			<-release
		}
	})
	a := start(t, Config{Provider: f.URL, Concurrency: 1, Timeout: patience})
	a.ask(1, 2, 3)
	a.await(func() bool { return f.requests() == 1 })
	a.cancel(2, 99) // 2 waits for the worker; nobody knows 99
	if got := a.outcomes(1); got[2] != rpc.PushOutcome_PUSH_OUTCOME_CANCELLED {
		t.Fatalf("outcomes %v, want 2 cancelled", got)
	}
	close(release)
	if got := a.outcomes(2); got[1] != rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED || got[3] != rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED {
		t.Fatalf("outcomes %v, want 1 and 3 accepted", got)
	}
	if f.requests() != 2 || slices.Contains(f.paths, "/v1/devices/t/2") {
		t.Errorf("requests %v: 2 had been taken back", f.paths)
	}
}

func TestCancelledBetweenAttempts(t *testing.T) {
	f := newProvider(t, func(n int, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	a := start(t, Config{Provider: f.URL, Concurrency: 1})
	a.ask(1)
	a.await(func() bool { return testutil.ToFloat64(a.m.attempts.WithLabelValues("failed")) == 1 })
	a.cancel(1)
	a.ask(2) // the only worker has to be free for it
	got := a.outcomes(2)
	if got[1] != rpc.PushOutcome_PUSH_OUTCOME_CANCELLED || got[2] != rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED || f.requests() != 2 {
		t.Fatalf("outcomes %v after %d requests", got, f.requests())
	}
}

func TestRetryAfterOfAFaultIsTheLeast(t *testing.T) {
	f := newProvider(t, func(n int, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", "0.2")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	a := start(t, Config{Provider: f.URL, Backoff: time.Nanosecond})
	a.ask(1)
	a.outcomes(1)
	if gap := f.times[1].Sub(f.times[0]); gap < 190*time.Millisecond {
		t.Errorf("asked again after %v, told to wait 200 ms", gap)
	}
}

func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(600) // ten a second, ten at once after a pause
		start := time.Now()
		for range 30 {
			b.take(t.Context())
		}
		if took := time.Since(start); took < 1900*time.Millisecond || took > 2100*time.Millisecond {
			t.Errorf("30 tokens took %v, want 2 s", took)
		}
		b.hold(3 * time.Second)
		start = time.Now()
		b.take(t.Context())
		if took := time.Since(start); took < 3*time.Second || took > 3*time.Second*9/8 {
			t.Errorf("a held bucket opened after %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		b.hold(time.Hour)
		if b.take(ctx) {
			t.Error("a token was given after the context was done")
		}
	})
}

// TestBackoff: full jitter under a bound that doubles, up to the most.
func TestBackoff(t *testing.T) {
	p, err := New(Config{Provider: "http://127.0.0.1:1", Backoff: 100 * time.Millisecond, MaxBackoff: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for attempt, bound := range []time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 3: 400 * time.Millisecond, 4: 800 * time.Millisecond, 5: time.Second, 100: time.Second} {
		if bound == 0 {
			continue
		}
		least, most := bound, time.Duration(0)
		for range 300 {
			d := p.backoff(attempt)
			least, most = min(least, d), max(most, d)
		}
		// 300 draws all in one half: once in 1e90 times.
		if most > bound || most <= bound/2 || least >= bound/2 {
			t.Errorf("attempt %d waits from %v to %v, want anything up to %v", attempt, least, most, bound)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for h, want := range map[string]time.Duration{
		"": time.Second, "nonsense": time.Second, "-3": time.Second, "2": 2 * time.Second, "0.5": 500 * time.Millisecond,
		"1e9": time.Minute, "Fri, 02 Jan 2026 03:04:08 GMT": 3 * time.Second, "Fri, 02 Jan 2026 03:04:01 GMT": 0,
	} {
		if got := retryAfter(h, now); got != want {
			t.Errorf("%q: %v, want %v", h, got, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, u := range []string{"", "provider:80", "ftp://x", "http://"} {
		if _, err := New(Config{Provider: u}); err == nil {
			t.Errorf("accepted provider %q", u)
		}
	}
}
