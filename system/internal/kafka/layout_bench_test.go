package kafka

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// BenchmarkTopicPerGroup measures what the number of topics costs, on kfake or
// on the Kafka that THRONG_KAFKA_BROKERS names: making a topic, joining for all
// of them, a record to a group that is known, and the first record to a group
// that is new, for which every consumer leaves and joins again. topics=0 is the
// hashed layout.
func BenchmarkTopicPerGroup(b *testing.B) {
	for _, n := range []int{0, 100, 1000, 4000} {
		b.Run(fmt.Sprintf("topics=%d", n), func(b *testing.B) { benchTopics(b, n) })
	}
}

func benchTopics(b *testing.B, n int) {
	brokers := strings.Split(os.Getenv("THRONG_KAFKA_BROKERS"), ",")
	if brokers[0] == "" {
		_, brokers = broker(b, 4)
	}
	name, layout := fmt.Sprintf("bench-%d", time.Now().UnixNano()), TopicPerGroup
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	topics, err := NewTopics(brokers, nil, name, 1, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer topics.Close()
	if n == 0 {
		layout = Hashed
		if err := EnsureTopic(ctx, brokers, nil, name, 16, 1); err != nil {
			b.Fatal(err)
		}
	}
	groups := make([]uint64, n)
	for i := range groups {
		groups[i] = uint64(i + 1)
	}
	start := time.Now()
	if err := topics.Ensure(ctx, groups); err != nil {
		b.Fatal(err)
	}
	made := time.Since(start)
	reg := prometheus.NewRegistry()
	c, err := NewConsumer(ConsumerConfig{Brokers: brokers, Topic: name, Layout: layout, Group: name, ClientID: "bench", Metrics: reg})
	if err != nil {
		b.Fatal(err)
	}
	read := make(chan string, 1024)
	var wg sync.WaitGroup
	start = time.Now()
	running, stop := context.WithCancel(ctx)
	wg.Go(func() {
		err := c.Run(running, func(ctx context.Context, p *Partition) {
			for {
				offsets, values, _, err := p.Fetch(ctx)
				if err != nil {
					return
				}
				for _, v := range values {
					read <- string(v)
				}
				p.Commit(offsets[len(offsets)-1] + 1)
			}
		})
		if err != nil {
			b.Error(err)
		}
	})
	defer func() { stop(); wg.Wait() }()
	p, err := NewProducer(ProducerConfig{Brokers: brokers, Topic: name, Layout: layout, Partitions: 16})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	trip := func(group uint64, body string) time.Duration {
		start := time.Now()
		if _, err := produceOf(b, p, int(group%16), group, body); err != nil {
			b.Fatal(err)
		}
		for {
			select {
			case got := <-read:
				if got == body {
					return time.Since(start)
				}
			case <-ctx.Done():
				b.Fatal("a record was not read")
			}
		}
	}
	trip(1, "first") // the consumer has joined
	joined := time.Since(start)
	i := 0
	for b.Loop() {
		i++
		trip(uint64(i%max(n, 1)+1), fmt.Sprint("known ", i))
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(i)/1000, "ms/known")
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(joined.Seconds(), "s/join")
	if layout == Hashed {
		return
	}
	b.ReportMetric(float64(made.Microseconds())/float64(n)/1000, "ms/create")
	const fresh = 3
	start = time.Now()
	for g := range uint64(fresh) {
		id := 1<<32 + g
		if err := topics.Ensure(ctx, []uint64{id}); err != nil {
			b.Fatal(err)
		}
		trip(id, fmt.Sprint("new ", id))
	}
	b.ReportMetric(time.Since(start).Seconds()/fresh, "s/new")
}
