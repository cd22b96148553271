package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

const (
	readyPoll = 50 * time.Millisecond
	tailLines = "15"
)

// member is one container of a deployment, over all its incarnations.
type member struct {
	d          *Deployment
	role       string
	instance   int
	infra      bool
	image      string
	entrypoint []string // empty: the image's
	cmd        []string
	env        map[string]string
	files      map[string][]byte // put into the container before it starts
	binds      []string          // host path:container path[:ro]
	user       string
	sysctls    map[string]string
	capAdd     []string
	cpuShares  int64                       // 0: the default, 1,024
	ports      []string                    // to be published
	published  map[string]string           // port to 127.0.0.1:port
	source     string                      // MySQL: host:port of the primary, as this one reaches it
	prepare    func(*member)               // completes files once published is known; may be nil
	probe      func(context.Context) error // nil: ready once it runs

	id string // of the container, set by create

	mu       sync.Mutex
	running  bool          // as far as the daemon has said
	dead     bool          // killed, and the daemon may not have noticed yet
	wanted   bool          // an end is a crash
	exited   chan struct{} // closed at the end of this incarnation
	pid      int
	restarts int // incarnations before this one
	last     string
	used     usage // of earlier incarnations; CPU alone
	seen     usage // the last sample of this one
	group    *cgroup
}

// exit is the end of an incarnation.
type exit struct {
	crashed bool
	what    string
}

func (m *member) name() string { return fmt.Sprintf("%s/%d", m.role, m.instance) }

// host is its name on the network.
func (m *member) host() string { return fmt.Sprintf("%s-%d", m.role, m.instance) }

// create makes the container and puts its files into it.
func (m *member) create(ctx context.Context) error {
	bindings := network.PortMap{}
	m.published = map[string]string{}
	var exposed []string
	for _, p := range m.ports {
		hostPort, err := m.d.ports.Take()
		if err != nil {
			return err
		}
		port, b, err := binding(p, hostPort)
		if err != nil {
			return err
		}
		bindings[port] = []network.PortBinding{b}
		m.published[p] = fmt.Sprintf("%s:%d", loopback, hostPort)
		exposed = append(exposed, p+"/tcp")
	}
	if m.prepare != nil {
		m.prepare(m)
	}
	return m.createWith(ctx, exposed, bindings)
}

func (m *member) createWith(ctx context.Context, exposed []string, bindings network.PortMap) error {
	limits := m.d.cfg.Limits[m.role]
	req := testcontainers.ContainerRequest{
		Image: m.image, Entrypoint: m.entrypoint, Cmd: m.cmd, Env: m.env,
		Name: m.d.containerName(m), Labels: m.d.labels(m.role),
		Networks: []string{m.d.network}, NetworkAliases: map[string][]string{m.d.network: {m.host()}},
		ExposedPorts: exposed,
		ConfigModifier: func(c *container.Config) {
			c.Hostname, c.User = m.host(), m.user
		},
		HostConfigModifier: func(h *container.HostConfig) {
			h.PortBindings, h.Binds, h.Sysctls, h.CapAdd = bindings, m.binds, m.sysctls, m.capAdd
			h.NetworkMode = container.NetworkMode(m.d.network)
			h.Resources = container.Resources{
				CpusetCpus: limits.CPUSet, NanoCPUs: int64(limits.CPUs * 1e9), Memory: limits.MemBytes, CPUShares: m.cpuShares,
			}
			h.LogConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "64m", "max-file": "2"}}
		},
	}
	for path, data := range m.files {
		req.Files = append(req.Files, testcontainers.ContainerFile{Reader: bytes.NewReader(data), ContainerFilePath: path, FileMode: 0o644})
	}
	ctx, cancel := settled(ctx)
	defer cancel()
	c, err := m.d.docker.CreateContainer(ctx, req)
	if err != nil {
		return fmt.Errorf("containers: create %s: %w", m.name(), err)
	}
	m.id = c.GetContainerID()
	return nil
}

// start runs a new incarnation. The channel gets its end.
func (m *member) start(ctx context.Context) (<-chan exit, error) {
	if err := m.buried(ctx); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running {
		return nil, fmt.Errorf("containers: %s is running", m.name())
	}
	ctx, cancel := settled(ctx)
	defer cancel()
	if _, err := m.d.api.ContainerStart(ctx, m.id, client.ContainerStartOptions{}); err != nil {
		return nil, fmt.Errorf("containers: start %s: %w", m.name(), err)
	}
	m.running, m.dead, m.wanted, m.exited = true, false, true, make(chan struct{})
	m.pid, m.group = 0, nil
	if info, err := m.d.api.ContainerInspect(ctx, m.id, client.ContainerInspectOptions{}); err == nil && info.Container.State != nil {
		m.pid = info.Container.State.Pid
		m.group = findCgroup(m.pid, m.id)
	}
	ended := make(chan exit, 1)
	exited := m.exited
	m.d.waits.Go(func() { m.wait(exited, ended) })
	return ended, nil
}

