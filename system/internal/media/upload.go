package media

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
	"golang.org/x/exp/slog"

	"throng/system/wire"
)

// Answers to uploaders. They say what to do, and nothing of this machine.
var (
	errNoMetadata  = handler.NewError("ERR_METADATA", "Upload-Metadata needs kind (image, voice, video or other) and sha256 (hex); messages is a number from 1 to "+strconv.Itoa(wire.MaxMediaMessages), http.StatusBadRequest)
	errEmpty       = handler.NewError("ERR_EMPTY", "there is nothing to upload", http.StatusBadRequest)
	errQuota       = handler.NewError("ERR_QUOTA", "you have too much stored here; what is fetched or expires makes room", http.StatusForbidden)
	errStorageFull = handler.NewError("ERR_STORAGE_FULL", "the server has no room for uploads; try again later", http.StatusInsufficientStorage)
	errStorage     = handler.NewError("ERR_STORAGE", "the server could not store it; try again", http.StatusServiceUnavailable)
	errMismatch    = handler.NewError("ERR_HASH_MISMATCH", "what was uploaded does not have the sha256 that was announced; begin again", 460) // as in tus's extension for checksums
	errPieces      = handler.NewError("ERR_TOO_MANY_PARTS", "the upload came in too many pieces; begin again", http.StatusBadRequest)
)

// storeTimeout bounds what the store is asked for one part: a client that goes
// away must not take with it the row of a part whose blob is written.
const storeTimeout = 15 * time.Second

type claimsKey struct{}

// tus returns the tus endpoint without its guards.
func (s *Service) tus() (http.Handler, error) {
	composer := handler.NewStoreComposer()
	composer.UseCore(tusStore{s})
	composer.UseTerminater(tusStore{s})
	composer.UseLocker(&locks{held: map[string]*lock{}})
	return handler.NewHandler(handler.Config{
		StoreComposer: composer, BasePath: wire.MediaUploadsPath, DisableDownload: true, DisableConcatenation: true,
		MaxSize: max(s.limits.ImageBytes, s.limits.VoiceBytes, s.limits.VideoBytes, s.limits.OtherBytes),
		Cors:    &handler.CorsConfig{Disable: true},
		// It logs each request and each client's mistake; what is ours is logged here.
		Logger:         slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError + 1})),
		NetworkTimeout: s.limits.NetworkTimeout, AcquireLockTimeout: s.limits.NetworkTimeout,
		// The store has time limits of its own, see storeTimeout.
		GracefulRequestCompletionTimeout: time.Millisecond,
	})
}

// upload guards the tus endpoint: who, how many at a time, how slowly.
func (s *Service) upload(tus http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions { // says what the endpoint can do
			tus.ServeHTTP(w, r)
			return
		}
		who, ok := s.claims(w, r)
		if !ok {
			return
		}
		release, ok := take(w, s.uploads, who.User)
		if !ok {
			return
		}
		defer release()
		account, ok := s.open(w, r, who.User)
		if !ok {
			return
		}
		defer account.close()
		b := &body{ReadCloser: r.Body, account: account, limits: &s.limits, rc: http.NewResponseController(w), start: time.Now()}
		defer b.end()
		stop := context.AfterFunc(r.Context(), func() { b.interrupt(handler.ErrServerShutdown) })
		defer stop()
		r = r.WithContext(context.WithValue(context.WithValue(r.Context(), claimsKey{}, who), bodyKey{}, b))
		r.Body = b
		tus.ServeHTTP(w, r)
	})
}

// tusStore is a service as tus sees it.
type tusStore struct{ *Service }

// detached is ctx with its values, ended by storeTimeout alone.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
}

