package gateway

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// The benchmarks count the CPU of the server's process alone: the server is a
// child of the test (children_test.go), the clients and the fakes are not. In
// each benchmark ours and the bare floors take turns, block by block, so that a
// machine that changes its speed changes it for all.

const (
	benchSockets = 1000
	benchBody    = 88 // makes a Deliver of 122 bytes, a short text with its envelope
	blockRounds  = 20
)

// BenchmarkGroupDelivery: one frame for each member, the next message of a
// group when every member has the last one.
func BenchmarkGroupDelivery(b *testing.B) {
	for _, groups := range []int{1, 10} {
		b.Run(fmt.Sprintf("members=%d", benchSockets/groups), func(b *testing.B) {
			frame := benchFrame(b)
			floor := startBare(b, "write", frame)
			gorilla := startBare(b, "broadcast", frame)
			silent := startGateway(b, groups, 0)
			acked := startGateway(b, groups, clientAcks)
			read := startGateway(b, groups, clientAcks|clientReads)
			b.ReportMetric(float64(len(frame)), "frame-bytes")
			for b.Loop() {
				floor.rounds(blockRounds, 1)
				silent.rounds(blockRounds, 1)
				gorilla.rounds(blockRounds, 1)
				acked.rounds(blockRounds, 1)
				read.rounds(blockRounds, 1)
			}
			f := floor.perCPU(b, "floor-write2/cpu-s")
			gorilla.perCPU(b, "gorilla/cpu-s")
			b.ReportMetric(silent.perCPU(b, "deliveries/cpu-s")/f, "x-floor")
			b.ReportMetric(acked.perCPU(b, "acked/cpu-s")/f, "acked-x-floor")
			b.ReportMetric(read.perCPU(b, "acked+read/cpu-s")/f, "acked+read-x-floor")
		})
	}
}

// BenchmarkBacklog: several frames wait for each member, and leave in one write.
func BenchmarkBacklog(b *testing.B) {
	frame := benchFrame(b)
	one := startGateway(b, 1, 0)
	floor := startBare(b, "write", frame)
	for _, n := range []int{8, 32} {
		b.Run(fmt.Sprintf("frames=%d", n), func(b *testing.B) {
			one.reset()
			floor.reset()
			many := startGateway(b, 1, 0)
			for b.Loop() {
				one.rounds(blockRounds, 1)
				many.rounds(blockRounds, n)
				floor.rounds(blockRounds, n)
			}
			m := many.perCPU(b, "deliveries/cpu-s")
			b.ReportMetric(m/one.perCPU(b, "one-frame/cpu-s"), "x-one-frame")
			b.ReportMetric(m/floor.perCPU(b, "floor-write2/cpu-s"), "x-floor")
		})
	}
}

// BenchmarkEcho: round trips of the application's Ping, beside a bare gorilla
// echo of as many bytes.
func BenchmarkEcho(b *testing.B) {
	ours := startGateway(b, 1, 0)
	bare := startBare(b, "echo", nil)
	for b.Loop() {
		ours.echo(blockRounds)
		bare.echo(blockRounds)
	}
	b.ReportMetric(ours.perCPU(b, "round-trips/cpu-s")/bare.perCPU(b, "gorilla/cpu-s"), "x-gorilla")
}

// BenchmarkIdleConnection: memory of an authenticated connection that does
// nothing, and the CPU of a login.
func BenchmarkIdleConnection(b *testing.B) {
	const n = 4000
	var perConn, logins float64
	for b.Loop() {
		s := startGatewayWith(b, 1, 0, 0)
		before, cpu := s.ask("rss"), s.ask("cpu")
		s.connect(n)
		logins = n / (float64(s.ask("cpu")-cpu) / 1e9)
		perConn = float64(s.ask("rss")-before) / n
		s.stop()
	}
	b.ReportMetric(perConn, "rss-bytes/conn")
	b.ReportMetric(logins, "logins/cpu-s")
}

// BenchmarkLogin: connect, authenticate, sync and open the session at the inbox,
// beside what net/http and gorilla need to accept a WebSocket and no more. The
// session registry, a Redis away, is not in it.
func BenchmarkLogin(b *testing.B) {
	for _, scheme := range []string{"ws", "wss"} {
		b.Run(scheme, func(b *testing.B) {
			inbox := startBenchInbox(b)
			ours := startChild(b, childSpec{Kind: "gateway", Inbox: inbox.addr, TLS: scheme == "wss"})
			ours.inbox = inbox
			bare := startChild(b, childSpec{Kind: "accept", TLS: scheme == "wss"})
			for b.Loop() {
				ours.logins(scheme, loginBlock)
				bare.logins(scheme, loginBlock)
			}
			b.ReportMetric(ours.perCPU(b, "logins/cpu-s")/bare.perCPU(b, "gorilla-accepts/cpu-s"), "x-gorilla")
		})
	}
}

