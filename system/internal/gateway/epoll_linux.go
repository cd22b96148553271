package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"throng/system/internal/rpc"
)

// evented is the front of a TCP listener on Linux. One goroutine accepts and
// answers upgrade requests that have come whole; a loop for each core (poller)
// reads everything else, and writes on where a socket was full.
type evented struct {
	g      *Gateway
	file   *os.File // a duplicate of ln, to accept without what net.Conn costs
	ln     *net.TCPListener
	loops  []*poller
	next   int             // loop of the next connection; the acceptor's own
	greet  *greeter        // the acceptor's own
	ctx    context.Context // done when no more are to be accepted
	cancel context.CancelFunc
	ended  sync.WaitGroup // loops

	mu     sync.Mutex
	greets []*conn // handshakes that did not come in one piece, oldest first; some are over
}

const (
	// maxLoops bounds the loops: each has a read buffer, and more than write
	// to sockets at the same time are of no use.
	maxLoops = 16
	// epollEvents is how many connections a loop looks at before it asks again.
	epollEvents = 256
	// readsPerTurn is how many buffers full one connection may send before the
	// others have their turn.
	readsPerTurn = 4
	// acceptPause is how long a gateway without file descriptors waits.
	acceptPause = 20 * time.Millisecond
)

// newEvented returns the front for ln, nil if ln is no TCP listener.
func (g *Gateway) newEvented(ln net.Listener) (front, error) {
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, nil
	}
	file, err := tcp.File()
	if err != nil {
		return nil, fmt.Errorf("gateway: listener: %w", err)
	}
	e := &evented{g: g, file: file, ln: tcp}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if err := e.prepare(); err != nil {
		file.Close()
		return nil, fmt.Errorf("gateway: listener: %w", err)
	}
	e.greet = newGreeter(e)
	for range min(runtime.GOMAXPROCS(0), maxLoops) {
		p, err := newPoller(e)
		if err != nil {
			file.Close()
			e.close()
			return nil, fmt.Errorf("gateway: epoll: %w", err)
		}
		e.loops = append(e.loops, p)
		e.ended.Go(p.run)
	}
	return e, nil
}

// prepare sets on the listener what each accepted socket inherits, so that no
// login pays for it.
func (e *evented) prepare() error {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return err
	}
	var errs [4]error
	err = raw.Control(func(fd uintptr) {
		errs[0] = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		errs[1] = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, e.g.limits.SendBufferBytes)
		errs[2] = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		// The kernel tells of a client when its request is there: that saves
		// waking up for the connection alone.
		errs[3] = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, max(int(e.g.limits.HandshakeTimeout/time.Second), 1))
	})
	return errors.Join(append(errs[:], err)...)
}

// serve accepts until stop.
func (e *evented) serve() error {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(e.accept)
	if e.ctx.Err() != nil {
		return nil
	}
	return err
}

// accept takes all who wait. It returns true when no more are to be taken.
func (e *evented) accept(fd uintptr) (done bool) {
	for e.ctx.Err() == nil {
		nfd, peer, err := unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			e.take(nfd, peer)
		case unix.EAGAIN:
			return false
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			e.g.log.Warn("accept", "err", err)
			within(e.ctx.Done(), acceptPause)
		case unix.EINVAL, unix.EBADF:
			e.g.log.Error("accept", "err", err)
			return true
		default: // this client has gone already
		}
	}
	return true
}

// take begins with an accepted socket.
func (e *evented) take(fd int, peer unix.Sockaddr) {
	at := addrOf(peer)
	from, no := e.g.guard.peer(at.Addr(), e.g.sinceStart())
	if no.why != "" {
		e.turnAway(fd, no)
		return
	}
	p := e.loops[e.next]
	e.next = (e.next + 1) % len(e.loops)
	c := e.g.newConn()
	c.from = from
	s := &descriptor{p: p, c: c, fd: fd, greeting: &greeting{peer: at}}
	c.sock = s
	if e.g.handshakes.Add(1) > int64(e.g.limits.MaxHandshakes) {
		e.g.m.refused.WithLabelValues("handshakes").Inc()
		s.end()
		return
	}
	if !e.greet.read(s) {
		s.end()
		return
	}
	if s.greeting != nil {
		e.mu.Lock()
		e.greets = append(e.greets, c)
		e.mu.Unlock()
	}
	if err := p.add(s); err != nil {
		e.g.log.Warn("epoll", "err", err)
		s.end()
	}
}

