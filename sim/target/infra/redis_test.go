package infra

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counting counts the writes to a connection.
type counting struct {
	net.Conn
	writes atomic.Int32
}

func (c *counting) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// pair returns a client's connection to m and the count of what m writes to it.
func pair(t *testing.T, m *miniredis.Miniredis, ln net.Listener) (net.Conn, *counting) {
	t.Helper()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if err := client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	count := &counting{Conn: accepted}
	m.Server().ServeConn(&pipelined{Conn: count})
	return client, count
}

func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("after %q: %v", got[:n], err)
	}
	if string(got) != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestRepliesToAPipelineLeaveTogether(t *testing.T) {
	m := miniredis.NewMiniRedis()
	defer m.Close()
	first, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, count := pair(t, m, ln)
	const n = 100
	say(t, client, string(bytes.Repeat([]byte("*1\r\n$4\r\nPING\r\n"), n)))
	expect(t, client, string(bytes.Repeat([]byte("+PONG\r\n"), n)))
	if w := count.writes.Load(); w > n/10 {
		t.Errorf("%d replies left in %d writes", n, w)
	}
	// One at a time, nothing is held back.
	for range 10 {
		say(t, client, "*1\r\n$4\r\nPING\r\n")
		expect(t, client, "+PONG\r\n")
	}
	// Neither is what somebody else causes.
	say(t, client, "*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n")
	expect(t, client, "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
	other, _ := pair(t, m, ln)
	say(t, other, "*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$2\r\nhi\r\n")
	expect(t, other, ":1\r\n")
	expect(t, client, "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n")
}
