package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"

	"throng/sim/history"
	"throng/sim/target"
	"throng/system/wire"
)

// Attached is a deployment that another process has started, as a generator in
// one of its containers sees it. Killing and measuring go through the control
// socket, everything else over the network.
type Attached struct {
	a       Attachment
	key     wire.Key
	onEvent func(history.Event)
	http    *http.Client
	control *http.Client

	mu     sync.Mutex
	events int // how many were passed on
}

var _ target.Target = (*Attached)(nil)

// Attach reads the file at path. onEvent is called for crashes and restarts, T
// is left to the caller; it may be nil. The caller of Sample gets it called.
func Attach(path string, onEvent func(history.Event)) (*Attached, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("containers: attach: %w", err)
	}
	t := &Attached{onEvent: onEvent, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}}}
	if err := json.Unmarshal(data, &t.a); err != nil {
		return nil, fmt.Errorf("containers: attach %s: %w", path, err)
	}
	if t.key, err = wire.ParseKey(t.a.Key); err != nil {
		return nil, fmt.Errorf("containers: attach %s: %w", path, err)
	}
	if len(t.a.Gateways) == 0 || t.a.Admin == "" || t.a.Control == "" {
		return nil, fmt.Errorf("containers: attach %s: gateways, admin and control are needed", path)
	}
	if t.onEvent == nil {
		t.onEvent = func(history.Event) {}
	}
	t.control = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", t.a.Control)
	}}}
	return t, nil
}

// Name returns the name of the target that is attached to.
func (t *Attached) Name() string { return t.a.Target }

// Versions returns those of the target.
func (t *Attached) Versions() map[string]string { return t.a.Versions }

// Capabilities returns all of them.
func (t *Attached) Capabilities() target.Capabilities {
	return target.Capabilities{Kill: true, Metrics: true, CPU: true, Pushes: true}
}

// Start checks that the control socket answers: the deployment is ready already.
func (t *Attached) Start(ctx context.Context, progress func(string)) error {
	s, err := t.state(ctx)
	if err != nil {
		return err
	}
	progress(fmt.Sprintf("attached to %d containers", len(s.Roles)))
	return nil
}

// Medias returns the media instances as the containers reach them.
func (t *Attached) Medias() []string { return t.a.Medias }

// Gateways returns the gateways as the containers reach them.
func (t *Attached) Gateways() []string { return t.a.Gateways }

func (t *Attached) operator() *target.Admin {
	return &target.Admin{HTTP: t.http, Key: t.key, URL: t.a.Admin}
}

// Key signs tokens.
func (t *Attached) Key() wire.Key { return t.key }

// Token returns a token that is good for a day.
func (t *Attached) Token(user uint64, device uint32) (string, error) {
	return t.operator().Token(user, device)
}

// Provision sends what next yields to the first group instance.
func (t *Attached) Provision(ctx context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error) {
	return t.operator().Provision(ctx, next)
}

// ChangeMembers returns when the change is in the group's log.
func (t *Attached) ChangeMembers(ctx context.Context, change *wire.MembershipChange) (*wire.MembershipResult, error) {
	return t.operator().ChangeMembers(ctx, change)
}

// Pushes reads the provider's feed.
func (t *Attached) Pushes(ctx context.Context, f func(target.Push)) error {
	return target.ReadPushes(ctx, nil, t.a.Provider, f)
}

// Kill ends a container with SIGKILL.
func (t *Attached) Kill(role string, instance int) error {
	_, err := t.act("kill", role, instance)
	return err
}

// Restart starts a container that is down again.
func (t *Attached) Restart(role string, instance int) error {
	_, err := t.act("restart", role, instance)
	return err
}

// Flush empties Redis.
func (t *Attached) Flush(role string, instance int) (int64, error) {
	said, err := t.act("flush", role, instance)
	if err != nil {
		return 0, err
	}
	keys, err := strconv.ParseInt(said, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("containers: control: it answered %q to flush", said)
	}
	return keys, nil
}

func (t *Attached) act(what, role string, instance int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	q := url.Values{"role": {role}, "instance": {strconv.Itoa(instance)}}
	said, err := t.ask(ctx, http.MethodPost, "/"+what+"?"+q.Encode())
	return string(said), err
}

// ask makes a request to the control socket.
func (t *Attached) ask(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("containers: control: %w", err)
	}
	resp, err := t.control.Do(req)
	if err != nil {
		return nil, fmt.Errorf("containers: control: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("containers: control: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(strings.TrimSpace(string(body)))
	}
	return body, nil
}

func (t *Attached) state(ctx context.Context) (*state, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	body, err := t.ask(ctx, http.MethodGet, "/state?events="+strconv.Itoa(t.events))
	if err != nil {
		return nil, err
	}
	s := &state{}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("containers: control: %w", err)
	}
	t.events += len(s.Events)
	for _, e := range s.Events {
		t.onEvent(e)
	}
	return s, nil
}

// Sample returns CPU and memory of every container, this one as the generator.
func (t *Attached) Sample() ([]history.RoleSample, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sampleTimeout)
	defer cancel()
	s, err := t.state(ctx)
	if err != nil {
		return nil, err
	}
	return s.Samples, nil
}

// Scrape reads /metrics of every role at once.
func (t *Attached) Scrape(ctx context.Context) ([]history.CounterSample, error) {
	s, err := t.state(ctx)
	if err != nil {
		return nil, err
	}
	return scrape(ctx, t.http, t.a.Debug, s.Restarts)
}

// Roles returns every container; nothing while the control socket does not answer.
func (t *Attached) Roles() []history.RoleInstance {
	ctx, cancel := context.WithTimeout(context.Background(), sampleTimeout)
	defer cancel()
	s, err := t.state(ctx)
	if err != nil {
		return nil
	}
	return s.Roles
}

// Close ends connections: the deployment belongs to somebody else.
func (t *Attached) Close(context.Context) error {
	t.http.CloseIdleConnections()
	t.control.CloseIdleConnections()
	return nil
}
