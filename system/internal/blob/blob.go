// Package blob keeps the bytes of media through gocloud.dev/blob: in files of a
// folder, which may be a volume that several instances share, or in a bucket
// that speaks S3. It is the media.Blobs of a deployment. It may not import a
// role other than media, whose port it implements.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"syscall"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"

	"throng/system/internal/media"
)

// Schemes of the URLs that Open knows.
const (
	File = "file" // file:///folder, which is made if it is missing
	S3   = "s3"   // s3://bucket?endpoint=http://host:port&..., as gocloud.dev/blob/s3blob reads it
)

// copyBytes is the size of the buffer between a client and a store.
const copyBytes = 64 << 10

// Store is a media.Blobs.
type Store struct {
	bucket *blob.Bucket
	folder string // of files; "" for S3
}

var _ media.Blobs = (*Store)(nil)

// Check says what is wrong with a URL.
func Check(at string) error {
	u, err := url.Parse(at)
	switch {
	case err != nil:
		return fmt.Errorf("blob: %w", err)
	case u.Scheme == File && u.Host == "" && len(u.Path) > 1 && u.RawQuery == "", u.Scheme == S3 && u.Host != "":
		return nil
	}
	return fmt.Errorf("blob: %q: allowed are file:///folder and s3://bucket with the parameters of gocloud.dev/blob/s3blob", at)
}

// Open opens the store at a URL. S3 is asked for nothing until it is used; its
// keys are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
func Open(ctx context.Context, at string) (*Store, error) {
	if err := Check(at); err != nil {
		return nil, err
	}
	u, err := url.Parse(at)
	if err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	if u.Scheme == S3 {
		b, err := new(s3blob.URLOpener).OpenBucketURL(ctx, u)
		if err != nil {
			return nil, fmt.Errorf("blob: %w", err)
		}
		return &Store{bucket: b}, nil
	}
	folder := filepath.FromSlash(u.Path)
	// Temporary files lie beside the blobs, for a rename does not work from one
	// file system to another. Their names begin with the key, so that what a killed
	// process has left goes with DeleteAll.
	b, err := fileblob.OpenBucket(folder, &fileblob.Options{CreateDir: true, DirFileMode: 0o700, NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
	if err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	return &Store{bucket: b, folder: folder}, nil
}

// Close closes the store.
func (s *Store) Close() error {
	if err := s.bucket.Close(); err != nil {
		return fmt.Errorf("blob: close: %w", err)
	}
	return nil
}

// Write implements media.Blobs.
func (s *Store) Write(ctx context.Context, key string, r io.Reader) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.bucket.NewWriter(ctx, key, &blob.WriterOptions{ContentType: "application/octet-stream", DisableContentTypeDetection: true})
	if err != nil {
		return 0, storeError("write", key, err)
	}
	// Not w's own copying, which reads to the end before it looks at errors.
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, r, make([]byte, copyBytes))
	if err != nil {
		cancel() // Close then drops what was written
		return 0, storeError("write", key, errors.Join(err, ignoreCancelled(w.Close())))
	}
	if err := w.Close(); err != nil {
		return 0, storeError("write", key, err)
	}
	return n, nil
}

// ignoreCancelled drops the error of a write that was given up on purpose.
func ignoreCancelled(err error) error {
	if gcerrors.Code(err) == gcerrors.Canceled || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Read implements media.Blobs.
func (s *Store) Read(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	r, err := s.bucket.NewRangeReader(ctx, key, offset, -1, nil)
	if err != nil {
		return nil, storeError("read", key, err)
	}
	return r, nil
}

// DeleteAll implements media.Blobs.
func (s *Store) DeleteAll(ctx context.Context, prefix string) error {
	list := s.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return storeError("list", prefix, err)
		}
		if err := s.bucket.Delete(ctx, o.Key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
			return storeError("delete", o.Key, err)
		}
	}
}

// Free implements media.Blobs.
func (s *Store) Free(context.Context) (int64, error) {
	if s.folder == "" {
		return -1, nil
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.folder, &st); err != nil {
		return 0, fmt.Errorf("blob: free space of %s: %w", s.folder, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// storeError gives an error its place, and the meaning that media knows.
func storeError(what, key string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("blob: %s %s: %w (%w)", what, key, media.ErrFull, err)
	case gcerrors.Code(err) == gcerrors.NotFound:
		return fmt.Errorf("blob: %s %s: %w", what, key, media.ErrNotFound)
	}
	return fmt.Errorf("blob: %s %s: %w", what, key, err)
}
