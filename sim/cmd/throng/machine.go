package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"throng/sim/history"
)

// Costs that decide whether a run fits on this machine.
const (
	spareFiles   = 600        // files of a process that are not sockets of users
	bytesPerUser = 45 << 10   // an online user: generator, gateway, inbox and the kernel's two ends
	bytesFixed   = 1200 << 20 // all processes without users
)

// checkMachine refuses a run that this machine cannot carry, and names the
// scale that it can.
func (r *runner) checkMachine() error {
	peak := r.sched.Stats.PeakConnected
	files := openFiles()
	room := int(files) - spareFiles
	if need := max(peak, (peak+r.spec.Topology.Gateways-1)/r.spec.Topology.Gateways); need > room {
		fit := r.spec.Scale * float64(room) / float64(need)
		return fmt.Errorf("the run needs %d sockets in one process and this machine allows %d open files; "+
			"raise the limit (ulimit -n) or run it at --scale 1/%.0f", need, files, 1/fit)
	}
	mem := int64(peak)*bytesPerUser + bytesFixed
	if have := memAvailable(); have > 0 && mem > have {
		fit := r.spec.Scale * float64(have-bytesFixed) / float64(mem-bytesFixed)
		if fit <= 0 {
			return fmt.Errorf("the run needs about %d MiB of memory and %d MiB are available", mem>>20, have>>20)
		}
		return fmt.Errorf("the run needs about %d MiB of memory and %d MiB are available; run it at --scale 1/%.0f",
			mem>>20, have>>20, 1/fit)
	}
	return nil
}

func openFiles() uint64 {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 1024
	}
	return lim.Max // the Go runtime raises the soft limit to it
}

// memAvailable returns the kernel's estimate of memory for new processes, 0
// when it is not known.
func memAvailable() int64 { return procField("/proc/meminfo", "MemAvailable:") << 10 }

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
