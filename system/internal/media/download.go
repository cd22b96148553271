package media

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sort"
	"time"

	"throng/system/wire"
)

// refusal is an answer other than what was asked for.
type refusal struct {
	code   int
	reason string // of the metric; "" is not counted
	text   string
}

var (
	errGone      = &refusal{http.StatusNotFound, "unknown", "no such media"}
	errForbidden = &refusal{http.StatusForbidden, "forbidden", "no message to you refers to this media"}
	errSignature = &refusal{http.StatusForbidden, "signature", "the signature is not valid, or not any more"}
	errTryAgain  = &refusal{http.StatusServiceUnavailable, "", "cannot be told at the moment; try again"}
)

func (r *refusal) Error() string { return r.text }

// answer tells a client why not. Errors other than refusals are logged.
func (s *Service) answer(w http.ResponseWriter, id string, err error) {
	var r *refusal
	if !errors.As(err, &r) {
		s.log.Error("media", "media", id, "err", err)
		r = errTryAgain
	}
	if r.reason != "" {
		s.m.refused.WithLabelValues(r.reason).Inc()
	}
	http.Error(w, r.text, r.code)
}

// ready returns an object that can be fetched.
func (s *Service) ready(ctx context.Context, id wire.MediaID) (Object, error) {
	o, err := s.cfg.Store.Find(ctx, id)
	if errors.Is(err, ErrNotFound) || err == nil && (!o.Ready || !o.Expires.After(time.Now())) {
		return Object{}, errGone
	}
	return o, err
}

// granted returns an object that user may fetch: it is theirs, or the grant in
// the header is of a message of its owner that addressed them. What is signed is
// checked first, so that a guess costs no more than that. Addressees is 0 for
// the owner.
func (s *Service) granted(r *http.Request, user uint64) (o Object, g wire.MediaGrant, addressees int, err error) {
	id, err := wire.ParseMediaID(r.PathValue("id"))
	if err != nil {
		return o, g, 0, errGone
	}
	grant, err := wire.MediaGrantOf(r.Header)
	if err != nil {
		return o, g, 0, errSignature
	}
	if grant != nil {
		if g, err = s.keys.VerifyMediaGrant(id, grant); err != nil {
			return o, g, 0, errSignature
		}
	}
	if o, err = s.ready(r.Context(), id); err != nil {
		return o, g, 0, err
	}
	switch {
	case o.Owner == user:
		return o, g, 0, nil
	case grant == nil:
		return o, g, 0, errGone // who guesses ids does not learn which there are
	case g.From != o.Owner:
		return o, g, 0, errForbidden
	}
	addressees, err = s.addressees(r.Context(), g, user)
	return o, g, addressees, err
}

// addressees returns how many a message has, or errForbidden if user is none.
func (s *Service) addressees(ctx context.Context, g wire.MediaGrant, user uint64) (int, error) {
	if g.Group == 0 {
		if g.To != user {
			return 0, errForbidden
		}
		return 1, nil
	}
	s.m.lookups.Inc()
	list, err := s.members.of(ctx, version{g.Group, g.Version})
	if err != nil {
		return 0, err
	}
	if _, ok := slices.BinarySearch(list, user); !ok {
		return 0, errForbidden
	}
	n := len(list)
	if _, ok := slices.BinarySearch(list, g.From); ok {
		n--
	}
	return n, nil
}

// download serves an object, whole or by range, to whom it may be given: by a
// signed URL, or by token and grant.
func (s *Service) download(w http.ResponseWriter, r *http.Request) {
	var o Object
	var user uint64
	if q := r.URL.Query(); q.Has("signature") {
		id, err := wire.ParseMediaID(r.PathValue("id"))
		if err != nil {
			s.answer(w, r.PathValue("id"), errGone)
			return
		}
		if user, err = s.keys.VerifyMediaURL(id, q, time.Now()); err != nil {
			s.answer(w, r.PathValue("id"), errSignature)
			return
		}
		if o, err = s.ready(r.Context(), id); err != nil {
			s.answer(w, r.PathValue("id"), err)
			return
		}
	} else {
		who, ok := s.claims(w, r)
		if !ok {
			return
		}
		var err error
		user = who.User
		if o, _, _, err = s.granted(r, user); err != nil {
			s.answer(w, r.PathValue("id"), err)
			return
		}
	}
	release, ok := take(w, s.downloads, user)
	if !ok {
		return
	}
	defer release()
	account, ok := s.open(w, r, user)
	if !ok {
		return
	}
	defer account.close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", "attachment")
	h.Set("Cache-Control", "private, immutable, max-age=86400")
	h.Set("ETag", `"`+hex.EncodeToString(o.SHA256[:])+`"`)
	h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(o.SHA256[:])+":")
	body := &reader{ctx: r.Context(), s: s, o: &o, rc: http.NewResponseController(w), account: account}
	defer body.close()
	http.ServeContent(w, r, "", time.Time{}, body)
}

