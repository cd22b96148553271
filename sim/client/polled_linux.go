package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxHello bounds the answer to an upgrade, and what a server may send
	// before it is asked for anything.
	maxHello = 64 << 10
	// maxPending bounds what waits for a gateway that does not read.
	maxPending = 1 << 20
)

var (
	errHello = errors.New("client: the server sends too much before it is asked")
	errStuck = errors.New("client: the server does not read")
)

// polled is a socket that a poller waits for. It is a net.Conn for the
// WebSocket layer: in the handshake Read waits, after that it yields the message
// that the poller is at.
type polled struct {
	poller  *poller
	buffers *sync.Pool
	in      []byte // has come and is not whole; the poller's, before start guarded by mu

	mu    sync.Mutex
	fd    int    // -1: closed
	owner *Conn  // nil until started
	hello *hello // nil when started
	fault error  // that came before the start
	held  int
	out   *[]byte // written while held, or waits for the socket
	since time.Time
}

// hello is the state of a handshake.
type hello struct {
	ctx  context.Context
	came chan struct{} // something has
	left int           // bytes of the answer that are still to be read; 0: not known
	all  bool          // the answer was read
}

func (s *polled) connect(to netip.AddrPort, source netip.Addr) error {
	if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	if source.IsValid() {
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return err
		}
		if err := unix.Bind(s.fd, sockaddr(netip.AddrPortFrom(source, 0))); err != nil {
			return err
		}
	}
	if err := unix.Connect(s.fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// start hands the socket over to the poller, with what has come already.
func (s *polled) start(c *Conn) {
	s.mu.Lock()
	s.owner, s.hello = c, nil
	waiting := len(s.in) > 0 || s.fault != nil
	s.mu.Unlock()
	if waiting {
		s.poller.poke(s)
	}
}

// early takes what comes before the start. The caller holds mu.
func (s *polled) early(buf []byte) {
	for s.fault == nil {
		n, err := receive(s.fd, buf)
		s.in = append(s.in, buf[:n]...)
		if s.fault = err; err == nil && len(s.in) > maxHello {
			s.fault = errHello
		}
		if n == 0 {
			break
		}
	}
	select {
	case s.hello.came <- struct{}{}:
	default:
	}
}

// Read in the handshake yields the answer to the upgrade and no byte more.
func (s *polled) Read(b []byte) (int, error) {
	h := s.hello
	if h == nil {
		n := copy(b, s.poller.current)
		s.poller.current = s.poller.current[n:]
		if n == 0 {
			return 0, io.ErrUnexpectedEOF
		}
		return n, nil
	}
	for {
		if n, err := s.answer(h, b); n > 0 || err != nil {
			return n, err
		}
		select {
		case <-h.came:
		case <-h.ctx.Done():
			return 0, h.ctx.Err()
		}
	}
}

// answer reads of the answer what is there. Frames can follow the head of one
// that says "switching protocols"; any other is read to its end.
func (s *polled) answer(h *hello, b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.left == 0 && !h.all {
		const status = len("HTTP/1.1 ")
		if end := bytes.Index(s.in, []byte("\r\n\r\n")); end >= status+3 {
			h.left = math.MaxInt
			if bytes.HasPrefix(s.in[status:], []byte("101")) {
				h.left = end + 4
			}
		}
	}
	n := copy(b, s.in[:min(h.left, len(s.in))])
	s.in = s.in[n:]
	if h.left -= n; h.left == 0 && n > 0 {
		h.all = true
	}
	if n == 0 && s.fault != nil {
		return 0, s.fault
	}
	return n, nil
}

// send writes what the socket takes.
func (s *polled) send(b []byte) (int, error) {
	for {
		n, err := raw(unix.SYS_WRITE, s.fd, b)
		switch err {
		case 0:
			return n, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, nil
		}
		return 0, err
	}
}

// raw is read(2) or write(2) without a word to the scheduler, which would take
// the processor away and give it back: the socket never waits.
func raw(call uintptr, fd int, b []byte) (int, syscall.Errno) {
	n, _, err := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), err
}

// Write never waits: what the socket does not take is kept, up to a bound.
func (s *polled) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.fd < 0:
		return 0, net.ErrClosed
	case s.fault != nil: // the system says why once, and whoever asks next gets "broken pipe"
		return 0, s.fault
	}
	all := len(b)
	if s.held == 0 && s.out == nil {
		n, err := s.send(b)
		if err != nil {
			return 0, err
		}
		if b = b[n:]; len(b) == 0 {
			return all, nil
		}
		s.since = time.Now()
	}
	if s.out == nil {
		if s.out, _ = s.buffers.Get().(*[]byte); s.out == nil {
			s.out = new([]byte)
		}
		*s.out = (*s.out)[:0]
	}
	if len(*s.out)+len(b) > maxPending || !s.since.IsZero() && time.Since(s.since) > writeTimeout {
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
		return 0, errStuck
	}
	*s.out = append(*s.out, b...)
	return all, nil
}

// flush writes what was kept. The caller holds mu.
func (s *polled) flush() {
	if s.fd < 0 || s.held > 0 || s.out == nil {
		return
	}
	n, err := s.send(*s.out)
	if err == nil && n < len(*s.out) {
		if *s.out = append((*s.out)[:0], (*s.out)[n:]...); s.since.IsZero() || n > 0 {
			s.since = time.Now()
		}
		return // the poller goes on when the socket takes more
	}
	// A failed write shows as a failed read, but for what the handshake would be told.
	if s.hello != nil && s.fault == nil {
		s.fault = err
	}
	s.since = time.Time{}
	s.buffers.Put(s.out)
	s.out = nil
}

func (s *polled) hold() {
	s.mu.Lock()
	s.held++
	s.mu.Unlock()
}

func (s *polled) release() {
	s.mu.Lock()
	s.held--
	s.flush()
	s.mu.Unlock()
}

// abort makes the poller find the end of the connection.
func (s *polled) abort() {
	s.mu.Lock()
	if s.fd >= 0 {
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
	}
	s.mu.Unlock()
}

// Close is for a handshake that failed; later the poller closes.
func (s *polled) Close() error {
	s.mu.Lock()
	started := s.owner != nil
	s.mu.Unlock()
	if started {
		s.abort()
		return nil
	}
	s.poller.forget(s)
	return nil
}

// The rest of net.Conn. The handshake has its context, and nothing else waits.

func (s *polled) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *polled) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *polled) SetDeadline(time.Time) error      { return nil }
func (s *polled) SetReadDeadline(time.Time) error  { return nil }
func (s *polled) SetWriteDeadline(time.Time) error { return nil }
