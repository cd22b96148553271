// Package wire is the protocol between clients and the backend: the frames
// (chat.proto), how they are put on a WebSocket, message ids, limits, tokens
// and close codes. Both the backend and the harness use it, and it is all that
// a client needs. It may not import anything else of this module.
package wire

import (
	"crypto/sha256"
	"encoding/binary"
)

// Version is the version of the protocol, the "v1" of the subprotocols and of
// Path. A change that an older client or server would misread needs a new
// number, a new subprotocol and a new path; a new optional field or a new
// server frame does not, because receivers skip what they do not know (in the
// binary format; JSON is strict and for people).
//
//	1, 2026-11-24: first version.
const Version = 1

// Subprotocols a client may offer, in order of preference.
const (
	SubprotocolProto = "throng.v1+proto" // binary messages, one protobuf Frame each
	SubprotocolJSON  = "throng.v1+json"  // text messages, one protojson Frame each
)

// Path of the WebSocket endpoint on a gateway.
const Path = "/v1/ws"

// MessageID is the identity of a message.
type MessageID [16]byte

// IDOf returns the id of what a device sends under clientMsgID: a retry after
// any crash, through any gateway, is the same message. It is the first 16
// bytes of SHA-256 over the three numbers, so that ids of different senders
// collide with negligible probability and cannot be chosen.
func IDOf(user uint64, device uint32, clientMsgID uint64) MessageID {
	var b [20]byte
	binary.LittleEndian.PutUint64(b[0:], user)
	binary.LittleEndian.PutUint32(b[8:], device)
	binary.LittleEndian.PutUint64(b[12:], clientMsgID)
	h := sha256.Sum256(b[:])
	return MessageID(h[:16])
}

// GroupIDOf returns the id of the group that a device's ACTION_CREATE with
// requestID makes: a retry is about the same group. The highest bit is set;
// groups with ids of somebody else's choice should leave it alone.
func GroupIDOf(user uint64, device uint32, requestID uint64) uint64 {
	id := hashOf("group", user, uint64(device), requestID)
	return binary.LittleEndian.Uint64(id[:]) | 1<<63
}

// SystemIDOf returns the message id of the system message that says what a
// version of a group changed.
func SystemIDOf(group, version uint64) MessageID { return hashOf("system", group, version) }

// hashOf is the first 16 bytes of SHA-256 over what the id is of and numbers;
// what, and so the length, differs from that of IDOf.
func hashOf(what string, numbers ...uint64) MessageID {
	b := []byte(what)
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	h := sha256.Sum256(b)
	return MessageID(h[:16])
}

// Conversation names a conversation from the point of view of one side: the
// other user of a direct one, or the group. Exactly one field is not zero. It
// can be a map key.
type Conversation struct {
	User  uint64
	Group uint64
}

// ConversationOf returns the conversation a Send goes to.
func ConversationOf(s *Send) Conversation {
	return Conversation{User: s.GetUser(), Group: s.GetGroup()}
}
