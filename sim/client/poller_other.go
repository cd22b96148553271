//go:build !linux

package client

import (
	"context"
	"net/netip"
)

// pollers are Linux's; elsewhere each connection has a goroutine.
type pollers struct{}

func (d *Dialer) connect(ctx context.Context, network, addr string, source netip.Addr) (socket, error) {
	return dialBlocking(ctx, network, addr, source)
}
