// Package kafka is the log of the groups' messages on Apache Kafka, through
// segmentio/kafka-go: a producer that keeps the order of each partition, a
// consumer that commits only what it is told, and the creation of the topic.
// It owns no decision about content: keys, values and partitions are its
// callers'. It may import no role.
package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafkago "github.com/segmentio/kafka-go"

	"throng/system/internal/obs"
)

// Limits of one batch, in either direction.
const (
	// MaxBatchBytes bounds the keys and values of one produce request: under
	// the broker's default message.max.bytes of 1,048,588.
	MaxBatchBytes = 900 << 10
	// MaxBatchRecords bounds the records of one produce request.
	MaxBatchRecords = 4096
)

const (
	minBackoff  = 20 * time.Millisecond
	maxBackoff  = 250 * time.Millisecond
	metadataTTL = 2 * time.Second // bounds how long a moved leader goes unnoticed
	topicsTTL   = time.Second     // and how long a new topic does
)

// Via is where this process reaches brokers that call themselves otherwise, as
// behind a tunnel or an address translation: host:port by the host:port that the
// cluster's metadata says. A broker that is not in it is reached as it says.
type Via map[string]string

// dial connects to a broker.
func (v Via) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if other, ok := v[addr]; ok {
		addr = other
	}
	d := net.Dialer{Timeout: time.Second}
	return d.DialContext(ctx, network, addr)
}

// client returns a Kafka client and the transport to close when it is done.
func client(brokers []string, via Via, clientID, topic string, layout Layout) (*kafkago.Client, *kafkago.Transport, error) {
	if len(brokers) == 0 {
		return nil, nil, errors.New("kafka: no brokers given")
	}
	if topic == "" {
		return nil, nil, errors.New("kafka: no topic given")
	}
	transport := &kafkago.Transport{
		Dial:        via.dial,
		DialTimeout: 2 * time.Second,
		IdleTimeout: time.Minute,
		MetadataTTL: metadataTTL,
		ClientID:    clientID,
	}
	if layout == TopicPerGroup {
		transport.MetadataTTL = topicsTTL // of all topics: nobody can list them
	} else {
		transport.MetadataTopics = []string{topic}
	}
	return &kafkago.Client{Addr: kafkago.TCP(brokers...), Transport: transport}, transport, nil
}

// EnsureTopic creates the topic with that many partitions, or checks that it
// has them: their number is fixed for life, because the order of a group's
// messages is its partition's. It waits for the broker until ctx is done.
func EnsureTopic(ctx context.Context, brokers []string, via Via, topic string, partitions, replication int) error {
	c, transport, err := client(brokers, via, "throng-topic", topic, Hashed)
	if err != nil {
		return err
	}
	defer transport.CloseIdleConnections()
	wait := backoff{}
	for {
		err := ensureTopic(ctx, c, topic, partitions, replication)
		if err == nil || errors.Is(err, errPartitions) {
			return err
		}
		if !wait.sleep(ctx) {
			return fmt.Errorf("kafka: topic %s on %s: %w", topic, strings.Join(brokers, ","), err)
		}
	}
}

var errPartitions = errors.New("kafka: the topic exists with another number of partitions")

func ensureTopic(ctx context.Context, c *kafkago.Client, topic string, partitions, replication int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	res, err := c.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{
		Topic: topic, NumPartitions: partitions, ReplicationFactor: replication,
	}}})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	err = res.Errors[topic]
	if err == nil {
		return nil
	}
	if !errors.Is(err, kafkago.TopicAlreadyExists) {
		return fmt.Errorf("create: %w", err)
	}
	// The transport answers metadata from a cache that may be older than the
	// topic; then the caller tries again.
	meta, err := c.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	for _, t := range meta.Topics {
		if t.Name != topic {
			continue
		}
		if t.Error != nil {
			return fmt.Errorf("metadata: %w", t.Error)
		}
		if len(t.Partitions) != partitions {
			return fmt.Errorf("%w: %s has %d, wanted %d", errPartitions, topic, len(t.Partitions), partitions)
		}
		return nil
	}
	return fmt.Errorf("metadata: %w", kafkago.UnknownTopicOrPartition)
}

// backoff is an exponential wait between minBackoff and maxBackoff.
type backoff struct{ next time.Duration }

func (b *backoff) reset() { b.next = 0 }

// sleep waits and reports whether ctx is still alive.
func (b *backoff) sleep(ctx context.Context) bool {
	b.next = min(max(2*b.next, minBackoff), maxBackoff)
	t := time.NewTimer(b.next)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// keyOf is the record key of a group: its id, big endian.
func keyOf(group uint64) []byte { return binary.BigEndian.AppendUint64(nil, group) }

func counter(reg prometheus.Registerer, name, help string) (prometheus.Counter, error) {
	c, err := obs.Register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return c, nil
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
