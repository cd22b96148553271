package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// chainDomain starts the input of every chain value. It holds bytes that never
// occur in the signing input of a token, so that neither can stand for the other.
const chainDomain = "throng chain 1\x00"

// Chain is the proof that message seq of a device in a conversation is durable,
// or was refused for good: HMAC-SHA256 under the service's key, cut to 16 bytes.
// Only the service can make one, so a client that shows it has seen seq answered.
func Chain(key Key, user uint64, device uint32, conversation Conversation, seq uint64) [ChainBytes]byte {
	var b [len(chainDomain) + 36]byte
	n := copy(b[:], chainDomain)
	binary.LittleEndian.PutUint64(b[n:], user)
	binary.LittleEndian.PutUint32(b[n+8:], device)
	binary.LittleEndian.PutUint64(b[n+12:], conversation.User)
	binary.LittleEndian.PutUint64(b[n+20:], conversation.Group)
	binary.LittleEndian.PutUint64(b[n+28:], seq)
	h := hmac.New(sha256.New, key)
	h.Write(b[:])
	var sum [sha256.Size]byte
	return [ChainBytes]byte(h.Sum(sum[:0]))
}

// VerifyChain reports whether chain is the chain value of seq, in constant time.
func VerifyChain(key Key, user uint64, device uint32, conversation Conversation, seq uint64, chain []byte) bool {
	want := Chain(key, user, device, conversation, seq)
	return hmac.Equal(want[:], chain)
}
