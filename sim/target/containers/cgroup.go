package containers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"throng/sim/history"
)

// usage of one container. rss is memory that no file stands behind: the page
// cache of a broker or a database is the machine's, not its own.
type usage struct {
	cpu     time.Duration
	rss     int64
	threads int
}

// cgroup is where the kernel accounts for a running container. Reading its
// files costs microseconds, asking the daemon milliseconds of its CPU, which
// would be taken from the system under test.
type cgroup struct {
	v2                bool
	cpu, memory, pids string // folders
}

const cgroupRoot = "/sys/fs/cgroup"

// findCgroup returns nil where the files are not visible, as when the daemon
// runs on another machine.
func findCgroup(pid int, id string) *cgroup {
	if pid == 0 {
		return nil
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil
	}
	g := parseCgroup(string(data), id)
	if g == nil {
		return nil
	}
	if _, err := g.read(); err != nil {
		return nil
	}
	return g
}

// parseCgroup finds the folders in a /proc/<pid>/cgroup, whose lines are
// hierarchy:controllers:path. Paths without the container's id belong to
// somebody else.
func parseCgroup(lines, id string) *cgroup {
	g := &cgroup{}
	for line := range strings.Lines(lines) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || !strings.Contains(parts[2], id) {
			continue
		}
		if parts[0] == "0" && parts[1] == "" {
			if g.cpu == "" {
				dir := filepath.Join(cgroupRoot, parts[2])
				g.v2, g.cpu, g.memory, g.pids = true, dir, dir, dir
			}
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			dir := filepath.Join(cgroupRoot, controller, parts[2])
			switch controller {
			case "cpuacct":
				g.v2, g.cpu = false, dir
			case "memory":
				g.memory = dir
			case "pids":
				g.pids = dir
			}
		}
	}
	if g.cpu == "" || g.memory == "" || g.pids == "" {
		return nil
	}
	return g
}

func (g *cgroup) read() (usage, error) {
	var u usage
	var err1, err2, err3 error
	if g.v2 {
		var us int64
		us, err1 = field(filepath.Join(g.cpu, "cpu.stat"), "usage_usec")
		u.cpu = time.Duration(us) * time.Microsecond
		u.rss, err2 = field(filepath.Join(g.memory, "memory.stat"), "anon")
	} else {
		var ns int64
		ns, err1 = number(filepath.Join(g.cpu, "cpuacct.usage"))
		u.cpu = time.Duration(ns)
		u.rss, err2 = field(filepath.Join(g.memory, "memory.stat"), "total_rss")
	}
	var n int64
	n, err3 = number(filepath.Join(g.pids, "pids.current"))
	u.threads = int(n)
	return u, errors.Join(err1, err2, err3)
}

// number reads a file that holds one.
func number(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// field reads a number from a file of lines "name number".
func field(path, name string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	s := bufio.NewScanner(bytes.NewReader(data))
	for s.Scan() {
		if v, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			return strconv.ParseInt(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// ask reads the usage from the daemon.
func (m *member) ask(ctx context.Context) (usage, error) {
	res, err := m.d.api.ContainerStats(ctx, m.id, client.ContainerStatsOptions{})
	if err != nil {
		return usage{}, fmt.Errorf("containers: usage of %s: %w", m.name(), err)
	}
	defer res.Body.Close()
	var s container.StatsResponse
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return usage{}, fmt.Errorf("containers: usage of %s: %w", m.name(), err)
	}
	rss, ok := s.MemoryStats.Stats["anon"]
	if !ok {
		rss = s.MemoryStats.Stats["total_rss"]
	}
	return usage{cpu: time.Duration(s.CPUStats.CPUUsage.TotalUsage), rss: int64(rss), threads: int(s.PidsStats.Current)}, nil
}

// sampleLast takes a sample before the container is ended: the kernel forgets
// what it has used with its end.
func (m *member) sampleLast(ctx context.Context) {
	_, _ = m.sample(ctx) // without it, what was used since the last one is lost
}

// sample returns what the container has used over all its incarnations. What an
// incarnation that crashed used after its last sample is not in it. Memory and
// threads are 0 while it is down.
func (m *member) sample(ctx context.Context) (usage, error) {
	m.mu.Lock()
	running, group, restarts := m.running && !m.dead, m.group, m.restarts
	m.mu.Unlock()
	var now usage
	var err error
	if running {
		if group != nil {
			now, err = group.read()
		} else {
			now, err = m.ask(ctx)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.restarts != restarts || !m.running || m.dead {
		return usage{cpu: m.used.cpu + m.seen.cpu}, nil // it has ended
	}
	if err != nil {
		return usage{}, fmt.Errorf("containers: usage of %s: %w", m.name(), err)
	}
	now.cpu = max(now.cpu, m.seen.cpu)
	m.seen = now
	now.cpu += m.used.cpu
	return now, nil
}

// Sample returns CPU and memory of every container. The generator is its
// container while there is one, and this process otherwise.
func (d *Deployment) Sample() ([]history.RoleSample, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sampleTimeout)
	defer cancel()
	generator, members := d.withGenerator()
	samples := make([]history.RoleSample, len(members))
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() {
			var u usage
			u, errs[i] = m.sample(ctx)
			samples[i] = history.RoleSample{Role: m.role, Instance: m.instance, CPUSeconds: u.cpu.Seconds(), RSSBytes: u.rss, Threads: u.threads}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if !generator {
		own, err := ownUsage()
		if err != nil {
			return nil, err
		}
		samples = append([]history.RoleSample{own}, samples...)
	}
	return samples, nil
}

// sampleTimeout bounds Sample where the daemon has to be asked.
const sampleTimeout = 5 * time.Second

// withGenerator returns the members, before them the generator's container if
// one is running.
func (d *Deployment) withGenerator() (generator bool, members []*member) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.generator == nil {
		return false, d.members
	}
	return true, append([]*member{d.generator}, d.members...)
}

// Roles returns every container, the generator included; PID is 0 while one is
// down.
func (d *Deployment) Roles() []history.RoleInstance {
	var roles []history.RoleInstance
	generator, members := d.withGenerator()
	if !generator {
		roles = append(roles, history.RoleInstance{Role: RoleGenerator, PID: os.Getpid(), Infra: true})
	}
	for _, m := range members {
		m.mu.Lock()
		roles = append(roles, history.RoleInstance{Role: m.role, Instance: m.instance, PID: m.pid, Infra: m.infra})
		m.mu.Unlock()
	}
	return roles
}

// restarts returns how often each container was started again, by name.
func (d *Deployment) restarts() map[string]int {
	out := map[string]int{}
	for _, m := range d.members {
		m.mu.Lock()
		out[m.name()] = m.restarts
		if !m.running && m.restarts > 0 {
			out[m.name()]-- // down: the next incarnation has not begun
		}
		m.mu.Unlock()
	}
	return out
}
