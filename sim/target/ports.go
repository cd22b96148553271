package target

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// Ports are taken below the range from which the kernel gives client sockets
// theirs (32768 and up on Linux): otherwise a socket of a simulated client
// could sit on the port of a process that is about to be restarted.
const (
	firstPort = 15_000
	lastPort  = 31_000
)

// Ports is ports for the targets of other packages.
type Ports struct{ p *ports }

// NewPorts returns an allocator; Close ends its claims.
func NewPorts() *Ports { return &Ports{newPorts()} }

// Take returns a free TCP port of 127.0.0.1, claimed until Close.
func (p *Ports) Take() (int, error) { return p.p.take() }

// Close ends the claims.
func (p *Ports) Close() { p.p.close() }

// ports hands out TCP ports of 127.0.0.1 that nobody listens on. It holds the
// UDP port of the same number for as long as it is open: nothing else of a
// deployment uses UDP, so two harnesses that start at once never pick the same
// number, and the claim ends with the process however it ends.
type ports struct {
	mu     sync.Mutex
	next   int
	claims []net.PacketConn
}

func newPorts() *ports {
	return &ports{next: firstPort + rand.IntN(lastPort-firstPort)}
}

// take returns a free port, claimed until close.
func (p *ports) take() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range lastPort - firstPort {
		port := p.next
		if p.next++; p.next >= lastPort {
			p.next = firstPort
		}
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		claim, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		probe, err := net.Listen("tcp", addr)
		if err != nil {
			claim.Close()
			continue
		}
		probe.Close()
		p.claims = append(p.claims, claim)
		return port, nil
	}
	return 0, errors.New("target: no free port between 15000 and 31000")
}

func (p *ports) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.claims {
		c.Close()
	}
	p.claims = nil
}
