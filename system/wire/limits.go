package wire

import "time"

// Limits of the protocol. A server may be stricter, never laxer; a client may
// rely on them.
const (
	// MaxBodyBytes bounds Send.body. A larger one is answered with CODE_TOO_LARGE.
	MaxBodyBytes = 65_536
	// MaxFrameBytes bounds one message from a client, in either format. A body
	// of MaxBodyBytes fits with its envelope as protobuf; as JSON, where it
	// travels in base64, about three quarters of it do. A larger message closes
	// the connection with CloseTooLarge, before it has been read.
	MaxFrameBytes = 70 << 10
	// MaxServerFrameBytes bounds one message from the server, so that a client
	// can refuse what cannot be one.
	MaxServerFrameBytes = 128 << 10
	// MaxInFlight bounds the Sends of one connection that are not answered yet.
	// One more is answered with CODE_RATE_LIMITED.
	MaxInFlight = 64
	// MaxDevices of a user: the phone, which is device 0, and up to four linked
	// ones, 1 to 4.
	MaxDevices = 5
	// ChainBytes is the length of Sent.chain and Send.chain.
	ChainBytes = 16
	// MaxTokenBytes bounds a bearer token.
	MaxTokenBytes = 2048
	// SyncTimeout: the first frame of a connection, Sync, must arrive within it.
	SyncTimeout = 10 * time.Second
	// IdleTimeout: a server closes a connection that has sent no byte for this
	// long; by Sync.platform, IdleTimeoutIOS and IdleTimeoutAndroid: mobile systems
	// let an app sleep between wake-ups. It sends WebSocket pings well before, so a
	// client that answers them (every WebSocket library does) need not do
	// anything. A client may send Ping, or a WebSocket ping, to see whether the
	// server is still there; it is answered at once.
	IdleTimeout        = 75 * time.Second
	IdleTimeoutIOS     = 180 * time.Second
	IdleTimeoutAndroid = 900 * time.Second
)
