package push

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"throng/system/internal/rpc"
)

// writesLetters makes the test binary write letters to the file that it names
// until it is killed.
const writesLetters = "THRONG_TEST_WRITES_LETTERS"

func writeLetters(path string) {
	l, err := openLetters(path, 1<<20, time.Hour, prometheus.NewGauge(prometheus.GaugeOpts{Name: "kept"}))
	for i := uint64(1); err == nil; i++ {
		if err = l.add(DeadLetter{At: time.Now(), User: i, Reason: "r"}); err == nil {
			fmt.Println(i) // it is kept
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func opened(t *testing.T, path string, maxBytes int64) *letters {
	t.Helper()
	l, err := openLetters(path, maxBytes, time.Hour, prometheus.NewGauge(prometheus.GaugeOpts{Name: "kept"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.close() }) // a test may have closed it
	return l
}

func (l *letters) must(t *testing.T, users ...uint64) {
	t.Helper()
	for _, u := range users {
		if err := l.add(DeadLetter{At: time.Now(), User: u, Reason: "r"}); err != nil {
			t.Fatal(err)
		}
	}
}

// users are those of the letters that are found.
func (l *letters) users(t *testing.T) []uint64 {
	t.Helper()
	found, err := l.find(0, time.Time{}, maxLetters)
	if err != nil {
		t.Fatal(err)
	}
	users := []uint64{}
	for _, x := range found {
		users = append(users, x.User)
	}
	if kept := testutil.ToFloat64(l.kept); kept != float64(len(users)) {
		t.Errorf("the gauge says %v, %d are there", kept, len(users))
	}
	return users
}

// TestLettersSurviveKill: what was kept when the process was killed in the
// middle of writing is there for the next one, in order.
func TestLettersSurviveKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "letters")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), writesLetters+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in, said := bufio.NewScanner(out), 0
	for said < 500 && in.Scan() {
		said++
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for in.Scan() { // what it had written before it died
		said++
	}
	_ = cmd.Wait() // it was killed
	l := opened(t, path, 1<<20)
	users := l.users(t)
	if len(users) < said || said < 500 {
		t.Fatalf("%d letters are there, %d were kept", len(users), said)
	}
	for i, u := range users {
		if u != users[0]+uint64(i) {
			t.Fatalf("letter %d is of user %d", i, u)
		}
	}
	next := users[len(users)-1] + 1
	l.must(t, next)
	if users = l.users(t); users[len(users)-1] != next {
		t.Errorf("the next one is not there: the last is of user %d", users[len(users)-1])
	}
}

// TestLettersAreBounded: the files never hold more than they may, and always
// the newest.
func TestLettersAreBounded(t *testing.T) {
	dir := t.TempDir()
	const limit = 4000
	l := opened(t, filepath.Join(dir, "letters"), limit)
	for u := range uint64(300) {
		l.must(t, u+1)
		var size int64
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			info, err := f.Info()
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		users := l.users(t)
		if size > limit || users[len(users)-1] != u+1 || u > 100 && size < limit/2-200 {
			t.Fatalf("after %d: %d bytes, the last is of user %d", u+1, size, users[len(users)-1])
		}
	}
	before := fmt.Sprint(l.users(t))
	again := opened(t, filepath.Join(dir, "letters"), limit)
	if after := fmt.Sprint(again.users(t)); after != before {
		t.Errorf("opened again: %s, before %s", after, before)
	}
}

// TestLettersGrowOld: what is older than allowed is not shown, and goes.
func TestLettersGrowOld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "letters")
	l := opened(t, path, 1<<20)
	now := time.Now()
	for u, age := range []time.Duration{1: 90 * time.Minute, 2: 59 * time.Minute, 3: 50 * time.Minute, 4: time.Minute} {
		if u > 0 {
			if err := l.add(DeadLetter{At: now.Add(-age), User: uint64(u)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	found, err := l.find(0, time.Time{}, 10)
	if err != nil || len(found) != 3 || found[0].User != 2 {
		t.Errorf("%+v, %v: want those of users 2 to 4", found, err)
	}
	l.prune(now.Add(30 * time.Minute))
	if l.lines[1] == 0 {
		t.Error("a file went whose newest letter may still be kept")
	}
	l.prune(now.Add(3 * time.Hour))
	if users := l.users(t); len(users) != 0 {
		t.Errorf("after three hours: %v", users)
	}
	l.must(t, 9)
	if users := l.users(t); len(users) != 1 {
		t.Errorf("after that: %v", users)
	}
}

// TestTornLetter: the remains of a letter cost nothing but itself.
func TestTornLetter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "letters")
	l := opened(t, path, 1<<20)
	l.must(t, 1, 2)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-9); err != nil {
		t.Fatal(err)
	}
	l = opened(t, path, 1<<20)
	l.must(t, 3)
	if users := fmt.Sprint(l.users(t)); users != "[1 3]" {
		t.Errorf("letters of %s, want those of 1 and 3", users)
	}
	garbage := strings.Repeat("x", 3*maxLetter) + "\n"
	if err := os.WriteFile(path+".old", []byte(garbage), 0o600); err != nil {
		t.Fatal(err)
	}
	if users := fmt.Sprint(l.users(t)); users != "[1 3]" {
		t.Errorf("letters of %s beside garbage", users)
	}
}

// TestLettersQuery reads letters as an operator does.
func TestLettersQuery(t *testing.T) {
	p, err := New(Config{Provider: "http://127.0.0.1:1", DeadLetters: filepath.Join(t.TempDir(), "letters")})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	now := time.Now().Truncate(time.Second)
	for i := range 20 {
		if err := p.letters.add(DeadLetter{At: now.Add(time.Duration(i-20) * time.Minute), User: uint64(1 + i%2), Device: uint32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(p *Push, query string) (int, []uint32, string) {
		w := httptest.NewRecorder()
		p.ServeDeadLetters(w, httptest.NewRequest(http.MethodGet, "/dead-letters?"+query, nil))
		var found []DeadLetter
		if w.Code == http.StatusOK {
			if err := json.Unmarshal(w.Body.Bytes(), &found); err != nil {
				t.Fatal(err)
			}
		}
		var devices []uint32
		for _, x := range found {
			devices = append(devices, x.Device)
		}
		return w.Code, devices, w.Body.String()
	}
	for query, want := range map[string]string{
		"limit=3":        "[17 18 19]",
		"user=2&limit=2": "[17 19]",
		"user=3":         "[]",
		"since=" + now.Add(-2*time.Minute).UTC().Format(time.RFC3339): "[18 19]",
	} {
		if code, got, body := ask(p, query); code != http.StatusOK || fmt.Sprint(got) != want {
			t.Errorf("%s: %d %v, want %s: %s", query, code, got, want, body)
		}
	}
	for _, query := range []string{"user=x", "since=yesterday", "limit=0", "limit=99999", "usr=1"} {
		if code, _, body := ask(p, query); code != http.StatusBadRequest || body == "" {
			t.Errorf("%s: %d %s", query, code, body)
		}
	}
	none, err := New(Config{Provider: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if code, _, body := ask(none, ""); code != http.StatusNotFound || !strings.Contains(body, "provider.dead_letters") {
		t.Errorf("without a file: %d %s", code, body)
	}
}

// TestLetterNotKept: a file that cannot be written to is counted, and holds up
// no push.
func TestLetterNotKept(t *testing.T) {
	f := newProvider(t, func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusBadRequest) })
	p, err := New(Config{Provider: f.URL, DeadLetters: filepath.Join(t.TempDir(), "letters")})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p.deadLetter(&job{req: &rpc.PushRequest{User: 1}}, "reason")
	if n := testutil.ToFloat64(p.m.unkept); n != 1 {
		t.Errorf("%v letters were not kept, want 1", n)
	}
	if _, err := New(Config{Provider: f.URL, DeadLetters: filepath.Join(os.Args[0], "letters")}); err == nil {
		t.Error("a folder that is a file was taken")
	}
}
