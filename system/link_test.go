package system_test

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"throng/system"
	"throng/system/wire"
)

// A send that the members have, unanswered when the message instance died and
// its sender was removed, is refused when it is sent again. Its number is used
// up: what the sender writes as a member once more is not dropped by those who
// have seen the number.
func TestRefusedAfterItWasAccepted(t *testing.T) {
	in := startInfrastructure(t)
	cfg := in.topology(t, counts{gateways: 1, messages: 1, fanouts: 1, groups: 1, inboxes: 1, pushes: 1}, freePort(t))
	processes := startEach(t, cfg)
	d := describe(t, cfg, in)
	d.provision(3, 1, map[uint64][]uint64{100: {1, 2, 3}})
	link := newLink(t, d.cfg.Messages[0].RPC)
	writer := dial(t, d.gatewayWith(func(c *system.Config) {
		c.Messages = slices.Clone(c.Messages)
		c.Messages[0].RPC = link.addr()
	}), d.key, 1, 0)
	reader := d.dial(2, 0)
	for _, dev := range []*device{writer, reader} {
		dev.awaitCurrent()
	}
	writer.send(group(100), "one")
	writer.awaitSent()
	link.silence()
	writer.send(group(100), "two")
	reader.awaitBodies(1, 100, "one", "two")
	d.changeMembers(100, nil, []uint64{1})
	instance := processes[system.Message][0]
	instance.kill()
	link.restore()
	instance.start()
	instance.awaitReady()
	writer.await("the refusal", func() bool { return len(writer.refused) == 1 })
	writer.update(func() {
		if e := writer.refused[0]; e.Code != wire.Code_CODE_NOT_MEMBER || e.ClientMsgId != 2 {
			t.Errorf("refused: %v", e)
		}
	})
	d.changeMembers(100, []uint64{1}, nil)
	writer.send(group(100), "three")
	writer.awaitSent()
	reader.awaitBodies(1, 100, "one", "two", "three")
}

// gatewayWith starts another gateway, which is told another topology, and
// returns its address.
func (d *deployment) gatewayWith(edit func(*system.Config)) []string {
	d.t.Helper()
	free := freePort(d.t)
	cfg := d.cfg
	cfg.Gateways = append(slices.Clone(cfg.Gateways), system.GatewayInstance{Listen: free(), Debug: free()})
	edit(&cfg)
	last := len(cfg.Gateways) - 1
	p, err := system.Start(d.t.Context(), cfg, system.Gateway, last, io.Discard)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			d.t.Error(err)
		}
	})
	return []string{cfg.Gateways[last].Listen}
}

// link is a TCP connection between two roles that can be cut, or lose what the
// second one says.
type link struct {
	ln net.Listener
	to string
	wg sync.WaitGroup

	mu    sync.Mutex
	down  bool
	mute  bool
	conns map[net.Conn]bool
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{ln: ln, to: to, conns: map[net.Conn]bool{}}
	l.wg.Go(l.serve)
	t.Cleanup(func() { ln.Close(); l.cut(); l.wg.Wait() })
	return l
}

func (l *link) addr() string { return l.ln.Addr().String() }

func (l *link) serve() {
	for {
		in, err := l.ln.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", l.to)
		if err != nil || !l.add(in, out) {
			in.Close()
			if err == nil {
				out.Close()
			}
			continue
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			l.wg.Go(func() {
				to := io.Writer(pair[0])
				if pair[0] == in {
					to = answers{l, in}
				}
				_, _ = io.Copy(to, pair[1]) // ends with the connection, however that ends
				in.Close()
				out.Close()
			})
		}
	}
}

func (l *link) add(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.conns[c] = true
	}
	return !l.down
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for c := range l.conns {
		c.Close()
	}
	clear(l.conns)
}

func (l *link) restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down, l.mute = false, false
}

// silence loses the answers from now on.
func (l *link) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mute = true
}

// answers is the way back of a link.
type answers struct {
	l  *link
	to io.Writer
}

func (a answers) Write(b []byte) (int, error) {
	a.l.mu.Lock()
	mute := a.l.mute
	a.l.mu.Unlock()
	if mute {
		return len(b), nil
	}
	return a.to.Write(b)
}