// turnAway answers somebody who is over a limit, and does not wait for them.
func (e *evented) turnAway(fd int, no refusal) {
	e.g.m.refused.WithLabelValues(no.why).Inc()
	// What is not read would have the kernel reset the connection, answer and all. An
	// error means that they have gone, or send more than a request.
	_, _ = rawIO(unix.SYS_READ, fd, e.greet.buf)
	_, _ = rawIO(unix.SYS_WRITE, fd, turnedAway(no))
	_ = unix.Close(fd)
}

// sweep ends the handshakes that are as old as they may be.
func (e *evented) sweep(now time.Duration) {
	e.mu.Lock()
	n := 0
	for n < len(e.greets) && now-e.greets[n].opened > e.g.limits.HandshakeTimeout {
		e.greets[n].endHandshake()
		n++
	}
	e.greets = append(e.greets[:0], e.greets[n:]...)
	e.mu.Unlock()
}

// endHandshake ends a connection that has not been upgraded.
func (c *conn) endHandshake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.lastRx.Load() == 0 { // admit sets it
		c.abortLocked("handshake")
	}
}

func (e *evented) stop() {
	e.cancel()
	e.file.Close() // waits until accept has returned
	e.ln.Close()
	e.sweep(1 << 62)
}

func (e *evented) close() {
	for _, p := range e.loops {
		p.stop()
	}
	e.ended.Wait()
}

// turnGap is the least time between the starts of two turns of a loop. Where
// clients say something all the time, mostly acknowledgements, each by itself
// would cost a wake-up, several times what it costs to read it.
const turnGap = 2 * time.Millisecond

// poller is one loop over epoll. Readiness is told by edges: everything there is
// to read is read, and a socket that took less than all will say when it takes
// more, so that no connection ever needs another call to epoll_ctl.
type poller struct {
	e  *evented
	fd int // looks at the sockets
	// gate is an epoll that looks at fd, once for each time it is armed: a loop
	// that knows that there is something to do is not told of each socket. It is in
	// the runtime's own poller, where the loop waits as a goroutine, not as a
	// thread in a system call.
	gate  *os.File
	quit  chan struct{} // closed by stop
	again []*descriptor // have more to read than their turn allowed
	greet *greeter
	buf   []byte
	evs   [epollEvents]unix.EpollEvent

	mu    sync.Mutex
	socks []*descriptor // by file descriptor
}

func newPoller(e *evented) (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	gate, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	p := &poller{e: e, fd: fd, quit: make(chan struct{}), greet: newGreeter(e), buf: make([]byte, e.g.limits.ReadBufferBytes)}
	if err = unix.SetNonblock(gate, true); err == nil {
		err = p.arm(gate, unix.EPOLL_CTL_ADD)
	}
	p.gate = os.NewFile(uintptr(gate), "epoll")
	if err != nil {
		p.gate.Close()
		unix.Close(fd)
		return nil, os.NewSyscallError("epoll", err)
	}
	return p, nil
}

// arm has the gate say, once, that a socket is ready.
func (p *poller) arm(gate, op int) error {
	return unix.EpollCtl(gate, op, p.fd, &unix.EpollEvent{Fd: int32(p.fd), Events: unix.EPOLLIN | unix.EPOLLONESHOT})
}

