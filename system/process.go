package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/obs"
)

// bindRetry is how long Start waits for an address that is in use: a process
// that is restarted at once can meet the last moments of its predecessor.
const bindRetry = 5 * time.Second

// stopLimit is how long a role may take to stop beyond the time that a gateway
// gives its clients to leave; they all promise less than 5 s of that.
const stopLimit = 15 * time.Second

// bound returns how long instances of a role may take to stop.
func (c *Config) bound(r Role) time.Duration {
	if r == Gateway {
		return stopLimit + time.Duration(c.Settings.DrainTimeout)
	}
	return stopLimit
}

// runner is a role that has been built.
type runner interface {
	Run(ctx context.Context, ln net.Listener) error
	Ready() error
}

// built is a role with what was made for it alone.
type built struct {
	runner
	http  http.Handler                // served on the unit's http listener; nil if it has none
	pages map[string]http.HandlerFunc // of the debug port, beside those of every role; by pattern
	close []func() error
}

// unit is one instance of one role inside a process.
type unit struct {
	role  Role
	index int

	main, http, debug net.Listener // main is nil for the fan-out, http only for group

	log    *slog.Logger
	reg    *prometheus.Registry
	built  built
	cancel context.CancelFunc
	done   chan struct{}
}

// Process is one running process of the backend.
type Process struct {
	cfg   Config
	units []*unit
	log   *slog.Logger

	stopOnce sync.Once
	stopped  chan struct{} // closed when everything has ended, or something is stuck
	stuck    chan struct{} // closed when a role has not stopped within its bound

	mu  sync.Mutex
	err error // of the first part that failed
}

// Start builds a role instance of the deployment and runs it until ctx is
// done, Close is called or a part of it fails. With role All, instance must be
// 0 and every instance of every role runs in this process; then ports may be 0
// and Addrs says which were taken. Logs go to logTo.
func Start(ctx context.Context, cfg Config, role Role, instance int, logTo io.Writer) (*Process, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("system: topology: %w", err)
	}
	if n := cfg.Instances(role); instance < 0 || instance >= n {
		return nil, fmt.Errorf("system: %s/%d: the topology has %d of this role", role, instance, n)
	}
	cfg = cfg.Clone()
	logTo = &lockedWriter{w: logTo} // every role instance has a logger of its own
	log, err := obs.NewLogger(logTo, obs.LogConfig(cfg.Log), string(role), instance)
	if err != nil {
		return nil, fmt.Errorf("system: %w", err)
	}
	p := &Process{cfg: cfg, log: log, stopped: make(chan struct{}), stuck: make(chan struct{})}
	for _, r := range Roles() {
		for i := range cfg.Instances(r) {
			if role == All || (role == r && instance == i) {
				p.units = append(p.units, &unit{role: r, index: i, done: make(chan struct{})})
			}
		}
	}
	if err := p.listen(ctx); err != nil {
		p.discard()
		return nil, err
	}
	for _, u := range p.units {
		if err := p.build(u, logTo); err != nil {
			p.discard()
			return nil, fmt.Errorf("system: %s/%d: %w", u.role, u.index, err)
		}
	}
	p.run(ctx)
	return p, nil
}

// lockedWriter lets one writer at a time write.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// listen binds every address of the process and writes the ports that were
// chosen back into the configuration.
func (p *Process) listen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bindRetry)
	defer cancel()
	bind := func(u *unit, what string, addr *string, ln *net.Listener) error {
		l, err := listenRetry(ctx, *addr)
		if err != nil {
			return fmt.Errorf("system: %s/%d: %s port: %w", u.role, u.index, what, err)
		}
		*ln, *addr = l, l.Addr().String()
		return nil
	}
	for _, u := range p.units {
		main, http, debug := p.cfg.listens(u.role, u.index)
		if main != nil {
			if err := bind(u, "main", main, &u.main); err != nil {
				return err
			}
		}
		if http != nil {
			if err := bind(u, "http", http, &u.http); err != nil {
				return err
			}
		}
		if err := bind(u, "debug", debug, &u.debug); err != nil {
			return err
		}
	}
	return nil
}

// listens returns the addresses that an instance listens on: clients or RPC,
// HTTP, debug. The first two can be nil.
func (c *Config) listens(r Role, i int) (main, http, debug *string) {
	switch r {
	case Gateway:
		return &c.Gateways[i].Listen, nil, &c.Gateways[i].Debug
	case Message:
		return &c.Messages[i].RPC, nil, &c.Messages[i].Debug
	case Fanout:
		return nil, nil, &c.Fanouts[i].Debug
	case Group:
		return &c.Groups[i].RPC, &c.Groups[i].HTTP, &c.Groups[i].Debug
	case Inbox:
		return &c.Inboxes[i].RPC, nil, &c.Inboxes[i].Debug
	case Media:
		return &c.Medias[i].Listen, nil, &c.Medias[i].Debug
	default:
		return &c.Pushes[i].RPC, nil, &c.Pushes[i].Debug
	}
}

// DebugAddr returns where an instance serves its debug port.
func (c *Config) DebugAddr(r Role, i int) string {
	_, _, debug := c.listens(r, i)
	return *debug
}

