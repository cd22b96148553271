package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"throng/sim/history"
)

// checkMachine refuses a run that this machine cannot carry, and names the
// scale that it can.
func (r *runner) checkMachine() error {
	problems, fitting := r.spec.Fits(openFiles(), memAvailable())
	if len(problems) == 0 {
		return nil
	}
	msg := "this machine cannot carry the run: " + strings.Join(problems, "; ")
	if fitting > 0 {
		msg += fmt.Sprintf("; it can at --scale 1/%.0f (make sim SCALE=1/%.0f)", 1/fitting, 1/fitting)
	}
	return errors.New(msg)
}

func openFiles() uint64 {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 1024
	}
	return lim.Max // the Go runtime raises the soft limit to it
}

// memAvailable returns the kernel's estimate of memory for new processes;
// where there is none, no run is refused for it.
func memAvailable() int64 {
	if kib := procField("/proc/meminfo", "MemAvailable:"); kib > 0 {
		return kib << 10
	}
	return math.MaxInt64
}

// procField returns the first number after a key in a /proc file, 0 if there
// is none.
func procField(path, key string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), key); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseInt(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}

// thisMachine describes the host for the report.
func thisMachine() history.Machine {
	m := history.Machine{OS: runtime.GOOS + "/" + runtime.GOARCH, Cores: runtime.NumCPU(), OpenFiles: openFiles(),
		MemBytes: procField("/proc/meminfo", "MemTotal:") << 10}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			k, v, _ := strings.Cut(s.Text(), ":")
			switch strings.TrimSpace(k) {
			case "model name":
				m.CPU = strings.TrimSpace(v)
			case "flags":
				m.Hypervised = strings.Contains(v, " hypervisor")
			}
		}
	}
	return m
}
