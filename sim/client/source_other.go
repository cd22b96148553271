//go:build !linux

package client

import (
	"net/netip"
	"syscall"
)

// LoopbackSources returns nothing: only Linux answers on all of 127.0.0.0/8.
func LoopbackSources(int) []netip.Addr { return nil }

func portAtConnect(_, _ string, _ syscall.RawConn) error { return nil }
