package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafkago "github.com/segmentio/kafka-go"

	"throng/system/internal/obs"
)

// ErrQueueFull is returned by Produce when the partition's queue is at its
// limit: the broker takes less than is offered.
var ErrQueueFull = errors.New("kafka: the partition's queue is full")

// ErrClosed is the result of a record that the producer did not send before it
// was closed.
var ErrClosed = errors.New("kafka: the producer is closed")

// ErrBehind is the result of a record that was queued behind a batch that
// failed. It was not sent.
var ErrBehind = errors.New("kafka: a batch ahead of it in the partition failed")

// ProducerConfig says where a Producer writes. Zero limits mean the defaults.
type ProducerConfig struct {
	Brokers    []string
	Via        Via
	Topic      string
	Partitions int // in layout TopicPerGroup: queues, each with some of the groups
	Layout     Layout
	// Deadline bounds the attempts at one batch; default 10 s: a cluster notices
	// within that time that a broker has died. A batch is tried again, in its
	// place, on errors that may pass. An attempt waits for the replicas for half
	// of what is left: each one that gives up has left a copy in the log.
	Deadline time.Duration
	// Once has each batch tried once: for callers to whom it matters whether a
	// record that is acknowledged can be in the log twice.
	Once bool
	// QueueLimit bounds the records waiting in each partition; default 16,384.
	QueueLimit int
	Log        *slog.Logger
	Metrics    prometheus.Registerer
}

// Producer appends records to explicit partitions of one topic with acks=all.
// Each partition has one loop that takes everything queued into one request
// and has one request in flight, so that the order of the calls is the order
// of the log. With a topic for each group a request holds one group's records.
type Producer struct {
	cfg       ProducerConfig
	client    *kafkago.Client
	transport *kafkago.Transport
	lanes     []*lane
	ctx       context.Context // of all requests; ends in Close
	cancel    context.CancelFunc
	loops     sync.WaitGroup

	queue                    *obs.Queue
	op                       *obs.Op
	records, bytes, requests prometheus.Counter
}

// lane is one partition's queue.
type lane struct {
	partition int
	wake      chan struct{} // capacity 1; never closed

	mu      sync.Mutex
	pending []pending
	closed  bool
}

type pending struct {
	key   uint64
	value []byte
	done  func(offset int64, err error)
}

