package gateway

import (
	"math"
	"time"

	"throng/system/wire"
)

// Limits are the bounds of a gateway. Zero fields take the default in brackets.
type Limits struct {
	// MaxConnections bounds the WebSockets; one more is answered 503. [250,000]
	MaxConnections int
	// MaxHandshakes bounds the sockets that are accepted and not upgraded yet;
	// one more is closed. [4,096]
	MaxHandshakes int
	// HandshakeTimeout is for the whole upgrade request. [5 s]
	HandshakeTimeout time.Duration
	// SyncTimeout is until the first frame. [wire.SyncTimeout]
	SyncTimeout time.Duration
	// IdleTimeout closes a connection without a byte from the client; a ping
	// goes out when two fifths of it are over. IdleIOS and IdleAndroid are for
	// clients that say so in Sync. [wire.IdleTimeout, wire.IdleTimeoutIOS,
	// wire.IdleTimeoutAndroid]
	IdleTimeout time.Duration
	IdleIOS     time.Duration
	IdleAndroid time.Duration
	// WriteTimeout is how long a socket that is full may take for the next 64
	// KiB of its backlog. [10 s]
	WriteTimeout time.Duration
	// PendingBytes bounds what waits for one socket that takes no more; above
	// it the connection is closed as a slow consumer. [256 KiB]
	PendingBytes int
	// SendBufferBytes is the kernel's send buffer of a socket (SO_SNDBUF). A
	// slow client costs that much more, so the kernel's own choice, up to 4
	// MiB, is too much. [128 KiB]
	SendBufferBytes int
	// ReadBufferBytes is the size of the shared read buffers: one for each
	// loop that reads. [16 KiB]
	ReadBufferBytes int
	// FramesPerSecond and FrameBurst bound the frames of one connection, as a
	// token bucket; above, it is closed. [200, 1,000]
	FramesPerSecond int
	FrameBurst      int
	// AddressConnections bounds the WebSockets and sockets of one address (of IPv6,
	// of a /64), AddressHandshakes those that are not upgraded yet. Above, and above
	// AddressConnectRate new ones a second, the newest is answered 429 (closed, with
	// TLS). AddressFailureRate bounds the tokens refused; above, the address's
	// requests are answered 429, whatever token they bear. Many people may share an
	// address. Below 0 there is no such limit. [4,096; an eighth of MaxHandshakes;
	// 200/s, 4,096 at once; 20/s, 200 at once]
	AddressConnections  int
	AddressHandshakes   int
	AddressConnectRate  int
	AddressConnectBurst int
	AddressFailureRate  int
	AddressFailureBurst int
	// UserConnections bounds the WebSockets of one user here; one more is answered
	// 429. More than devices: of a device that has lost its connection the old one
	// may still be there. [16]
	UserConnections int
	// UserSendRate and UserByteRate bound the sends a second of one user, and the
	// bytes of all that they send; above, a send is answered with
	// CODE_RATE_LIMITED and when to try again, and at twice UserByteBurst the
	// connection is closed. Below 0 there is no such limit. [50/s, 500 at once;
	// 512 KiB/s, 8 MiB at once]
	UserSendRate  int
	UserSendBurst int
	UserByteRate  int
	UserByteBurst int
	// InFlight bounds the sends of one connection without an answer. [wire.MaxInFlight]
	InFlight int
	// SubmitQueue and SubmitQueueBytes bound what waits for one message
	// instance; above, a send is answered with CODE_RETRY. [8,192, 32 MiB]
	SubmitQueue      int
	SubmitQueueBytes int
	// GroupCalls bounds the group requests without an answer, GroupCallsOfConn
	// those of one connection; above, they are answered with CODE_RETRY and
	// CODE_RATE_LIMITED. [1,024, 4]
	GroupCalls       int
	GroupCallsOfConn int
	// ReadQueue bounds the read receipts that wait for one inbox instance;
	// above, they are dropped. [65,536]
	ReadQueue int
	// DrainTimeout is how long a stopping gateway waits for clients to leave,
	// DrainJitter what it tells them to spread over. [5 s, 3 s]
	DrainTimeout time.Duration
	DrainJitter  time.Duration
}

