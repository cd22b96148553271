package wire

import (
	"fmt"
	"net/url"
	"time"
)

// MaxKeys bounds Keys: who shows something forged costs a look with each.
const MaxKeys = 4

// Keys verify: all that a deployment accepts while it changes its signing key, that
// one first. Nothing signed says under which, so they are tried one after the other.
type Keys []Key

// ParseKeys reads keys as ParseKey does, at most MaxKeys.
func ParseKeys(all ...string) (Keys, error) {
	if len(all) > MaxKeys {
		return nil, fmt.Errorf("wire: %d signing keys, at most %d", len(all), MaxKeys)
	}
	var keys Keys
	for _, s := range all {
		k, err := ParseKey(s)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// Verify is Key.Verify under any of them.
func (ks Keys) Verify(token string) (c Claims, err error) {
	err = fmt.Errorf("%w: no key", ErrToken)
	for _, k := range ks {
		if c, err = k.Verify(token); err == nil {
			return c, nil
		}
	}
	return Claims{}, err
}

// VerifyChain is VerifyChain under any of them.
func (ks Keys) VerifyChain(user uint64, device uint32, conversation Conversation, seq uint64, chain []byte) bool {
	for _, k := range ks {
		if VerifyChain(k, user, device, conversation, seq, chain) {
			return true
		}
	}
	return false
}

// VerifyMediaGrant is VerifyMediaGrant under any of them.
func (ks Keys) VerifyMediaGrant(id MediaID, grant []byte) (g MediaGrant, err error) {
	err = fmt.Errorf("%w: no key", ErrMediaGrant)
	for _, k := range ks {
		if g, err = VerifyMediaGrant(k, id, grant); err == nil {
			return g, nil
		}
	}
	return MediaGrant{}, err
}

// VerifyMediaURL is VerifyMediaURL under any of them.
func (ks Keys) VerifyMediaURL(id MediaID, q url.Values, now time.Time) (user uint64, err error) {
	err = fmt.Errorf("%w: no key", ErrMediaGrant)
	for _, k := range ks {
		if user, err = VerifyMediaURL(k, id, q, now); err == nil {
			return user, nil
		}
	}
	return 0, err
}
