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
	"time"

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
func (ps *pollers) enter(grid Grid) (*poller, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(ps.all) == 0 {
		for range min(maxPollers, runtime.GOMAXPROCS(0)) {
			p, err := newPoller(ps, grid)
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
	grid        Grid
	epoll, wake int // file descriptors
	// gate is an epoll that looks at the other one, once for each time it is armed:
	// who knows that there is something to do is not told of each socket. It is in
	// the runtime's own poller: the goroutine waits as one, not in a system call,
	// where it would keep its processor from the schedule for up to 10 ms, until the
	// runtime takes that away.
	gate *os.File

	mu      sync.Mutex
	sockets []*polled // by file descriptor
	poked   []*polled
	closing bool

	// Of the goroutine.
	events  []unix.EpollEvent
	buf     []byte
	current []byte // of the message being handled, what the layer above has not read
	control []byte
}

func newPoller(all *pollers, grid Grid) (p *poller, err error) {
	fds := [3]int{-1, -1, -1}
	defer func() {
		if err == nil {
			return
		}
		for _, fd := range fds {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
		}
		p, err = nil, fmt.Errorf("client: epoll: %w", err)
	}()
	p = &poller{all: all, grid: grid, events: make([]unix.EpollEvent, pollerBatch), buf: make([]byte, pollerRead)}
	if fds[0], err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return
	}
	if fds[1], err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return
	}
	if fds[2], err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return
	}
	p.epoll, p.wake = fds[0], fds[1]
	if err = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, p.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.wake)}); err != nil {
		return
	}
	if err = p.arm(fds[2], unix.EPOLL_CTL_ADD); err != nil {
		return
	}
	if err = unix.SetNonblock(fds[2], true); err != nil { // os.NewFile takes it for one that can be waited for
		return
	}
	p.gate = os.NewFile(uintptr(fds[2]), "epoll")
	go p.run()
	return p, nil
}

// arm has the gate say, once, that a socket is ready.
func (p *poller) arm(gate, op int) error {
	return unix.EpollCtl(gate, op, p.epoll, &unix.EpollEvent{Fd: int32(p.epoll), Events: unix.EPOLLIN | unix.EPOLLONESHOT})
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

func (p *poller) run() {
	defer func() { _, _, _ = p.gate.Close(), unix.Close(p.epoll), unix.Close(p.wake) }()
	raw, err := p.gate.SyscallConn()
	var said [1]unix.EpollEvent
	open := func(gate uintptr) bool {
		n, err := unix.EpollWait(int(gate), said[:], 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	}
	var failed error
	arm := func(gate uintptr) { failed = p.arm(int(gate), unix.EPOLL_CTL_MOD) }
	var last time.Time // of a turn that was not for nothing
	for err == nil && failed == nil {
		if err = raw.Read(open); err != nil {
			break
		}
		// One that comes after a pause is not held up. Where they come all the time
		// the gate, a wake-up of its own, is left alone.
		for busy := time.Since(last) < 2*p.grid.Step; ; {
			if busy {
				p.pause()
			}
			some, end := p.turn()
			if end {
				return
			}
			if some {
				last = time.Now()
			}
			if !some || !busy {
				break
			}
		}
		err = raw.Control(arm)
	}
	panic(fmt.Sprint("client: epoll: ", err, failed)) // a descriptor of our own is wrong
}

// pause waits for the next moment of the grid.
func (p *poller) pause() {
	now := time.Since(p.grid.Epoch)
	time.Sleep(p.grid.After(now+1) - now)
}

// turn handles what is ready. It says whether anything was, and whether the
// poller is to end.
func (p *poller) turn() (some, end bool) {
	for {
		n, err := unix.EpollWait(p.epoll, p.events, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic("client: epoll_wait: " + err.Error())
		}
		for _, ev := range p.events[:max(n, 0)] {
			some = true
			if int(ev.Fd) != p.wake {
				p.ready(ev)
			} else if p.awake() {
				return some, true
			}
		}
		// What becomes ready from here on opens the gate when it is armed again.
		if err == nil && n < len(p.events) {
			return some, false
		}
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
	p, err := d.pollers.enter(d.Grid)
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
