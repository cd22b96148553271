//go:build !linux

package target

import (
	"errors"
	"syscall"
	"time"
)

// childAttr puts a child into a process group of its own, so that Ctrl-C
// reaches the harness alone. The child notices the end of the harness by the
// end of its standard input.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

type usage struct {
	cpu     time.Duration
	rss     int64
	threads int
}

func readUsage(int) (usage, error) {
	return usage{}, errors.New("target: CPU and memory of processes are read from /proc, which is Linux only")
}
