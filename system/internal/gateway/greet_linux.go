package gateway

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"throng/system/wire"
)

// greeting is what a connection of evented has until it is upgraded.
type greeting struct {
	peer     netip.AddrPort
	in       []byte // the start of a request whose rest has not come
	answered bool   // refused: the answer is out, and the client is to close
	failed   bool   // is to be closed
}

// greeter answers upgrade requests for one goroutine. A request is looked at when all of
// it is there; net/http and gorilla then do what they do elsewhere, on what is
// in memory.
type greeter struct {
	e   *evented
	buf []byte
	src bytes.Reader
	br  *bufio.Reader
	bw  *bufio.Writer
}

func newGreeter(e *evented) *greeter {
	g := &greeter{e: e, buf: make([]byte, maxHeaderBytes)}
	g.br = bufio.NewReaderSize(nil, maxHeaderBytes)
	g.bw = bufio.NewWriterSize(io.Discard, 512) // gorilla makes its answer in this one's buffer
	return g
}

// read reads what there is of a request and answers it when it is complete. It
// returns false when the socket is to be closed.
func (g *greeter) read(s *descriptor) bool {
	gr := s.greeting
	for {
		n, err := unix.Read(s.fd, g.buf)
		switch {
		case err == unix.EAGAIN:
			return true
		case err == unix.EINTR:
			continue
		case n <= 0: // the end, or an error
			return false
		case gr.answered:
			continue // what comes now is not looked at
		}
		b := g.buf[:n]
		if len(gr.in) > 0 {
			gr.in = append(gr.in, b...)
			b = gr.in
		}
		switch {
		case bytes.Contains(b, []byte("\r\n\r\n")):
			g.answer(s, b)
		case len(b) > maxHeaderBytes:
			g.refuse(s, http.StatusRequestHeaderFieldsTooLarge)
		case len(gr.in) == 0:
			gr.in = bytes.Clone(b)
		}
		if s.greeting == nil || gr.failed {
			return !gr.failed
		}
	}
}

// answer answers the request in b.
func (g *greeter) answer(s *descriptor, b []byte) {
	g.src.Reset(b)
	g.br.Reset(&g.src)
	r, err := http.ReadRequest(g.br)
	if err != nil {
		g.refuse(s, http.StatusBadRequest)
		return
	}
	r.RemoteAddr = s.greeting.peer.String()
	w := &response{g: g, s: s, header: http.Header{}}
	g.e.g.ServeHTTP(w, r)
	if !w.hijacked {
		w.send(r)
	}
}

// refuse answers what is no request.
func (g *greeter) refuse(s *descriptor, status int) {
	w := &response{g: g, s: s, header: http.Header{}}
	http.Error(w, http.StatusText(status), status)
	w.send(nil)
}

// response is the http.ResponseWriter of a greeting.
type response struct {
	g        *greeter
	s        *descriptor
	header   http.Header
	status   int
	body     bytes.Buffer
	hijacked bool
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(status int) { w.status = status }

func (w *response) Write(b []byte) (int, error) { return w.body.Write(b) }

// Hijack gives gorilla the connection.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.hijacked = true
	return &handover{w.s}, bufio.NewReadWriter(w.g.br, w.g.bw), nil
}

// send writes an answer that is no upgrade; the connection ends with it.
func (w *response) send(r *http.Request) {
	res := http.Response{StatusCode: w.status, ProtoMajor: 1, ProtoMinor: 1, Header: w.header, Request: r,
		ContentLength: int64(w.body.Len()), Body: io.NopCloser(&w.body), Close: true}
	var out bytes.Buffer
	if err := res.Write(&out); err != nil {
		w.s.greeting.failed = true
		return
	}
	if n, err := w.s.write(out.Bytes()); err != nil || n < out.Len() {
		w.s.greeting.failed = true // who takes no answer gets none
		return
	}
	w.s.closeWrite()
	w.s.greeting.answered = true
}

// handover is the net.Conn that gorilla gets to write its answer, and through
// which the gateway finds its own connection again.
type handover struct{ s *descriptor }

func (h *handover) adopt(format wire.Format, claims wire.Claims, t ticket) bool {
	s := h.s
	g, own := s.p.e.g, s.c.from
	if !g.admit(s.c, format, claims, t) {
		s.greeting.failed = true
		return false
	}
	s.greeting = nil
	g.handshakes.Add(-1)
	g.guard.greeted(own)
	return true
}

func (h *handover) Write(b []byte) (int, error) {
	n, err := h.s.write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return n, err
}

func (h *handover) Close() error {
	h.s.greeting.failed = true
	return nil
}

func (h *handover) Read([]byte) (int, error)         { return 0, io.EOF }
func (h *handover) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (h *handover) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (h *handover) SetDeadline(time.Time) error      { return nil }
func (h *handover) SetReadDeadline(time.Time) error  { return nil }
func (h *handover) SetWriteDeadline(time.Time) error { return nil }

// addrOf is a peer's address and port; not valid where it has none.
func addrOf(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}
