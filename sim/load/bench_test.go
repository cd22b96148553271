package load_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"throng/sim/load"
	"throng/sim/load/roundtrip"
)

// stubGateway makes the test binary a gateway with nothing behind it, so that a
// benchmark counts the generator alone.
const stubGateway = "THRONG_TEST_STUB_GATEWAY"

func TestMain(m *testing.M) {
	if os.Getenv(stubGateway) != "" {
		serveStub()
		return
	}
	goleak.VerifyTestMain(m)
}

func serveStub() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with who started it
		os.Exit(0)
	}()
	_ = http.Serve(ln, roundtrip.NewGateway())
}

// startStub starts a stub and returns its URL.
func startStub(tb testing.TB) string {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), stubGateway+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	return "ws://" + strings.TrimSpace(line)
}

// residentBytes is the process's memory.
func residentBytes() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}

// settledBytes is the process's memory after a collection.
func settledBytes() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	return residentBytes()
}

// What a simulated user costs the generator, against a gateway that does
// nothing else and is another process: 5,000 users are online, and each writes
// one message a second. A round trip is that from Send to Sent; with delivery,
// another user gets each message and acknowledges it, which is as much again.
func BenchmarkRoundTrips(b *testing.B) {
	b.Run("alone", func(b *testing.B) { roundTrips(b, 0) })
	b.Run("with-delivery", func(b *testing.B) { roundTrips(b, 1) })
}

// roundTrips lets each user write to the one so many further.
func roundTrips(b *testing.B, to uint64) {
	const users = 5000
	for b.Loop() {
		var before, online int64
		spool, err := os.Create(filepath.Join(b.TempDir(), "spool"))
		if err != nil {
			b.Fatal(err)
		}
		played, err := roundtrip.Play(b.Context(), roundtrip.Work{Gateway: startStub(b), Users: users, SteadyS: 10, To: to, Spool: spool,
			Progress: func(p load.Progress) {
				switch {
				case before == 0:
					before = settledBytes()
				case p.Second.Connected == users && online == 0:
					online = settledBytes()
				}
			}})
		if err != nil {
			b.Fatal(err)
		}
		if played.Trips == 0 || played.Late.TotalCount() == 0 {
			b.Fatal("nothing was answered in steady")
		}
		b.ReportMetric(played.CPU.Seconds()/float64(played.Trips)*1000, "CPU-s/1000-round-trips")
		b.ReportMetric(float64(played.Trips)/played.Over.Seconds(), "round-trips/s")
		b.ReportMetric(float64(played.Late.ValueAtQuantile(99))/1000, "late-p99-ms")
		b.ReportMetric(float64(played.Sent.ValueAtQuantile(99))/1000, "sent-p99-ms")
		b.ReportMetric(float64(online-before)/users, "RSS-B/user")
		b.ReportMetric(0, "ns/op")
	}
}
