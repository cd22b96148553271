// Package external is a deployment that somebody else runs: a target file says
// where it is, how to authenticate, and what may be done to it and measured on
// it. Nothing is started or stopped. Two safety catches belong to the file: a
// deployment on other machines needs allow_load, and the rate of sends has a
// cap.
//
// It owns the target file. It may import sim/target, sim/history and the form
// of mistakes in sim/scenario.
package external

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"throng/sim/history"
	"throng/sim/target"
	"throng/system/wire"
)

// Bounds of what is asked of the deployment.
const (
	startTimeout   = 10 * time.Second
	scrapeTimeout  = 3 * time.Second
	sampleTimeout  = 500 * time.Millisecond // once a second: a slow endpoint makes a gap, not a delay
	commandTimeout = 30 * time.Second
	maxOutput      = 500 // bytes of a command's output in an error
)

// Metrics of the Prometheus client libraries for the process.
const (
	metricCPU   = "process_cpu_seconds_total"
	metricRSS   = "process_resident_memory_bytes"
	metricStart = "process_start_time_seconds"
)

// Target is the deployment of a File. Methods can be called from several
// goroutines.
type Target struct {
	f    *File
	http *http.Client

	mu     sync.Mutex
	starts map[int]incarnation // by index of File.Instances
}

// incarnation tells a process from the one that it replaced.
type incarnation struct {
	started  float64 // seconds since 1970
	restarts int
}

var _ target.Target = (*Target)(nil)

// New returns the deployment of f. Nothing is connected before Start.
func New(f *File) *Target {
	t := &Target{f: f, starts: map[int]incarnation{}}
	t.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4, TLSClientConfig: t.TLS()}}
	return t
}

// TLS returns how wss:// and https:// are connected; nil: as the system does.
func (t *Target) TLS() *tls.Config {
	if t.f.CA == nil {
		return nil
	}
	return &tls.Config{RootCAs: t.f.CA, MinVersion: tls.VersionTLS12}
}

// Key signs tokens; nil where they were made before.
func (t *Target) Key() wire.Key { return t.f.Key }

// Name returns "external".
func (t *Target) Name() string { return "external" }

// File returns what the target file says.
func (t *Target) File() *File { return t.f }

// Gateways returns those of the file.
func (t *Target) Gateways() []string { return t.f.Gateways }

// Capabilities returns what the file declares. Kill is true when any instance
// can be killed; CanKill says which.
func (t *Target) Capabilities() target.Capabilities {
	c := target.Capabilities{CPU: t.f.CPU, Pushes: t.f.PushesURL != ""}
	for _, in := range t.f.Instances {
		c.Kill = c.Kill || in.Kill != nil
		c.Metrics = c.Metrics || in.Metrics != ""
	}
	return c
}

// CanKill says whether the file has commands to kill and restart a process.
func (t *Target) CanKill(role string, instance int) bool {
	in := t.find(role, instance)
	return in != nil && in.Kill != nil
}

// CanFlush says whether the file has a command to empty a store.
func (t *Target) CanFlush(role string, instance int) bool {
	in := t.find(role, instance)
	return in != nil && in.Flush != nil
}

// Log says whether the fan-out's counters can be read, and how many partitions
// the groups' log has, -1 when that is not known.
func (t *Target) Log() (watched bool, partitions int) {
	for _, in := range t.f.Instances {
		watched = watched || in.Role == "fanout" && in.Metrics != ""
	}
	if t.f.Partitions == 0 {
		return watched, -1
	}
	return watched, t.f.Partitions
}

func (t *Target) find(role string, instance int) *Instance {
	for i := range t.f.Instances {
		if in := &t.f.Instances[i]; in.Role == role && in.Instance == instance {
			return in
		}
	}
	return nil
}

