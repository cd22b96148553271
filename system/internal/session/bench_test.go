package session

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// serveRedis in the environment makes the test binary a Redis.
const serveRedis = "THRONG_TEST_SERVE_REDIS"

// serve prints the address, then the CPU time used so far, in µs, for each line
// it reads; it ends with its input.
func serve() {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	fmt.Println(m.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println((u.Utime.Nano() + u.Stime.Nano()) / 1000)
	}
}

// redisProcess starts a Redis and returns its address and what asks for its CPU
// time in µs.
func redisProcess(b *testing.B) (addr string, cpu func() int64) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveRedis+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	lines := bufio.NewReader(out)
	line := func() string {
		s, err := lines.ReadString('\n')
		if err != nil {
			b.Fatal(err)
		}
		return strings.TrimSpace(s)
	}
	return line(), func() int64 {
		if _, err := io.WriteString(in, "\n"); err != nil {
			b.Fatal(err)
		}
		us, err := strconv.ParseInt(line(), 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		return us
	}
}

// BenchmarkTyping publishes from one gateway to another while 16,000 topics are
// viewed, half on each, with so many events under way. redis-µs/op is the CPU
// time of the process of Redis for an event.
func BenchmarkTyping(b *testing.B) {
	for _, underWay := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("underway=", underWay), func(b *testing.B) { benchmarkTyping(b, underWay) })
	}
}

const benchTopics = 8000 // of each gateway

// benchGateways runs two gateways that each view benchTopics topics: "g0" and up
// the first, the next ones the second. What they hear goes to got.
func benchGateways(b *testing.B, addr string, got chan struct{}) (gws [2]*Registry) {
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for i := range gws {
		r, err := New(Config{Addr: addr})
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			if err := r.Run(ctx, strconv.Itoa(i), 1, func(string, []byte) { got <- struct{}{} }); err != nil {
				b.Error(err)
			}
			r.Close()
		})
		for j := range benchTopics {
			r.Subscribe("g" + strconv.Itoa(i*benchTopics+j))
		}
		gws[i] = r
	}
	b.Cleanup(func() { cancel(); wg.Wait() })
	for i := range gws { // until each has heard of what the other views
		for j := 0; j < benchTopics; j += 61 {
			for heard := false; !heard; {
				gws[1-i].Publish("g"+strconv.Itoa(i*benchTopics+j), nil)
				select {
				case <-got:
					heard = true
				case <-time.After(1100 * time.Millisecond):
				}
			}
		}
	}
	return gws
}

func benchmarkTyping(b *testing.B, underWay int) {
	addr, cpu := redisProcess(b)
	got := make(chan struct{}, 1024)
	gws := benchGateways(b, addr, got)
	payload := make([]byte, 40)
	before, i, free := cpu(), 0, underWay
	for b.Loop() {
		if free == 0 {
			<-got
			free++
		}
		gws[0].Publish("g"+strconv.Itoa(benchTopics+i*7919%benchTopics), payload)
		free--
		i++
	}
	for ; free < underWay; free++ {
		<-got
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "redis-µs/op")
}

// BenchmarkView changes what is viewed, as a client does that opens another
// conversation: one topic less, one more, one look-up of a user.
func BenchmarkView(b *testing.B) {
	const underWay = 8
	addr, cpu := redisProcess(b)
	r := benchGateways(b, addr, make(chan struct{}, 1024))[0]
	answered := make(chan struct{}, underWay)
	view := func(i int) {
		r.Unsubscribe("g" + strconv.Itoa(i))
		r.Subscribe("g" + strconv.Itoa(i+benchTopics))
		r.Presence(uint64(i), func(bool, time.Time) { answered <- struct{}{} })
	}
	view(0)
	<-answered
	before, i := cpu(), 1
	for range underWay - 1 {
		view(i)
		i++
	}
	for b.Loop() {
		view(i)
		i++
		<-answered
	}
	for range underWay - 1 {
		<-answered
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "redis-µs/op")
}
