package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxPollers  = 4
	pollerBatch = 256      // sockets looked at for each wait
	pollerRead  = 64 << 10 // bytes read from a socket at once
)

// pollers wait for the sockets of a Dialer; each socket is one poller's. They
// run while there is a socket.
type pollers struct {
	mu      sync.Mutex
	all     []*poller
	sockets int
	next    int
}

// enter returns the poller of another socket.
func (ps *pollers) enter() (*poller, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(ps.all) == 0 {
		for range min(maxPollers, runtime.GOMAXPROCS(0)) {
			p, err := newPoller(ps)
			if err != nil {
				ps.end()
				return nil, err
			}
			ps.all = append(ps.all, p)
		}
	}
	ps.sockets++
	ps.next = (ps.next + 1) % len(ps.all)
	return ps.all[ps.next], nil
}

// leave takes note that a socket is closed.
func (ps *pollers) leave() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.sockets--; ps.sockets == 0 {
		ps.end()
	}
}

// end ends the pollers. The caller holds mu.
func (ps *pollers) end() {
	for _, p := range ps.all {
		p.mu.Lock()
		p.closing = true
		p.rouse()
		p.mu.Unlock()
	}
	ps.all = nil
}

// poller waits for its sockets with one goroutine, which reads, runs the
// protocol and calls the handlers. Events are edge-triggered, so that a socket
// is registered once and never changed: each event is read to its end.
type poller struct {
	all         *pollers
	epoll, wake int // file descriptors
	// The epoll descriptor is in the runtime's own poller: the goroutine waits as
	// one, not in a system call, where it would keep its processor from the
	// schedule for up to 10 ms, until the runtime takes that away.
	file *os.File

	mu      sync.Mutex
	sockets []*polled // by file descriptor
	poked   []*polled
	closing bool

	// Of the goroutine.
	buf     []byte
	current []byte // of the message being handled, what the layer above has not read
	control []byte
}

func newPoller(all *pollers) (*poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("client: epoll: %w", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil { // os.NewFile takes it for one that can be waited for
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("client: epoll: %w", err)
	}
	file := os.NewFile(uintptr(epoll), "epoll")
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("client: eventfd: %w", err)
	}
	p := &poller{all: all, epoll: epoll, wake: wake, file: file, buf: make([]byte, pollerRead)}
	wait, err := file.SyscallConn()
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)})
	}
	if err != nil {
		_, _ = file.Close(), unix.Close(wake)
		return nil, fmt.Errorf("client: epoll: %w", err)
	}
	go p.run(wait)
	return p, nil
}

