package groupcache

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestConformance runs the suite on miniredis, and on the Redis that
// THRONG_REDIS_ADDR names.
func TestConformance(t *testing.T) {
	t.Run("miniredis", func(t *testing.T) { suite(t, miniredis.RunT(t).Addr()) })
	t.Run("redis", func(t *testing.T) {
		addr := os.Getenv("THRONG_REDIS_ADDR")
		if addr == "" {
			t.Skip("THRONG_REDIS_ADDR is not set")
		}
		suite(t, addr)
	})
}

func open(t *testing.T, addr string) *Cache {
	t.Helper()
	c, err := New(Config{Addr: addr, LockTTL: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func suite(t *testing.T, addr string) {
	c := open(t, addr)
	ctx := t.Context()
	t.Run("PointerOnlyRises", func(t *testing.T) {
		id := rand.Uint64()
		if _, ok, err := c.Version(ctx, id); ok || err != nil {
			t.Fatalf("a pointer that was never set: %v, %v", ok, err)
		}
		for _, step := range [][2]uint64{{3, 3}, {2, 3}, {10, 10}, {9, 10}} { // 10 after 9: as numbers, not as strings
			if err := c.SetVersion(ctx, id, step[0]); err != nil {
				t.Fatal(err)
			}
			if v, ok, err := open(t, addr).Version(ctx, id); v != step[1] || !ok || err != nil {
				t.Fatalf("after %d: %d, %v, %v", step[0], v, ok, err)
			}
		}
	})
	t.Run("Members", func(t *testing.T) {
		id := rand.Uint64()
		want := []uint64{1, 2, math.MaxUint64}
		if _, ok, err := c.Members(ctx, id, 1); ok || err != nil {
			t.Fatalf("members never set: %v, %v", ok, err)
		}
		if err := c.SetMembers(ctx, id, 1, want); err != nil {
			t.Fatal(err)
		}
		if err := c.SetMembers(ctx, id, 2, nil); err != nil {
			t.Fatal(err)
		}
		if m, ok, err := c.Members(ctx, id, 1); !slices.Equal(m, want) || !ok || err != nil {
			t.Fatalf("%v, %v, %v", m, ok, err)
		}
		if m, ok, err := c.Members(ctx, id, 2); len(m) != 0 || !ok || err != nil {
			t.Fatalf("a group without members: %v, %v, %v", m, ok, err)
		}
	})
	t.Run("Lock", func(t *testing.T) {
		id := rand.Uint64()
		lock := func(want bool) {
			t.Helper()
			if got, err := c.Lock(ctx, id, 1); got != want || err != nil {
				t.Fatalf("lock %v, %v", got, err)
			}
		}
		lock(true)
		lock(false)
		if err := c.SetMembers(ctx, id, 1, nil); err != nil {
			t.Fatal(err)
		}
		lock(true)
	})
}

// TestWithoutRedis: every operation fails soon, and works once Redis is there.
func TestWithoutRedis(t *testing.T) {
	m := miniredis.RunT(t)
	addr := m.Addr()
	m.Close()
	c := open(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, _, err := c.Version(ctx, 1); err == nil {
		t.Fatal("an answer from nobody")
	}
	if err := m.StartAddr(addr); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := c.SetVersion(ctx, 1, 7); err != nil {
		t.Fatal(err)
	}
	m.FastForward(time.Minute)
	if _, ok, err := c.Version(ctx, 1); ok || err != nil {
		t.Fatalf("the pointer never expires: %v, %v", ok, err)
	}
}