// Start checks that everything the file names answers. The error names what
// does not and its field.
func (t *Target) Start(ctx context.Context, progress func(string)) error {
	progress(fmt.Sprintf("asking %d gateways and %d other processes of %s", len(t.f.Gateways), len(t.f.Instances), t.f.Name))
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	answers := func(field, address string) {
		if address == "" {
			return
		}
		g.Go(func() error {
			if err := t.connects(ctx, address); err != nil {
				return fmt.Errorf("external: %s of %s, %s, does not answer: %w", field, t.f.Path, address, err)
			}
			return nil
		})
	}
	for i, url := range t.f.Gateways {
		answers(fmt.Sprintf("gateways[%d]", i), url)
	}
	answers("provisioning_url", t.f.Provisioning)
	answers("pushes_url", t.f.PushesURL)
	for i, in := range t.f.Instances {
		if in.Metrics == "" {
			continue
		}
		g.Go(func() error {
			values, err := t.scrape(ctx, i)
			if err == nil && t.f.CPU {
				if _, ok := values[metricCPU]; !ok {
					err = fmt.Errorf("there is no %s, which cpu: true declares", metricCPU)
				}
			}
			if err != nil {
				return fmt.Errorf("external: instances[%d].metrics of %s: %w", i, t.f.Path, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// connects opens a connection to the host of a URL, with its certificate where
// it has one, and closes it again.
func (t *Target) connects(ctx context.Context, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"ws": "80", "http": "80"}[u.Scheme]
	}
	if port == "" {
		port = "443"
	}
	var d interface {
		DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	} = &net.Dialer{}
	if u.Scheme == "wss" || u.Scheme == "https" {
		d = &tls.Dialer{Config: t.TLS()}
	}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return err
	}
	return conn.Close()
}

func (t *Target) operator() *target.Admin {
	return &target.Admin{HTTP: t.http, Key: t.f.Key, URL: t.f.Provisioning, AdminToken: t.f.AdminToken}
}

// Token signs a token, or returns the one that was made before.
func (t *Target) Token(user uint64, device uint32) (string, error) {
	if t.f.Tokens == nil {
		return t.operator().Token(user, device)
	}
	token, ok := t.f.Tokens[Device{user, device}]
	if !ok {
		return "", fmt.Errorf("external: tokens_file of %s has no token for user %d device %d", t.f.Path, user, device)
	}
	return token, nil
}

// Provision creates users and groups. Where the file says that they are there
// already it only counts them.
func (t *Target) Provision(ctx context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error) {
	if t.f.Provisioning != "" {
		return t.operator().Provision(ctx, next)
	}
	if !t.f.Provisioned {
		return nil, t.undeclared("provisioning_url")
	}
	total := &wire.ProvisionResult{}
	for {
		p, err := next()
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return nil, fmt.Errorf("external: provision: %w", err)
		}
		total.Users += uint64(len(p.Users))
		total.Groups += uint64(len(p.Groups))
	}
}

func (t *Target) undeclared(field string) error {
	return fmt.Errorf("external: %s declares no %s", t.f.Path, field)
}

// ChangeMembers returns when the change is in the group's log.
func (t *Target) ChangeMembers(ctx context.Context, change *wire.MembershipChange) (*wire.MembershipResult, error) {
	if t.f.Provisioning == "" {
		return nil, t.undeclared("provisioning_url")
	}
	return t.operator().ChangeMembers(ctx, change)
}

// Pushes reads the provider's feed.
func (t *Target) Pushes(ctx context.Context, f func(target.Push)) error {
	if t.f.PushesURL == "" {
		return t.undeclared("pushes_url")
	}
	return target.ReadPushes(ctx, t.http, t.f.PushesURL, f)
}

// Kill runs the instance's kill command.
func (t *Target) Kill(role string, instance int) error {
	return t.command(role, instance, "kill", func(in *Instance) []string { return in.Kill })
}

// Restart runs the instance's restart command.
func (t *Target) Restart(role string, instance int) error {
	return t.command(role, instance, "restart", func(in *Instance) []string { return in.Restart })
}

// Flush runs the instance's flush command.
func (t *Target) Flush(role string, instance int) (int64, error) {
	return -1, t.command(role, instance, "flush", func(in *Instance) []string { return in.Flush })
}

func (t *Target) command(role string, instance int, what string, of func(*Instance) []string) error {
	in := t.find(role, instance)
	if in == nil || of(in) == nil {
		return t.undeclared(fmt.Sprintf("%s command for %s/%d", what, role, instance))
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	argv := of(in)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second // a restart command may leave a process that holds the output
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		text := strings.TrimSpace(string(out))
		return fmt.Errorf("external: %s %s/%d: %w: %s", what, role, instance, err, text[max(0, len(text)-maxOutput):])
	}
	return nil
}

// scrape reads the metrics of an instance, its process included.
func (t *Target) scrape(ctx context.Context, i int) (map[string]float64, error) {
	return target.ScrapeURL(ctx, t.http, t.f.Instances[i].Metrics, metricRSS, metricStart)
}

// each scrapes all instances that have metrics at once and calls f, one call at
// a time, for each that answers.
func (t *Target) each(ctx context.Context, timeout time.Duration, f func(i int, values map[string]float64)) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, in := range t.f.Instances {
		if in.Metrics == "" {
			continue
		}
		wg.Go(func() {
			values, err := t.scrape(ctx, i)
			if err != nil {
				return // it is down or slow: there is nothing to say about it
			}
			mu.Lock()
			defer mu.Unlock()
			f(i, values)
		})
	}
	wg.Wait()
}

// Sample returns the generator and, where the file declares cpu, every process
// that answers in time.
func (t *Target) Sample() ([]history.RoleSample, error) {
	own, err := target.OwnSample()
	if err != nil {
		return nil, err
	}
	samples := []history.RoleSample{own}
	if !t.f.CPU {
		return samples, nil
	}
	t.each(context.Background(), sampleTimeout, func(i int, values map[string]float64) {
		in := t.f.Instances[i]
		samples = append(samples, history.RoleSample{Role: in.Role, Instance: in.Instance, CPUSeconds: values[metricCPU], RSSBytes: int64(values[metricRSS])})
	})
	return samples, nil
}

// Scrape returns the counters of every process that answers.
func (t *Target) Scrape(ctx context.Context) ([]history.CounterSample, error) {
	var samples []history.CounterSample
	t.each(ctx, scrapeTimeout, func(i int, values map[string]float64) {
		in := t.f.Instances[i]
		restart := t.restarts(i, values[metricStart])
		delete(values, metricRSS)
		delete(values, metricStart)
		samples = append(samples, history.CounterSample{Role: in.Role, Instance: in.Instance, Restart: restart, Values: values})
	})
	if err := ctx.Err(); err != nil && len(samples) == 0 {
		return nil, fmt.Errorf("external: scrape: %w", err)
	}
	return samples, nil
}

// restarts counts how often a process was replaced, by when it started.
func (t *Target) restarts(i int, started float64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	in, seen := t.starts[i]
	if seen && in.started != started {
		in.restarts++
	}
	in.started = started
	t.starts[i] = in
	return in.restarts
}

// Roles returns the generator and the instances of the file.
func (t *Target) Roles() []history.RoleInstance {
	roles := []history.RoleInstance{{Role: "generator", Infra: true}}
	for _, in := range t.f.Instances {
		infra := in.Role == "kafka" || in.Role == "redis" || in.Role == "mysql" || in.Role == "provider"
		roles = append(roles, history.RoleInstance{Role: in.Role, Instance: in.Instance, Infra: infra})
	}
	return roles
}

// Close ends connections; the deployment stays as it is.
func (t *Target) Close(context.Context) error {
	t.http.CloseIdleConnections()
	return nil
}
