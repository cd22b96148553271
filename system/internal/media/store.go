package media

import (
	"context"
	"errors"
	"io"
	"time"

	"throng/system/wire"
)

// Errors of the ports.
var (
	ErrNotFound = errors.New("media: not found")
	ErrConflict = errors.New("media: the upload is not where the caller believes")
	ErrQuota    = errors.New("media: over the user's quota")
	ErrFull     = errors.New("media: no space left")
)

// Blobs holds bytes by key. Keys are of lower-case letters, digits, '-' and '/',
// a blob is never changed once it is there. Safe for concurrent use, by several
// processes too.
type Blobs interface {
	// Write stores what r yields until EOF and returns how much that was. The blob
	// is there as a whole once Write has returned without an error, and not at all
	// before, or after an error, or when the process is killed. ErrFull: the store
	// has no room; others go on.
	Write(ctx context.Context, key string, r io.Reader) (int64, error)
	// Read returns what is at offset and after it. ErrNotFound.
	Read(ctx context.Context, key string, offset int64) (io.ReadCloser, error)
	// DeleteAll removes every blob whose key begins with prefix, which ends in
	// the middle of a path element. None is no error.
	DeleteAll(ctx context.Context, prefix string) error
	// Free returns how many bytes there is room for, below 0 where the store does
	// not say.
	Free(ctx context.Context) (int64, error)
}

// Object is what is known of an upload, finished or not.
type Object struct {
	ID     wire.MediaID
	Owner  uint64
	Kind   wire.Kind
	Size   int64 // of the whole, as declared
	SHA256 [32]byte
	// Messages is how many messages are to refer to it: it is done with when the
	// addressees of so many have fetched it.
	Messages int
	// Received bytes are in Parts, and HashState is that of SHA-256 after them.
	Received  int64
	HashState []byte
	// Ready: all is there and the hash is right.
	Ready   bool
	Expires time.Time
	Parts   []Part // in order, without gaps
}

// Part is a piece of an object: Size bytes from Start on, in one blob.
type Part struct {
	Start, Size int64
	Blob        string
}

// Quota bounds what a user has stored at a time, unfinished uploads included at
// their full size.
type Quota struct {
	Objects int
	Bytes   int64
}

// Fetch is that a user has media that a message refers to.
type Fetch struct {
	ID         wire.MediaID
	Message    wire.MessageID
	User       uint64
	Addressees int // of the message
}

// Store keeps what is known of objects. Safe for concurrent use, by several
// processes too.
type Store interface {
	// Create adds an object without parts. ErrQuota. What several processes begin
	// for one user in the same instant may go over it together.
	Create(ctx context.Context, o Object, q Quota) error
	// Find returns an object with its parts. ErrNotFound.
	Find(ctx context.Context, id wire.MediaID) (Object, error)
	// Append adds the part that begins where the object ends, ErrConflict if it
	// ends elsewhere, ErrNotFound. With a readyUntil that is not zero it is the last
	// part: the object is ready, and expires then.
	Append(ctx context.Context, id wire.MediaID, p Part, hashState []byte, readyUntil time.Time) error
	// Fetched notes a fetch, once however often it is repeated. When with it all
	// addressees of all messages have fetched the object, it expires at the latest
	// at until, and complete is true. ErrNotFound.
	Fetched(ctx context.Context, f Fetch, until time.Time) (complete bool, err error)
	// Expired returns up to limit objects that have expired.
	Expired(ctx context.Context, now time.Time, limit int) ([]wire.MediaID, error)
	// Remove removes all that is known of an object. None is no error.
	Remove(ctx context.Context, id wire.MediaID) error
	// Usage returns how many objects there are, and their bytes received.
	Usage(ctx context.Context) (objects, bytes int64, err error)
}

// blobPrefix begins the keys of an object's blobs. The two levels of folders
// keep each small where blobs are files, and bound how many folders there are.
func blobPrefix(id wire.MediaID) string {
	s := id.String()
	return s[0:2] + "/" + s[2:4] + "/" + s + "-"
}
