package client

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"throng/system/wire"
)

// Media is a client of the media service. Safe for concurrent use.
type Media struct {
	HTTP  *http.Client
	Bases []string // http://host:port of each instance
}

// mediaChunk is how much of an object one request carries.
const mediaChunk = 1 << 20

// MediaObject is what is uploaded.
type MediaObject struct {
	Kind    string // image, voice, video or other
	Size    int64
	SHA256  [32]byte
	Content io.ReaderAt
	// Interrupt: the first request breaks off half-way.
	Interrupt bool
}

// ErrMediaRefused is wrapped by errors that no repetition changes.
var ErrMediaRefused = errors.New("client: the media service refuses")

// retryLeast and retryMost are how long a client waits before it tries again: the
// pause doubles with each failure and is drawn between half of it and all. Without
// that the uploads that a killed service leaves behind keep it from coming back.
const (
	retryLeast = 200 * time.Millisecond
	retryMost  = 10 * time.Second
)

func (m *Media) base(n uint64) string { return m.Bases[n%uint64(len(m.Bases))] }

// Upload uploads an object by instance n and goes on after interruptions until
// ctx ends. resumed counts them.
func (m *Media) Upload(ctx context.Context, n uint64, token string, o MediaObject) (id wire.MediaID, resumed int, err error) {
	wait, draw := retryLeast, rand.New(rand.NewPCG(binary.BigEndian.Uint64(o.SHA256[:]), n))
	for at, offset := "", int64(0); ; {
		id, at, offset, err = m.step(ctx, n, token, &o, at, offset)
		if err == nil && offset == o.Size {
			return id, resumed, nil
		}
		if err == nil {
			wait = retryLeast
			continue
		}
		if errors.Is(err, ErrMediaRefused) || ctx.Err() != nil {
			return id, resumed, fmt.Errorf("client: upload: %w", err)
		}
		resumed++
		o.Interrupt = false
		if pause(ctx, wait/2+time.Duration(draw.Int64N(int64(wait/2)))) != nil {
			return id, resumed, fmt.Errorf("client: upload: %w", err)
		}
		wait = min(2*wait, retryMost)
		offset = -1 // to be asked for
	}
}

// step makes one request of an upload: the first one, one that asks how far it
// is (offset below 0), or one that goes on.
func (m *Media) step(ctx context.Context, n uint64, token string, o *MediaObject, at string, offset int64) (id wire.MediaID, now string, to int64, err error) {
	method, where := http.MethodPatch, at
	header := http.Header{"Tus-Resumable": {"1.0.0"}, "Authorization": {"Bearer " + token}}
	switch {
	case at == "":
		method, where, offset = http.MethodPost, m.base(n)+wire.MediaUploadsPath, 0
		header.Set("Upload-Length", strconv.FormatInt(o.Size, 10))
		header.Set("Upload-Metadata", mediaMetadata(o))
	case offset < 0:
		method = http.MethodHead
	default:
		header.Set("Upload-Offset", strconv.FormatInt(offset, 10))
	}
	var body io.Reader
	length := int64(0)
	if method != http.MethodHead {
		length = min(o.Size-offset, mediaChunk)
		body = io.NewSectionReader(o.Content, offset, length)
		if o.Interrupt {
			body = io.MultiReader(io.LimitReader(body, length/2), brokenOff{})
		}
		header.Set("Content-Type", "application/offset+octet-stream")
	}
	req, err := http.NewRequestWithContext(ctx, method, where, body)
	if err != nil {
		return id, at, offset, fmt.Errorf("%w: %w", ErrMediaRefused, err)
	}
	req.Header, req.ContentLength = header, length
	resp, err := m.HTTP.Do(req)
	if err != nil {
		return id, at, offset, err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // what it says is for people
	if location := resp.Header.Get("Location"); location != "" {
		at = location
	}
	switch {
	case resp.StatusCode == http.StatusNotFound && method == http.MethodHead:
		return id, "", 0, fmt.Errorf("the upload is gone")
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusConflict, resp.StatusCode == http.StatusRequestTimeout, resp.StatusCode == http.StatusLocked:
		return id, at, offset, fmt.Errorf("%s: %s", resp.Status, text)
	case resp.StatusCode >= 300:
		return id, at, offset, fmt.Errorf("%w: %s: %s", ErrMediaRefused, resp.Status, text)
	}
	u, err := url.Parse(at)
	if err == nil {
		id, err = wire.ParseMediaID(path.Base(u.Path))
	}
	if err == nil {
		to, err = strconv.ParseInt(resp.Header.Get("Upload-Offset"), 10, 64)
	}
	if err != nil {
		return id, at, offset, fmt.Errorf("%w: %w", ErrMediaRefused, err)
	}
	return id, at, to, nil
}

// brokenOff is the end of a connection in the middle of a body.
type brokenOff struct{}

func (brokenOff) Read([]byte) (int, error) { return 0, errors.New("client: broken off on purpose") }

func mediaMetadata(o *MediaObject) string {
	pair := func(key, value string) string {
		return key + " " + base64.StdEncoding.EncodeToString([]byte(value))
	}
	return strings.Join([]string{pair(wire.MediaKind, o.Kind), pair(wire.MediaSHA256, hex.EncodeToString(o.SHA256[:]))}, ",")
}

// Fetch writes the media of a message to w. firstByte is called before the
// first byte is written.
func (m *Media) Fetch(ctx context.Context, n uint64, token string, id wire.MediaID, grant []byte, w io.Writer, firstByte func()) error {
	resp, err := m.do(ctx, http.MethodGet, m.base(n)+wire.MediaPath+id.String(), token, grant)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := refused(resp); err != nil {
		return err
	}
	var first [1]byte
	if _, err := io.ReadFull(resp.Body, first[:]); err != nil {
		return fmt.Errorf("client: fetch: %w", err)
	}
	firstByte()
	if _, err := io.Copy(w, io.MultiReader(bytes.NewReader(first[:]), resp.Body)); err != nil {
		return fmt.Errorf("client: fetch: %w", err)
	}
	return nil
}

// Fetched says that the user has the media of a message.
func (m *Media) Fetched(ctx context.Context, n uint64, token string, id wire.MediaID, grant []byte) error {
	resp, err := m.do(ctx, http.MethodPost, m.base(n)+wire.MediaPath+id.String()+wire.MediaFetched, token, grant)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return refused(resp)
}

func (m *Media) do(ctx context.Context, method, at, token string, grant []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, at, nil)
	if err != nil {
		return nil, fmt.Errorf("client: media: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	wire.SetMediaGrant(req.Header, grant)
	resp, err := m.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("client: media: %w", err)
	}
	return resp, nil
}

// refused returns what an answer other than success says.
func refused(resp *http.Response) error {
	if resp.StatusCode < 300 {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // what it says is for people
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
		return fmt.Errorf("client: media: %s: %s", resp.Status, text)
	}
	return fmt.Errorf("%w: %s: %s", ErrMediaRefused, resp.Status, text)
}

// pause waits, at most until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
