package system

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"throng/system/internal/blob"
	"throng/system/internal/certs"
	"throng/system/internal/fanout"
	"throng/system/internal/gateway"
	"throng/system/internal/group"
	"throng/system/internal/groupcache"
	"throng/system/internal/groupsql"
	"throng/system/internal/inbox"
	"throng/system/internal/inboxsql"
	"throng/system/internal/kafka"
	"throng/system/internal/media"
	"throng/system/internal/mediasql"
	"throng/system/internal/message"
	"throng/system/internal/obs"
	"throng/system/internal/push"
	"throng/system/internal/rpc"
	"throng/system/internal/session"
	"throng/system/wire"
)

// maker builds one instance of a role.
type maker struct {
	*Config
	key     wire.Key
	oldKeys wire.Keys
	i       int
	log     *slog.Logger
	reg     prometheus.Registerer
	id      *rpc.Identity // nil: no TLS between roles
	// tracer is nil where nothing is traced.
	tracer *obs.Tracer
	made   built
}

// build makes instance i of a role with its adapters. After an error nothing
// is left open.
func (c *Config) build(r Role, i int, log *slog.Logger, reg prometheus.Registerer) (built, error) {
	keys, err := c.keys()
	if err != nil {
		return built{}, err
	}
	m := &maker{Config: c, key: keys[0], oldKeys: keys[1:], i: i, log: log, reg: reg}
	if c.RPCTLS != (RPCTLS{}) {
		if m.id, err = rpc.NewIdentity(string(r), c.RPCTLS.of(r), log, reg); err != nil {
			return built{}, fmt.Errorf("rpc_tls: %w", err)
		}
	}
	if m.tracer, err = obs.NewTracer(obs.TraceConfig(c.Tracing), string(r), i, reg, log); err != nil {
		return built{}, err
	}
	m.closes(m.tracer.Close)
	switch r {
	case Gateway:
		m.made.runner, err = m.gateway()
	case Message:
		m.made.runner, err = m.message()
	case Fanout:
		m.made.runner, err = m.fanout()
	case Group:
		m.made.runner, err = m.group()
	case Inbox:
		m.made.runner, err = m.inbox()
	case Push:
		m.made.runner, err = m.push()
	case Media:
		m.made.runner, err = m.media()
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
	var cfg *tls.Config
	if in := m.Gateways[m.i]; in.TLSCert != "" {
		store, err := certs.Open(certs.Files{Cert: in.TLSCert, Key: in.TLSKey}, m.log)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate: %w", id, err)
		}
		cfg = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &store.Current().Cert, nil
		}}
	}
	set := m.Settings
	sessions, err := session.New(session.Config{Addr: m.Redis.Addr, LeaseTTL: time.Duration(set.LeaseTTL), Log: m.log, Metrics: m.reg})
	if err != nil {
		return nil, err
	}
	m.closes(func() error { sessions.Close(); return nil })
	sources, err := set.sources()
	if err != nil {
		return nil, err
	}
	return gateway.New(gateway.Config{
		ID: id, Key: m.key, OldKeys: m.oldKeys, Messages: m.messageAddrs(), Inboxes: m.inboxAddrs(), Groups: m.groupAddrs(),
		TLS: cfg, Sessions: sessions, AllowedOrigins: set.AllowedOrigins, StampEvery: set.StampEvery,
		Sources: sources, Tracer: m.tracer,
		Limits: gateway.Limits{
			AddressConnections: set.AddressConnections, AddressConnectRate: set.AddressConnectsPerSecond, AddressConnectBurst: set.AddressConnectBurst,
			AddressFailureRate: set.AddressFailuresPerSecond, AddressFailureBurst: set.AddressFailureBurst,
			UserConnections: set.UserConnections, UserSendRate: set.UserSendsPerSecond, UserSendBurst: set.UserSendBurst,
			UserByteRate: set.UserBytesPerSecond, UserByteBurst: set.UserByteBurst, HandshakeTimeout: time.Duration(set.HandshakeTimeout),
			MaxConnections: set.MaxConnections, FramesPerSecond: set.FramesPerSecond, FrameBurst: set.FrameBurst,
			IdleTimeout: time.Duration(set.IdleTimeout), IdleIOS: time.Duration(set.IdleTimeoutIOS),
			IdleAndroid: time.Duration(set.IdleTimeoutAndroid), DrainTimeout: time.Duration(set.DrainTimeout), DrainJitter: time.Duration(set.DrainJitter),
		},
		Identity: m.id, Log: m.log, Metrics: m.reg,
	})
}

