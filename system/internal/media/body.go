package media

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
)

var errTooSlow = handler.NewError("ERR_TOO_SLOW", "the upload is too slow; it can be resumed", http.StatusRequestTimeout)

type bodyKey struct{}

// body is what a client uploads in one request. It fails when it comes more
// slowly than the limits allow, and when somebody interrupts it.
type body struct {
	io.ReadCloser
	limits  *Limits
	account *account
	rc      *http.ResponseController
	start   time.Time
	n       int64

	mu    sync.Mutex
	why   error // nil: not interrupted
	ended bool  // the connection may carry another request by now
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if err := b.interrupted(); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	b.account.spend(n)
	if why := b.interrupted(); why != nil && n == 0 {
		return 0, why
	}
	if late := time.Since(b.start) - b.limits.NetworkTimeout; err == nil && late > 0 && float64(b.n) < late.Seconds()*float64(b.limits.MinRate) {
		return n, errTooSlow
	}
	return n, err
}

func (b *body) interrupted() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

// interrupt ends the upload where it is; what has been received is kept.
func (b *body) interrupt(why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.why == nil && !b.ended {
		b.why = why
		// Wakes who reads. An error means that the connection is gone.
		_ = b.rc.SetReadDeadline(time.Now())
	}
}

func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}

// locks lets one request at a time work on an upload. A newer request interrupts
// the older one: a client that comes back is more likely to be there than its
// connection of before. Between instances Store.Append decides. (That of tusd
// interrupts through its own request, whose fields it then reads unguarded.)
type locks struct {
	mu   sync.Mutex
	held map[string]*lock // as many as there are requests under way
}

// NewLock implements handler.Locker.
func (l *locks) NewLock(id string) (handler.Lock, error) { return &lock{of: l, id: id}, nil }

type lock struct {
	of       *locks
	id       string
	body     *body // of the request that holds it
	released chan struct{}
}

// Lock implements handler.Lock.
func (k *lock) Lock(ctx context.Context, _ func()) error {
	k.body, k.released = ctx.Value(bodyKey{}).(*body), make(chan struct{})
	for {
		k.of.mu.Lock()
		holder := k.of.held[k.id]
		if holder == nil {
			k.of.held[k.id] = k
			k.of.mu.Unlock()
			return nil
		}
		k.of.mu.Unlock()
		holder.body.interrupt(handler.ErrUploadInterrupted)
		select {
		case <-holder.released:
		case <-ctx.Done():
			return handler.ErrLockTimeout
		}
	}
}

// Unlock implements handler.Lock.
func (k *lock) Unlock() error {
	k.of.mu.Lock()
	delete(k.of.held, k.id)
	k.of.mu.Unlock()
	close(k.released)
	return nil
}
