// Package containers is the target whose every process is a container: Apache
// Kafka, MySQL with a replica, Redis, an S3-compatible server for media, the push
// provider and each role, on a network of their own. It owns what it starts and removes it, also after a
// crash of the harness (see reaper.go). It is the only package that knows
// Docker. It may import system and sim/target; the embedded target knows
// nothing of it.
package containers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"golang.org/x/sync/errgroup"

	"throng/sim/history"
	"throng/sim/target"
	"throng/system"
)

const (
	defaultStartTimeout = 3 * time.Minute
	crashRestartDelay   = 200 * time.Millisecond
	maxCrashes          = 20 // in one deployment; then they stay down
	stopGrace           = 7 * time.Second
	removeTimeout       = 60 * time.Second
	topic               = "throng-groups"
)

// Labels of everything that a run makes.
const (
	labelRun  = "throng.run"  // the run's id
	labelHost = "throng.host" // of the harness, and
	labelLock = "throng.lock" // the file there that it holds a lock on while it lives
	labelRole = "throng.role"
)

// Deployment is a deployment in containers. Methods can be called from several
// goroutines; Start once.
type Deployment struct {
	cfg    Config
	run    string // id, names everything
	http   *http.Client
	docker *testcontainers.DockerProvider
	api    client.APIClient

	images  resolved
	work    *workDir
	ports   *target.Ports
	routes  *target.Routes
	reaper  *reaper
	control *control
	sys     system.Config // as the containers see it
	network string
	members []*member // infrastructure first; not changed after Start

	watch     context.Context // ends when Close begins; crashes are watched until then
	stopWatch context.CancelFunc
	tasks     sync.WaitGroup // watching and restarting

	waitCtx   context.Context // ends when everything is removed
	stopWaits context.CancelFunc
	waits     sync.WaitGroup // one for each incarnation

	mu        sync.Mutex
	started   bool
	failed    bool
	crashes   int
	events    []history.Event
	generator *member // nil unless one is running
	closed    chan struct{}
	ended     chan struct{}
}

var _ target.Target = (*Deployment)(nil)

// New checks cfg. Nothing is started or written before Start.
func New(cfg Config) (*Deployment, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	id := make([]byte, 5)
	rand.Read(id)
	watch, stopWatch := context.WithCancel(context.Background())
	waitCtx, stopWaits := context.WithCancel(context.Background())
	return &Deployment{
		cfg: cfg, run: hex.EncodeToString(id),
		http:  &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}},
		watch: watch, stopWatch: stopWatch, waitCtx: waitCtx, stopWaits: stopWaits,
		closed: make(chan struct{}), ended: make(chan struct{}),
	}, nil
}

// Name returns "containers".
func (d *Deployment) Name() string { return "containers" }

// Capabilities returns all of them.
func (d *Deployment) Capabilities() target.Capabilities {
	return target.Capabilities{Kill: true, Metrics: true, CPU: true, Pushes: true}
}

// VersionS3 is the S3-compatible server among the versions; where it is missing,
// media instances share a volume.
const VersionS3 = "image.s3"

// Versions returns the images that are used, by role, for the manifest.
func (d *Deployment) Versions() map[string]string {
	i := &d.images
	out := map[string]string{"image.kafka": i.version(i.kafka), "image.mysql": i.version(i.mysql), "image.redis": i.version(i.redis), "image.role": i.role}
	if d.usesS3() {
		out[VersionS3] = i.version(i.s3)
	}
	return out
}

