package push

import (
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// recorder notes each write; after broken it fails.
type recorder struct {
	net.Conn
	mu     sync.Mutex
	writes []string
	broken error
	closed bool
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return 0, r.broken
	}
	r.writes = append(r.writes, string(b))
	return len(b), nil
}

func (r *recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

func (r *recorder) seen() (writes []string, closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.writes), r.closed
}

func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

func TestGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(recorder)
		g := gather(r)
		write := func(s string) {
			t.Helper()
			if n, err := g.Write([]byte(s)); n != len(s) || err != nil {
				t.Fatalf("wrote %d, %v", n, err)
			}
		}
		wrote := func(want ...string) {
			t.Helper()
			synctest.Wait()
			if got, _ := r.seen(); !slices.Equal(got, want) {
				t.Fatalf("writes %q, want %q", got, want)
			}
		}
		write("head")
		write("body")
		wrote()
		<-time.After(gatherFor)
		wrote("headbody")
		write("more")
		<-time.After(gatherFor)
		wrote("headbody", "more")
		large := string(make([]byte, gatherMost))
		write(large)
		wrote("headbody", "more", large)
		write("last")
		err := g.Close()
		if _, closed := r.seen(); err != nil || !closed {
			t.Fatalf("close: %v, closed %v", err, closed)
		}
		wrote("headbody", "more", large, "last")

		r = &recorder{broken: errors.New("broken")}
		g = gather(r)
		write("lost")
		<-time.After(gatherFor)
		synctest.Wait()
		_, err = g.Write([]byte("x"))
		if _, closed := r.seen(); err != r.broken || !closed {
			t.Fatalf("after a failure: %v, closed %v", err, closed)
		}
		g.timer.Stop()
	})
}

func TestTarget(t *testing.T) {
	for _, c := range []struct{ provider, token, want string }{
		{"http://h:1", "t", "http://h:1/v1/devices/t"},
		{"https://h/", "a/b?c", "https://h/v1/devices/a%2Fb%3Fc"},
		{"https://h/x%2Fy/", "ü", "https://h/x%2Fy/v1/devices/%C3%BC"},
	} {
		p, err := New(Config{Provider: c.provider})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.target(c.token).String(); got != c.want {
			t.Errorf("%s and %s make %s, want %s", c.provider, c.token, got, c.want)
		}
	}
	p, err := New(Config{Provider: "https://me:secret@h"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.header.Get("Authorization"), "Basic bWU6c2VjcmV0"; got != want {
		t.Errorf("authorization %q, want %q", got, want)
	}
}
