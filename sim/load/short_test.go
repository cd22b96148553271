package load

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"throng/sim/client"
)

// A connect that fails for want of a file or a local port is counted as the
// rig's, any other one is not.
func TestWhatConnectsWereShortOf(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "ws://" + ln.Addr().String()
	var s stats
	dial := func(d *client.Dialer) {
		t.Helper()
		_, err := d.Dial(context.Background(), url, "token", nil)
		if err == nil {
			t.Fatal("connected")
		}
		s.short(err)
	}

	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	few := lim
	few.Cur = uint64(f.Fd()) // all below it are in use
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	dial(&client.Dialer{})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if s.noFiles.Load() != 1 || s.noPorts.Load() != 0 {
		t.Errorf("without files: %d for files, %d for ports", s.noFiles.Load(), s.noPorts.Load())
	}

	// An address that this machine does not have says what one without a free
	// port does.
	dial(&client.Dialer{Sources: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	if s.noFiles.Load() != 1 || s.noPorts.Load() != 1 {
		t.Errorf("without ports: %d for files, %d for ports", s.noFiles.Load(), s.noPorts.Load())
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	dial(&client.Dialer{})
	if s.noFiles.Load() != 1 || s.noPorts.Load() != 1 {
		t.Errorf("refused: %d for files, %d for ports", s.noFiles.Load(), s.noPorts.Load())
	}
}