const (
	loginBlock = 500 // logins before the other server has its turn
	dialers    = 8   // of them under way
)

// logins logs n clients in, each of whom leaves when all have come.
func (s *server) logins(scheme string, n int) {
	d := dialer()
	d.Subprotocols = []string{wire.SubprotocolProto}
	d.WriteBufferPool = &sync.Pool{}
	cpu := s.ask("cpu")
	var wg sync.WaitGroup
	came := make(chan *websocket.Conn, n)
	for i := range dialers {
		wg.Go(func() {
			for u := i + 1; u <= n; u += dialers {
				ws, _, err := d.Dial(scheme+"://"+s.addr+wire.Path, http.Header{"Authorization": {"Bearer " + token(s.tb, uint64(u), 0)}})
				if err == nil && s.inbox != nil {
					err = ws.WriteMessage(websocket.BinaryMessage, []byte{0x0a, 0x00}) // Sync{}
				}
				if err != nil {
					s.tb.Errorf("login: %v", err)
					return
				}
				came <- ws
			}
		})
	}
	if s.inbox != nil {
		for range n {
			<-s.inbox.opened
		}
	}
	wg.Wait()
	s.cpu += s.ask("cpu") - cpu
	s.units += int64(n)
	close(came)
	for ws := range came {
		ws.Close()
	}
	for s.inbox != nil && s.ask("conns") != 0 {
	}
}

func benchFrame(tb testing.TB) []byte {
	return wire.AppendServerMessage(nil, wire.OpBinary, deliverFrame(tb, 1, strings.Repeat("x", benchBody)))
}

// What bench clients do with a Deliver.
const (
	clientAcks = 1 << iota
	clientReads
)

// server is a child process that serves, and the clients connected to it.
type server struct {
	tb     testing.TB
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	addr   string
	inbox  *benchInbox // of a gateway
	mode   int
	groups int

	mu      sync.Mutex
	clients []*benchClient

	cpu   int64 // ns in blocks so far
	units int64 // deliveries or round trips in blocks so far
}

// ask gives the child a command and returns the number it answers.
func (s *server) ask(command string) int64 {
	if _, err := fmt.Fprintln(s.in, command); err != nil {
		s.tb.Fatalf("child: %s: %v", command, err)
	}
	line, err := s.out.ReadString('\n')
	if err != nil {
		s.tb.Fatalf("child: %s: %v", command, err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		s.tb.Fatalf("child: %s answered %q", command, line)
	}
	return n
}

func (s *server) reset() { s.cpu, s.units = 0, 0 }

// perCPU reports and returns the units for each CPU-second of the child.
func (s *server) perCPU(b *testing.B, unit string) float64 {
	v := float64(s.units) / (float64(s.cpu) / 1e9)
	b.ReportMetric(v, unit)
	return v
}

func startChild(tb testing.TB, spec childSpec) *server {
	tb.Helper()
	j, err := json.Marshal(spec)
	if err != nil {
		tb.Fatal(err)
	}
	s := &server{tb: tb, cmd: exec.Command(os.Args[0])}
	s.cmd.Env = append(os.Environ(), childEnv+"="+string(j))
	s.cmd.Stderr = os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.stop)
	line, err := s.out.ReadString('\n')
	if err != nil {
		tb.Fatalf("child did not start: %v", err)
	}
	s.addr = strings.TrimSpace(line)
	return s
}

func (s *server) stop() {
	if s.in == nil {
		return
	}
	s.mu.Lock()
	for _, c := range s.clients {
		c.nc.Close()
	}
	s.mu.Unlock()
	s.in.Close() // the child ends with its input
	if err := s.cmd.Wait(); err != nil {
		s.tb.Errorf("child: %v", err)
	}
	for _, c := range s.clients {
		<-c.done
	}
	if s.inbox != nil {
		s.inbox.srv.Stop()
	}
	s.in = nil
}

