package system

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"throng/system/internal/gateway"
	"throng/system/internal/kafka"
	"throng/system/internal/message"
	"throng/system/wire"
)

// maker builds one instance of a role.
type maker struct {
	*Config
	key  wire.Key
	i    int
	log  *slog.Logger
	reg  prometheus.Registerer
	made built
}

// build makes instance i of a role with its adapters. After an error nothing
// is left open.
func (c *Config) build(r Role, i int, log *slog.Logger, reg prometheus.Registerer) (built, error) {
	key, err := wire.ParseKey(c.Key)
	if err != nil {
		return built{}, err
	}
	m := &maker{Config: c, key: key, i: i, log: log, reg: reg}
	switch r {
	case Gateway:
		m.made.runner, err = m.gateway()
	case Message:
		m.made.runner, err = m.message()
	default:
		err = fmt.Errorf("there is no role %q", r)
	}
	if err != nil {
		m.made.closeAll(log)
		return built{}, err
	}
	return m.made, nil
}

// plant returns the planted bug if it is one of those given, which are the
// ones that this role has.
func (m *maker) plant(own ...string) string {
	for _, p := range own {
		if m.Plant == p {
			m.log.Error("a bug is planted: this is no production system", "plant", p)
			return p
		}
	}
	return ""
}

func (m *maker) messageAddrs() (addrs []string) {
	for _, in := range m.Messages {
		addrs = append(addrs, in.RPC)
	}
	return addrs
}

func (m *maker) groupAddrs() (addrs []string) {
	for _, in := range m.Groups {
		addrs = append(addrs, in.RPC)
	}
	return addrs
}

func (m *maker) inboxAddrs() (addrs []string) {
	for _, in := range m.Inboxes {
		addrs = append(addrs, in.RPC)
	}
	return addrs
}

func (m *maker) pushAddrs() (addrs []string) {
	for _, in := range m.Pushes {
		addrs = append(addrs, in.RPC)
	}
	return addrs
}

func (m *maker) gateway() (runner, error) {
	id := m.Gateways[m.i].ID
	if id == "" {
		id = fmt.Sprintf("gateway-%d", m.i)
	}
	return gateway.New(gateway.Config{
		ID: id, Key: m.key, Messages: m.messageAddrs(), Inboxes: m.inboxAddrs(),
		Log: m.log, Metrics: m.reg,
	})
}

func (m *maker) message() (runner, error) {
	producer, err := m.producer()
	if err != nil {
		return nil, err
	}
	svc, err := message.New(message.Config{
		Instance: m.i, Key: m.key, Inboxes: m.inboxAddrs(), Groups: m.groupAddrs(),
		Producer: producer, Partitions: m.Kafka.Partitions,
		Plant: m.plant(message.PlantAckEarly), Log: m.log, Metrics: m.reg,
	})
	if err != nil {
		return nil, err
	}
	return m.needsTopic(svc), nil
}

// producer opens a producer to the groups' topic, closed after the role.
func (m *maker) producer() (*kafka.Producer, error) {
	p, err := kafka.NewProducer(kafka.ProducerConfig{
		Brokers: m.Kafka.Brokers, Topic: m.Kafka.Topic, Partitions: m.Kafka.Partitions,
		Log: m.log, Metrics: m.reg,
	})
	if err != nil {
		return nil, err
	}
	m.made.close = append(m.made.close, func() error { p.Close(); return nil })
	return p, nil
}

// topicChecked runs a role that uses the groups' topic, and meanwhile makes
// sure that the topic exists with the right number of partitions.
type topicChecked struct {
	runner
	ensure  func(context.Context) error
	checked atomic.Bool
}

func (m *maker) needsTopic(r runner) runner {
	k := m.Kafka
	return &topicChecked{runner: r, ensure: func(ctx context.Context) error {
		return kafka.EnsureTopic(ctx, k.Brokers, k.Topic, k.Partitions, max(k.Replication, 1))
	}}
}

func (t *topicChecked) Run(ctx context.Context, ln net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.runner.Run(ctx, ln) })
	g.Go(func() error {
		err := t.ensure(ctx)
		if err == nil {
			t.checked.Store(true)
			return nil
		}
		if ctx.Err() != nil {
			return nil // told to stop before the broker answered
		}
		return err
	})
	return g.Wait()
}

func (t *topicChecked) Ready() error {
	if !t.checked.Load() {
		return errors.New("kafka: the topic of the groups has not been seen yet")
	}
	return t.runner.Ready()
}

// openTimeout bounds the opening of a database.
const openTimeout = 10 * time.Second
