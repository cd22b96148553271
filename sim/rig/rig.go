// Package rig watches what could make the harness itself the limit of a run: CPU
// of the process and its machine, steal, garbage collection, steps of the clock,
// what the sockets dropped. It reads the machine and judges nothing; sim/report
// does. It may import sim/history only.
package rig

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"

	"throng/sim/history"
)

// Watcher reads the machine. It is for one goroutine.
type Watcher struct {
	proc  string           // the folder of procfs
	wall  func() time.Time // the clock that can be set
	start time.Time        // of the monotonic clock
	pause []metrics.Sample

	last     reading
	pauses   []uint64 // of the histogram of pauses, as read last
	watching bool
}

// reading is what is cumulative.
type reading struct {
	wall        time.Time
	mono        time.Duration
	own         time.Duration
	total, idle float64 // ticks of all CPUs
	steal       float64
	tcp         tcp
}

type tcp struct{ sent, resent, dropped int64 }

// New returns a watcher of this process and machine.
func New() *Watcher { return newWatcher("/proc", time.Now) }

func newWatcher(proc string, wall func() time.Time) *Watcher {
	return &Watcher{proc: proc, wall: wall, start: time.Now(), pause: []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}}
}

// Read returns what happened since the last call, nothing at the first. T,
// Instance and the failed connects are left to the caller.
func (w *Watcher) Read() history.Rig {
	now := w.read()
	row := history.Rig{Cores: runtime.GOMAXPROCS(0), GCPauseUs: w.longestPause().Microseconds()}
	before := w.last
	w.last = now
	if !w.watching {
		w.watching = true
		row.GCPauseUs = 0
		return row
	}
	passed := now.mono - before.mono
	if passed > 0 {
		row.OwnCPU = (now.own - before.own).Seconds() / passed.Seconds()
	}
	if ticks := now.total - before.total; ticks > 0 {
		row.Busy = 1 - (now.idle-before.idle)/ticks
		row.Steal = (now.steal - before.steal) / ticks
	}
	row.ClockStepUs = (now.wall.Sub(before.wall) - passed).Microseconds()
	row.Segments, row.Retransmits, row.Drops = now.tcp.sent-before.tcp.sent, now.tcp.resent-before.tcp.resent, now.tcp.dropped-before.tcp.dropped
	return row
}

func (w *Watcher) read() reading {
	r := reading{mono: time.Since(w.start), wall: w.wall().Round(0), tcp: w.readTCP()}
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) == nil {
		r.own = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	r.total, r.idle, r.steal = w.readCPU()
	return r
}

// longestPause returns the longest stop of the world for a garbage collection
// since the last call, as exactly as the runtime counts it.
func (w *Watcher) longestPause() time.Duration {
	metrics.Read(w.pause)
	if w.pause[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	h := w.pause[0].Value.Float64Histogram()
	longest := 0.0
	for i, n := range h.Counts {
		if i < len(w.pauses) && n > w.pauses[i] || len(w.pauses) == 0 && n > 0 {
			longest = h.Buckets[i] // its lower end
		}
	}
	w.pauses = append(w.pauses[:0], h.Counts...)
	if math.IsInf(longest, 0) {
		return 0
	}
	return time.Duration(longest * float64(time.Second))
}

// readCPU returns the ticks that the machine's CPUs had, were idle and were
// stolen, from the first line of /proc/stat: user nice system idle iowait irq
// softirq steal, guests being part of the first two.
func (w *Watcher) readCPU() (total, idle, steal float64) {
	data, err := os.ReadFile(filepath.Join(w.proc, "stat"))
	if err != nil {
		return 0, 0, 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, 0, 0
	}
	for i, s := range f[1:9] {
		v, _ := strconv.ParseFloat(s, 64)
		total += v
		switch i {
		case 3, 4:
			idle += v
		case 7:
			steal = v
		}
	}
	return total, idle, steal
}

// readTCP reads the counters of this network namespace.
func (w *Watcher) readTCP() tcp {
	snmp := w.counters("net/snmp", "Tcp:")
	ext := w.counters("net/netstat", "TcpExt:")
	t := tcp{sent: snmp["OutSegs"], resent: snmp["RetransSegs"]}
	// What found a queue of connections or a buffer full; PruneCalled and others
	// only say that it was nearly so.
	for _, name := range []string{"ListenDrops", "TCPBacklogDrop", "TCPRcvQDrop", "RcvPruned", "TCPReqQFullDrop"} {
		t.dropped += ext[name]
	}
	return t
}

// counters reads the pair of lines that begin with prefix: names, then values.
func (w *Watcher) counters(file, prefix string) map[string]int64 {
	data, err := os.ReadFile(filepath.Join(w.proc, file))
	if err != nil {
		return nil
	}
	var names []string
	out := map[string]int64{}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		rest, ok := strings.CutPrefix(s.Text(), prefix)
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if names == nil {
			names = f
			continue
		}
		for i, v := range f {
			if i < len(names) {
				out[names[i]], _ = strconv.ParseInt(v, 10, 64)
			}
		}
		break
	}
	return out
}
