package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
)

const topic = "messages"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker starts a broker with the topic, at a free port or the one given.
func broker(t testing.TB, partitions int, opts ...kfake.Opt) (*kfake.Cluster, []string) {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(int32(partitions), topic)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, c.ListenAddrs()
}

// log is a topic that a test has for itself, and the name of a consumer group.
type log struct {
	brokers      []string
	topic, group string
}

func (l log) producer(t testing.TB, partitions int) *Producer {
	return producer(t, l.brokers, partitions, func(c *ProducerConfig) { c.Topic = l.topic })
}

// conformance runs a test on kfake, and on the Kafka that THRONG_KAFKA_BROKERS
// names (host:port, separated by commas).
func conformance(t *testing.T, partitions int, test func(t *testing.T, l log)) {
	t.Run("kfake", func(t *testing.T) {
		_, brokers := broker(t, partitions)
		test(t, log{brokers, topic, "g"})
	})
	t.Run("kafka", func(t *testing.T) {
		brokers := os.Getenv("THRONG_KAFKA_BROKERS")
		if brokers == "" {
			t.Skip("THRONG_KAFKA_BROKERS is not set")
		}
		name := fmt.Sprintf("throng-test-%d", time.Now().UnixNano())
		l := log{strings.Split(brokers, ","), name, name}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for range 2 { // made, and found
			if err := EnsureTopic(ctx, l.brokers, nil, l.topic, partitions, 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := EnsureTopic(ctx, l.brokers, nil, l.topic, partitions+1, 1); !errors.Is(err, errPartitions) {
			t.Fatalf("%d partitions wanted where there are %d: %v", partitions+1, partitions, err)
		}
		test(t, l)
	})
}

func producer(t testing.TB, brokers []string, partitions int, edit func(*ProducerConfig)) *Producer {
	t.Helper()
	cfg := ProducerConfig{Brokers: brokers, Topic: topic, Partitions: partitions}
	if edit != nil {
		edit(&cfg)
	}
	p, err := NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// produce writes a record of group 1 and waits for its result.
func produce(t testing.TB, p *Producer, partition int, value string) (int64, error) {
	t.Helper()
	return produceOf(t, p, partition, 1, value)
}

func produceOf(t testing.TB, p *Producer, partition int, group uint64, value string) (int64, error) {
	t.Helper()
	type result struct {
		offset int64
		err    error
	}
	ch := make(chan result, 1)
	if err := p.Produce(partition, group, []byte(value), func(o int64, err error) { ch <- result{o, err} }); err != nil {
		return 0, err
	}
	select {
	case r := <-ch:
		return r.offset, r.err
	case <-time.After(20 * time.Second):
		t.Fatal("no result of a produced record")
		return 0, nil
	}
}

func TestProducerKeepsOrderAndConsumerReadsIt(t *testing.T) {
	conformance(t, 3, keepsOrder)
}

func keepsOrder(t *testing.T, l log) {
	const partitions, each = 3, 500
	p := l.producer(t, partitions)
	var mu sync.Mutex
	var wg sync.WaitGroup
	offsets := make([][]int64, partitions)
	for i := range partitions * each {
		part := i % partitions
		wg.Add(1)
		err := p.Produce(part, uint64(part), []byte(strconv.Itoa(i)), func(o int64, err error) {
			defer wg.Done()
			if err != nil {
				t.Errorf("record %d: %v", i, err)
			}
			mu.Lock()
			offsets[part] = append(offsets[part], o)
			mu.Unlock()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	for part, got := range offsets {
		for i, o := range got {
			if o != int64(i) {
				t.Fatalf("partition %d: result %d has offset %d", part, i, o)
			}
		}
	}

	c, err := NewConsumer(ConsumerConfig{Brokers: l.brokers, Topic: l.topic, Group: l.group})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var left sync.WaitGroup
	left.Add(partitions)
	go func() { left.Wait(); cancel() }()
	err = c.Run(ctx, func(ctx context.Context, part *Partition) {
		defer func() { <-ctx.Done() }()
		defer left.Done()
		for n := 0; n < each; {
			offs, values, high, err := part.Fetch(ctx)
			if err != nil {
				t.Errorf("partition %d after %d: %v", part.ID(), n, err)
				return
			}
			if high != each {
				t.Errorf("partition %d: high watermark %d", part.ID(), high)
			}
			for i, o := range offs {
				if want := strconv.Itoa(n*partitions + part.ID()); o != int64(n) || string(values[i]) != want {
					t.Errorf("partition %d: record %d is %q at %d, want %q", part.ID(), n, values[i], o, want)
				}
				n++
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestConsumerResumesAtTheCommit: what was committed is not read again, what
// was not is.
func TestConsumerResumesAtTheCommit(t *testing.T) {
	conformance(t, 1, resumes)
}

func resumes(t *testing.T, l log) {
	p := l.producer(t, 1)
	for i := range 10 {
		if _, err := produce(t, p, 0, strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
	}
	first := func(commit int64) int64 {
		c, err := NewConsumer(ConsumerConfig{Brokers: l.brokers, Topic: l.topic, Group: l.group})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var got int64 = -1
		err = c.Run(ctx, func(ctx context.Context, part *Partition) {
			offs, _, _, err := part.Fetch(ctx)
			if err != nil {
				t.Errorf("fetch: %v", err)
			} else {
				got = offs[0]
			}
			part.Commit(commit)
			part.Commit(commit - 2) // an older watermark changes nothing
			cancel()
			<-ctx.Done()
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := first(4); got != 0 {
		t.Fatalf("started at %d, want 0", got)
	}
	if got := first(7); got != 4 {
		t.Fatalf("resumed at %d, want 4", got)
	}
	if got := first(7); got != 7 {
		t.Fatalf("resumed at %d, want 7", got)
	}
}

// TestFailureFailsWhatIsBehind: a batch that the broker refuses takes with it
// everything queued behind it, and nothing of that reaches the log.
func TestFailureFailsWhatIsBehind(t *testing.T) {
	cluster, brokers := broker(t, 1)
	p := producer(t, brokers, 1, nil)
	if _, err := produce(t, p, 0, "first"); err != nil {
		t.Fatal(err)
	}
	hold, refused := make(chan struct{}), make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		close(refused)
		<-hold
		r := req.(*kmsg.ProduceRequest)
		res := r.ResponseKind().(*kmsg.ProduceResponse)
		for _, rt := range r.Topics {
			st := kmsg.NewProduceResponseTopic()
			st.Topic, st.TopicID = rt.Topic, rt.TopicID
			sp := kmsg.NewProduceResponseTopicPartition()
			sp.ErrorCode = 87 // INVALID_RECORD: not to be tried again
			st.Partitions = append(st.Partitions, sp)
			res.Topics = append(res.Topics, st)
		}
		return res, nil, true
	})
	var wg sync.WaitGroup
	errs := make([]error, 3)
	queue := func(i int) {
		wg.Add(1)
		if err := p.Produce(0, 1, []byte(fmt.Sprint("r", i)), func(_ int64, err error) { errs[i] = err; wg.Done() }); err != nil {
			t.Fatal(err)
		}
	}
	queue(0)
	<-refused
	queue(1)
	queue(2)
	close(hold)
	wg.Wait()
	if !errors.Is(errs[0], kafkago.Error(87)) || !errors.Is(errs[1], ErrBehind) || !errors.Is(errs[2], ErrBehind) {
		t.Fatalf("results %v, want the refusal and twice %v", errs, ErrBehind)
	}
	if o, err := produce(t, p, 0, "after"); err != nil || o != 1 {
		t.Fatalf("offset %d, %v; want 1: nothing of the failed records", o, err)
	}
}

// TestWaitsForTheBroker: producer, consumer and EnsureTopic are started before
// the broker is, and again work after it has been away.
func TestWaitsForTheBroker(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	brokers := []string{fmt.Sprintf("127.0.0.1:%d", port)}
	dir := t.TempDir()
	start := func() *kfake.Cluster {
		c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port), kfake.DataDir(dir))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	p := producer(t, brokers, 2, func(c *ProducerConfig) { c.Deadline = 15 * time.Second })
	c, err := NewConsumer(ConsumerConfig{Brokers: brokers, Topic: topic, Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	got := make(chan string, 10)
	wg.Go(func() {
		_ = c.Run(ctx, func(ctx context.Context, part *Partition) {
			for {
				offs, values, _, err := part.Fetch(ctx)
				if err != nil {
					return
				}
				for _, v := range values {
					got <- string(v)
				}
				part.Commit(offs[len(offs)-1] + 1)
			}
		})
	})
	ensured := make(chan error, 1)
	ensure := func() { wg.Go(func() { ensured <- EnsureTopic(ctx, brokers, nil, topic, 2, 1) }) }
	expect := func(want string) {
		t.Helper()
		for {
			select {
			case v := <-got:
				if v == want {
					return
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%q did not come", want)
			}
		}
	}

	cluster := start()
	// The consumer has time to find that there is no such topic yet.
	seen := make(chan struct{})
	var once sync.Once
	cluster.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		once.Do(func() { close(seen) })
		return nil, nil, false
	})
	<-seen
	<-time.After(100 * time.Millisecond)
	ensure()
	if err := <-ensured; err != nil {
		t.Fatal(err)
	}
	if err := EnsureTopic(ctx, brokers, nil, topic, 3, 1); !errors.Is(err, errPartitions) {
		t.Fatalf("3 partitions wanted where there are 2: %v", err)
	}
	if _, err := produce(t, p, 1, "one"); err != nil {
		t.Fatal(err)
	}
	expect("one")

	cluster.Close()
	done := make(chan error, 1)
	if err := p.Produce(1, 1, []byte("two"), func(_ int64, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	cluster = start()
	defer cluster.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	expect("two")
}

func TestClosedProducer(t *testing.T) {
	p := producer(t, []string{"127.0.0.1:1"}, 1, nil)
	done := make(chan error, 1)
	if err := p.Produce(0, 1, nil, func(_ int64, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if err := <-done; err == nil {
		t.Fatal("a record without a broker was acknowledged")
	}
	if err := p.Produce(0, 1, nil, func(int64, error) {}); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

func TestQueueLimit(t *testing.T) {
	p := producer(t, []string{"127.0.0.1:1"}, 1, func(c *ProducerConfig) { c.QueueLimit = 4 })
	var full bool
	for range 4 + MaxBatchRecords { // a batch may be in flight
		if err := p.Produce(0, 1, nil, func(int64, error) {}); errors.Is(err, ErrQueueFull) {
			full = true
			break
		}
	}
	if !full {
		t.Fatal("the queue has no limit")
	}
}

// TestRemovesItsPredecessor: a consumer that comes back after a kill does not
// wait for the session of its former self to time out, and leaves others alone.
// TestConsumerAfterItsCoordinator: a member that could not leave because nobody
// coordinates the group does not hold it up when somebody does again.
func TestConsumerAfterItsCoordinator(t *testing.T) {
	cluster, brokers := broker(t, 1)
	var away, asked atomic.Bool
	cluster.Control(func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if !away.Load() {
			return nil, nil, false
		}
		switch r := req.(type) {
		case *kmsg.FindCoordinatorRequest:
			asked.Store(true)
			res := r.ResponseKind().(*kmsg.FindCoordinatorResponse)
			res.ErrorCode = int16(kafkago.GroupCoordinatorNotAvailable)
			return res, nil, true
		case *kmsg.HeartbeatRequest:
			res := r.ResponseKind().(*kmsg.HeartbeatResponse)
			res.ErrorCode = int16(kafkago.NotCoordinatorForGroup)
			return res, nil, true
		}
		return nil, nil, false
	})
	c, err := NewConsumer(ConsumerConfig{Brokers: brokers, Topic: topic, Group: "g", ClientID: "one",
		SessionTimeout: 30 * time.Second, Heartbeat: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	assigned, revoked := make(chan struct{}, 10), make(chan struct{}, 10)
	wg.Go(func() {
		if err := c.Run(ctx, func(ctx context.Context, _ *Partition) {
			assigned <- struct{}{}
			<-ctx.Done()
			revoked <- struct{}{}
		}); err != nil {
			t.Error(err)
		}
	})
	expect := func(ch chan struct{}, what string) {
		t.Helper()
		select {
		case <-ch:
		case <-time.After(10 * time.Second):
			t.Fatal(what)
		}
	}
	expect(assigned, "no partition was assigned")
	away.Store(true)
	expect(revoked, "it goes on without a coordinator")
	for end := time.Now().Add(10 * time.Second); !asked.Load(); {
		if time.Now().After(end) {
			t.Fatal("it does not look for a coordinator")
		}
		<-time.After(10 * time.Millisecond)
	}
	away.Store(false)
	expect(assigned, "the group waits for the member that could not leave")
}

// TestOnce: a batch whose answer leaves it open is not tried again.
func TestOnce(t *testing.T) {
	cluster, brokers := broker(t, 1)
	var timeouts []int32 // of kfake's goroutine, until the result is there
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		r := req.(*kmsg.ProduceRequest)
		if timeouts = append(timeouts, r.TimeoutMillis); len(timeouts) > 4 {
			return nil, nil, false // it takes this one
		}
		res := r.ResponseKind().(*kmsg.ProduceResponse)
		for _, rt := range r.Topics {
			st := kmsg.NewProduceResponseTopic()
			st.Topic, st.TopicID = rt.Topic, rt.TopicID
			sp := kmsg.NewProduceResponseTopicPartition()
			sp.ErrorCode = int16(kafkago.RequestTimedOut)
			st.Partitions = append(st.Partitions, sp)
			res.Topics = append(res.Topics, st)
		}
		return res, nil, true
	})
	once := producer(t, brokers, 1, func(c *ProducerConfig) { c.Once = true })
	if _, err := produce(t, once, 0, "x"); !errors.Is(err, kafkago.RequestTimedOut) || len(timeouts) != 1 {
		t.Errorf("%v after %d attempts", err, len(timeouts))
	}
	if timeouts[0] < 4000 || timeouts[0] > 5000 {
		t.Errorf("the broker waits for its replicas for %d ms, want half of the deadline", timeouts[0])
	}
	again := producer(t, brokers, 1, nil)
	if _, err := produce(t, again, 0, "x"); err != nil || len(timeouts) != 5 {
		t.Errorf("%v after %d attempts, want the fourth to succeed", err, len(timeouts)-1)
	}
}

func TestRemovesItsPredecessor(t *testing.T) {
	conformance(t, 2, removesPredecessor)
}

func removesPredecessor(t *testing.T, l log) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	start := func(clientID string, heartbeat time.Duration) (assigned chan int) {
		c, err := NewConsumer(ConsumerConfig{Brokers: l.brokers, Topic: l.topic, Group: l.group, ClientID: clientID,
			SessionTimeout: 20 * time.Second, Heartbeat: heartbeat})
		if err != nil {
			t.Fatal(err)
		}
		assigned = make(chan int, 100)
		wg.Go(func() {
			if err := c.Run(ctx, func(ctx context.Context, p *Partition) { assigned <- p.ID(); <-ctx.Done() }); err != nil {
				t.Error(err)
			}
		})
		return assigned
	}
	await := func(assigned chan int, within time.Duration) {
		t.Helper()
		select {
		case <-assigned:
		case <-time.After(within):
			t.Fatal("no partition was assigned")
		}
	}
	dead := start("one", time.Hour) // never says a word again
	await(dead, 10*time.Second)
	await(dead, time.Second)
	again := start("one", 100*time.Millisecond)
	await(again, 5*time.Second)
	await(again, 5*time.Second)
	other := start("two", 100*time.Millisecond)
	await(other, 5*time.Second)
	await(again, 5*time.Second) // it kept its place beside the other one
}