// startBare starts a floor: "write" loops over bare sockets with write(2),
// "broadcast" and "echo" are gorilla as its examples use it.
func startBare(tb testing.TB, kind string, frame []byte) *server {
	s := startChild(tb, childSpec{Kind: kind, Frame: frame})
	s.groups = 1
	for range benchSockets {
		var nc net.Conn
		var err error
		if kind == "write" {
			nc, err = net.Dial("tcp", s.addr)
		} else {
			var ws *websocket.Conn
			if ws, _, err = websocket.DefaultDialer.Dial("ws://"+s.addr, nil); err == nil {
				nc = ws.NetConn()
			}
		}
		if err != nil {
			tb.Fatal(err)
		}
		s.adopt(nc, 0, 0)
	}
	for s.ask("conns") != benchSockets {
	}
	return s
}

func startGateway(tb testing.TB, groups, mode int) *server {
	return startGatewayWith(tb, groups, mode, benchSockets)
}

func startGatewayWith(tb testing.TB, groups, mode, sockets int) *server {
	inbox := startBenchInbox(tb)
	s := startChild(tb, childSpec{Kind: "gateway", Inbox: inbox.addr})
	s.inbox, s.mode, s.groups = inbox, mode, groups
	s.connect(sockets)
	return s
}

// connect logs n clients in.
func (s *server) connect(n int) {
	for i := range n {
		user := uint64(len(s.clients) + 1)
		d := websocket.Dialer{Subprotocols: []string{wire.SubprotocolProto}}
		ws, _, err := d.Dial("ws://"+s.addr+wire.Path, http.Header{"Authorization": {"Bearer " + token(s.tb, user, 0)}})
		if err != nil {
			s.tb.Fatalf("login %d: %v", i, err)
		}
		if err := ws.WriteMessage(websocket.BinaryMessage, []byte{0x0a, 0x00}); err != nil { // Sync{}
			s.tb.Fatal(err)
		}
		conn := <-s.inbox.opened
		s.adopt(ws.NetConn(), conn, i*s.groups/max(n, 1))
	}
}

func (s *server) adopt(nc net.Conn, conn uint64, group int) {
	c := &benchClient{s: s, nc: nc, conn: conn, group: group, done: make(chan struct{})}
	s.mu.Lock()
	s.clients = append(s.clients, c)
	s.mu.Unlock()
	go c.run()
}

// benchClient counts the frames it gets, and acknowledges them if told to.
type benchClient struct {
	s        *server
	nc       net.Conn
	conn     uint64
	group    int
	size     int          // of a whole message; set before a block
	want     atomic.Int64 // bytes until the round is over for this client
	got      int64        // messages so far
	finished chan<- int   // told the group when want is reached
	done     chan struct{}
}

func (c *benchClient) run() {
	defer close(c.done)
	buf := make([]byte, 16<<10)
	var out []byte
	bytes := 0
	for {
		n, err := c.nc.Read(buf)
		if err != nil {
			return
		}
		left := c.want.Add(-int64(n))
		bytes += n
		if k := bytes / c.size; k > 0 && c.s.mode != 0 {
			bytes -= k * c.size
			c.got += int64(k)
			ack, _ := wire.Proto.Encode(ackOf(uint64(c.got)))
			out = wire.AppendClientMessage(out[:0], wire.OpBinary, ack, [4]byte{1, 2, 3, 4})
			if c.s.mode&clientReads != 0 {
				read, _ := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_Read{Read: &wire.Read{From: 9, Group: 7, UptoSeq: uint64(c.got)}}})
				out = wire.AppendClientMessage(out, wire.OpBinary, read, [4]byte{1, 2, 3, 4})
			}
			if _, err := c.nc.Write(out); err != nil {
				return
			}
		}
		if left == 0 && c.s.mode == 0 {
			c.finished <- c.group
		}
	}
}

