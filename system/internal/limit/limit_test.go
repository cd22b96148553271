package limit

import (
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	var b Bucket
	r := Rate{PerSecond: 10, Burst: 5}
	count := func(now time.Duration) (n int, wait time.Duration) {
		for {
			if wait = b.Take(r, 1, now); wait > 0 {
				return n, wait
			}
			n++
		}
	}
	// The burst, and the one that fits when the bucket has just a drop left.
	if n, wait := count(time.Second); n != 6 || wait != 100*time.Millisecond {
		t.Errorf("%d at once, then %v", n, wait)
	}
	if n, _ := count(time.Second + 300*time.Millisecond); n != 3 {
		t.Errorf("%d after 0.3 s", n)
	}
	if n, _ := count(time.Minute); n != 6 {
		t.Errorf("%d after a pause", n)
	}
	if got := b.Charge(r, 100, time.Minute); got != 10*time.Second+100*time.Millisecond {
		t.Errorf("overdrawn by %v", got)
	}
	if got := b.Wait(r, time.Minute+10*time.Second); got != 100*time.Millisecond {
		t.Errorf("10 s later still %v", got)
	}
	if n, _ := count(2 * time.Minute); n != 6 {
		t.Errorf("%d after the debt", n)
	}
	if b.Take(Rate{}, 1<<60, 0) != 0 || b.Charge(Rate{}, 1<<60, 0) != 0 {
		t.Error("no rate is a limit")
	}
}

// Whoever takes at the same time gets no more together.
func TestBucketIsShared(t *testing.T) {
	var b Bucket
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := 0
	for range 8 {
		wg.Go(func() {
			n := 0
			for b.Take(Rate{PerSecond: 1, Burst: 999}, 1, 0) == 0 {
				n++
			}
			mu.Lock()
			got += n
			mu.Unlock()
		})
	}
	wg.Wait()
	if got != 1000 {
		t.Errorf("%d of 1000", got)
	}
}

func TestTable(t *testing.T) {
	forgotten := 0
	tab := NewTable[int, int](2, func() { forgotten++ })
	one := tab.Hold(1, func(v *int) bool { *v = 7; return true })
	if again := tab.Hold(1, nil); again != one {
		t.Error("two entries of one key")
	}
	tab.Release(one, nil)
	if held, idle := tab.Len(); held != 1 || idle != 0 {
		t.Errorf("%d held, %d idle", held, idle)
	}
	tab.Release(one, nil)
	for k := 2; k <= 3; k++ {
		tab.Do(k, func(v *int) { *v = k })
	}
	if held, idle := tab.Len(); held != 0 || idle != 2 || forgotten != 1 {
		t.Errorf("%d held, %d idle, %d forgotten", held, idle, forgotten)
	}
	tab.Do(3, func(v *int) {
		if *v != 3 {
			t.Errorf("3 has %d", *v)
		}
	})
	tab.Do(1, func(v *int) {
		if *v != 0 {
			t.Errorf("1 has %d, and should have been forgotten", *v)
		}
	})
	if e := tab.Hold(9, func(*int) bool { return false }); e != nil {
		t.Error("held without a fit")
	}
	tab.Release(nil, nil)
	if held, idle := tab.Len(); held != 0 || idle != 2 {
		t.Errorf("%d held, %d idle", held, idle)
	}
}

func prefixes(t testing.TB, s ...string) []netip.Prefix {
	t.Helper()
	p, err := ParsePrefixes(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSources(t *testing.T) {
	s := Sources{Proxies: prefixes(t, "10.0.0.0/8", "fd00::1"), Exempt: prefixes(t, "127.0.0.0/8", "192.0.2.7")}
	for _, tc := range []struct {
		peer, want string
		forwarded  []string
	}{
		{"198.51.100.1:5", "198.51.100.1", []string{"203.0.113.9"}}, // anybody may say that
		{"[::ffff:198.51.100.1]:5", "198.51.100.1", nil},
		{"10.1.2.3:5", "203.0.113.9", []string{"203.0.113.9"}},
		{"10.1.2.3:5", "203.0.113.9", []string{"198.51.100.1, 203.0.113.9, 10.7.7.7"}}, // what the client wrote comes first
		{"10.1.2.3:5", "203.0.113.9", []string{"198.51.100.1", "203.0.113.9", "10.7.7.7"}},
		{"[fd00::1]:5", "2001:db8::1", []string{"2001:db8::1"}},
		{"10.1.2.3:5", "10.1.2.3", nil},
		{"10.1.2.3:5", "10.1.2.3", []string{"10.9.9.9"}},
		{"10.1.2.3:5", "invalid IP", []string{"203.0.113.9, nonsense"}},
		{"pipe", "invalid IP", nil},
	} {
		h := http.Header{"X-Forwarded-For": tc.forwarded}
		if got := s.Client(tc.peer, h).String(); got != tc.want {
			t.Errorf("%s, forwarded for %q: %s, want %s", tc.peer, tc.forwarded, got, tc.want)
		}
	}
	for addr, want := range map[string]string{
		"198.51.100.1": "198.51.100.1", "::ffff:198.51.100.1": "198.51.100.1", "127.0.0.9": "", "192.0.2.7": "", "192.0.2.8": "192.0.2.8",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "2001:db8:1:2::9": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
	} {
		got := ""
		if key, ok := s.Key(netip.MustParseAddr(addr)); ok {
			got = key.String()
		}
		if got != want {
			t.Errorf("%s is counted as %q, want %q", addr, got, want)
		}
	}
	if _, ok := s.Key(netip.Addr{}); ok {
		t.Error("no address is limited")
	}
	if _, err := ParsePrefixes([]string{"10.0.0.0/33"}); err == nil {
		t.Error("10.0.0.0/33 was accepted")
	}
}

// FuzzForwardedFor: whatever a header says, only a proxy is asked, and the answer is
// no proxy's unless nobody else is named.
func FuzzForwardedFor(f *testing.F) {
	f.Add("10.1.2.3:5", "198.51.100.1, 203.0.113.9, 10.7.7.7", "")
	f.Add("198.51.100.1:5", "203.0.113.9", "10.0.0.1")
	f.Add("[fd00::1]:5", " 2001:db8::1%eth0 ,", ",")
	s := Sources{Proxies: prefixes(f, "10.0.0.0/8", "fd00::1")}
	f.Fuzz(func(t *testing.T, peer, first, second string) {
		got := s.Client(peer, http.Header{"X-Forwarded-For": {first, second}})
		ap, err := netip.ParseAddrPort(peer)
		switch {
		case err != nil && got.IsValid():
			t.Errorf("peer %q has address %v", peer, got)
		case err == nil && !s.Proxy(ap.Addr()) && got != ap.Addr().Unmap():
			t.Errorf("peer %q is taken for %v", peer, got)
		case got.IsValid() && s.Proxy(got) && got != ap.Addr().Unmap():
			t.Errorf("%q, %q: the client is the proxy %v", first, second, got)
		}
		s.Key(got)
	})
}

func BenchmarkTake(b *testing.B) {
	var bucket Bucket
	b.ReportAllocs()
	now := time.Duration(0)
	for b.Loop() {
		now += time.Millisecond
		bucket.Take(Rate{PerSecond: 50, Burst: 500}, 1, now)
	}
}

func BenchmarkTable(b *testing.B) {
	tab := NewTable[netip.Addr, Bucket](1024, nil)
	at := netip.MustParseAddr("203.0.113.9")
	held := tab.Hold(at, nil)
	defer tab.Release(held, nil)
	b.ReportAllocs()
	for b.Loop() {
		tab.Release(tab.Hold(at, nil), nil)
	}
}
