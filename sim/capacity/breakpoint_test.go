package capacity

import (
	"testing"

	"pgregory.net/rapid"
)

// TestSearch lets the search find a limit that it does not know.
func TestSearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Uint64Range(900, 50_000).Draw(t, "limit") // 1/limit is carried, 1/(limit-1) is not
		s := Search{Start: rapid.Uint64Range(1000, 20_000).Draw(t, "start"), Most: 1000, Least: 20_000,
			Resolution: rapid.Float64Range(0.05, 0.5).Draw(t, "resolution")}
		tries := map[uint64]bool{}
		for {
			n, ok := s.Next()
			if !ok {
				break
			}
			if tries[n] || n < s.Most || n > s.Least || len(tries) > 12 {
				t.Fatalf("try %d of 1/%d, after %v", len(tries)+1, n, tries)
			}
			tries[n] = true
			s.Report(n, n >= limit)
		}
		carried, broken := s.Found()
		switch {
		case limit > s.Least:
			if carried != 0 || broken != s.Least {
				t.Fatalf("carried 1/%d, broken 1/%d: nothing of this is carried", carried, broken)
			}
		case limit <= s.Most:
			if carried != s.Most || broken != 0 {
				t.Fatalf("carried 1/%d, broken 1/%d: all of this is carried", carried, broken)
			}
		default:
			// Two digits may be coarser than the resolution: 1/1100 follows 1/1000.
			if carried < limit || broken >= limit || float64(carried) > float64(broken)*(1+max(s.Resolution, 0.1)) {
				t.Fatalf("carried 1/%d, broken 1/%d, limit 1/%d", carried, broken, limit)
			}
		}
	})
}

func TestSearchSmaller(t *testing.T) {
	s := Search{Start: 2000, Most: 1000, Least: 3000, Resolution: 0.1}
	for _, want := range []uint64{2200, 2400, 2600, 2900} {
		n, ok := s.Smaller(map[uint64]uint64{2200: 2000, 2400: 2200, 2600: 2400, 2900: 2600}[want])
		if n != want || !ok {
			t.Errorf("1/%d %v, want 1/%d", n, ok, want)
		}
	}
	if n, ok := s.Smaller(2900); ok {
		t.Errorf("1/%d is below the least", n)
	}
}
