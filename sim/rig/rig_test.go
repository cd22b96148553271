package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"throng/sim/history"
)

// until reads the watcher, provoking each time, until a row shows it.
func until(t *testing.T, w *Watcher, provoke func(), shows func(history.Rig) bool) {
	t.Helper()
	w.Read()
	for end := time.Now().Add(30 * time.Second); ; {
		provoke()
		r := w.Read()
		if shows(r) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("never seen, last %+v", r)
		}
	}
}

// cpu is the CPU time that this process has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestOwnCPU(t *testing.T) {
	w := newWatcher("/nowhere", time.Now)
	start := time.Now()
	w.Read()
	used := cpu(t)
	for cpu(t)-used < 100*time.Millisecond {
	}
	r := w.Read()
	if got := r.OwnCPU * time.Since(start).Seconds(); got < 0.09 || r.Cores != runtime.GOMAXPROCS(0) {
		t.Errorf("used 0.1 s, the row says %.3f s of %d cores", got, r.Cores)
	}
	if r.Busy != 0 || r.Segments != 0 {
		t.Errorf("without procfs there is %+v", r)
	}
}

// A copy of memory cannot be interrupted: a collection that comes in between
// stops the world for as long as it takes.
func TestPauseOfTheCollector(t *testing.T) {
	from, to := make([]byte, 64<<20), make([]byte, 64<<20)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				copy(to, from)
			}
		}
	}()
	until(t, New(), runtime.GC, func(r history.Rig) bool { return r.GCPauseUs > 1000 })
	close(stop)
	<-stopped
}

func TestClockStep(t *testing.T) {
	ahead := time.Duration(0)
	w := newWatcher("/nowhere", func() time.Time { return time.Now().Add(ahead) })
	w.Read()
	if r := w.Read(); time.Duration(r.ClockStepUs)*time.Microsecond > 10*time.Second {
		t.Errorf("a clock that runs is said to jump by %d us", r.ClockStepUs)
	}
	ahead = -time.Hour
	if r := w.Read(); r.ClockStepUs > -3590e6 || r.ClockStepUs < -3610e6 {
		t.Errorf("a clock that was set back by an hour jumped by %d us", r.ClockStepUs)
	}
}

// proc writes a folder like /proc.
func proc(t *testing.T, dir, cpu, tcp, ext string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"stat":        "cpu  " + cpu + "\ncpu0 1 2 3\n",
		"net/snmp":    "Ip: Forwarding\nIp: 1\nTcp: RtoMin OutSegs RetransSegs InErrs\nTcp: 200 " + tcp + " 9\n",
		"net/netstat": "TcpExt: ListenDrops TW TCPBacklogDrop TCPRcvQDrop RcvPruned\nTcpExt: " + ext + "\nIpExt: InOctets\nIpExt: 5\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMachine(t *testing.T) {
	dir := t.TempDir()
	w := newWatcher(dir, time.Now)
	proc(t, dir, "1000 0 500 8000 100 0 50 200 0 0", "5000 7", "1 100 2 0 0")
	w.Read()
	// 100 ticks: 40 user, 20 idle, 10 waiting for a disk, 30 stolen.
	proc(t, dir, "1040 0 500 8020 110 0 50 230 0 0", "5600 13", "3 900 3 1 1")
	r := w.Read()
	if fmt.Sprintf("%.2f %.2f", r.Busy, r.Steal) != "0.70 0.30" {
		t.Errorf("busy %.2f, steal %.2f", r.Busy, r.Steal)
	}
	if r.Segments != 600 || r.Retransmits != 6 || r.Drops != 5 {
		t.Errorf("%d segments, %d again, %d dropped", r.Segments, r.Retransmits, r.Drops)
	}
}

// Connects beyond a full queue of a listener that accepts nobody are dropped and
// tried again.
func TestDropsAndRetransmits(t *testing.T) {
	if _, err := os.Stat("/proc/net/netstat"); err != nil {
		t.Skip(err)
	}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(l, 1); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		_ = unix.Connect(c, at) // in progress
	}
	var drops, again int64
	until(t, New(), func() { _, _ = unix.Poll(nil, 50) }, func(r history.Rig) bool {
		drops, again = drops+r.Drops, again+r.Retransmits
		return drops > 0 && again > 0
	})
}
