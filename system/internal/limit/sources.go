package limit

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// Sources says which address a client has, and who is not limited by address. The
// zero value trusts no proxy and exempts nobody.
type Sources struct {
	// Proxies are the addresses of load balancers in front: what comes from there
	// has the last address of its X-Forwarded-For that is no proxy's.
	Proxies []netip.Prefix
	// Exempt are the addresses that are not limited, such as a load generator's.
	Exempt []netip.Prefix
}

// ParsePrefixes reads addresses and networks, as 10.0.0.0/8 or fd00::1.
func ParsePrefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil {
				return nil, fmt.Errorf("%q is neither an address nor a network such as 10.0.0.0/8", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func in(a netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Proxy reports whether a peer is a load balancer.
func (s *Sources) Proxy(peer netip.Addr) bool { return in(peer.Unmap(), s.Proxies) }

// Key returns what the limits of an address are counted by: an IPv4 address or the
// first 64 bits of an IPv6 one, which is what one customer has at least. ok is
// false where it is not limited: it is exempt, or there is none.
func (s *Sources) Key(a netip.Addr) (key netip.Addr, ok bool) {
	a = a.Unmap().WithZone("")
	if !a.IsValid() || in(a, s.Exempt) {
		return netip.Addr{}, false
	}
	if a.Is6() {
		a = netip.PrefixFrom(a, 64).Masked().Addr()
	}
	return a, true
}

// Client returns the address that a request comes from: its peer's, host:port, or
// what proxies say. It is not valid where they say nothing that is an address.
func (s *Sources) Client(peer string, h http.Header) netip.Addr {
	ap, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Addr{}
	}
	at := ap.Addr().Unmap()
	if !in(at, s.Proxies) {
		return at
	}
	list := h.Values("X-Forwarded-For")
	for i := len(list) - 1; i >= 0; i-- {
		for rest := list[i]; ; {
			cut := strings.LastIndexByte(rest, ',')
			a, err := netip.ParseAddr(strings.TrimSpace(rest[cut+1:]))
			if err != nil {
				return netip.Addr{} // a proxy that is trusted says so: whoever it was cannot be told
			}
			if a = a.Unmap(); !in(a, s.Proxies) {
				return a
			}
			if cut < 0 {
				break
			}
			rest = rest[:cut]
		}
	}
	return at
}
