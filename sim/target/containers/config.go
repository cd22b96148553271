package containers

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"throng/sim/history"
	"throng/sim/target"
	"throng/system"
	"throng/system/wire"
)

// Config says what to start. Only Topology is needed.
type Config struct {
	Topology target.Topology
	// Zones are imposed on every link between containers. All brokers must be in
	// one zone.
	Zones target.Zones
	// Brokers of Kafka, 1 (default) or 3. With 3 everything is replicated three
	// times and an acknowledged record is on two of them.
	Brokers int
	// Replicas of MySQL beside the primary; 0 means 1.
	Replicas int
	// NoRoles leaves the roles out: infrastructure for conformance suites.
	NoRoles bool
	// Images of the infrastructure; see Images.
	Images Images
	// Exe is the static binary that the roles' image is made of, with the verbs
	// `chatd`, `embedded` and `containers`; empty: this one.
	Exe string
	// Env is given to the containers of the roles, and added to the environment
	// of the reaper.
	Env []string
	// WorkDir is where a folder for files is made, removed by Close; empty: the
	// system's folder for temporary files.
	WorkDir string
	// LogDir is where SaveLogs writes <role>-<instance>.log, as Close does after
	// a failure. Empty: logs are lost with the containers.
	LogDir string
	// Key signs tokens; empty: a random one.
	Key wire.Key
	// Plant is a planted bug of system.Config.
	Plant    string
	Settings system.Settings
	Log      system.Log
	// Limits by role, infrastructure and the generator included.
	Limits map[string]Limits
	// ProviderArgs are flags for `embedded provider`.
	ProviderArgs []string
	// KeepDead leaves containers that crash dead; else they are started again.
	KeepDead bool
	// OnEvent is called, from any goroutine, for crashes and restarts (kinds
	// "fault", "restart", "warning"); T is left to the caller. May be nil.
	OnEvent func(history.Event)
	// StartTimeout bounds Start; 0 means 3 minutes.
	StartTimeout time.Duration
}

// Limits of one container. Zero values leave it unlimited.
type Limits struct {
	CPUSet   string  // cores it may run on, like "0-1"
	CPUs     float64 // how many cores' worth of time it may use
	MemBytes int64
}

// Names of what is no role of the backend, in samples and for Kill. mysql/0 is
// the primary, the others are its replicas.
const (
	RoleKafka     = "kafka"
	RoleMySQL     = "mysql"
	RoleRedis     = "redis"
	RoleS3        = "s3"
	RoleProvider  = "provider"
	RoleWAN       = "wan" // the proxies between zones
	RoleGenerator = "generator"
)

// complete checks the configuration and fills in what was left out.
func (c *Config) complete() error {
	t := c.Topology
	for name, n := range map[string]int{"gateways": t.Gateways, "messages": t.Messages, "fanouts": t.Fanouts,
		"groups": t.Groups, "inboxes": t.Inboxes, "pushes": t.Pushes, "partitions": t.Partitions} {
		if n < 1 {
			return fmt.Errorf("containers: topology: %s is %d, at least 1 is needed", name, n)
		}
	}
	if c.Brokers == 0 {
		c.Brokers = 1
	}
	if c.Brokers != 1 && c.Brokers != 3 {
		return fmt.Errorf("containers: %d brokers: allowed are 1 and 3", c.Brokers)
	}
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	for i := range c.Brokers {
		if c.Zones.Of(RoleKafka, i).Name != c.Zones.Of(RoleKafka, 0).Name {
			return errors.New("containers: brokers in different zones: what they say to each other cannot be delayed")
		}
	}
	if c.Exe == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("containers: own binary: %w", err)
		}
		c.Exe = exe
	}
	if c.Key == nil {
		c.Key = make(wire.Key, wire.MinKeyBytes)
		rand.Read(c.Key) // never fails
	}
	if c.OnEvent == nil {
		c.OnEvent = func(history.Event) {}
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = defaultStartTimeout
	}
	return nil
}
