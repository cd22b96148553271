package system

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"throng/system/internal/obs"
)

// fakeRole runs until its context ends, and then for as long as hold says.
type fakeRole struct {
	hold  <-chan struct{} // nil: not at all
	fail  chan error      // ends it with an error
	ended *endings
	name  string
}

// endings is the order in which roles ended.
type endings struct {
	mu    sync.Mutex
	names []string
}

func (e *endings) add(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.names = append(e.names, name)
}

func (r *fakeRole) Run(ctx context.Context, _ net.Listener) error {
	select {
	case err := <-r.fail:
		return err
	case <-ctx.Done():
	}
	if r.hold != nil {
		<-r.hold
	}
	r.ended.add(r.name)
	return nil
}

func (r *fakeRole) Ready() error { return nil }

// noListener is a debug port without a network.
type noListener struct{ closed chan struct{} }

func (l noListener) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l noListener) Addr() net.Addr            { return &net.TCPAddr{} }
func (l noListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

// fakeProcess is a process of fake roles, one for each real one.
func fakeProcess(t *testing.T, log *bytes.Buffer) (*Process, map[Role]*fakeRole, *endings) {
	t.Helper()
	ended := &endings{}
	logTo := &lockedWriter{w: log}
	p := &Process{log: slog.New(slog.DiscardHandler), stopped: make(chan struct{}), stuck: make(chan struct{})}
	roles := map[Role]*fakeRole{}
	for _, r := range Roles() {
		roles[r] = &fakeRole{fail: make(chan error, 1), ended: ended, name: string(r)}
		p.units = append(p.units, &unit{role: r, done: make(chan struct{}), debug: noListener{make(chan struct{})},
			log: slog.New(slog.NewTextHandler(logTo, nil)), reg: obs.NewRegistry(), built: built{runner: roles[r]}})
	}
	return p, roles, ended
}

func TestProcessStopsCallersFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p, _, ended := fakeProcess(t, &bytes.Buffer{})
		p.run(ctx)
		cancel()
		if err := p.Wait(); err != nil {
			t.Errorf("after the end of the context: %v", err)
		}
		if got := strings.Join(ended.names, " "); got != "gateway fanout message media group inbox push" {
			t.Errorf("ended in the order %s", got)
		}
	})
}

func TestProcessEndsWithAnyOfItsRoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, roles, ended := fakeProcess(t, &bytes.Buffer{})
		p.run(t.Context())
		broken := errors.New("the disk is full")
		roles[Inbox].fail <- broken
		err := p.Wait()
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), "inbox/0") {
			t.Errorf("got %v", err)
		}
		if len(ended.names) != len(roles)-1 {
			t.Errorf("the others did not end: %v", ended.names)
		}
		if again := p.Close(); !errors.Is(again, broken) {
			t.Errorf("Close after the failure: %v", again)
		}
	})
}

// TestProcessLetsGatewaysDrain: a gateway is given the time that it gives its
// clients.
func TestProcessLetsGatewaysDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, roles, _ := fakeProcess(t, &bytes.Buffer{})
		p.cfg.Settings.DrainTimeout = Duration(time.Minute)
		hold := make(chan struct{})
		roles[Gateway].hold = hold
		p.run(t.Context())
		time.AfterFunc(time.Minute, func() { close(hold) })
		if err := p.Close(); err != nil {
			t.Errorf("a gateway that drains for as long as it may: %v", err)
		}
	})
}

func TestProcessGivesUpARoleThatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p, roles, _ := fakeProcess(t, &log)
		hold := make(chan struct{})
		roles[Message].hold = hold
		p.run(t.Context())
		began := time.Now()
		err := p.Close()
		if err == nil || !strings.Contains(err.Error(), "message/0: did not stop within 15s") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != stopLimit {
			t.Errorf("gave up after %s", took)
		}
		close(hold)
		synctest.Wait()
		if !strings.Contains(log.String(), "fakeRole") {
			t.Error("the log does not show where the role hangs")
		}
	})
}