// run is the loop, until stop.
func (p *poller) run() {
	defer unix.Close(p.fd)
	raw, err := p.gate.SyscallConn()
	if err != nil {
		p.e.g.log.Error("epoll", "err", err)
		return
	}
	var said [1]unix.EpollEvent
	open := func(gate uintptr) bool {
		n, err := unix.EpollWait(int(gate), said[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	}
	arm := func(gate uintptr) { err = p.arm(int(gate), unix.EPOLL_CTL_MOD) }
	pace := rpc.NewPace(turnGap)
	for err == nil {
		if raw.Read(open) != nil {
			return // the error says that the file was closed
		}
		// Where there is something in each gap, the gate, a wake-up of its own, is left
		// alone.
		for busy, some := pace.Busy(), true; some && err == nil; some = some && busy {
			if !pace.Wait(p.quit) || p.stopped() {
				return
			}
			some, err = p.turn()
		}
		if err == nil && raw.Control(arm) != nil {
			return
		}
	}
	p.e.g.log.Error("epoll", "err", err)
}

func (p *poller) stopped() bool {
	select {
	case <-p.quit:
		return true
	default:
		return false
	}
}

func (p *poller) stop() {
	close(p.quit)
	p.gate.Close()
}

// turn handles what is ready, and says whether anything was.
func (p *poller) turn() (some bool, _ error) {
	for {
		n, err := unix.EpollWait(p.fd, p.evs[:], 0)
		if err != nil && err != unix.EINTR {
			return some, os.NewSyscallError("epoll_wait", err)
		}
		some = some || n > 0
		again := p.again
		p.again = nil
		for _, ev := range p.evs[:max(n, 0)] {
			if s := p.get(ev.Fd); s != nil {
				s.ready(ev.Events)
			}
		}
		for _, s := range again {
			s.ready(unix.EPOLLIN)
		}
		// What becomes ready from here on opens the gate when it is armed again.
		if n < len(p.evs) && len(p.again) == 0 && err == nil {
			return some, nil
		}
	}
}

func (p *poller) get(fd int32) *descriptor {
	p.mu.Lock()
	defer p.mu.Unlock()
	if int(fd) < len(p.socks) {
		return p.socks[fd]
	}
	return nil
}

// add begins to look at s.
func (p *poller) add(s *descriptor) error {
	p.mu.Lock()
	for len(p.socks) <= s.fd {
		p.socks = append(p.socks, nil)
	}
	p.socks[s.fd] = s
	p.mu.Unlock()
	ev := unix.EpollEvent{Fd: int32(s.fd), Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, s.fd, &ev))
}

// remove forgets s, which was added or not.
func (p *poller) remove(s *descriptor) {
	p.mu.Lock()
	if s.fd < len(p.socks) && p.socks[s.fd] == s {
		p.socks[s.fd] = nil
	}
	p.mu.Unlock()
}

// descriptor is the socket of evented.
type descriptor struct {
	p  *poller
	c  *conn
	fd int
	// The reader's own.
	gone     bool      // fd is closed
	over     bool      // the end of the stream has been announced: it is read up to there
	greeting *greeting // until the connection is upgraded
}

// ready handles an event; events but EPOLLOUT mean that there may be something
// to read.
func (s *descriptor) ready(events uint32) {
	if s.gone {
		return
	}
	if events&unix.EPOLLOUT != 0 {
		s.c.writable()
	}
	if events&^unix.EPOLLOUT == 0 {
		return
	}
	s.over = s.over || events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0
	more := s.greeting == nil || s.p.greet.read(s)
	if more && s.greeting == nil {
		more = s.read()
	}
	if !more {
		s.end()
	}
}

// read reads what there is, up to a turn's worth. It returns false when the
// connection has ended.
func (s *descriptor) read() bool {
	for range readsPerTurn {
		n, err := rawIO(unix.SYS_READ, s.fd, s.p.buf)
		switch {
		case n > 0:
			s.c.received(s.p.buf[:n])
			if s.c.ended {
				return false
			}
			if n < len(s.p.buf) && !s.over {
				return true // all there was: what comes now is another edge
			}
		case err == unix.EAGAIN:
			return true
		case err == unix.EINTR:
		default: // the end, or an error
			return false
		}
	}
	s.p.again = append(s.p.again, s)
	return true
}

// end releases the connection. Only who reads it calls it.
func (s *descriptor) end() {
	s.gone = true
	if s.greeting == nil {
		s.c.finish()
		return
	}
	s.p.e.g.handshakes.Add(-1)
	s.p.e.g.guard.disconnect(s.c.from, false)
	s.c.mu.Lock()
	s.c.closed = true
	s.c.mu.Unlock()
	s.close()
}

func (s *descriptor) write(b []byte) (int, error) {
	for {
		n, err := rawIO(unix.SYS_WRITE, s.fd, b)
		s.p.e.g.m.writes.Inc()
		switch err {
		case 0:
			return n, nil
		case unix.EAGAIN:
			return 0, nil
		case unix.EINTR:
		default:
			return 0, os.NewSyscallError("write", err)
		}
	}
}

// rawIO is read(2) or write(2). The socket does not block, and so the scheduler
// need not be told.
func rawIO(call uintptr, fd int, b []byte) (int, unix.Errno) {
	n, _, err := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if err != 0 {
		return 0, err
	}
	return int(n), 0
}

// A shutdown that fails means that the peer has ended the connection already,
// and then the reader knows.
func (s *descriptor) closeWrite() { _ = unix.Shutdown(s.fd, unix.SHUT_WR) }
func (s *descriptor) abort()      { _ = unix.Shutdown(s.fd, unix.SHUT_RDWR) }

func (s *descriptor) close() {
	s.p.remove(s) // first: the number is given out again
	_ = unix.Close(s.fd)
}
