package target

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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

// Fields of /proc/<pid>/stat, counted from the state, the first field after
// the command name.
const (
	statThreads = 17
	statRSS     = 21
)

// readUsage reads the CPU clock of the process, which counts in nanoseconds
// where /proc counts in ticks of 10 ms, and the rest from /proc/<pid>/stat.
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
	threads, err := strconv.Atoi(string(fields[statThreads]))
	if err != nil {
		return usage{}, fmt.Errorf("target: usage of %d: threads: %w", pid, err)
	}
	pages, err := strconv.ParseInt(string(fields[statRSS]), 10, 64)
	if err != nil {
		return usage{}, fmt.Errorf("target: usage of %d: resident pages: %w", pid, err)
	}
	// clock_getcpuclockid(3): the clock of a process is its inverted id with
	// the kind of clock, here 2 (what the scheduler has counted), below it.
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return usage{}, fmt.Errorf("target: usage of %d: CPU clock: %w", pid, os.NewSyscallError("clock_gettime", err))
	}
	return usage{cpu: time.Duration(ts.Nano()), rss: pages * int64(os.Getpagesize()), threads: threads}, nil
}