// rouse ends the goroutine's wait. The caller holds mu.
func (p *poller) rouse() { _, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// poke has a socket served that no event will come for.
func (p *poller) poke(s *polled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.poked = append(p.poked, s)
	p.rouse()
}

func (p *poller) run(wait syscall.RawConn) {
	defer func() { _, _ = p.file.Close(), unix.Close(p.wake) }()
	events := make([]unix.EpollEvent, pollerBatch)
	// turn handles what is ready; it returns false to wait for more.
	turn := func(uintptr) (end bool) {
		for {
			n, err := unix.EpollWait(p.epoll, events, 0)
			if err != nil && !errors.Is(err, unix.EINTR) {
				panic("client: epoll_wait: " + err.Error()) // a descriptor of our own is wrong
			}
			for _, ev := range events[:max(n, 0)] {
				if int(ev.Fd) != p.wake {
					p.ready(ev)
				} else if p.awake() {
					return true
				}
			}
			// What becomes ready from here on is another edge.
			if err == nil && n < len(events) {
				return false
			}
		}
	}
	if err := wait.Read(turn); err != nil {
		panic("client: wait for epoll: " + err.Error()) // nobody else closes the file
	}
}

// ready serves the socket of an event.
func (p *poller) ready(ev unix.EpollEvent) {
	p.mu.Lock()
	s := p.sockets[ev.Fd]
	p.mu.Unlock()
	if s != nil { // nil: closed earlier in this batch
		p.serve(s, ev.Events)
	}
}

// awake serves who was poked, and says whether the poller is to end.
func (p *poller) awake() (end bool) {
	var count [8]byte
	_, _ = unix.Read(p.wake, count[:])
	p.mu.Lock()
	poked, end := p.poked, p.closing
	p.poked = nil
	p.mu.Unlock()
	for _, s := range poked {
		p.serve(s, 0)
	}
	return end
}

// serve handles an event of a socket: it reads what has come, to the end.
func (p *poller) serve(s *polled, events uint32) {
	s.mu.Lock()
	if events&unix.EPOLLOUT != 0 {
		s.flush()
	}
	c, fd, err := s.owner, s.fd, s.fault
	if fd >= 0 && c == nil {
		s.early(p.buf)
	}
	s.mu.Unlock()
	if fd < 0 || c == nil {
		return
	}
	s.hold()
	// Poked, or overtaken by an event before that: what came before the start, and
	// how that ended.
	if events == 0 || err != nil {
		if failed := p.feed(s, nil); failed != nil {
			err = failed
		}
	}
	for events&^uint32(unix.EPOLLOUT) != 0 && err == nil {
		var n int
		if n, err = receive(fd, p.buf); n > 0 {
			c.heard()
			err = p.feed(s, p.buf[:n])
		}
		// Less than fits is all there is, unless the end has come with it.
		if n < len(p.buf) && events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 || n == 0 {
			break
		}
	}
	if err == nil {
		c.acknowledge()
	}
	s.release()
	if err != nil {
		p.forget(s)
		c.ended(err)
	}
}

// receive reads what is there: 0 and no error when nothing is.
func receive(fd int, buf []byte) (int, error) {
	for {
		n, err := raw(unix.SYS_READ, fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, nil
		case err != 0:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// feed handles the whole messages of what has come and keeps the rest.
func (p *poller) feed(s *polled, data []byte) error {
	if len(s.in) > 0 {
		s.in = append(s.in, data...)
		data = s.in
	}
	for {
		n, control, err := message(data)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		p.current = data[:n]
		if control {
			// The layer above handles a control frame on its way to the next
			// message: it gets an empty one.
			p.control = append(append(p.control[:0], data[:n]...), 0x82, 0)
			p.current = p.control
			_, _, err = s.owner.ws.NextReader()
		} else {
			err = s.owner.read()
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	if len(data) == 0 {
		s.in = nil
	} else {
		s.in = append([]byte(nil), data...)
	}
	return nil
}

// watch registers a new socket.
func (p *poller) watch(s *polled) error {
	p.mu.Lock()
	for len(p.sockets) <= s.fd {
		p.sockets = append(p.sockets, nil)
	}
	p.sockets[s.fd] = s
	p.mu.Unlock()
	const events = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff
	err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: events, Fd: int32(s.fd)})
	if err != nil {
		return fmt.Errorf("client: epoll: %w", err)
	}
	return nil
}

// forget closes a socket.
func (p *poller) forget(s *polled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	p.mu.Lock()
	p.sockets[s.fd] = nil
	p.mu.Unlock()
	_ = unix.Close(s.fd)
	s.fd = -1
	if s.out != nil {
		s.buffers.Put(s.out)
		s.out = nil
	}
	p.all.leave()
}

// connect opens a socket that a poller waits for. What goes wrong with it may
// only show in the handshake.
func (d *Dialer) connect(ctx context.Context, network, addr string, source netip.Addr) (socket, error) {
	to, err := d.resolve(ctx, addr)
	if err != nil {
		return nil, err
	}
	p, err := d.pollers.enter()
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.all.leave()
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	s := &polled{poller: p, fd: fd, buffers: &d.frames, hello: &hello{ctx: ctx, came: make(chan struct{}, 1)}}
	if err := s.connect(to, source); err != nil {
		_ = unix.Close(fd)
		p.all.leave()
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	if err := p.watch(s); err != nil {
		p.forget(s)
		return nil, err
	}
	return s, nil
}

// resolve looks a host up; several addresses take turns.
func (d *Dialer) resolve(ctx context.Context, addr string) (netip.AddrPort, error) {
	if to, err := netip.ParseAddrPort(addr); err == nil {
		return to, nil
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(all[d.next.Add(1)%uint64(len(all))].Unmap(), uint16(port)), nil
}