const (
	maxHeaderBytes = 8 << 10
	// scratchBytes is how much of a connection's backlog goes into one write.
	scratchBytes = 64 << 10
	// closeGrace is how long a client may take to answer a close message.
	closeGrace = 2 * time.Second
	// ephemeralPending: a connection with this much waiting gets no typing or
	// presence, they are the first to go.
	ephemeralPending = 16 << 10
	// batchItems bounds the entries of each kind in one batch to another role.
	batchItems = 4096
	// submitBatchItems and submitBatchBytes bound one batch of sends.
	submitBatchItems = 256
	submitBatchBytes = 1 << 20
	// maxCloses bounds the session ends that wait for one inbox instance;
	// above, its stream is opened anew, which ends all sessions at once.
	maxCloses = 131_072
	// maxQueries bounds the requests for lists of receipts that wait for one
	// inbox instance; above, one is answered with CODE_RETRY.
	maxQueries = 4096
	// waitingBatches is how many batches from one instance are taken before
	// the connections they touch are written to.
	waitingBatches = 32
	// reopenDelay is between two attempts at a stream.
	reopenDelay = 100 * time.Millisecond
	// groupCallTimeout is how long the group service may take for a request. It
	// gives up itself before, when the log does not take a change.
	groupCallTimeout = 20 * time.Second
	// helloTimeout is how long an inbox instance may take to say its incarnation.
	helloTimeout = 5 * time.Second
	// settleTimeout is how long a stopping gateway waits for inbox instances to
	// take the last of what it has to say.
	settleTimeout = time.Second
	// stampEvery is the default of Config.StampEvery.
	stampEvery = 16
	// retryAfterMS is what a refused send is told to wait.
	retryAfterMS = 200
)

func (l Limits) withDefaults() Limits {
	number := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	duration := func(p *time.Duration, d time.Duration) {
		if *p <= 0 {
			*p = d
		}
	}
	// Of these below 0 means none.
	set := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	number(&l.MaxConnections, 250_000)
	number(&l.MaxHandshakes, 4096)
	duration(&l.HandshakeTimeout, 5*time.Second)
	duration(&l.SyncTimeout, wire.SyncTimeout)
	duration(&l.IdleTimeout, wire.IdleTimeout)
	duration(&l.IdleIOS, wire.IdleTimeoutIOS)
	duration(&l.IdleAndroid, wire.IdleTimeoutAndroid)
	duration(&l.WriteTimeout, 10*time.Second)
	number(&l.PendingBytes, 256<<10)
	number(&l.SendBufferBytes, 128<<10)
	number(&l.ReadBufferBytes, 16<<10)
	number(&l.FramesPerSecond, 200)
	number(&l.FrameBurst, 1000)
	l.people(set)
	number(&l.InFlight, wire.MaxInFlight)
	number(&l.SubmitQueue, 8192)
	number(&l.SubmitQueueBytes, 32<<20)
	number(&l.GroupCalls, 1024)
	number(&l.GroupCallsOfConn, 4)
	number(&l.ReadQueue, 65_536)
	duration(&l.DrainTimeout, 5*time.Second)
	duration(&l.DrainJitter, 3*time.Second)
	return l
}

// people has the limits by address and by user.
func (l *Limits) people(set func(p *int, d int)) {
	set(&l.AddressConnections, 4096)
	set(&l.AddressHandshakes, max(l.MaxHandshakes/8, 1))
	set(&l.AddressConnectRate, 200)
	set(&l.AddressConnectBurst, 4096)
	set(&l.AddressFailureRate, 20)
	set(&l.AddressFailureBurst, 200)
	set(&l.UserConnections, 16)
	set(&l.UserSendRate, 50)
	set(&l.UserSendBurst, 500)
	set(&l.UserByteRate, 512<<10)
	set(&l.UserByteBurst, 8<<20)
	for _, p := range []*int{&l.AddressConnections, &l.AddressHandshakes, &l.UserConnections} {
		if *p < 0 {
			*p = math.MaxInt
		}
	}
}