// listenRetry binds addr, waiting while ctx lasts and somebody else has it, or its
// name is not known yet: where names follow the processes, they come after them.
func listenRetry(ctx context.Context, addr string) (net.Listener, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var lc net.ListenConfig
		ln, err := lc.Listen(ctx, "tcp", addr)
		var noName *net.DNSError
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) && !errors.As(err, &noName) {
			return ln, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// build makes the logger, the registry and the role of u.
func (p *Process) build(u *unit, logTo io.Writer) error {
	log, err := obs.NewLogger(logTo, obs.LogConfig(p.cfg.Log), string(u.role), u.index)
	if err != nil {
		return err
	}
	u.log, u.reg = log, obs.NewRegistry()
	u.built, err = p.cfg.build(u.role, u.index, u.log, u.reg)
	return err
}

// discard undoes a Start that failed half-way.
func (p *Process) discard() {
	for _, u := range p.units {
		for _, ln := range []net.Listener{u.main, u.http, u.debug} {
			if ln != nil {
				ln.Close()
			}
		}
		u.built.closeAll(u.log)
	}
}

// closeAll closes what was made for the role, last made first.
func (b *built) closeAll(log *slog.Logger) {
	for i := len(b.close) - 1; i >= 0; i-- {
		if err := b.close[i](); err != nil {
			log.Warn("close", "err", err)
		}
	}
	b.close = nil
}

// run starts every unit, and the goroutine that stops them when ctx is done.
func (p *Process) run(ctx context.Context) {
	for _, u := range p.units {
		// Not a child of ctx: the units stop one role after the other.
		unitCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		u.cancel = cancel
		go p.runUnit(unitCtx, u)
	}
	stopOnCancel := context.AfterFunc(ctx, p.stop)
	go func() {
		<-p.stopped
		stopOnCancel()
	}()
	go func() {
		defer close(p.stopped)
		for _, u := range p.units {
			select {
			case <-u.done:
			case <-p.stuck:
				return
			}
		}
	}()
}

// runUnit serves one role instance, its HTTP API and its debug port. When the
// role ends, for whatever reason, the others end too.
func (p *Process) runUnit(ctx context.Context, u *unit) {
	defer close(u.done)
	defer u.cancel()
	auxCtx, auxCancel := context.WithCancel(context.WithoutCancel(ctx))
	defer auxCancel()
	var aux sync.WaitGroup
	serve := func(ln net.Listener, h http.Handler) {
		aux.Go(func() {
			if err := obs.Serve(auxCtx, ln, h, u.log); err != nil {
				p.fail(u, err)
			}
		})
	}
	debug := http.NewServeMux()
	debug.Handle("/", obs.Handler(u.reg, u.built.Ready, u.log))
	for pattern, page := range u.built.pages {
		debug.Handle(pattern, page)
	}
	serve(u.debug, debug)
	if u.http != nil {
		serve(u.http, u.built.http)
	}
	u.log.Info("started", "debug", u.debug.Addr().String())
	err := u.built.Run(ctx, u.main)
	if err == nil && ctx.Err() == nil {
		err = errors.New("the role ended by itself")
	}
	if err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		p.fail(u, err)
	}
	auxCancel()
	aux.Wait()
	u.built.closeAll(u.log)
	u.log.Info("stopped")
}

// fail records the error of a part and stops the process.
func (p *Process) fail(u *unit, err error) {
	p.note(u, err)
	go p.stop()
}

// note records the error of a part unless there is one already.
func (p *Process) note(u *unit, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = fmt.Errorf("system: %s/%d: %w", u.role, u.index, err)
	}
}

// stop ends the units: callers before those they call, so that what is under
// way can finish. When one does not stop, the process is given up: a stack dump
// in the log says where it is.
func (p *Process) stop() {
	p.stopOnce.Do(func() {
		order := Roles()
		for i := len(order) - 1; i >= 0; i-- {
			var ended []*unit
			for _, u := range p.units {
				if u.role == order[i] {
					u.cancel()
					ended = append(ended, u)
				}
			}
			limit := time.NewTimer(p.cfg.bound(order[i]))
			for _, u := range ended {
				select {
				case <-u.done:
				case <-limit.C:
					p.giveUp(u)
					return
				}
			}
			limit.Stop()
		}
	})
}

// giveUp ends the wait for a role that does not stop.
func (p *Process) giveUp(u *unit) {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	u.log.Error("does not stop", "after", p.cfg.bound(u.role), "goroutines", string(stacks))
	p.note(u, fmt.Errorf("did not stop within %s", p.cfg.bound(u.role)))
	for _, other := range p.units {
		other.cancel()
	}
	close(p.stuck)
}

// Close stops the process gracefully, waits for its end and returns what Wait
// returns.
func (p *Process) Close() error {
	p.stop()
	return p.Wait()
}

// Wait returns when the process has ended: nil after Close or the end of its
// context, else what failed. A role that does not stop is a failure too; its
// goroutines are then left behind.
func (p *Process) Wait() error {
	<-p.stopped
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.stopped }

// Ready returns nil when every role instance of the process can serve, else
// what is missing.
func (p *Process) Ready() error {
	var errs []error
	for _, u := range p.units {
		if err := u.built.Ready(); err != nil {
			errs = append(errs, fmt.Errorf("%s/%d: %w", u.role, u.index, err))
		}
	}
	return errors.Join(errs...)
}

// Addrs returns the deployment as it is: the configuration with the addresses
// that this process listens on filled in where the port was 0.
func (p *Process) Addrs() Config { return p.cfg.Clone() }
