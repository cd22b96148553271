package target

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"throng/sim/history"
	"throng/sim/target/wan"
	"throng/system"
	"throng/system/wire"
)

// EmbeddedConfig says what to start. Only Topology is needed.
type EmbeddedConfig struct {
	Topology Topology
	// Zones are imposed on every link between processes but those to SQL, which
	// is files here.
	Zones Zones
	// Exe is the binary that is executed again with the verbs `chatd` and
	// `embedded`; empty: this one.
	Exe string
	// Env is added to the environment of every child.
	Env []string
	// WorkDir is where a folder for data is made, removed by Close, or by the
	// next Start after a harness was killed; empty: the system's folder for
	// temporary files.
	WorkDir string
	// LogDir is where each process writes <role>-<instance>.log; it stays.
	// Empty: in the data folder.
	LogDir string
	// Key signs tokens; empty: a random one.
	Key wire.Key
	// Plant is a planted bug of system.Config.
	Plant    string
	Settings system.Settings
	Log      system.Log
	// Tuning of the Go runtime by role, infrastructure included.
	Tuning map[string]Tuning
	// ProviderArgs are flags for `embedded provider`.
	ProviderArgs []string
	// KeepDead leaves processes that crash dead; else they are started again.
	KeepDead bool
	// OnEvent is called, from any goroutine, for crashes and restarts (kinds
	// "fault", "restart", "warning"); T is left to the caller. May be nil.
	OnEvent func(history.Event)
	// StartTimeout bounds Start; 0 means 60 s.
	StartTimeout time.Duration
}

// Names of infrastructure processes and of the harness in samples.
const (
	roleKafka     = "kafka"
	roleRedis     = "redis"
	roleMySQL     = "mysql" // other targets have one
	roleWAN       = "wan"
	roleProvider  = "provider"
	roleGenerator = history.RoleGenerator
)

// crashRestartDelay is the pause before a crashed process is started again,
// and maxCrashes how often in one deployment.
const (
	crashRestartDelay   = 200 * time.Millisecond
	maxCrashes          = 20
	defaultStartTimeout = 60 * time.Second
	topic               = "throng-groups"
	certificateLife     = 24 * time.Hour // no run is as long
)

// Embedded is a deployment whose every process is a child of this one. Methods
// can be called from several goroutines; Start once.
type Embedded struct {
	cfg  EmbeddedConfig
	http *http.Client // debug ports and provisioning

	spawner *spawner
	ports   *ports
	routes  *Routes
	data    *dataDir
	sys     system.Config

	providerAddr string
	children     []*child // infrastructure first; not changed after Start
	restarts     sync.WaitGroup

	mu      sync.Mutex
	started bool
	closed  chan struct{} // closed when Close has begun
	ended   chan struct{} // closed when Close has ended
	crashes int
}

var _ Target = (*Embedded)(nil)

// NewEmbedded checks cfg. Nothing is started or written before Start.
func NewEmbedded(cfg EmbeddedConfig) (*Embedded, error) {
	t := cfg.Topology
	for name, n := range map[string]int{"gateways": t.Gateways, "messages": t.Messages, "fanouts": t.Fanouts,
		"groups": t.Groups, "inboxes": t.Inboxes, "pushes": t.Pushes, "partitions": t.Partitions} {
		if n < 1 {
			return nil, fmt.Errorf("target: topology: %s is %d, at least 1 is needed", name, n)
		}
	}
	if cfg.Exe == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("target: own binary: %w", err)
		}
		cfg.Exe = exe
	}
	if cfg.Key == nil {
		cfg.Key = make(wire.Key, wire.MinKeyBytes)
		rand.Read(cfg.Key) // never fails
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(history.Event) {}
	}
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = defaultStartTimeout
	}
	return &Embedded{
		cfg:    cfg,
		http:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}},
		closed: make(chan struct{}),
		ended:  make(chan struct{}),
	}, nil
}

// Name returns "embedded".
func (e *Embedded) Name() string { return "embedded" }

// Capabilities returns all of them; CPU only where there is a /proc.
func (e *Embedded) Capabilities() Capabilities {
	_, err := readUsage(os.Getpid())
	return Capabilities{Kill: true, Metrics: true, CPU: err == nil, Pushes: true}
}

