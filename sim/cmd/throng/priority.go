package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Nice values. The generator shares the machine with what it measures and must
// not wait behind it: its lateness would be taken for the system's. The roles
// and the infrastructure run at the default.
const (
	niceGenerator = -10
	niceDefault   = 0
)

// gcPercent is the generator's GOGC. Its heap is the state of its users, about
// 1.5 KB for one who is online; collecting it more often was an eighth of its CPU.
const gcPercent = 100

// setNice sets the priority of all threads of this process; threads made later
// inherit it, and so do child processes. Without the privilege nothing changes.
func setNice(nice int) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, nice); err != nil {
			return err
		}
	}
	return nil
}
