package client

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// loopbackSources is how many addresses of 127.0.0.0/8 the load of one process
// comes from.
const loopbackSources = 32

// LoopbackSources returns addresses for Dialer.Sources when the server is on
// this machine. Processes with different numbers below 250 share none.
func LoopbackSources(process int) []netip.Addr {
	out := make([]netip.Addr, loopbackSources)
	for i := range out {
		out[i] = netip.AddrFrom4([4]byte{127, 0, byte(1 + process), byte(i + 1)})
	}
	return out
}

// portAtConnect makes the kernel choose the local port at connect, when it
// knows the destination, and not at bind: then a port can serve several
// destinations.
func portAtConnect(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	if err != nil {
		return err
	}
	return failed
}
