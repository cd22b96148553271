package target

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// childAttr puts a child into a process group of its own, so that Ctrl-C
// reaches the harness alone, and lets the kernel kill it with the harness.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// usage is what a running process has used.
type usage struct {
	cpu     time.Duration // user + system
	rss     int64         // bytes
	threads int
}

// clockTick is the unit of CPU time in /proc, fixed at 100 Hz for user space.
const clockTick = 10 * time.Millisecond

// Fields of /proc/<pid>/stat, counted from the state, the first field after
// the command name.
const (
	statUser    = 11
	statSystem  = 12
	statThreads = 17
	statRSS     = 21
)

// readUsage reads /proc/<pid>/stat.
func readUsage(pid int) (usage, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, fmt.Errorf("target: usage: %w", err)
	}
	// The command name is in parentheses and can hold anything.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) <= statRSS {
		return usage{}, fmt.Errorf("target: usage of %d: %d fields", pid, len(fields))
	}
	var n [4]int64
	for i, at := range []int{statUser, statSystem, statThreads, statRSS} {
		if n[i], err = strconv.ParseInt(string(fields[at]), 10, 64); err != nil {
			return usage{}, fmt.Errorf("target: usage of %d: field %d: %w", pid, at, err)
		}
	}
	return usage{
		cpu:     time.Duration(n[0]+n[1]) * clockTick,
		rss:     n[3] * int64(os.Getpagesize()),
		threads: int(n[2]),
	}, nil
}
