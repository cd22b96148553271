package wire

import "fmt"

// CloseCode is a WebSocket close code of the server. The range says what the
// client should do: 4000 to 4499, connect again (with back-off and jitter);
// 4500 to 4999, do not, because the same would happen again.
type CloseCode uint16

// Close codes after which a client connects again.
const (
	CloseDraining     CloseCode = 4000 // this gateway goes away
	CloseSlowConsumer CloseCode = 4001 // the client did not read fast enough
	CloseIdle         CloseCode = 4002 // no byte came for IdleTimeout
	CloseOwnerLost    CloseCode = 4003 // the session has lost its inbox
	CloseRate         CloseCode = 4004 // more frames a second than allowed
	CloseInternal     CloseCode = 4005 // a fault of the server
	CloseTokenExpired CloseCode = 4006 // connect again with a new token
	CloseNoSync       CloseCode = 4007 // no Sync within SyncTimeout
)

// Close codes after which a client does not connect again.
const (
	CloseReplaced   CloseCode = 4500 // the same device has connected elsewhere
	CloseBadFrame   CloseCode = 4501 // not a frame of this protocol, or one out of place
	CloseBadToken   CloseCode = 4502 // the token is not (or no longer) accepted
	CloseTooLarge   CloseCode = 4503 // a message over MaxFrameBytes
	CloseNoSuchUser CloseCode = 4504 // the token names a device that is not provisioned
)

// Reconnect reports whether a client that was closed with c should connect
// again. Codes below 4000 (those of RFC 6455) and a connection that ended
// without a code count as lost connections: reconnect.
func (c CloseCode) Reconnect() bool { return c < 4500 }

// String returns a short name, fit for a metric label and a close reason.
func (c CloseCode) String() string {
	switch c {
	case CloseDraining:
		return "draining"
	case CloseSlowConsumer:
		return "slow_consumer"
	case CloseIdle:
		return "idle"
	case CloseOwnerLost:
		return "owner_lost"
	case CloseRate:
		return "rate"
	case CloseInternal:
		return "internal"
	case CloseTokenExpired:
		return "token_expired"
	case CloseNoSync:
		return "no_sync"
	case CloseReplaced:
		return "replaced"
	case CloseBadFrame:
		return "bad_frame"
	case CloseBadToken:
		return "bad_token"
	case CloseTooLarge:
		return "too_large"
	case CloseNoSuchUser:
		return "no_such_user"
	}
	return fmt.Sprintf("code_%d", uint16(c))
}

// CloseCodes returns every close code of the protocol.
func CloseCodes() []CloseCode {
	return []CloseCode{CloseDraining, CloseSlowConsumer, CloseIdle, CloseOwnerLost, CloseRate, CloseInternal,
		CloseTokenExpired, CloseNoSync, CloseReplaced, CloseBadFrame, CloseBadToken, CloseTooLarge, CloseNoSuchUser}
}