// NewUpload implements handler.DataStore.
func (s tusStore) NewUpload(ctx context.Context, info handler.FileInfo) (handler.Upload, error) {
	o, err := s.object(info)
	if err != nil {
		return nil, s.refuse("request", err)
	}
	o.Owner = ctx.Value(claimsKey{}).(wire.Claims).User
	if err := s.room(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	err = s.cfg.Store.Create(ctx, o, Quota{Objects: s.limits.UserObjects, Bytes: s.limits.UserBytes})
	if errors.Is(err, ErrQuota) {
		return nil, s.refuse("quota", errQuota)
	}
	if err != nil {
		return nil, s.failed("create", o.ID, err)
	}
	return &upload{s: s.Service, o: o}, nil
}

// object checks what a new upload says of itself.
func (s tusStore) object(info handler.FileInfo) (Object, error) {
	kind, limit := s.limits.kindOf(info.MetaData[wire.MediaKind])
	sum, err := hex.DecodeString(info.MetaData[wire.MediaSHA256])
	if err != nil || len(sum) != sha256.Size || limit == 0 {
		return Object{}, errNoMetadata
	}
	messages := 1
	if n, ok := info.MetaData[wire.MediaMessages]; ok {
		if messages, err = strconv.Atoi(n); err != nil || messages < 1 || messages > wire.MaxMediaMessages {
			return Object{}, errNoMetadata
		}
	}
	switch {
	case info.Size <= 0:
		return Object{}, errEmpty
	case info.Size > limit:
		return Object{}, handler.ErrMaxSizeExceeded
	}
	o := Object{Kind: kind, Size: info.Size, SHA256: [32]byte(sum), Messages: messages, Expires: time.Now().Add(s.limits.UploadExpiry)}
	rand.Read(o.ID[:]) // never fails
	o.HashState, err = marshalHash(sha256.New())
	return o, err
}

// GetUpload implements handler.DataStore. Nobody sees another user's uploads.
func (s tusStore) GetUpload(ctx context.Context, id string) (handler.Upload, error) {
	mid, err := wire.ParseMediaID(id)
	if err != nil {
		return nil, handler.ErrNotFound
	}
	who := ctx.Value(claimsKey{}).(wire.Claims)
	ctx, cancel := detached(ctx)
	defer cancel()
	o, err := s.cfg.Store.Find(ctx, mid)
	switch {
	case errors.Is(err, ErrNotFound) || err == nil && (o.Owner != who.User || !o.Expires.After(time.Now())):
		return nil, handler.ErrNotFound
	case err != nil:
		return nil, s.failed("find", mid, err)
	}
	return &upload{s: s.Service, o: o}, nil
}

// AsTerminatableUpload implements handler.TerminaterDataStore.
func (s tusStore) AsTerminatableUpload(u handler.Upload) handler.TerminatableUpload {
	return u.(*upload)
}

// room says whether there is room for more, beside what others need.
func (s *Service) room(ctx context.Context) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	free, err := s.cfg.Blobs.Free(ctx)
	if err != nil {
		s.log.Error("how much room there is cannot be told", "err", err)
		return s.refuse("storage", errStorage)
	}
	if free >= 0 && free < s.limits.MinFree {
		return s.refuse("full", errStorageFull)
	}
	return nil
}

// refuse counts err as the reason of a refusal.
func (s *Service) refuse(reason string, err error) error {
	s.m.refused.WithLabelValues(reason).Inc()
	return err
}

// failed logs what went wrong here, and returns what the client is told.
func (s *Service) failed(what string, id wire.MediaID, err error) error {
	s.log.Error("media store", "op", what, "media", id.String(), "err", err)
	if errors.Is(err, ErrFull) {
		return s.refuse("full", errStorageFull)
	}
	return s.refuse("storage", errStorage)
}

// upload is one object on its way up, during one request.
type upload struct {
	s *Service
	o Object
}

// GetInfo implements handler.Upload.
func (u *upload) GetInfo(context.Context) (handler.FileInfo, error) {
	return handler.FileInfo{ID: u.o.ID.String(), Size: u.o.Size, Offset: u.o.Received}, nil
}

// GetReader implements handler.Upload; tus never calls it, for fetching is not
// its business.
func (u *upload) GetReader(context.Context) (io.ReadCloser, error) { return nil, handler.ErrNotFound }