func (m *maker) message() (runner, error) {
	producer, err := m.producer(false)
	if err != nil {
		return nil, err
	}
	svc, err := message.New(message.Config{
		Instance: m.i, Key: m.key, OldKeys: m.oldKeys, Inboxes: m.inboxAddrs(), Groups: m.groupAddrs(),
		Producer: producer, Partitions: m.Kafka.Partitions,
		Plant: m.plant(message.PlantAckEarly), Tracer: m.tracer, Identity: m.id, Log: m.log, Metrics: m.reg,
	})
	if err != nil {
		return nil, err
	}
	return m.needsTopic(svc), nil
}

// consumer lets the fan-out see the adapter's partitions as its own interface.
type consumer struct{ *kafka.Consumer }

func (c consumer) Run(ctx context.Context, handle func(context.Context, fanout.Partition)) error {
	return c.Consumer.Run(ctx, func(ctx context.Context, p *kafka.Partition) { handle(ctx, p) })
}

func (m *maker) fanout() (runner, error) {
	c, err := kafka.NewConsumer(kafka.ConsumerConfig{
		Brokers: m.Kafka.Brokers, Via: m.Kafka.Via, Topic: m.Kafka.Topic, Layout: kafka.Layout(m.Kafka.Layout), Group: m.Kafka.Topic + "-fanout",
		ClientID: fmt.Sprintf("throng-fanout-%d", m.i),
		Log:      m.log, Metrics: m.reg,
	})
	if err != nil {
		return nil, err
	}
	f, err := fanout.New(fanout.Config{
		Instance: m.i, Consumer: consumer{c}, Inboxes: m.inboxAddrs(), Groups: m.groupAddrs(), Key: m.key,
		MaxInFlight: m.Settings.FanoutInFlight,
		Plant:       m.plant(fanout.PlantCommitEarly, fanout.PlantExMember), Tracer: m.tracer, Identity: m.id, Log: m.log, Metrics: m.reg,
	})
	if err != nil {
		return nil, err
	}
	return m.needsTopic(f), nil
}

func (m *maker) group() (runner, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	at := m.GroupSQL
	sqlConfig := groupsql.Config{Driver: at.Driver, DSN: at.DSN,
		At: groupsql.Place{Zone: m.Groups[m.i].Zone, Region: m.Groups[m.i].Region}, PrimaryAt: groupsql.Place{Zone: at.Zone, Region: at.Region},
		MaxLag: time.Duration(m.Settings.ReplicaMaxLag), Metrics: m.reg}
	for _, r := range at.Replicas {
		sqlConfig.Replicas = append(sqlConfig.Replicas, groupsql.Replica{DSN: r.DSN, At: groupsql.Place{Zone: r.Zone, Region: r.Region}})
	}
	store, err := groupsql.Open(ctx, sqlConfig)
	if err != nil {
		return nil, err
	}
	m.closes(store.Close)
	cache, err := groupcache.New(groupcache.Config{Addr: m.Redis.Addr, Metrics: m.reg})
	if err != nil {
		return nil, err
	}
	m.closes(func() error { cache.Close(); return nil })
	producer, err := m.producer(true) // the outbox tries again
	if err != nil {
		return nil, err
	}
	topics, err := m.topics()
	if err != nil {
		return nil, err
	}
	svc, err := group.New(group.Config{
		Instance: m.i, Key: m.key, OldKeys: m.oldKeys, Store: store, Cache: cache, Topics: topics,
		Producer: producer, Partitions: m.Kafka.Partitions, Inboxes: m.inboxAddrs(), Groups: m.groupAddrs(),
		CreationsPerHour: m.Settings.UserGroupsPerHour, Identity: m.id, Log: m.log, Metrics: m.reg,
	})
	if err != nil {
		return nil, err
	}
	m.made.http = svc.Admin()
	return m.needsTopic(svc), nil
}

func (m *maker) inbox() (runner, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	at, set := m.Inboxes[m.i].SQL, m.Settings
	stores, err := inboxsql.Open(ctx, inboxsql.Config{Driver: at.Driver, DSN: at.DSN, Metrics: m.reg})
	if err != nil {
		return nil, err
	}
	m.closes(stores.Close)
	return inbox.New(inbox.Config{
		Instance: m.i, Instances: len(m.Inboxes), Stores: stores.Stores(), Peers: m.inboxAddrs(), Push: m.pushAddrs(),
		Limits: inbox.Limits{
			AckTimeout: time.Duration(set.AckTimeout), PushDelay: time.Duration(set.PushDelay), PushEvery: time.Duration(set.PushEvery),
			Expiry: time.Duration(set.InboxExpiry), InFlight: set.DeviceInFlight, DeviceRows: set.DeviceRows,
		},
		Plant: m.plant(inbox.PlantDrop), Tracer: m.tracer, Identity: m.id, Log: m.log, Metrics: m.reg,
	})
}

