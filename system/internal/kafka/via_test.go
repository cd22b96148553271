package kafka

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// comers notes where the connections to a listener come from.
type comers struct {
	net.Listener
	mu   sync.Mutex
	from []string
}

func (c *comers) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.mu.Lock()
		c.from = append(c.from, conn.RemoteAddr().String())
		c.mu.Unlock()
	}
	return conn, err
}

// tunnel forwards connections and notes from where it makes its own.
func tunnel(t *testing.T, to string) (addr string, made func() map[string]bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	from := map[string]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			from[out.LocalAddr().String()] = true
			mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				wg.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String(), func() map[string]bool {
		mu.Lock()
		defer mu.Unlock()
		return from
	}
}

// TestVia: everybody reaches the broker where Via says, also where the broker
// itself says where it is: as a leader, as a coordinator, as a controller.
func TestVia(t *testing.T) {
	var seen *comers
	_, brokers := broker(t, 1, kfake.ListenFn(func(network, addr string) (net.Listener, error) {
		ln, err := net.Listen(network, addr)
		seen = &comers{Listener: ln}
		return seen, err
	}))
	at, made := tunnel(t, brokers[0])
	via := Via{brokers[0]: at}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	const topic = "far"
	if err := EnsureTopic(ctx, brokers, via, topic, 1, 1); err != nil {
		t.Fatal(err)
	}
	topics, err := NewTopics(brokers, via, topic, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(topics.Close)
	if err := topics.Ensure(ctx, []uint64{7}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, brokers, 1, func(c *ProducerConfig) { c.Topic, c.Via = topic, via })
	if _, err := produce(t, p, 0, "hello"); err != nil {
		t.Fatal(err)
	}
	c, err := NewConsumer(ConsumerConfig{Brokers: brokers, Via: via, Topic: topic, Group: "g", ClientID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Run(ctx, func(ctx context.Context, part *Partition) {
		if _, values, _, err := part.Fetch(ctx); err != nil || string(values[0]) != "hello" {
			t.Errorf("read %q: %v", values, err)
		}
		cancel()
	})
	if err != nil {
		t.Fatal(err)
	}
	through := made()
	if len(through) < 3 {
		t.Errorf("only %d connections went through the tunnel", len(through))
	}
	seen.mu.Lock()
	defer seen.mu.Unlock()
	for _, from := range seen.from {
		if !through[from] {
			t.Errorf("a connection from %s did not go through the tunnel", from)
		}
	}
}
