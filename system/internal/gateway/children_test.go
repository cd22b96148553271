package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"throng/system/internal/rpc"
)

// childEnv carries a childSpec: this test binary is then a server under
// benchmark and runs no tests.
const childEnv = "THRONG_GATEWAY_BENCH_CHILD"

// profileEnv names a file for the CPU profile of gateways under benchmark.
const profileEnv = "THRONG_GATEWAY_BENCH_PROFILE"

type childSpec struct {
	Kind  string // gateway, write, broadcast, echo, accept
	Inbox string // address, for a gateway
	Frame []byte // for write and broadcast
	TLS   bool   // for gateway and accept
}

// childMain runs the child, if this process is one.
func childMain() bool {
	spec := os.Getenv(childEnv)
	if spec == "" {
		return false
	}
	if err := runChild(spec); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	return true
}

func runChild(text string) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var round func(frames int) // "round <frames>"
	var conns func() int       // "conns"
	switch spec.Kind {
	case "gateway":
		return gatewayChild(spec, ln)
	case "write":
		round, conns = writeChild(spec, ln)
	case "broadcast":
		round, conns = broadcastChild(spec, ln)
	case "echo":
		round, conns = echoChild(ln)
	case "accept":
		if spec.TLS {
			cfg, err := selfSigned()
			if err != nil {
				return err
			}
			ln = tls.NewListener(ln, cfg)
		}
		round, conns = broadcastChild(spec, ln)
	}
	fmt.Println(ln.Addr())
	return obey(round, conns)
}

// obey answers commands until the input ends.
func obey(round func(int), conns func() int) error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		command, arg, _ := strings.Cut(in.Text(), " ")
		answer := int64(0)
		switch command {
		case "cpu":
			var ru unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
				return err
			}
			answer = ru.Utime.Nano() + ru.Stime.Nano()
		case "rss":
			answer = residentBytes()
		case "conns":
			answer = int64(conns())
		case "round":
			n, err := strconv.Atoi(arg)
			if err != nil {
				return err
			}
			round(n)
			continue // the clients see that it is done
		}
		fmt.Println(answer)
	}
	return in.Err()
}

func residentBytes() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	pages, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

func gatewayChild(spec childSpec, ln net.Listener) error {
	if file := os.Getenv(profileEnv); file != "" {
		f, err := os.Create(file + "." + strconv.Itoa(os.Getpid()))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	// Nobody sends messages in the benchmarks.
	message, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := rpc.NewServer()
	rpc.RegisterMessageServer(srv, rpc.UnimplementedMessageServer{})
	go srv.Serve(message)
	defer srv.Stop()
	var cfg *tls.Config
	if spec.TLS {
		if cfg, err = selfSigned(); err != nil {
			return err
		}
	}
	gw, err := New(Config{ID: "bench", TLS: cfg, Key: testKey(), Inboxes: []string{spec.Inbox}, Messages: []string{message.Addr().String()},
		Log: slog.New(slog.DiscardHandler),
		// The limits are kept, and nobody is over one.
		Limits: Limits{FramesPerSecond: 100_000, FrameBurst: 100_000, DrainTimeout: 100 * time.Millisecond,
			AddressConnections: 1 << 20, AddressConnectRate: 1 << 20, AddressConnectBurst: 1 << 20, UserByteRate: 1 << 30, UserByteBurst: 1 << 30}})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- gw.Run(ctx, ln) }()
	for tick := time.NewTicker(time.Millisecond); !gw.inboxes[0].isUp(); {
		<-tick.C
	}
	fmt.Println(ln.Addr())
	err = obey(nil, gw.table.count)
	stop()
	<-done
	return err
}

// writeChild is the floor: nothing but write(2), not even the Go scheduler's
// accounting. A write to a reader that sleeps also pays for waking it up, which
// costs as much as the rest: where clients sleep less while the gateway writes,
// for instance because it leaves them less of the machine, it can be above this.
func writeChild(spec childSpec, ln net.Listener) (func(int), func() int) {
	var mu sync.Mutex
	var fds []int
	var keep []net.Conn
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			raw, err := nc.(*net.TCPConn).SyscallConn()
			if err != nil {
				return
			}
			mu.Lock()
			raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
			keep = append(keep, nc)
			mu.Unlock()
		}
	}()
	round := func(frames int) {
		b := []byte(strings.Repeat(string(spec.Frame), frames))
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for _, fd := range fds {
			n, _, err := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
			if int(n) != len(b) {
				panic(fmt.Sprint("write: ", n, err))
			}
		}
	}
	return round, func() int { mu.Lock(); defer mu.Unlock(); return len(keep) }
}

// broadcastChild is a hub as gorilla's own example has it: a goroutine and a
// channel for each writer, the message prepared once.
func broadcastChild(spec childSpec, ln net.Listener) (func(int), func() int) {
	var mu sync.Mutex
	var hub []chan *websocket.PreparedMessage
	up := websocket.Upgrader{}
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		out := make(chan *websocket.PreparedMessage, 64)
		mu.Lock()
		hub = append(hub, out)
		mu.Unlock()
		go func() {
			for m := range out {
				if ws.WritePreparedMessage(m) != nil {
					return
				}
			}
		}()
		for {
			if _, _, err := ws.ReadMessage(); err != nil {
				return
			}
		}
	}))
	round := func(frames int) {
		for range frames {
			m, err := websocket.NewPreparedMessage(websocket.BinaryMessage, spec.Frame[2:])
			if err != nil {
				panic(err)
			}
			for _, out := range hub {
				out <- m
			}
		}
	}
	return round, func() int { mu.Lock(); defer mu.Unlock(); return len(hub) }
}

func echoChild(ln net.Listener) (func(int), func() int) {
	var mu sync.Mutex
	n := 0
	up := websocket.Upgrader{}
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		mu.Lock()
		n++
		mu.Unlock()
		for {
			op, m, err := ws.ReadMessage()
			if err != nil || ws.WriteMessage(op, m) != nil {
				return
			}
		}
	}))
	return nil, func() int { mu.Lock(); defer mu.Unlock(); return n }
}
