package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Times of the life of a child.
const (
	killGrace   = 7 * time.Second // after SIGTERM; the roles drain for at most 5 s
	readyPoll   = 20 * time.Millisecond
	logTailRead = 8 << 10
	logTailRows = 15
)

// child is one process of the target, over all its incarnations.
type child struct {
	role     string
	instance int
	infra    bool
	args     []string // of the executable
	env      []string // beside the harness's own
	debug    string   // address of the debug port; "" for infrastructure
	probe    func(context.Context) error
	logPath  string

	mu       sync.Mutex
	cmd      *exec.Cmd     // nil when not running
	stdin    io.Closer     // its end tells the child that the harness is gone
	exited   chan struct{} // closed when cmd has been waited for
	wanted   bool          // an exit is a crash
	exitErr  error         // of the last incarnation
	restarts int           // incarnations before this one
	usedCPU  time.Duration // user + system of earlier incarnations
	// reportedCPU is the most that usage has returned.
	reportedCPU time.Duration
}

func (c *child) name() string { return fmt.Sprintf("%s/%d", c.role, c.instance) }

// spawner starts processes on one thread that lives as long as it does. The
// kernel kills a child with Pdeathsig when the thread that started it ends, and
// a thread of the Go runtime can end before the program; this one cannot.
type spawner struct {
	work chan func()
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for f := range s.work {
			f()
		}
	}()
	return s
}

func (s *spawner) do(f func() error) error {
	errc := make(chan error, 1)
	s.work <- func() { errc <- f() }
	return <-errc
}

// close ends the thread. No child may be running.
func (s *spawner) close() {
	close(s.work)
	<-s.done
}

// start runs a new incarnation. onExit is called once, after it has ended.
func (c *child) start(s *spawner, exe string, onExit func(c *child, wanted bool, err error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd != nil {
		return fmt.Errorf("target: %s is running", c.name())
	}
	logFile, err := os.OpenFile(c.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("target: log of %s: %w", c.name(), err)
	}
	defer logFile.Close() // the child has its own copy
	cmd := exec.Command(exe, c.args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = append(os.Environ(), c.env...)
	cmd.SysProcAttr = childAttr()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("target: %s: %w", c.name(), err)
	}
	if err := s.do(cmd.Start); err != nil {
		return fmt.Errorf("target: start %s: %w", c.name(), err)
	}
	exited := make(chan struct{})
	c.cmd, c.stdin, c.exited, c.wanted, c.exitErr = cmd, stdin, exited, true, nil
	go c.wait(cmd, exited, onExit)
	return nil
}

func (c *child) wait(cmd *exec.Cmd, exited chan struct{}, onExit func(*child, bool, error)) {
	err := cmd.Wait()
	if err == nil {
		err = errors.New("exit status 0")
	}
	c.mu.Lock()
	wanted := c.wanted
	c.cmd, c.exitErr = nil, err
	c.restarts++
	c.usedCPU += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	c.mu.Unlock()
	close(exited)
	onExit(c, wanted, err)
}

// kill ends the process with SIGKILL and waits for its end.
func (c *child) kill() error {
	c.mu.Lock()
	cmd, exited := c.cmd, c.exited
	if cmd == nil {
		c.mu.Unlock()
		return fmt.Errorf("target: %s is not running", c.name())
	}
	c.wanted = false
	err := cmd.Process.Kill()
	c.mu.Unlock()
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("target: kill %s: %w", c.name(), err)
	}
	<-exited
	return nil
}

// stop ends the process: SIGTERM, and SIGKILL when that was not enough until
// ctx is done or the grace is over.
func (c *child) stop(ctx context.Context) {
	c.mu.Lock()
	cmd, exited := c.cmd, c.exited
	c.wanted = false
	c.mu.Unlock()
	if cmd == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
	select {
	case <-exited:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-exited
	}
}

// pid returns the process id, 0 when not running.
func (c *child) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return 0
	}
	return c.cmd.Process.Pid
}

// awaitReady polls the probe until it succeeds. The error names the process,
// what was missing last, and the end of its log.
func (c *child) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		c.mu.Lock()
		running, exitErr := c.cmd != nil, c.exitErr
		c.mu.Unlock()
		if !running {
			return fmt.Errorf("target: %s ended: %w%s", c.name(), exitErr, c.logTail())
		}
		err := c.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("target: %s is not ready: %w (%w)%s", c.name(), err, context.Cause(ctx), c.logTail())
		case <-tick.C:
		}
	}
}

// logTail returns the end of the process's log, for error messages.
func (c *child) logTail() string {
	f, err := os.Open(c.logPath)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > logTailRead {
		_, _ = f.Seek(-logTailRead, io.SeekEnd)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	lines := strings.Split(string(bytes.TrimSpace(data)), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return l == "" })
	if len(lines) > logTailRows {
		lines = lines[len(lines)-logTailRows:]
	}
	if len(lines) == 0 {
		return "\n  its log is empty"
	}
	return fmt.Sprintf("\n  the end of %s:\n    %s", filepath.Base(c.logPath), strings.Join(lines, "\n    "))
}