// Start starts the infrastructure, then all roles at once, and returns when
// every container is ready. ctx bounds Start alone; after an error nothing is
// left, logs of the containers excepted.
func (d *Deployment) Start(ctx context.Context, progress func(string)) (err error) {
	d.mu.Lock()
	if d.started {
		d.mu.Unlock()
		return errors.New("containers: started already")
	}
	d.started = true
	d.mu.Unlock()
	defer func() {
		if err != nil {
			d.fail()
			err = errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
	}()
	startCtx, cancel := context.WithTimeoutCause(ctx, d.cfg.StartTimeout, fmt.Errorf("gave up after %s", d.cfg.StartTimeout))
	defer cancel()
	if err := d.prepare(startCtx, progress); err != nil {
		return err
	}
	began := time.Now()
	s3 := ""
	if d.usesS3() {
		s3 = "S3, "
	}
	progress(fmt.Sprintf("starting Kafka (%s), MySQL (primary and %s), %sRedis and the push provider",
		count(d.cfg.Brokers, "broker"), count(d.cfg.Replicas, "replica"), s3))
	ready := func(m *member) {
		progress(fmt.Sprintf("%s is ready after %.1f s", m.name(), time.Since(began).Seconds()))
	}
	if err := d.startInfra(startCtx, ready); err != nil {
		return err
	}
	roles := slices.DeleteFunc(slices.Clone(d.members), func(m *member) bool { return m.infra })
	if d.cfg.NoRoles {
		return nil
	}
	progress(fmt.Sprintf("starting %s of roles", count(len(roles), "container")))
	if err := d.startAll(startCtx, roles, nil); err != nil {
		return err
	}
	progress(fmt.Sprintf("every role is ready after %.1f s", time.Since(began).Seconds()))
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// prepare connects to Docker, makes the network and what the containers need,
// and creates all of them, without starting one.
func (d *Deployment) prepare(ctx context.Context, progress func(string)) error {
	var err error
	if d.docker, err = connect(ctx); err != nil {
		return err
	}
	d.api = d.docker.Client()
	if d.images, err = d.cfg.Images.resolve(ctx, d.api); err != nil {
		return err
	}
	sweep(ctx, d.api)
	if d.work, err = newWorkDir(d.cfg.WorkDir); err != nil {
		return err
	}
	if d.reaper, err = startReaper(ctx, d.cfg.Exe, d.cfg.Env, d.run, d.work.path); err != nil {
		return err
	}
	progress("making the network and the image of the roles")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		d.images.role, err = roleImage(gctx, d.api, d.cfg.Exe)
		return err
	})
	g.Go(func() (err error) {
		d.network, err = d.makeNetwork(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	d.ports = target.NewPorts()
	if err := d.describe(); err != nil {
		return err
	}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(createParallel)
	for _, m := range d.members {
		g.Go(func() error { return m.create(gctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.control, err = startControl(d)
	return err
}

// createParallel bounds the creations at once: the daemon does them one after
// the other for the most part.
const createParallel = 4

// startInfra starts the infrastructure, all at once, and makes the replicas
// follow the primary.
func (d *Deployment) startInfra(ctx context.Context, ready func(*member)) error {
	g, gctx := errgroup.WithContext(ctx)
	var mysql, others []*member
	for _, m := range d.members {
		switch {
		case m.role == RoleMySQL:
			mysql = append(mysql, m)
		case m.infra:
			others = append(others, m)
		}
	}
	g.Go(func() error { return d.startAll(gctx, others, ready) })
	g.Go(func() error {
		if err := d.startAll(gctx, mysql, ready); err != nil {
			return err
		}
		for _, m := range mysql[1:] {
			if err := follow(gctx, m); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// startAll starts members and waits until all are ready.
func (d *Deployment) startAll(ctx context.Context, members []*member, ready func(*member)) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range members {
		g.Go(func() error {
			if err := d.launch(ctx, m); err != nil {
				return err
			}
			if err := m.awaitReady(ctx); err != nil {
				return err
			}
			if ready != nil {
				ready(m)
			}
			return nil
		})
	}
	return g.Wait()
}

// launch starts a member unless the deployment is being closed, and watches it.
func (d *Deployment) launch(ctx context.Context, m *member) error {
	select {
	case <-d.closed:
		return fmt.Errorf("containers: start %s: the target is closed", m.name())
	default:
	}
	exited, err := m.start(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.closed:
	default:
		d.tasks.Go(func() { d.watchOne(m, exited) })
	}
	return nil
}

// event records what happened, for the generator, and tells the caller.
func (d *Deployment) event(kind, format string, args ...any) {
	e := history.Event{Kind: kind, Detail: fmt.Sprintf(format, args...)}
	d.mu.Lock()
	if len(d.events) < maxEvents {
		d.events = append(d.events, e)
	}
	d.mu.Unlock()
	d.cfg.OnEvent(e)
}

// maxEvents bounds what is kept for the generator.
const maxEvents = 1000

// watchOne waits for the end of one incarnation, and starts the next one if
// nobody wanted that.
func (d *Deployment) watchOne(m *member, exited <-chan exit) {
	var end exit
	select {
	case <-d.watch.Done():
		return
	case end = <-exited:
	}
	if !end.crashed {
		return
	}
	d.event("fault", "%s ended unexpectedly: %s", m.name(), end.what)
	d.saveLog(d.watch, m)
	if d.cfg.KeepDead {
		return
	}
	d.mu.Lock()
	d.crashes++
	hopeless := d.crashes > maxCrashes
	d.mu.Unlock()
	if hopeless {
		d.event("warning", "%s stays down: more than %d crashes", m.name(), maxCrashes)
		return
	}
	select {
	case <-d.watch.Done():
		return
	case <-time.After(crashRestartDelay):
	}
	if err := d.launch(d.watch, m); err != nil {
		if d.watch.Err() == nil {
			d.event("warning", "%v", err)
		}
		return
	}
	d.event("restart", "%s after a crash", m.name())
}

// fail makes Close save the logs.
func (d *Deployment) fail() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = true
}

// Close stops the roles, callers before those they call, and removes
// everything. Where ctx ends first, what is left is killed. Logs are saved
// before that when the start failed or a container crashed.
func (d *Deployment) Close(ctx context.Context) error {
	d.mu.Lock()
	select {
	case <-d.closed:
		d.mu.Unlock()
		<-d.ended
		return nil
	default:
	}
	close(d.closed)
	started, failed := d.started, d.failed
	d.mu.Unlock()
	defer close(d.ended)
	d.stopWatch()
	d.tasks.Wait()
	defer d.http.CloseIdleConnections()
	defer d.stopWaits()
	if !started || d.api == nil {
		return nil
	}
	var errs []error
	if d.control != nil {
		errs = append(errs, d.control.close())
	}
	if failed {
		errs = append(errs, d.SaveLogs(context.WithoutCancel(ctx)))
	} else {
		d.stopTier(ctx, func(m *member) bool { return m.role == string(system.Gateway) })
		d.stopTier(ctx, func(m *member) bool { return !m.infra })
	}
	// Not bounded by ctx: what is not removed here stays behind.
	rmCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := removeRun(rmCtx, d.api, d.run); err != nil {
		errs = append(errs, err) // the reaper goes on trying
	} else if d.reaper != nil {
		errs = append(errs, d.reaper.dismiss())
	}
	d.stopWaits()
	d.waits.Wait()
	if d.ports != nil {
		d.ports.Close()
	}
	if d.work != nil {
		errs = append(errs, d.work.remove())
	}
	errs = append(errs, d.api.Close())
	return errors.Join(errs...)
}

// stopTier stops the members that which selects, all at once.
func (d *Deployment) stopTier(ctx context.Context, which func(*member) bool) {
	var wg sync.WaitGroup
	for _, m := range d.members {
		if which(m) {
			wg.Go(func() { m.stop(ctx) })
		}
	}
	wg.Wait()
}

// Config returns the deployment that was started, with addresses as the
// containers see them.
func (d *Deployment) Config() system.Config { return d.sys }

// Run returns the id that the names and the label throng.run of all parts have.
func (d *Deployment) Run() string { return d.run }

func (d *Deployment) find(role string, instance int) (*member, error) {
	for _, m := range d.members {
		if m.role == role && m.instance == instance {
			return m, nil
		}
	}
	return nil, fmt.Errorf("containers: there is no %s/%d", role, instance)
}

// Kill ends a container, infrastructure included, with SIGKILL.
func (d *Deployment) Kill(role string, instance int) error {
	m, err := d.find(role, instance)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	return m.kill(ctx)
}

// Restart starts a container that is down again, with its data.
func (d *Deployment) Restart(role string, instance int) error {
	m, err := d.find(role, instance)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	return d.launch(ctx, m)
}

// WaitReady waits until a container is ready. The error names what is missing.
func (d *Deployment) WaitReady(ctx context.Context, role string, instance int) error {
	m, err := d.find(role, instance)
	if err != nil {
		return err
	}
	return m.awaitReady(ctx)
}

// Address returns where the port of a container is reached from this host, as
// 127.0.0.1:port; "" when it is not published.
func (d *Deployment) Address(role string, instance int, port string) string {
	m, err := d.find(role, instance)
	if err != nil {
		return ""
	}
	return m.published[port]
}

// SaveLogs writes the logs of all containers to LogDir.
func (d *Deployment) SaveLogs(ctx context.Context) error {
	if d.cfg.LogDir == "" {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(createParallel)
	for _, m := range d.members {
		g.Go(func() error { return m.saveLog(ctx, d.cfg.LogDir) })
	}
	return g.Wait()
}

// saveLog saves one log; it is evidence about a crash, and not worth another.
func (d *Deployment) saveLog(ctx context.Context, m *member) {
	d.fail()
	if d.cfg.LogDir == "" {
		return
	}
	if err := m.saveLog(ctx, d.cfg.LogDir); err != nil && ctx.Err() == nil {
		d.event("warning", "%v", err)
	}
}

// labels of everything that this run makes.
func (d *Deployment) labels(role string) map[string]string {
	host, _ := os.Hostname() // without a name it is never swept by others
	return map[string]string{labelRun: d.run, labelHost: host, labelLock: d.work.lockPath(), labelRole: role}
}

// containerName is unique on the machine.
func (d *Deployment) containerName(m *member) string {
	return strings.Join([]string{"throng", d.run, m.host()}, "-")
}
