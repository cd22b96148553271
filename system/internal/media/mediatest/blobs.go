// Package mediatest is what every adapter of the media role's ports has to do:
// a suite for each. It is for tests alone.
package mediatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"throng/system/internal/media"
)

// Blobs is the conformance suite of media.Blobs. open returns a store whose keys
// under "t/" are the test's own.
func Blobs(t *testing.T, open func(t *testing.T) media.Blobs) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, b media.Blobs)
	}{
		{"written is read, from any offset", blobsReadBack},
		{"a write that fails leaves nothing", blobsAllOrNothing},
		{"nothing is seen before it is whole", blobsNotBeforeWhole},
		{"removing by prefix leaves others alone", blobsDelete},
		{"many at a time", blobsConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := open(t)
			t.Cleanup(func() { // not t.Context, which has ended by then
				if err := b.DeleteAll(context.Background(), "t/"); err != nil {
					t.Errorf("clean up: %v", err)
				}
			})
			c.run(t, b)
		})
	}
}

// Content returns n bytes that depend on seed.
func Content(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = rng.Read(b) // never fails
	return b
}

func mustWrite(t *testing.T, b media.Blobs, key string, content []byte) {
	t.Helper()
	n, err := b.Write(t.Context(), key, bytes.NewReader(content))
	if err != nil || n != int64(len(content)) {
		t.Fatalf("write %s: %d of %d bytes, %v", key, n, len(content), err)
	}
}

func readAt(t *testing.T, b media.Blobs, key string, offset int64) ([]byte, error) {
	t.Helper()
	r, err := b.Read(t.Context(), key, offset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func blobsReadBack(t *testing.T, b media.Blobs) {
	for i, size := range []int{1, 64<<10 - 1, 6<<20 + 17} { // the last one is more than a piece of an S3 upload
		key, content := fmt.Sprintf("t/aa/read-%d-x", i), Content(uint64(i), size)
		mustWrite(t, b, key, content)
		for _, offset := range []int64{0, 1, int64(size) / 2, int64(size) - 1} {
			got, err := readAt(t, b, key, min(offset, int64(size)-1))
			if err != nil || !bytes.Equal(got, content[min(offset, int64(size)-1):]) {
				t.Errorf("%d bytes from %d on: %d bytes, %v", size, offset, len(got), err)
			}
		}
	}
	if _, err := readAt(t, b, "t/aa/none-0-x", 0); !errors.Is(err, media.ErrNotFound) {
		t.Errorf("read of a key that is not there: %v", err)
	}
	if _, err := b.Free(t.Context()); err != nil {
		t.Errorf("free: %v", err)
	}
}

var errBroken = errors.New("the client has gone")

func blobsAllOrNothing(t *testing.T, b media.Blobs) {
	for i, size := range []int{0, 1000, 6 << 20} {
		key := fmt.Sprintf("t/bb/half-%d-x", i)
		_, err := b.Write(t.Context(), key, io.MultiReader(bytes.NewReader(Content(1, size)), failing{}))
		if !errors.Is(err, errBroken) {
			t.Errorf("a source that fails after %d bytes: %v", size, err)
		}
		if _, err := readAt(t, b, key, 0); !errors.Is(err, media.ErrNotFound) {
			t.Errorf("after a failed write of %d bytes: %v", size, err)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }

func blobsNotBeforeWhole(t *testing.T, b media.Blobs) {
	const key = "t/cc/whole-0-x"
	content := Content(2, 300<<10)
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := b.Write(t.Context(), key, pr)
		done <- err
	}()
	if _, err := pw.Write(content); err != nil {
		t.Fatal(err)
	}
	if _, err := readAt(t, b, key, 0); !errors.Is(err, media.ErrNotFound) {
		t.Errorf("read while it is being written: %v", err)
	}
	pw.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, err := readAt(t, b, key, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read after that: %d bytes, %v", len(got), err)
	}
}

func blobsDelete(t *testing.T, b media.Blobs) {
	keep, gone := []string{"t/dd/ab-1-x", "t/dd/abcd-1-x", "t/de/abc-1-x"}, []string{"t/dd/abc-1-x", "t/dd/abc-2-x"}
	for _, key := range append(append([]string{}, keep...), gone...) {
		mustWrite(t, b, key, []byte(key))
	}
	for range 2 { // the second time there is nothing to do
		if err := b.DeleteAll(t.Context(), "t/dd/abc-"); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range gone {
		if _, err := readAt(t, b, key, 0); !errors.Is(err, media.ErrNotFound) {
			t.Errorf("%s after it was removed: %v", key, err)
		}
	}
	for _, key := range keep {
		if got, err := readAt(t, b, key, 0); err != nil || string(got) != key {
			t.Errorf("%s after others were removed: %q, %v", key, got, err)
		}
	}
}

func blobsConcurrent(t *testing.T, b media.Blobs) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			key, content := fmt.Sprintf("t/ee/%d-0-x", i), Content(uint64(i), 10_000+i)
			if _, err := b.Write(t.Context(), key, bytes.NewReader(content)); err != nil {
				t.Errorf("%s: %v", key, err)
				return
			}
			r, err := b.Read(t.Context(), key, 0)
			if err != nil {
				t.Errorf("%s: %v", key, err)
				return
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: %d bytes, %v", key, len(got), err)
			}
		})
	}
	wg.Wait()
}