// Start starts the infrastructure, then all roles at once, and returns when
// every process is ready. ctx bounds Start alone: when it is done before that,
// or Start fails otherwise, everything is killed. After Start, Close ends the
// deployment; so does the end of this process, however it comes.
func (e *Embedded) Start(ctx context.Context, progress func(string)) (err error) {
	e.mu.Lock()
	if e.started {
		e.mu.Unlock()
		return errors.New("target: started already")
	}
	e.started = true
	e.mu.Unlock()
	e.spawner, e.ports = newSpawner(), newPorts()
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close(ctx))
		}
	}()
	if err := e.prepare(); err != nil {
		return err
	}
	e.shareCores()
	startCtx, cancel := context.WithTimeoutCause(ctx, e.cfg.StartTimeout, fmt.Errorf("gave up after %s", e.cfg.StartTimeout))
	defer cancel()
	progress(e.startingInfra())
	if err := e.startAll(startCtx, func(c *child) bool { return c.infra }); err != nil {
		return err
	}
	roles := 0
	for _, c := range e.children {
		if !c.infra {
			roles++
		}
	}
	progress(fmt.Sprintf("starting %d role processes", roles))
	return e.startAll(startCtx, func(c *child) bool { return !c.infra })
}

// startingInfra says what is about to be started.
func (e *Embedded) startingInfra() string {
	if n := len(e.routes.Links()); n > 0 {
		return fmt.Sprintf("starting kafka, redis, the push provider and %d proxies between zones", n)
	}
	return "starting kafka, redis and the push provider"
}

// startAll starts the children that which selects and waits until all are ready.
func (e *Embedded) startAll(ctx context.Context, which func(*child) bool) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range e.children {
		if !which(c) {
			continue
		}
		g.Go(func() error {
			if err := e.launch(c); err != nil {
				return err
			}
			return c.awaitReady(ctx)
		})
	}
	return g.Wait()
}

// launch starts a child unless the target is being closed.
func (e *Embedded) launch(c *child) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.closed:
		return fmt.Errorf("target: start %s: the target is closed", c.name())
	default:
		return c.start(e.spawner, e.cfg.Exe, e.exited)
	}
}

// exited is told of the end of each process.
func (e *Embedded) exited(c *child, wanted bool, err error) {
	if !wanted {
		return
	}
	e.cfg.OnEvent(history.Event{Kind: "fault", Detail: fmt.Sprintf("%s ended unexpectedly: %v", c.name(), err)})
	if e.cfg.KeepDead {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.closed:
		return
	default:
	}
	e.crashes++
	hopeless := e.crashes > maxCrashes
	e.restarts.Go(func() {
		if hopeless {
			e.cfg.OnEvent(history.Event{Kind: "warning", Detail: fmt.Sprintf("%s stays down: more than %d crashes", c.name(), maxCrashes)})
			return
		}
		select {
		case <-e.closed:
			return
		case <-time.After(crashRestartDelay):
		}
		if err := e.launch(c); err != nil {
			e.cfg.OnEvent(history.Event{Kind: "warning", Detail: err.Error()})
			return
		}
		e.cfg.OnEvent(history.Event{Kind: "restart", Detail: c.name() + " after a crash"})
	})
}

// Close stops everything, callers before those they call, and removes the data
// folder. Where ctx ends first, what is left is killed.
func (e *Embedded) Close(ctx context.Context) error {
	e.mu.Lock()
	select {
	case <-e.closed:
		e.mu.Unlock()
		<-e.ended
		return nil
	default:
	}
	close(e.closed)
	started := e.started
	e.mu.Unlock()
	defer close(e.ended)
	if !started {
		return nil
	}
	e.restarts.Wait()
	e.stopTier(ctx, func(c *child) bool { return c.role == string(system.Gateway) })
	e.stopTier(ctx, func(c *child) bool { return !c.infra })
	e.stopTier(ctx, func(c *child) bool { return true })
	e.http.CloseIdleConnections()
	e.spawner.close()
	e.ports.close()
	if e.data != nil {
		return e.data.remove()
	}
	return nil
}

// stopTier stops the children that which selects, all at once.
func (e *Embedded) stopTier(ctx context.Context, which func(*child) bool) {
	var wg sync.WaitGroup
	for _, c := range e.children {
		if which(c) {
			wg.Go(func() { c.stop(ctx) })
		}
	}
	wg.Wait()
}

// Gateways returns ws://host:port of each gateway.
func (e *Embedded) Gateways() []string {
	var urls []string
	for _, g := range e.sys.Gateways {
		urls = append(urls, "ws://"+g.Listen)
	}
	return urls
}

// Key signs tokens.
func (e *Embedded) Key() wire.Key { return e.cfg.Key }

// Medias returns http://host:port of each media instance.
func (e *Embedded) Medias() []string {
	var urls []string
	for _, m := range e.sys.Medias {
		urls = append(urls, "http://"+m.Listen)
	}
	return urls
}

