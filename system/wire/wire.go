// Package wire is the protocol between clients and the backend: the frames
// (chat.proto), how they are put on a WebSocket, message ids, limits, tokens
// and close codes. Both the backend and the harness use it, and it is all that
// a client needs. It may not import anything else of this module.
package wire

import (
	"crypto/sha256"
	"encoding/binary"
)

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