// wait ends with the incarnation; Close ends it if the daemon does not answer.
func (m *member) wait(exited chan struct{}, ended chan<- exit) {
	what := "removed"
	res := m.d.api.ContainerWait(m.d.waitCtx, m.id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case r := <-res.Result:
		what = fmt.Sprintf("exit status %d", r.StatusCode)
	case err := <-res.Error:
		if !errdefs.IsNotFound(err) {
			what = fmt.Sprintf("lost sight of it: %v", err)
		}
	}
	m.mu.Lock()
	crashed := m.wanted
	m.running, m.dead, m.pid, m.group = false, false, 0, nil
	m.last = what
	m.restarts++
	m.used.cpu += m.seen.cpu
	m.seen = usage{}
	m.mu.Unlock()
	close(exited)
	ended <- exit{crashed, what}
}

// buried waits until the daemon has cleaned up after a kill.
func (m *member) buried(ctx context.Context) error {
	m.mu.Lock()
	dead, running, exited := m.dead, m.running, m.exited
	m.mu.Unlock()
	if !dead || !running {
		return nil
	}
	select {
	case <-exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("containers: end of %s: %w", m.name(), ctx.Err())
	}
}

// kill ends the container with SIGKILL and returns when its process is gone;
// the daemon's cleaning up, which can take seconds on a busy machine, is waited
// for by start.
func (m *member) kill(ctx context.Context) error {
	m.sampleLast(ctx)
	m.mu.Lock()
	if !m.running || m.dead {
		m.mu.Unlock()
		return fmt.Errorf("containers: %s is not running", m.name())
	}
	pid, local := m.pid, m.group != nil
	m.wanted, m.dead, m.pid = false, true, 0
	m.mu.Unlock()
	// Where the process is one of this machine's, the signal goes there at once:
	// the daemon's answer to a kill comes when all is cleaned up.
	if local && syscall.Kill(pid, syscall.SIGKILL) == nil {
		return gone(ctx, pid)
	}
	if _, err := m.d.api.ContainerKill(ctx, m.id, client.ContainerKillOptions{Signal: "KILL"}); err != nil && !errdefs.IsConflict(err) {
		return fmt.Errorf("containers: kill %s: %w", m.name(), err)
	}
	return m.buried(ctx)
}

// gone waits until a process that was killed does not exist any more.
func gone(ctx context.Context, pid int) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("containers: process %d does not end: %w", pid, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// stop ends the container gracefully; removal ends it where that fails.
func (m *member) stop(ctx context.Context) {
	m.mu.Lock()
	running := m.running
	m.wanted = false
	m.mu.Unlock()
	if !running {
		return
	}
	grace := int(stopGrace.Seconds())
	_, _ = m.d.api.ContainerStop(ctx, m.id, client.ContainerStopOptions{Timeout: &grace})
}

// awaitReady polls the probe until it succeeds. The error names the container,
// what was missing last, and the end of its log.
func (m *member) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		m.mu.Lock()
		running, last := m.running && !m.dead, m.last
		m.mu.Unlock()
		if !running {
			return fmt.Errorf("containers: %s ended: %s%s", m.name(), last, m.logTail(ctx))
		}
		if m.probe == nil {
			return nil
		}
		err := m.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containers: %s is not ready: %w (%w)%s", m.name(), err, context.Cause(ctx), m.logTail(ctx))
		case <-tick.C:
		}
	}
}

// logTail returns the end of the container's log, for error messages.
func (m *member) logTail(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var b bytes.Buffer
	if err := m.copyLog(ctx, &b, tailLines); err != nil {
		return fmt.Sprintf("\n  its log cannot be read: %v", err)
	}
	lines := strings.TrimSpace(b.String())
	if lines == "" {
		return "\n  its log is empty"
	}
	return "\n  the end of its log:\n    " + strings.ReplaceAll(lines, "\n", "\n    ")
}

func (m *member) copyLog(ctx context.Context, w io.Writer, tail string) error {
	logs, err := m.d.api.ContainerLogs(ctx, m.id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: tail})
	if err != nil {
		return fmt.Errorf("log of %s: %w", m.name(), err)
	}
	defer logs.Close()
	if _, err := stdcopy.StdCopy(w, w, logs); err != nil {
		return fmt.Errorf("log of %s: %w", m.name(), err)
	}
	return nil
}

// saveLog writes the whole log to dir, all incarnations.
func (m *member) saveLog(ctx context.Context, dir string) error {
	if m.id == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("containers: log folder: %w", err)
	}
	f, err := os.Create(filepath.Join(dir, m.host()+".log"))
	if err != nil {
		return fmt.Errorf("containers: log of %s: %w", m.name(), err)
	}
	if err := errors.Join(m.copyLog(ctx, f, "all"), f.Close()); err != nil {
		return fmt.Errorf("containers: %w", err)
	}
	return nil
}
