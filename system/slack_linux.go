package system

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// timerSlack is how much later than asked for the kernel may wake a thread of
	// a role. The monitor of the Go runtime asks for 20 us at a time for the first
	// milliseconds after each idle moment, and a thread that looks for work for 3
	// us: with many small batches a quarter of a role's CPU goes into that.
	timerSlack = 300 * time.Microsecond
	// timerSlackDefault is Linux's; who starts the process may have set another one.
	timerSlackDefault = 50 * time.Microsecond
)

// RelaxTimers lets the threads of this process sleep longer than they ask for, by
// timerSlack at most, unless another slack than the default was inherited. Threads
// have it from the one that makes them, so the process executes itself again
// with it: it returns only if there is nothing to do or that failed. It is for
// main, before anything else.
func RelaxTimers() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || time.Duration(slack) != timerSlackDefault {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	// By its path, so that it keeps its name in ps; where the file is gone or another
	// one by now, as it is.
	const self = "/proc/self/exe"
	if path, err := os.Executable(); err == nil && sameFile(path, self) {
		_ = syscall.Exec(path, os.Args, os.Environ())
	}
	if err := syscall.Exec(self, os.Args, os.Environ()); err != nil {
		return fmt.Errorf("execute again: %w", err)
	}
	return nil
}

func sameFile(a, b string) bool {
	x, aerr := os.Stat(a)
	y, berr := os.Stat(b)
	return aerr == nil && berr == nil && os.SameFile(x, y)
}