// Config returns the deployment that was started.
func (e *Embedded) Config() system.Config { return e.sys }

func (e *Embedded) find(role string, instance int) (*child, error) {
	for _, c := range e.children {
		if c.role == role && c.instance == instance {
			return c, nil
		}
	}
	return nil, fmt.Errorf("target: there is no %s/%d", role, instance)
}

// Kill ends a process, infrastructure included, with SIGKILL.
func (e *Embedded) Kill(role string, instance int) error {
	c, err := e.find(role, instance)
	if err != nil {
		return err
	}
	return c.kill()
}

// Restart starts a process that is down again.
func (e *Embedded) Restart(role string, instance int) error {
	c, err := e.find(role, instance)
	if err != nil {
		return err
	}
	return e.launch(c)
}

// Flush empties Redis, the only store that can be emptied.
func (e *Embedded) Flush(role string, instance int) (int64, error) {
	if role != roleRedis || instance != 0 {
		return 0, fmt.Errorf("target: %s/%d cannot be emptied, redis/0 can", role, instance)
	}
	return FlushRedis(context.Background(), e.sys.Redis.Addr)
}

// WaitReady waits until a process is ready. The error names what is missing.
func (e *Embedded) WaitReady(ctx context.Context, role string, instance int) error {
	c, err := e.find(role, instance)
	if err != nil {
		return err
	}
	return c.awaitReady(ctx)
}

// Roles returns every process, the harness included; PID is 0 while one is down.
func (e *Embedded) Roles() []history.RoleInstance {
	roles := []history.RoleInstance{{Role: roleGenerator, PID: os.Getpid(), Infra: true}}
	for _, c := range e.children {
		roles = append(roles, history.RoleInstance{Role: c.role, Instance: c.instance, PID: c.pid(), Infra: c.infra})
	}
	return roles
}

// prepare makes the folders, picks the ports, writes the topology file and
// describes the children.
func (e *Embedded) prepare() error {
	var err error
	if e.data, err = newDataDir(e.cfg.WorkDir); err != nil {
		return err
	}
	work := e.data.path
	if e.cfg.LogDir == "" {
		e.cfg.LogDir = filepath.Join(work, "logs")
	}
	if err := os.MkdirAll(e.cfg.LogDir, 0o755); err != nil {
		return fmt.Errorf("target: log folder: %w", err)
	}
	if err := e.describeSystem(); err != nil {
		return err
	}
	e.describeInfra()
	e.routes = NewRoutes(e.cfg.Zones, e.addr)
	for _, r := range system.Roles() {
		if err := e.describeRole(r); err != nil {
			return err
		}
	}
	return e.describeWAN()
}

// writeFile writes v as JSON to a file in the data folder.
func (e *Embedded) writeFile(name string, v any) (path string, err error) {
	path = filepath.Join(e.data.path, name)
	data, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("target: %s: %w", name, err)
	}
	return path, nil
}

// addr is an address for somebody to listen on.
func (e *Embedded) addr() (string, error) {
	port, err := e.ports.take()
	return "127.0.0.1:" + strconv.Itoa(port), err
}

// describeSystem fills e.sys.
func (e *Embedded) describeSystem() error {
	var failed error
	addr := func() string {
		a, err := e.addr()
		failed = errors.Join(failed, err)
		return a
	}
	sqlite := func(name string) system.SQL {
		return system.SQL{Driver: "sqlite", DSN: filepath.Join(e.data.path, name)}
	}
	t := e.cfg.Topology
	s := &e.sys
	for i := range t.Gateways {
		s.Gateways = append(s.Gateways, system.GatewayInstance{ID: fmt.Sprintf("gateway-%d", i), Listen: addr(), Debug: addr()})
	}
	for range t.Messages {
		s.Messages = append(s.Messages, system.RPCInstance{RPC: addr(), Debug: addr()})
	}
	for range t.Fanouts {
		s.Fanouts = append(s.Fanouts, system.FanoutInstance{Debug: addr()})
	}
	for range t.Groups {
		s.Groups = append(s.Groups, system.GroupInstance{RPC: addr(), HTTP: addr(), Debug: addr()})
	}
	for i := range t.Inboxes {
		s.Inboxes = append(s.Inboxes, system.InboxInstance{RPC: addr(), Debug: addr(), SQL: sqlite(fmt.Sprintf("inbox-%d.db", i))})
	}
	for range t.Medias {
		s.Medias = append(s.Medias, system.MediaInstance{Listen: addr(), Debug: addr()})
	}
	if t.Medias > 0 {
		folder, err := filepath.Abs(filepath.Join(e.data.path, "media"))
		failed = errors.Join(failed, err)
		s.MediaStore = system.MediaStore{SQL: sqlite("media.db"), Blobs: "file://" + filepath.ToSlash(folder)}
	}
	for range t.Pushes {
		s.Pushes = append(s.Pushes, system.RPCInstance{RPC: addr(), Debug: addr()})
	}
	s.Kafka = system.Kafka{Brokers: []string{addr()}, Topic: topic, Layout: t.TopicLayout, Partitions: t.Partitions}
	s.Redis = system.Redis{Addr: addr()}
	s.GroupSQL.SQL = sqlite("groups.db")
	e.providerAddr = addr()
	s.Provider = system.Provider{URL: "http://" + e.providerAddr, DeadLetters: e.data.path}
	s.Key = e.cfg.Key.String()
	if t.RPCTLS {
		set, err := system.WriteCertificates(filepath.Join(e.data.path, "tls"), certificateLife)
		failed = errors.Join(failed, err)
		s.RPCTLS = set
	}
	s.Log, s.Settings, s.Plant = e.cfg.Log, e.cfg.Settings, e.cfg.Plant
	e.cfg.Zones.Place(s)
	if failed != nil {
		return failed
	}
	if err := s.Check(); err != nil {
		return fmt.Errorf("target: topology: %w", err)
	}
	return nil
}

