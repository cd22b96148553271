package media

import (
	"context"
	"errors"
	"io"
	"time"

	"throng/system/internal/obs"
)

// timedBlobs counts the calls of a blob store as blob.write, blob.read, until the
// first byte can be had, and blob.delete. That a blob is not there is no error.
type timedBlobs struct {
	Blobs
	write, read, remove *obs.Op
}

func timed(b Blobs, ops *obs.Ops) Blobs {
	return timedBlobs{Blobs: b, write: ops.Op("blob.write"), read: ops.Op("blob.read"), remove: ops.Op("blob.delete")}
}

// Write implements Blobs.
func (t timedBlobs) Write(ctx context.Context, key string, r io.Reader) (int64, error) {
	began := time.Now()
	n, err := t.Blobs.Write(ctx, key, r)
	t.write.Done(time.Since(began), err != nil)
	return n, err
}

// Read implements Blobs.
func (t timedBlobs) Read(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	began := time.Now()
	r, err := t.Blobs.Read(ctx, key, offset)
	t.read.Done(time.Since(began), err != nil && !errors.Is(err, ErrNotFound))
	return r, err
}

// DeleteAll implements Blobs.
func (t timedBlobs) DeleteAll(ctx context.Context, prefix string) error {
	began := time.Now()
	err := t.Blobs.DeleteAll(ctx, prefix)
	t.remove.Done(time.Since(began), err != nil)
	return err
}