// FinishUpload implements handler.Upload: the last part has finished it.
func (u *upload) FinishUpload(context.Context) error { return nil }

// Terminate implements handler.TerminatableUpload: the owner takes it back.
func (u *upload) Terminate(ctx context.Context) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return u.s.remove(ctx, u.o.ID)
}

// WriteChunk implements handler.Upload: what src yields becomes parts, a short
// one too when the client stops in the middle.
func (u *upload) WriteChunk(ctx context.Context, offset int64, src io.Reader) (int64, error) {
	sum, err := unmarshalHash(u.o.HashState)
	if err != nil {
		return 0, u.s.failed("hash", u.o.ID, err)
	}
	var done int64
	body := bufio.NewReaderSize(src, minPart)
	for {
		// An error of src is for whoever gave it: tus reads it where it is kept.
		if _, err := body.Peek(1); err != nil {
			return done, nil
		}
		n, err := u.part(ctx, offset+done, io.TeeReader(io.LimitReader(body, u.s.limits.PartBytes), sum), sum)
		done += n
		if err != nil {
			return done, err
		}
	}
}

// part keeps one part. n is 0 after an error.
func (u *upload) part(ctx context.Context, start int64, src io.Reader, sum hash.Hash) (n int64, err error) {
	if len(u.o.Parts) >= maxParts(u.o.Size) {
		return 0, u.s.refuse("pieces", errPieces)
	}
	if err := u.s.room(ctx); err != nil {
		return 0, err
	}
	var nonce [6]byte
	rand.Read(nonce[:])
	key := fmt.Sprintf("%s%012x-%x", blobPrefix(u.o.ID), start, nonce)
	// A client sets the pace here, so no time limit but the client's own.
	if n, err = u.s.cfg.Blobs.Write(context.WithoutCancel(ctx), key, src); err != nil {
		return 0, u.s.failed("write", u.o.ID, err)
	}
	u.s.m.received.Add(float64(n))
	ctx, cancel := detached(ctx)
	defer cancel()
	var until time.Time
	if start+n == u.o.Size {
		if [32]byte(sum.Sum(nil)) != u.o.SHA256 {
			u.s.m.mismatched.Inc()
			if err := u.s.remove(ctx, u.o.ID); err != nil {
				return 0, err
			}
			return 0, errMismatch
		}
		until = time.Now().Add(u.s.limits.Expiry)
	}
	state, err := marshalHash(sum)
	if err == nil {
		p := Part{Start: start, Size: n, Blob: key}
		if err = u.s.cfg.Store.Append(ctx, u.o.ID, p, state, until); err == nil {
			u.o.Parts, u.o.Received = append(u.o.Parts, p), start+n
		}
	}
	switch {
	case errors.Is(err, ErrConflict): // another instance was faster; the blob goes with the object
		return 0, handler.ErrMismatchOffset
	case errors.Is(err, ErrNotFound):
		return 0, errors.Join(handler.ErrNotFound, u.s.cfg.Blobs.DeleteAll(ctx, blobPrefix(u.o.ID)))
	case err != nil:
		return 0, u.s.failed("append", u.o.ID, err)
	}
	if !until.IsZero() {
		u.s.m.finished.Inc()
	}
	return n, nil
}

// remove removes an object: its blobs first, so that there is a row for as long
// as there is anything to remove.
func (s *Service) remove(ctx context.Context, id wire.MediaID) error {
	if err := s.cfg.Blobs.DeleteAll(ctx, blobPrefix(id)); err != nil {
		return s.failed("delete", id, err)
	}
	if err := s.cfg.Store.Remove(ctx, id); err != nil {
		return s.failed("remove", id, err)
	}
	return nil
}

func marshalHash(h hash.Hash) ([]byte, error) {
	b, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("media: state of the hash: %w", err)
	}
	return b, nil
}

func unmarshalHash(state []byte) (hash.Hash, error) {
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		return nil, fmt.Errorf("media: state of the hash: %w", err)
	}
	return h, nil
}
