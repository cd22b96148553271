package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// MinKeyBytes is the least length of a Key: that of the hash it is used with.
const MinKeyBytes = 32

// Key signs tokens and chains. All instances of a deployment share it; clients
// never see it.
type Key []byte

// ParseKey reads a key from standard base64, as configuration files carry it.
func ParseKey(s string) (Key, error) {
	k, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("wire: signing key: %w", err)
	}
	if len(k) < MinKeyBytes {
		return nil, fmt.Errorf("wire: signing key has %d bytes, needs %d", len(k), MinKeyBytes)
	}
	return k, nil
}

// String returns the key in the form that ParseKey reads.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k) }

// Claims are what a token says about its bearer.
type Claims struct {
	User    uint64    // "sub", decimal; not 0 unless Admin
	Device  uint32    // "dev"
	Admin   bool      // "adm": may use the provisioning API
	Expires time.Time // "exp", whole seconds
}

// ErrToken is wrapped by every error of Verify.
var ErrToken = errors.New("wire: token refused")

type jwtClaims struct {
	jwt.RegisteredClaims
	Device uint32 `json:"dev"`
	Admin  bool   `json:"adm,omitempty"`
}

// Sign returns a token, an HS256 JSON Web Token. It is made by hand: a load
// generator signs one for each login, and the library needs twenty times as long.
func (k Key) Sign(c Claims) (string, error) {
	if len(k) < MinKeyBytes {
		return "", fmt.Errorf("wire: sign: key has %d bytes, needs %d", len(k), MinKeyBytes)
	}
	claims := append(make([]byte, 0, 96), `{"sub":"`...)
	claims = strconv.AppendUint(claims, c.User, 10)
	claims = append(claims, `","exp":`...)
	claims = strconv.AppendInt(claims, c.Expires.Unix(), 10)
	claims = append(claims, `,"dev":`...)
	claims = strconv.AppendUint(claims, uint64(c.Device), 10)
	if c.Admin {
		claims = append(claims, `,"adm":true`...)
	}
	claims = append(claims, '}')
	const header = `{"alg":"HS256","typ":"JWT"}`
	b64 := base64.RawURLEncoding
	token := b64.AppendEncode(make([]byte, 0, 256), []byte(header))
	token = b64.AppendEncode(append(token, '.'), claims)
	mac := hmac.New(sha256.New, k)
	mac.Write(token)
	return string(b64.AppendEncode(append(token, '.'), mac.Sum(nil))), nil
}

// Verify checks a token and returns its claims. It accepts HS256 alone, and no
// token without an expiry. Every error wraps ErrToken.
func (k Key) Verify(token string) (Claims, error) {
	if len(k) < MinKeyBytes || len(token) > MaxTokenBytes {
		return Claims{}, fmt.Errorf("%w: key too short or token too long", ErrToken)
	}
	var jc jwtClaims
	_, err := jwt.ParseWithClaims(token, &jc, func(*jwt.Token) (any, error) { return []byte(k), nil },
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired())
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	user, err := strconv.ParseUint(jc.Subject, 10, 64)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: sub is not a user number", ErrToken)
	}
	if user == 0 && !jc.Admin {
		return Claims{}, fmt.Errorf("%w: sub is 0", ErrToken)
	}
	return Claims{User: user, Device: jc.Device, Admin: jc.Admin, Expires: jc.ExpiresAt.Time}, nil
}
