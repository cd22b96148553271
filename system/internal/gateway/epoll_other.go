//go:build !linux

package gateway

import "net"

// newEvented returns nil: there is no epoll here.
func (g *Gateway) newEvented(net.Listener) (front, error) { return nil, nil }