// fcmQuota is the default quota of an FCM project, in pushes a minute.
const fcmQuota = 600_000

func (m *maker) push() (runner, error) {
	quota := m.Settings.PushQuotaPerMinute
	if quota == 0 {
		quota = fcmQuota
	}
	letters := ""
	if folder := m.Provider.DeadLetters; folder != "" {
		letters = filepath.Join(folder, fmt.Sprintf("dead-letters-%d.jsonl", m.i))
	}
	p, err := push.New(push.Config{
		Provider: m.Provider.URL, QuotaPerMinute: max(1, quota/len(m.Pushes)),
		Attempts: m.Settings.PushAttempts, DeadLetters: letters, DeadLetterBytes: m.Settings.DeadLetterBytes,
		DeadLetterAge: time.Duration(m.Settings.DeadLetterAge), Identity: m.id, Log: m.log, Metrics: m.reg,
	})
	if err != nil {
		return nil, err
	}
	m.closes(p.Close)
	m.made.pages = map[string]http.HandlerFunc{"GET /dead-letters": p.ServeDeadLetters}
	return p, nil
}

func (m *maker) media() (runner, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	at, set := m.MediaStore, m.Settings
	store, err := mediasql.Open(ctx, mediasql.Config{Driver: at.SQL.Driver, DSN: at.SQL.DSN, Metrics: m.reg})
	if err != nil {
		return nil, err
	}
	m.closes(store.Close)
	blobs, err := blob.Open(ctx, at.Blobs)
	if err != nil {
		return nil, err
	}
	m.closes(blobs.Close)
	sources, err := set.sources()
	if err != nil {
		return nil, err
	}
	return media.New(media.Config{
		Sources: sources,
		Key:     m.key, OldKeys: m.oldKeys, Store: store, Blobs: blobs, Groups: m.groupAddrs(), AllowedOrigins: set.AllowedOrigins,
		Limits: media.Limits{
			ImageBytes: set.MediaImageBytes, VoiceBytes: set.MediaVoiceBytes, VideoBytes: set.MediaVideoBytes, OtherBytes: set.MediaOtherBytes,
			UserObjects: set.MediaUserObjects, UserBytes: set.MediaUserBytes, MinFree: set.MediaMinFree,
			Expiry: time.Duration(set.MediaExpiry), FetchedGrace: time.Duration(set.MediaFetchedGrace), UploadExpiry: time.Duration(set.MediaUploadExpiry),
			LinkTTL: time.Duration(set.MediaLinkTTL), SweepEvery: time.Duration(set.MediaSweepEvery), NetworkTimeout: time.Duration(set.MediaTimeout),
			Connections: set.MediaConnections, AddressConnections: set.MediaAddressConnections,
			UserRate: set.MediaUserBytesPerSecond, UserBurst: set.MediaUserByteBurst,
			AddressRate: set.MediaAddressBytesPerSecond, AddressBurst: set.MediaAddressByteBurst,
		},
		Identity: m.id, Log: m.log, Metrics: m.reg,
	})
}

// closes adds what is to be done after the role has stopped.
func (m *maker) closes(f func() error) { m.made.close = append(m.made.close, f) }

// producer opens a producer to the groups' topic, closed after the role.
func (m *maker) producer(once bool) (*kafka.Producer, error) {
	p, err := kafka.NewProducer(kafka.ProducerConfig{
		Brokers: m.Kafka.Brokers, Via: m.Kafka.Via, Topic: m.Kafka.Topic, Layout: kafka.Layout(m.Kafka.Layout), Partitions: m.Kafka.Partitions, Once: once,
		Log: m.log, Metrics: m.reg,
	})
	if err != nil {
		return nil, err
	}
	m.closes(func() error { p.Close(); return nil })
	return p, nil
}

// topics makes the topics of new groups, nil where they share one.
func (m *maker) topics() (group.Topics, error) {
	if kafka.Layout(m.Kafka.Layout) != kafka.TopicPerGroup {
		return nil, nil
	}
	t, err := kafka.NewTopics(m.Kafka.Brokers, m.Kafka.Via, m.Kafka.Topic, m.Kafka.Replication, m.reg)
	if err != nil {
		return nil, err
	}
	m.closes(func() error { t.Close(); return nil })
	return t, nil
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
	if kafka.Layout(k.Layout) == kafka.TopicPerGroup {
		return r // topics come with their groups
	}
	return &topicChecked{runner: r, ensure: func(ctx context.Context) error {
		return kafka.EnsureTopic(ctx, k.Brokers, k.Via, k.Topic, k.Partitions, max(k.Replication, 1))
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

// openTimeout bounds the opening of a database, its migrations included.
const openTimeout = 30 * time.Second
