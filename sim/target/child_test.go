package target

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"go.uber.org/goleak"

	"throng/sim/target/infra"
	"throng/system"
)

// childEnv makes this test binary behave like the harness's own, so that the
// tests have real child processes.
const childEnv = "THRONG_TEST_CHILD=1"

func TestMain(m *testing.M) {
	if os.Getenv("THRONG_TEST_CHILD") == "1" && len(os.Args) > 1 {
		ctx := context.Background()
		switch os.Args[1] {
		case "chatd":
			os.Exit(system.Main(ctx, os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		case "embedded":
			os.Exit(infra.Main(ctx, os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		case "harness":
			os.Exit(helperHarness())
		}
	}
	goleak.VerifyTestMain(m)
}

func testExe(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// within returns a context for steps that must end in time.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until ok or fails after d.
func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", d, what)
		case <-tick.C:
		}
	}
}

// alive reports whether a process runs. One that has ended and that nobody has
// waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func TestKafkaKeepsWhatItAcknowledged(t *testing.T) {
	ctx := within(t, 30*time.Second)
	p := newPorts()
	defer p.close()
	port, err := p.take()
	if err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + strconv.Itoa(port)
	dir := t.TempDir()
	const partitions = 3
	c := &child{role: "kafka", infra: true, env: []string{childEnv}, logPath: filepath.Join(dir, "log"),
		probe: func(ctx context.Context) error { return probeKafka(ctx, addr, "t", partitions) },
		args: []string{"embedded", "kafka", "--exit-with-parent", "--listen", addr, "--data", filepath.Join(dir, "data"),
			"--topic", "t", "--partitions", strconv.Itoa(partitions)}}
	s := newSpawner()
	defer s.close()
	start := func() {
		t.Helper()
		if err := c.start(s, testExe(t), func(*child, bool, error) {}); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	start()
	defer func() { c.stop(ctx) }()
	transport := &kafka.Transport{}
	client := &kafka.Client{Addr: kafka.TCP(addr), Transport: transport}
	defer transport.CloseIdleConnections()
	const rounds, perRound = 3, 200
	for round := range rounds {
		for i := range perRound {
			value := fmt.Sprintf("%d", round*perRound+i)
			res, err := client.Produce(ctx, &kafka.ProduceRequest{Topic: "t", Partition: 1, RequiredAcks: kafka.RequireAll,
				Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte(value))})})
			if err != nil {
				t.Fatal(err)
			}
			if res.BaseOffset != int64(round*perRound+i) {
				t.Fatalf("record %d got offset %d: the log lost or repeated something", round*perRound+i, res.BaseOffset)
			}
		}
		commit, err := client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{GroupID: "g", GenerationID: -1,
			Topics: map[string][]kafka.OffsetCommit{"t": {{Partition: 1, Offset: int64(round)}}}})
		if err != nil || commit.Topics["t"][0].Error != nil {
			t.Fatalf("commit: %v %+v", err, commit)
		}
		if err := c.kill(); err != nil {
			t.Fatal(err)
		}
		transport.CloseIdleConnections() // they ended with the process
		start()
		fetched, err := client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: "g", Topics: map[string][]int{"t": {1}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := fetched.Topics["t"][0].CommittedOffset; got != int64(round) {
			t.Fatalf("committed offset %d after a kill, want %d", got, round)
		}
	}
	if c.restarts != rounds {
		t.Errorf("%d restarts counted, want %d", c.restarts, rounds)
	}
	used, err := c.usage()
	if err != nil {
		t.Fatal(err)
	}
	if used.cpu <= c.usedCPU || used.rss == 0 || used.threads == 0 || c.usedCPU == 0 {
		t.Errorf("usage %+v with %s by earlier incarnations", used, c.usedCPU)
	}
}

func TestStartFailureNamesTheProcessAndShowsItsLog(t *testing.T) {
	dir := t.TempDir()
	c := &child{role: "kafka", env: []string{childEnv}, logPath: filepath.Join(dir, "log"),
		probe: func(context.Context) error { return fmt.Errorf("nothing answers") },
		args:  []string{"embedded", "kafka", "--listen", "nowhere", "--exit-with-parent"}}
	s := newSpawner()
	defer s.close()
	ended := make(chan struct{})
	if err := c.start(s, testExe(t), func(*child, bool, error) { close(ended) }); err != nil {
		t.Fatal(err)
	}
	<-ended
	err := c.awaitReady(within(t, 10*time.Second))
	if err == nil {
		t.Fatal("ready")
	}
	for _, want := range []string{"kafka/0", "exit status 1", `"nowhere": must be 127.0.0.1:port`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestRedisExpiresKeys(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	done := make(chan error, 1)
	go func() { done <- infra.RunRedis(ctx, addr) }() // waits for the port
	ln.Close()
	eventually(t, 20*time.Second, "redis answers", func() bool { return ProbeRedis(ctx, addr) == nil })
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(command string) string {
		t.Helper()
		words := strings.Fields(command)
		req := fmt.Sprintf("*%d\r\n", len(words))
		for _, w := range words {
			req += fmt.Sprintf("$%d\r\n%s\r\n", len(w), w)
		}
		if _, err := conn.Write([]byte(req)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	ask("SET lease 1 PX 2000")
	if got := ask("EXISTS lease"); got != ":1\r\n" {
		t.Fatalf("lease: %q", got)
	}
	eventually(t, 10*time.Second, "the lease expires", func() bool { return ask("EXISTS lease") == ":0\r\n" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPortsOfTwoHarnessesDiffer(t *testing.T) {
	a, b := newPorts(), newPorts()
	defer a.close()
	defer b.close()
	b.next = a.next // as if both had drawn the same start
	seen := map[int]bool{}
	for range 50 {
		for _, p := range []*ports{a, b} {
			port, err := p.take()
			if err != nil {
				t.Fatal(err)
			}
			if seen[port] || port < firstPort || port >= lastPort {
				t.Fatalf("port %d handed out twice or out of range", port)
			}
			seen[port] = true
		}
	}
}