// link answers with a signed URL, which needs no header: for a player, or a
// system's own downloads.
func (s *Service) link(w http.ResponseWriter, r *http.Request) {
	who, ok := s.claims(w, r)
	if !ok {
		return
	}
	o, _, _, err := s.granted(r, who.User)
	if err != nil {
		s.answer(w, r.PathValue("id"), err)
		return
	}
	expires := time.Now().Add(s.limits.LinkTTL)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	// An error means that the client is gone.
	_ = json.NewEncoder(w).Encode(Link{URL: wire.MediaURL(s.cfg.Key, o.ID, who.User, expires), Expires: expires.Unix()})
}

// Link is the answer to a POST of wire.MediaLink.
type Link struct {
	URL     string `json:"url"`     // path and query, on any media instance
	Expires int64  `json:"expires"` // Unix seconds
}

// fetched notes that the user has the media of a message, checked and kept.
func (s *Service) fetched(w http.ResponseWriter, r *http.Request) {
	who, ok := s.claims(w, r)
	if !ok {
		return
	}
	o, g, addressees, err := s.granted(r, who.User)
	if err != nil {
		s.answer(w, r.PathValue("id"), err)
		return
	}
	if addressees > 0 {
		ctx, cancel := detached(r.Context())
		defer cancel()
		all, err := s.cfg.Store.Fetched(ctx, Fetch{ID: o.ID, Message: g.Message, User: who.User, Addressees: addressees}, time.Now().Add(s.limits.FetchedGrace))
		if err != nil && !errors.Is(err, ErrNotFound) { // gone: then it is done with
			s.answer(w, r.PathValue("id"), err)
			return
		}
		if all {
			s.m.fetched.Inc()
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

// reader is the bytes of an object, for one request. A blob is opened when its
// first byte is read, so that a range costs what it covers.
type reader struct {
	ctx     context.Context
	s       *Service
	o       *Object
	rc      *http.ResponseController
	account *account

	at   int64
	open io.ReadCloser // at at; nil: none
}

// Seek implements io.Seeker.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.o.Size
	}
	if offset < 0 {
		return 0, errors.New("media: seek before the beginning")
	}
	if offset != r.at {
		r.close()
		r.at = offset
	}
	return offset, nil
}

// Read implements io.Reader. What was read before has been written to the
// client by now, or its time is over.
func (r *reader) Read(b []byte) (int, error) {
	r.s.extend(r.rc)
	for {
		if r.at >= r.o.Size {
			return 0, io.EOF
		}
		if r.open == nil {
			i := sort.Search(len(r.o.Parts), func(i int) bool { return r.o.Parts[i].Start > r.at }) - 1
			if i < 0 {
				return 0, fmt.Errorf("media: %s has no part at %d", r.o.ID, r.at)
			}
			p := r.o.Parts[i]
			body, err := r.s.cfg.Blobs.Read(r.ctx, p.Blob, r.at-p.Start)
			if err != nil {
				r.s.log.Error("a part cannot be read", "media", r.o.ID.String(), "start", p.Start, "err", err)
				return 0, err
			}
			r.open = body
		}
		n, err := r.open.Read(b)
		r.at += int64(n)
		r.s.m.sent.Add(float64(n))
		r.account.spend(n)
		if err != nil {
			r.close()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		if n > 0 { // also with the end of a part, which is not that of the object
			return n, nil
		}
		if err != nil && r.short() {
			return 0, io.ErrUnexpectedEOF
		}
	}
}

// short says whether a blob ended before its part does.
func (r *reader) short() bool {
	return r.at < r.o.Size && !slices.ContainsFunc(r.o.Parts, func(p Part) bool { return p.Start == r.at })
}

func (r *reader) close() {
	if r.open != nil {
		r.open.Close()
		r.open = nil
	}
}
