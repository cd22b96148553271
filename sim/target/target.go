// Package target is a deployment of the backend and what can be done to it:
// start, provision, kill, measure, stop. Embedded runs every role and the
// infrastructure as child processes of the harness, so that CPU and memory are
// accounted for each role and a kill is a real kill. Target may import system;
// it never imports another package of sim than history and its own.
package target

import (
	"context"
	"time"

	"throng/sim/history"
	"throng/sim/target/provider"
	"throng/system/wire"
)

// Target is a deployment under test.
type Target interface {
	// Name of the kind of target, for the manifest: "embedded".
	Name() string
	// Start returns when every role is ready. progress is called with short
	// lines about what is being waited for. ctx bounds Start alone. After an
	// error nothing is left running.
	Start(ctx context.Context, progress func(string)) error
	// Gateways returns base URLs, ws://host:port, without the path.
	Gateways() []string
	// Token returns a bearer token for a device.
	Token(user uint64, device uint32) (string, error)
	// Provision sends what next yields until io.EOF and returns the sums.
	Provision(ctx context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error)
	ChangeMembers(ctx context.Context, change *wire.MembershipChange) (*wire.MembershipResult, error)
	// Pushes calls f for each push that the provider answers from now on, from
	// one goroutine, until ctx is done or the feed fails.
	Pushes(ctx context.Context, f func(Push)) error
	Capabilities() Capabilities
	// Kill ends a process with SIGKILL and leaves it dead until Restart.
	Kill(role string, instance int) error
	// Restart starts a killed process again: same ports, same data. It does not
	// wait until the process is ready.
	Restart(role string, instance int) error
	// Flush empties a store and returns how many keys it had, below 0 where
	// that is not known.
	Flush(role string, instance int) (keys int64, err error)
	// Sample returns CPU and memory of every process; T is left to the caller.
	Sample() ([]history.RoleSample, error)
	// Scrape returns the counters of every role that answers; T is left to the
	// caller. A process that is down is left out.
	Scrape(ctx context.Context) ([]history.CounterSample, error)
	Roles() []history.RoleInstance
	// Close stops everything and removes its files, logs excepted.
	Close(ctx context.Context) error
}

// PushOutcome is what the provider made of a push.
type PushOutcome string

// The outcomes of a push.
const (
	PushAccepted  PushOutcome = provider.Accepted
	PushDead      PushOutcome = provider.Dead      // the device is gone
	PushFailed    PushOutcome = provider.Failed    // try again
	PushThrottled PushOutcome = provider.Throttled // over the quota: wait
)

// Push is a notification that the provider answered.
type Push struct {
	Outcome   PushOutcome
	Token     string
	User      uint64
	Device    uint32
	MessageID wire.MessageID
	At        time.Time
}

// Capabilities says what a target can do besides carrying messages.
type Capabilities struct {
	Kill    bool // Kill and Restart
	Metrics bool // Scrape
	CPU     bool // Sample
	Pushes  bool // Pushes
}

// Topology is the number of instances of each role, and of partitions.
type Topology struct {
	Gateways, Messages, Fanouts, Groups, Inboxes, Pushes int
	Medias                                               int // 0: no media service
	Partitions                                           int
	TopicLayout                                          string // system.Kafka.Layout
	RPCTLS                                               bool   // mutual TLS between roles
}
