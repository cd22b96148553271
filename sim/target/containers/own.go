package containers

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"throng/sim/history"
)

// ownUsage returns what this process uses.
func ownUsage() (history.RoleSample, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return history.RoleSample{}, fmt.Errorf("containers: own usage: %w", err)
	}
	s := history.RoleSample{Role: RoleGenerator, CPUSeconds: (time.Duration(r.Utime.Nano()) + time.Duration(r.Stime.Nano())).Seconds(),
		RSSBytes: r.Maxrss << 10}
	// Where there is no /proc, the peak has to do for the present memory.
	if data, err := os.ReadFile("/proc/self/status"); err == nil {
		if v, ok := statusField(data, "VmRSS:"); ok {
			s.RSSBytes = v << 10
		}
		if v, ok := statusField(data, "Threads:"); ok {
			s.Threads = int(v)
		}
	}
	return s, nil
}

// statusField returns the number after name in a /proc/<pid>/status.
func statusField(data []byte, name string) (int64, bool) {
	_, rest, ok := bytes.Cut(data, []byte("\n"+name))
	if !ok {
		return 0, false
	}
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return 0, false
	}
	v, err := strconv.ParseInt(string(fields[0]), 10, 64)
	return v, err == nil
}