// NewProducer starts a producer. It does not wait for the broker.
func NewProducer(cfg ProducerConfig) (*Producer, error) {
	if cfg.Partitions <= 0 {
		return nil, fmt.Errorf("kafka: producer for %d partitions", cfg.Partitions)
	}
	if cfg.Deadline <= 0 {
		cfg.Deadline = 10 * time.Second
	}
	if cfg.QueueLimit <= 0 {
		cfg.QueueLimit = 16384
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	cfg.Log = orDiscard(cfg.Log)
	c, transport, err := client(cfg.Brokers, cfg.Via, "throng-producer", cfg.Topic, cfg.Layout)
	if err != nil {
		return nil, err
	}
	c.Timeout = cfg.Deadline // else it asks the broker to give up after 500 ms
	p := &Producer{cfg: cfg, client: c, transport: transport}
	if p.queue, err = obs.NewQueue(cfg.Metrics, "kafka_produce", cfg.QueueLimit*cfg.Partitions); err != nil {
		return nil, err
	}
	if p.records, err = counter(cfg.Metrics, "throng_kafka_produced_records_total", "Records acknowledged by the log."); err != nil {
		return nil, err
	}
	if p.bytes, err = counter(cfg.Metrics, "throng_kafka_produced_bytes_total", "Keys and values of acknowledged records."); err != nil {
		return nil, err
	}
	if p.requests, err = counter(cfg.Metrics, "throng_kafka_produce_requests_total", "Produce requests sent, failed ones included."); err != nil {
		return nil, err
	}
	ops, err := obs.NewOps(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	p.op = ops.Op("kafka.produce")
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for i := range cfg.Partitions {
		l := &lane{partition: i, wake: make(chan struct{}, 1)}
		p.lanes = append(p.lanes, l)
		p.loops.Go(func() { p.run(l) })
	}
	return p, nil
}

// Produce queues a record of a group and returns; done is called exactly once
// from the partition's loop, in the order of the calls, with the record's
// offset when it is durable or with an error. After an error the record may
// still have been appended (a time-out tells nothing), and every record of the
// partition queued before done returned has failed too. done must not block.
// The value must not be changed afterwards.
//
// Produce itself returns ErrQueueFull or ErrClosed, and then done is not called.
func (p *Producer) Produce(partition int, group uint64, value []byte, done func(offset int64, err error)) error {
	if partition < 0 || partition >= len(p.lanes) {
		return fmt.Errorf("kafka: no partition %d of %d", partition, len(p.lanes))
	}
	l := p.lanes[partition]
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return ErrClosed
	case len(l.pending) >= p.cfg.QueueLimit:
		l.mu.Unlock()
		p.queue.Dropped.Inc()
		return ErrQueueFull
	}
	l.pending = append(l.pending, pending{key: group, value: value, done: done})
	l.mu.Unlock()
	p.queue.Depth.Inc()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// Close fails what is queued, waits for the loops and closes the connections.
func (p *Producer) Close() {
	p.cancel()
	p.loops.Wait()
	p.transport.CloseIdleConnections()
}

func (p *Producer) run(l *lane) {
	for {
		select {
		case <-l.wake:
		case <-p.ctx.Done():
			p.fail(l, ErrClosed, true)
			return
		}
		for {
			batch := p.take(l)
			if len(batch) == 0 {
				break
			}
			base, err := p.send(l.partition, batch)
			if err != nil {
				p.cfg.Log.Warn("produce failed", "partition", l.partition, "records", len(batch), "err", err)
				// Callers learn of the failure first: what they queue after
				// that knows of it, what they queued before fails below.
				for _, r := range batch {
					r.done(0, err)
				}
				p.fail(l, ErrBehind, false)
				continue
			}
			for i, r := range batch {
				r.done(base+int64(i), nil)
			}
		}
	}
}

// take removes one request's worth from the queue.
func (p *Producer) take(l *lane) []pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.pending) && n < MaxBatchRecords {
		size += len(l.pending[n].value) + 32
		if n > 0 && (size > MaxBatchBytes || p.cfg.Layout == TopicPerGroup && l.pending[n].key != l.pending[0].key) {
			break
		}
		n++
	}
	batch := l.pending[:n:n]
	l.pending = l.pending[n:]
	if len(l.pending) == 0 {
		l.pending = nil
	}
	p.queue.Depth.Sub(float64(n))
	return batch
}

// fail fails everything that is queued.
func (p *Producer) fail(l *lane, err error, closing bool) {
	l.mu.Lock()
	batch := l.pending
	l.pending = nil
	l.closed = l.closed || closing
	l.mu.Unlock()
	p.queue.Depth.Sub(float64(len(batch)))
	for _, r := range batch {
		r.done(0, err)
	}
}

// send tries one batch until it is acknowledged, its deadline passes, or the
// broker refuses it for good. It returns the offset of the first record.
func (p *Producer) send(partition int, batch []pending) (int64, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.Deadline)
	defer cancel()
	wait := backoff{}
	for {
		base, err := p.attempt(ctx, partition, batch)
		if err == nil {
			return base, nil
		}
		if p.cfg.Once {
			return 0, err
		}
		var kerr kafkago.Error
		if errors.As(err, &kerr) && !kerr.Temporary() {
			return 0, err
		}
		if !wait.sleep(ctx) {
			return 0, err
		}
	}
}

func (p *Producer) attempt(ctx context.Context, partition int, batch []pending) (int64, error) {
	records := make([]kafkago.Record, len(batch))
	size := 0
	for i, r := range batch {
		key := keyOf(r.key)
		records[i] = kafkago.Record{Key: kafkago.NewBytes(key), Value: kafkago.NewBytes(r.value)}
		size += len(key) + len(r.value)
	}
	p.requests.Inc()
	topic := p.cfg.Topic
	if p.cfg.Layout == TopicPerGroup {
		topic, partition = topicOf(topic, batch[0].key), 0
	}
	began := time.Now()
	res, err := p.client.Produce(ctx, &kafkago.ProduceRequest{
		Topic: topic, Partition: partition, RequiredAcks: kafkago.RequireAll,
		Records: kafkago.NewRecordReader(records...),
	})
	p.op.Done(time.Since(began), err != nil || res.Error != nil)
	if err != nil {
		return 0, fmt.Errorf("kafka: partition %d: %w", partition, err)
	}
	if res.Error != nil {
		return 0, fmt.Errorf("kafka: partition %d: %w", partition, res.Error)
	}
	p.records.Add(float64(len(batch)))
	p.bytes.Add(float64(size))
	return res.BaseOffset, nil
}
