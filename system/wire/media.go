package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Paths of the media service. Uploads speak tus 1.0 (https://tus.io) below
// MediaUploadsPath: POST makes one, PATCH goes on with it, HEAD says how far it
// is, DELETE removes the media. GET of MediaPath+id fetches it, whole or by
// range; POST of MediaPath+id+MediaLink returns a signed URL for that, and of
// MediaPath+id+MediaFetched says that the user has it.
const (
	MediaPath        = "/v1/media/"
	MediaUploadsPath = "/v1/uploads/"
	MediaLink        = "/link"
	MediaFetched     = "/fetched"
	// MediaGrantHeader carries Deliver.media_grant in base64 (URL alphabet, no
	// padding) beside the bearer token of an addressee.
	MediaGrantHeader = "Media-Grant"
	// Keys of the Upload-Metadata of tus. Of all but MediaMessages a value is needed.
	MediaKind     = "kind"     // image, voice, video or other
	MediaSHA256   = "sha256"   // of the whole, hex
	MediaMessages = "messages" // how many messages will refer to it; default 1
	// MaxMediaMessages bounds MediaMessages.
	MaxMediaMessages = 256
	// MediaGrantBytes is the length of a grant.
	MediaGrantBytes = 64
)

// MediaID is the identity of what one user has uploaded once.
type MediaID [16]byte

// String returns the id as it stands in paths: 32 hexadecimal digits.
func (id MediaID) String() string { return hex.EncodeToString(id[:]) }

// ParseMediaID reads what String writes, and nothing else: no capital letters.
func ParseMediaID(s string) (MediaID, error) {
	var id MediaID
	if len(s) != 2*len(id) {
		return MediaID{}, errors.New("wire: a media id has 32 hexadecimal digits")
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil || id.String() != s {
		return MediaID{}, errors.New("wire: a media id has 32 hexadecimal digits")
	}
	return id, nil
}

// ErrMediaGrant is wrapped by every error about a grant or a signed URL.
var ErrMediaGrant = errors.New("wire: media grant refused")

// MediaGrant is a message that refers to a media id, and what decides who its
// addressees are: a user, or the members of a version of a group. Exactly one
// of To and Group is not 0.
type MediaGrant struct {
	Message MessageID
	From    uint64
	To      uint64
	Group   uint64
	Version uint64 // of Group
}

// grantDomain and linkDomain keep signatures of different meaning apart; see
// chainDomain.
const (
	grantDomain = "throng media grant 1\x00"
	linkDomain  = "throng media link 1\x00"
	grantFields = MediaGrantBytes - grantMAC
	grantMAC    = 16
)

// SignMediaGrant returns the grant in the form in which it travels.
func SignMediaGrant(key Key, id MediaID, g MediaGrant) []byte {
	b := make([]byte, 0, MediaGrantBytes)
	b = append(b, g.Message[:]...)
	b = binary.LittleEndian.AppendUint64(b, g.From)
	b = binary.LittleEndian.AppendUint64(b, g.To|g.Group)
	b = binary.LittleEndian.AppendUint64(b, g.Version)
	b = binary.LittleEndian.AppendUint64(b, boolNumber(g.Group != 0))
	return append(b, grantSum(key, id, b)...)
}

// VerifyMediaGrant checks that a grant is about id and was signed under key.
// Whether the message's sender may refer to id is not for it to say. Every
// error wraps ErrMediaGrant.
func VerifyMediaGrant(key Key, id MediaID, grant []byte) (MediaGrant, error) {
	if len(grant) != MediaGrantBytes || len(key) < MinKeyBytes {
		return MediaGrant{}, fmt.Errorf("%w: %d bytes", ErrMediaGrant, len(grant))
	}
	if !hmac.Equal(grantSum(key, id, grant[:grantFields]), grant[grantFields:]) {
		return MediaGrant{}, fmt.Errorf("%w: not signed for this id", ErrMediaGrant)
	}
	g := MediaGrant{From: binary.LittleEndian.Uint64(grant[16:]), Version: binary.LittleEndian.Uint64(grant[32:])}
	copy(g.Message[:], grant)
	other := binary.LittleEndian.Uint64(grant[24:])
	if binary.LittleEndian.Uint64(grant[40:]) != 0 {
		g.Group = other
	} else {
		g.To = other
	}
	return g, nil
}

func boolNumber(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func grantSum(key Key, id MediaID, fields []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(grantDomain))
	h.Write(id[:])
	h.Write(fields)
	return h.Sum(nil)[:grantMAC]
}

// MediaURL is the path and query of a URL that lets whoever has it fetch id
// until expires, to the second. user is who it was made for: their limits count.
func MediaURL(key Key, id MediaID, user uint64, expires time.Time) string {
	q := url.Values{"user": {strconv.FormatUint(user, 10)}, "expires": {strconv.FormatInt(expires.Unix(), 10)},
		"signature": {base64.RawURLEncoding.EncodeToString(linkSum(key, id, user, expires.Unix()))}}
	return MediaPath + id.String() + "?" + q.Encode()
}

// VerifyMediaURL checks the query of a MediaURL for id at a time, and returns
// who it was made for. Every error wraps ErrMediaGrant.
func VerifyMediaURL(key Key, id MediaID, q url.Values, now time.Time) (user uint64, err error) {
	user, uerr := strconv.ParseUint(q.Get("user"), 10, 64)
	expires, eerr := strconv.ParseInt(q.Get("expires"), 10, 64)
	sum, serr := base64.RawURLEncoding.DecodeString(q.Get("signature"))
	switch {
	case errors.Join(uerr, eerr, serr) != nil || len(key) < MinKeyBytes:
		return 0, fmt.Errorf("%w: not a signed URL", ErrMediaGrant)
	case !hmac.Equal(sum, linkSum(key, id, user, expires)):
		return 0, fmt.Errorf("%w: the URL is not signed for this id", ErrMediaGrant)
	case now.Unix() >= expires:
		return 0, fmt.Errorf("%w: the URL has expired", ErrMediaGrant)
	}
	return user, nil
}

func linkSum(key Key, id MediaID, user uint64, expires int64) []byte {
	b := append([]byte(linkDomain), id[:]...)
	b = binary.LittleEndian.AppendUint64(b, user)
	b = binary.LittleEndian.AppendUint64(b, uint64(expires))
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return h.Sum(nil)
}

// SetMediaGrant puts a grant into the header of a request.
func SetMediaGrant(h http.Header, grant []byte) {
	h.Set(MediaGrantHeader, base64.RawURLEncoding.EncodeToString(grant))
}

// MediaGrantOf returns the grant in the header of a request, nil without one.
// Errors wrap ErrMediaGrant.
func MediaGrantOf(h http.Header) ([]byte, error) {
	s := h.Get(MediaGrantHeader)
	if s == "" {
		return nil, nil
	}
	grant, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(grant) != MediaGrantBytes {
		return nil, fmt.Errorf("%w: the header %s is not a grant", ErrMediaGrant, MediaGrantHeader)
	}
	return grant, nil
}
