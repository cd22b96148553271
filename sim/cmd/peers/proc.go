package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usage is what a process and all that it started have used.
type usage struct {
	cpu time.Duration // user and system, of children that have ended too
	rss int64         // bytes
}

// Fields of /proc/<pid>/stat from the state on; the clock of these ticks is 100 Hz.
const (
	statUser, statChildSystem = 11, 14
	statRSS                   = 21
	tick                      = 10 * time.Millisecond
)

// tree reads the usage of a process and its descendants.
func tree(pid int) (usage, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(f) <= statRSS {
		return usage{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	var u usage
	for _, s := range f[statUser : statChildSystem+1] {
		n, err := strconv.ParseInt(string(s), 10, 64)
		if err != nil {
			return usage{}, err
		}
		u.cpu += time.Duration(n) * tick
	}
	pages, err := strconv.ParseInt(string(f[statRSS]), 10, 64)
	if err != nil {
		return usage{}, err
	}
	u.rss = pages * int64(os.Getpagesize())
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return usage{}, err
	}
	for _, t := range tasks {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue // the thread has ended
		}
		for s := range strings.FieldsSeq(string(children)) {
			child, err := strconv.Atoi(s)
			if err != nil {
				return usage{}, err
			}
			c, err := tree(child)
			if err != nil {
				continue // it has ended, and its parent has its CPU
			}
			u.cpu, u.rss = u.cpu+c.cpu, u.rss+c.rss
		}
	}
	return u, nil
}

// process is one that was started here, with what it says on standard error.
type process struct {
	cmd  *exec.Cmd
	said *bytes.Buffer
	done chan struct{} // closed when it has ended
	err  error         // after done
}

func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, said: &bytes.Buffer{}, done: make(chan struct{})}
	if cmd.Stderr == nil {
		cmd.Stderr = p.said
	}
	// It ends with the driver, and Ctrl-C reaches the driver alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// ended returns why the process is no more, nil while it runs.
func (p *process) ended() error {
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w: %s", p.cmd.Args[0], p.err, p.said)
		}
		return fmt.Errorf("%s: %w", p.cmd.Args[0], errEnded)
	default:
		return nil
	}
}

func (p *process) usage() (usage, error) {
	if err := p.ended(); err != nil {
		return usage{}, err
	}
	return tree(p.cmd.Process.Pid)
}

// stop ends the process.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

var (
	errTooLong = errors.New("it took too long")
	errEnded   = errors.New("it ended before it was measured")
)

// usedCPU is the CPU time, in seconds, that all of the machine has used.
func usedCPU() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	f := strings.Fields(line)
	if len(f) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	used := 0.0 // user nice system, irq softirq; not idle iowait, steal
	for i, s := range f[1:8] {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, err
		}
		if i != 3 && i != 4 {
			used += v * tick.Seconds()
		}
	}
	return used, nil
}

// sight is what this machine has used up to a time.
type sight struct {
	time time.Time
	all  float64 // CPU-seconds of everybody
	own  usage   // of this process and all that it started
}

func look() (s sight, err error) {
	s.time = time.Now()
	if s.own, err = tree(os.Getpid()); err != nil {
		return s, err
	}
	s.all, err = usedCPU()
	return s, err
}

// others is how many cores were used between two sights by processes that are
// not of this comparison.
func (s sight) others(after sight) float64 {
	return max(0, after.all-s.all-(after.own.cpu-s.own.cpu).Seconds()) / after.time.Sub(s.time).Seconds()
}