// rounds has every client get frames messages, n times, one round after the
// other for each group, and adds the CPU of it.
func (s *server) rounds(n, frames int) {
	finished := make(chan int, 2*len(s.clients))
	members := make([][]uint64, s.groups)
	byGroup := make([][]*benchClient, s.groups)
	frame := benchFrame(s.tb)
	for _, c := range s.clients {
		c.size, c.finished = len(frame), finished
		members[c.group] = append(members[c.group], c.conn)
		byGroup[c.group] = append(byGroup[c.group], c)
	}
	if s.inbox != nil {
		s.inbox.expect(s, finished)
	}
	payload := deliverFrame(s.tb, 1, strings.Repeat("x", benchBody))
	start := func(groups []int) {
		b := &rpc.OwnerBatch{}
		for _, g := range groups {
			for _, c := range byGroup[g] {
				c.want.Store(int64(frames * len(frame)))
			}
			for range frames {
				b.Out = append(b.Out, &rpc.Outbound{Frame: payload, Conns: members[g], Deliver: true})
			}
		}
		if s.inbox == nil {
			// No answer is waited for: an inbox does not wait either.
			if _, err := fmt.Fprintln(s.in, "round", frames); err != nil {
				s.tb.Fatal(err)
			}
			return
		}
		s.inbox.send(s.tb, b)
	}
	cpu := s.ask("cpu")
	left := make([]int, s.groups)   // clients of the group in this round
	rounds := make([]int, s.groups) // rounds begun
	todo := make([]int, 0, s.groups)
	for g := range s.groups {
		left[g], rounds[g] = len(members[g]), 1
		todo = append(todo, g)
	}
	start(todo)
	timeout := time.After(60 * time.Second)
	for open := s.groups; open > 0; {
		todo = todo[:0]
		note := func(g int) {
			if left[g]--; left[g] > 0 {
				return
			}
			if rounds[g] == n {
				open--
				return
			}
			left[g] = len(members[g])
			rounds[g]++
			todo = append(todo, g)
		}
		select {
		case g := <-finished:
			note(g)
		case <-timeout:
			s.tb.Fatalf("round not over: %d groups open, rounds %v, left %v", open, rounds, left)
		}
		for more := true; more; { // what an inbox would find waiting, too
			select {
			case g := <-finished:
				note(g)
			default:
				more = false
			}
		}
		if len(todo) > 0 {
			start(todo)
		}
	}
	s.cpu += s.ask("cpu") - cpu
	s.units += int64(n * frames * len(s.clients))
}

// echo has every client send something and get as much back, n times.
func (s *server) echo(n int) {
	finished := make(chan int, 2*len(s.clients))
	ping, _ := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_Ping{Ping: &wire.Ping{Nonce: 77}}})
	pong, _ := wire.Proto.Encode(&wire.Frame{Kind: &wire.Frame_Pong{Pong: &wire.Pong{Nonce: 77}}})
	answer := len(wire.AppendServerMessage(nil, wire.OpBinary, pong))
	if s.inbox == nil { // a bare echo sends back what it got: let it be as much
		ping = pong
	}
	msg := wire.AppendClientMessage(nil, wire.OpBinary, ping, [4]byte{5, 6, 7, 8})
	for _, c := range s.clients {
		c.size, c.finished = answer, finished
	}
	cpu := s.ask("cpu")
	for range n {
		for _, c := range s.clients {
			c.want.Store(int64(answer))
			if _, err := c.nc.Write(msg); err != nil {
				s.tb.Fatal(err)
			}
		}
		for range s.clients {
			<-finished
		}
	}
	s.cpu += s.ask("cpu") - cpu
	s.units += int64(n * len(s.clients))
}

// benchInbox is an inbox that counts acknowledgements.
type benchInbox struct {
	rpc.UnimplementedInboxServer
	srv    *grpc.Server
	addr   string
	opened chan uint64

	mu       sync.Mutex
	stream   grpc.BidiStreamingServer[rpc.GatewayBatch, rpc.OwnerBatch]
	group    map[uint64]int // by conn
	finished chan<- int
	batches  atomic.Int64
}

func startBenchInbox(tb testing.TB) *benchInbox {
	f := &benchInbox{srv: rpc.NewServer(), opened: make(chan uint64, 16)}
	ln := listen(tb, "127.0.0.1:0")
	f.addr = ln.Addr().String()
	rpc.RegisterInboxServer(f.srv, f)
	go f.srv.Serve(ln)
	return f
}

func (f *benchInbox) Sessions(s grpc.BidiStreamingServer[rpc.GatewayBatch, rpc.OwnerBatch]) error {
	f.mu.Lock()
	f.stream = s
	f.mu.Unlock()
	if err := s.Send(&rpc.OwnerBatch{Incarnation: 1}); err != nil {
		return err
	}
	for {
		b, err := s.Recv()
		if err != nil {
			return err
		}
		for _, o := range b.Opens {
			f.opened <- o.Conn
		}
		if len(b.Acks) == 0 {
			continue
		}
		f.batches.Add(1)
		f.mu.Lock()
		for _, a := range b.Acks {
			f.finished <- f.group[a.Conn]
		}
		f.mu.Unlock()
	}
}

func (f *benchInbox) send(tb testing.TB, b *rpc.OwnerBatch) {
	f.mu.Lock()
	s := f.stream
	f.mu.Unlock()
	if err := s.Send(b); err != nil {
		tb.Fatal(err)
	}
}

func (f *benchInbox) expect(s *server, finished chan<- int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finished = finished
	f.group = make(map[uint64]int, len(s.clients))
	for _, c := range s.clients {
		f.group[c.conn] = c.group
	}
}
