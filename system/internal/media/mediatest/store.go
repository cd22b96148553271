package mediatest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"throng/system/internal/media"
	"throng/system/wire"
)

// Store is the conformance suite of media.Store. open opens the same empty
// store each time it is called within a test.
func Store(t *testing.T, open func(t *testing.T) func(t *testing.T) media.Store) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, open func(t *testing.T) media.Store)
	}{
		{"an upload goes on where it was, in another process too", storeResumes},
		{"of two who append at the same place one wins", storeConflict},
		{"quota", storeQuota},
		{"fetched by all", storeFetched},
		{"expired and removed", storeExpired},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

func object(n byte, owner uint64, size int64) media.Object {
	return media.Object{ID: wire.MediaID{n, 255, 0, '\'', '\\'}, Owner: owner, Kind: wire.Kind_KIND_VIDEO, Size: size,
		SHA256: [32]byte{n, 0, 1}, Messages: 1, HashState: []byte{0, 1, n}, Expires: time.UnixMilli(1_000_000 + int64(n))}
}

var wide = media.Quota{Objects: 100, Bytes: 1 << 40}

func mustCreate(t *testing.T, s media.Store, o media.Object) {
	t.Helper()
	if err := s.Create(t.Context(), o, wide); err != nil {
		t.Fatal(err)
	}
}

func storeResumes(t *testing.T, open func(t *testing.T) media.Store) {
	s := open(t)
	o := object(1, 1<<63+5, 30)
	mustCreate(t, s, o)
	if err := s.Append(t.Context(), o.ID, media.Part{Start: 0, Size: 10, Blob: "a"}, []byte("ten"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	s = open(t)
	got, err := s.Find(t.Context(), o.ID)
	if err != nil {
		t.Fatal(err)
	}
	want := o
	want.Received, want.HashState, want.Parts = 10, []byte("ten"), []media.Part{{Start: 0, Size: 10, Blob: "a"}}
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("found\n%s\nwant\n%s", g, w)
	}
	until := time.UnixMilli(5_000_000)
	if err := s.Append(t.Context(), o.ID, media.Part{Start: 10, Size: 20, Blob: "b"}, []byte("all"), until); err != nil {
		t.Fatal(err)
	}
	if got, err = s.Find(t.Context(), o.ID); err != nil || !got.Ready || !got.Expires.Equal(until) || len(got.Parts) != 2 || got.Parts[1].Blob != "b" {
		t.Errorf("finished: %+v, %v", got, err)
	}
	if _, err := s.Find(t.Context(), wire.MediaID{9}); !errors.Is(err, media.ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	if objects, bytes, err := s.Usage(t.Context()); objects != 1 || bytes != 30 || err != nil {
		t.Errorf("usage: %d objects, %d bytes, %v", objects, bytes, err)
	}
}

func storeConflict(t *testing.T, open func(t *testing.T) media.Store) {
	a, b := open(t), open(t)
	o := object(2, 7, 20)
	mustCreate(t, a, o)
	var wg sync.WaitGroup
	results := make([]error, 8)
	for i := range results {
		s := []media.Store{a, b}[i%2]
		wg.Go(func() {
			results[i] = s.Append(t.Context(), o.ID, media.Part{Start: 0, Size: int64(i + 1), Blob: fmt.Sprint(i)}, []byte{byte(i)}, time.Time{})
		})
	}
	wg.Wait()
	won := -1
	for i, err := range results {
		switch {
		case err == nil && won < 0:
			won = i
		case !errors.Is(err, media.ErrConflict):
			t.Errorf("%d: %v, and %d had won", i, err, won)
		}
	}
	got, err := a.Find(t.Context(), o.ID)
	if err != nil || won < 0 || got.Received != int64(won+1) || len(got.Parts) != 1 || got.Parts[0].Blob != fmt.Sprint(won) || got.HashState[0] != byte(won) {
		t.Errorf("%d won: %+v, %v", won, got, err)
	}
	if err := a.Append(t.Context(), wire.MediaID{9}, media.Part{Size: 1}, nil, time.Time{}); !errors.Is(err, media.ErrNotFound) {
		t.Errorf("append to nothing: %v", err)
	}
}

func storeQuota(t *testing.T, open func(t *testing.T) media.Store) {
	s := open(t)
	q := media.Quota{Objects: 2, Bytes: 100}
	for i, c := range []struct {
		owner uint64
		size  int64
		want  error
	}{{1, 101, media.ErrQuota}, {1, 60, nil}, {1, 41, media.ErrQuota}, {1, 40, nil}, {1, 1, media.ErrQuota}, {2, 100, nil}} {
		if err := s.Create(t.Context(), object(byte(i), c.owner, c.size), q); !errors.Is(err, c.want) {
			t.Errorf("user %d, %d bytes: %v, want %v", c.owner, c.size, err, c.want)
		}
	}
	if err := s.Remove(t.Context(), object(1, 0, 0).ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), object(20, 1, 60), q); err != nil {
		t.Errorf("after one was removed: %v", err)
	}
}

func storeFetched(t *testing.T, open func(t *testing.T) media.Store) {
	s := open(t)
	o := object(3, 1, 5)
	o.Messages = 2
	mustCreate(t, s, o)
	late := time.UnixMilli(9_000_000_000)
	if err := s.Append(t.Context(), o.ID, media.Part{Size: 5, Blob: "a"}, []byte("s"), late); err != nil {
		t.Fatal(err)
	}
	until := time.UnixMilli(3_000_000)
	for i, c := range []struct {
		message  byte
		user     uint64
		of       int
		complete bool
	}{
		{1, 10, 2, false}, {1, 10, 2, false}, // the same again
		{2, 1<<63 + 20, 1, false}, // one of two messages
		{1, 11, 2, true}, {1, 11, 2, false},
	} {
		got, err := s.Fetched(t.Context(), media.Fetch{ID: o.ID, Message: wire.MessageID{c.message}, User: c.user, Addressees: c.of}, until)
		if err != nil || got != c.complete {
			t.Errorf("fetch %d: complete %v, %v", i, got, err)
		}
		if o, err := s.Find(t.Context(), o.ID); err != nil || o.Expires.Equal(late) == (c.complete || i == 4) {
			t.Errorf("fetch %d: expires %v, %v", i, o.Expires, err)
		}
	}
	if _, err := s.Fetched(t.Context(), media.Fetch{ID: wire.MediaID{9}, User: 1, Addressees: 1}, until); !errors.Is(err, media.ErrNotFound) {
		t.Errorf("fetched what is not there: %v", err)
	}
}

func storeExpired(t *testing.T, open func(t *testing.T) media.Store) {
	s := open(t)
	for i := range byte(5) {
		mustCreate(t, s, object(i, uint64(i), 1))
	}
	now := time.UnixMilli(1_000_002)
	got, err := s.Expired(t.Context(), now, 2)
	if err != nil || len(got) != 2 {
		t.Fatalf("expired, at most 2: %v, %v", got, err)
	}
	if got, err = s.Expired(t.Context(), now, 10); err != nil || len(got) != 3 {
		t.Fatalf("expired: %v, %v", got, err)
	}
	for _, id := range got {
		for range 2 {
			if err := s.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Find(t.Context(), id); !errors.Is(err, media.ErrNotFound) {
			t.Errorf("removed: %v", err)
		}
	}
	if got, err = s.Expired(t.Context(), now.Add(time.Hour), 10); err != nil || len(got) != 2 || slices.Contains(got, wire.MediaID{}) {
		t.Errorf("the others: %v, %v", got, err)
	}
}