// infra adds a process of the infrastructure.
func (e *Embedded) infra(role string, probe func(context.Context) error, args ...string) *child {
	c := &child{role: role, infra: true, probe: probe, args: append([]string{"embedded", role, "--exit-with-parent"}, args...)}
	e.add(c)
	return c
}

func (e *Embedded) describeInfra() {
	infra := e.infra
	broker := e.sys.Kafka.Brokers[0]
	infra(roleKafka, func(ctx context.Context) error { return probeKafka(ctx, broker, topic, e.cfg.Topology.Partitions) },
		"--listen", broker, "--data", filepath.Join(e.data.path, "kafka"),
		"--topic", topic, "--partitions", strconv.Itoa(e.cfg.Topology.Partitions))
	infra(roleRedis, func(ctx context.Context) error { return ProbeRedis(ctx, e.sys.Redis.Addr) }, "--listen", e.sys.Redis.Addr)
	infra(roleProvider, func(ctx context.Context) error { return e.probeHTTP(ctx, "http://"+e.providerAddr+"/stats") },
		append([]string{"--listen", e.providerAddr}, e.cfg.ProviderArgs...)...)
}

// describeRole adds the processes of a role. Each has a topology file of its
// own, with the others where it reaches them.
func (e *Embedded) describeRole(r system.Role) error {
	for i := range e.sys.Instances(r) {
		cfg, err := e.routes.Config(e.sys, r, i)
		if err != nil {
			return err
		}
		file, err := e.writeFile(fmt.Sprintf("topology-%s-%d.json", r, i), cfg)
		if err != nil {
			return err
		}
		debug := cfg.DebugAddr(r, i)
		e.add(&child{role: string(r), instance: i, debug: debug,
			probe: func(ctx context.Context) error { return e.probeHTTP(ctx, "http://"+debug+"/readyz") },
			args:  []string{"chatd", string(r), "--topology", file, "--instance", strconv.Itoa(i), "--exit-with-parent"}})
	}
	return nil
}

// describeWAN adds the process of the proxies, where there are any.
func (e *Embedded) describeWAN() error {
	links := e.routes.Links()
	if len(links) == 0 {
		return nil
	}
	debug, err := e.addr()
	if err != nil {
		return err
	}
	file, err := e.writeFile("wan.json", wan.Config{Debug: debug, Links: links})
	if err != nil {
		return err
	}
	e.infra(roleWAN, func(ctx context.Context) error { return e.probeHTTP(ctx, "http://"+debug+"/readyz") }, "--config", file).debug = debug
	return nil
}

// add completes a child and appends it.
func (e *Embedded) add(c *child) {
	c.logPath = filepath.Join(e.cfg.LogDir, fmt.Sprintf("%s-%d.log", c.role, c.instance))
	c.env = append(c.env, e.cfg.Env...)
	t := e.cfg.Tuning[c.role]
	for _, v := range []struct {
		name  string
		value int64
	}{{"GOGC", int64(gcPercent(c, t))}, {"GOMEMLIMIT", t.MemLimitBytes}, {"GOMAXPROCS", int64(t.GOMAXPROCS)}} {
		if v.value != 0 {
			c.env = append(c.env, fmt.Sprintf("%s=%d", v.name, v.value))
		}
	}
	e.children = append(e.children, c)
}
