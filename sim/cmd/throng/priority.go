package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Nice values. The generator shares the machine with what it measures and must
// not wait behind it: its lateness would be taken for the system's. Every message
// to somebody goes through one loop of an inbox, for which the rest of the roles and
// the infrastructure, of which any process does a part only, should not be in the way.
const (
	niceGenerator = -10
	niceInbox     = -5
	niceDefault   = 0
)

// niceOf returns the priority of a process of the backend by its arguments.
func niceOf(args []string) int {
	if len(args) > 1 && args[0] == "chatd" && args[1] == "inbox" {
		return niceInbox
	}
	return niceDefault
}

// gcPercent is the generator's GOGC. Its heap is the state of its users, about
// 1.5 KB for one who is online; collecting it at 100 was an eighth of its CPU.
const gcPercent = 200

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
