package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"throng/system/internal/obs"
)

// ConsumerConfig says what a Consumer reads. Zero durations and sizes mean the
// defaults.
type ConsumerConfig struct {
	Brokers []string
	Via     Via
	Topic   string
	Layout  Layout
	Group   string // consumer group
	// ClientID names this consumer among those of the group, the same after a
	// restart. Before it joins it removes members of that name from the group:
	// they are what is left of it when it was killed, or when the coordinator
	// was, and the group would wait for them until their session times out.
	// Empty: it removes nobody.
	ClientID string

	SessionTimeout time.Duration // default 6 s, the least that brokers take
	Heartbeat      time.Duration // default 500 ms
	CommitEvery    time.Duration // commits are coalesced for that long; default 250 ms
	MaxWait        time.Duration // of one long poll; default 500 ms
	MaxBytes       int           // of one fetch; default 1 MiB

	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Consumer reads the partitions that the consumer group assigns to it, each in
// order, and commits what it is told.
type Consumer struct {
	cfg                     ConsumerConfig
	records, bytes, commits prometheus.Counter
	fetchOp, commitOp       *obs.Op
	topics                  prometheus.Gauge
	joins, unassigned       prometheus.Counter
	idleSince               atomic.Int64 // when there was an assignment last, Unix nanoseconds
}

// NewConsumer checks the configuration; nothing is connected before Run.
func NewConsumer(cfg ConsumerConfig) (*Consumer, error) {
	if cfg.Group == "" {
		return nil, errors.New("kafka: consumer without a group")
	}
	if len(cfg.Brokers) == 0 || cfg.Topic == "" {
		return nil, errors.New("kafka: consumer without brokers or topic")
	}
	cfg.SessionTimeout = orDefault(cfg.SessionTimeout, 6*time.Second)
	cfg.Heartbeat = orDefault(cfg.Heartbeat, 500*time.Millisecond)
	cfg.CommitEvery = orDefault(cfg.CommitEvery, 250*time.Millisecond)
	cfg.MaxWait = orDefault(cfg.MaxWait, 500*time.Millisecond)
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 1 << 20
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	cfg.Log = orDiscard(cfg.Log)
	c := &Consumer{cfg: cfg}
	var err error
	if c.records, err = counter(cfg.Metrics, "throng_kafka_consumed_records_total", "Records fetched."); err != nil {
		return nil, err
	}
	if c.bytes, err = counter(cfg.Metrics, "throng_kafka_consumed_bytes_total", "Keys and values of fetched records."); err != nil {
		return nil, err
	}
	if c.commits, err = counter(cfg.Metrics, "throng_kafka_commits_total", "Offset commit requests."); err != nil {
		return nil, err
	}
	if c.joins, err = counter(cfg.Metrics, "throng_kafka_joins_total", "Assignments of partitions received: the first one and those after each rebalance."); err != nil {
		return nil, err
	}
	if c.unassigned, err = counter(cfg.Metrics, "throng_kafka_unassigned_seconds_total", "Time without an assignment, in which nothing is read."); err != nil {
		return nil, err
	}
	ops, err := obs.NewOps(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	c.fetchOp, c.commitOp = ops.Op("kafka.fetch"), ops.Op("kafka.commit")
	c.topics, err = obs.Register(cfg.Metrics, prometheus.NewGauge(prometheus.GaugeOpts{Name: "throng_kafka_topics", Help: "Topics read."}))
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return c, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Run joins the consumer group and calls handle, in a goroutine of its own,
// for each partition assigned, until ctx is done. handle's ctx ends when the
// partition is taken away, and handle must then return promptly: the next
// assignment waits for it. Whatever was given to Partition.Commit before
// handle returned is committed. An absent broker is waited for.
//
// With a topic for each group, a member's list of topics is fixed when it
// joins: a new topic makes it leave and join again, and nothing is read
// meanwhile. The metrics say how often and for how long.
func (c *Consumer) Run(ctx context.Context, handle func(ctx context.Context, p *Partition)) error {
	cl, transport, err := client(c.cfg.Brokers, c.cfg.Via, "throng-consumer", c.cfg.Topic, c.cfg.Layout)
	if err != nil {
		return err
	}
	defer transport.CloseIdleConnections()
	c.idleSince.Store(time.Now().UnixNano())
	topics := c.waitForTopics(ctx, cl, nil)
	var loops sync.WaitGroup // a generation that ended early does not wait for loops started late
	defer loops.Wait()
	brokers := slices.Clone(c.cfg.Brokers)
	wait, failing := backoff{}, false
	for ctx.Err() == nil {
		c.topics.Set(float64(len(topics)))
		term, end := context.WithCancel(ctx)
		var watch sync.WaitGroup
		next := topics
		if c.cfg.Layout == TopicPerGroup {
			watch.Go(func() {
				next = c.waitForTopics(term, cl, topics)
				end()
			})
		}
		joined, err := c.member(term, brokers, topics, cl, &loops, handle)
		renewed := term.Err() != nil
		end()
		watch.Wait()
		if topics = next; ctx.Err() != nil || renewed {
			continue
		}
		if joined {
			wait.reset()
		}
		if joined || !failing {
			c.cfg.Log.Warn("out of the consumer group, will go on trying", "group", c.cfg.Group, "err", err)
			failing = true
		}
		wait.sleep(ctx)
		brokers = append(brokers[1:], brokers[0]) // the first may be the one that is away
	}
	return nil
}

// member is in the group as one member until ctx is done or the group cannot be
// asked any more, as when its coordinator dies. It returns whether it had
// joined. The next member begins by removing this one: it may have been unable
// to say good-bye, and the group would wait for it.
func (c *Consumer) member(ctx context.Context, brokers, topics []string, cl *kafkago.Client, loops *sync.WaitGroup,
	handle func(ctx context.Context, p *Partition),
) (joined bool, err error) {
	if err := c.removePredecessor(ctx, cl); err != nil {
		return false, err
	}
	group, err := kafkago.NewConsumerGroup(kafkago.ConsumerGroupConfig{
		ID: c.cfg.Group, Brokers: brokers, Topics: topics,
		Dialer:            &kafkago.Dialer{ClientID: c.cfg.ClientID, Timeout: time.Second, DialFunc: c.cfg.Via.dial},
		GroupBalancers:    []kafkago.GroupBalancer{c.balancer()},
		HeartbeatInterval: c.cfg.Heartbeat, SessionTimeout: c.cfg.SessionTimeout,
		RebalanceTimeout: c.cfg.SessionTimeout, JoinGroupBackoff: 200 * time.Millisecond,
		StartOffset: kafkago.FirstOffset,
		// A commit waits at the broker for up to 5 s when a replica has died, and
		// giving it up would end the generation.
		Timeout:               max(c.cfg.SessionTimeout, 6*time.Second),
		WatchPartitionChanges: c.cfg.Layout != TopicPerGroup, PartitionWatchInterval: 5 * time.Second,
	})
	if err != nil {
		return false, fmt.Errorf("kafka: consumer group %s: %w", c.cfg.Group, err)
	}
	defer group.Close() // never fails, see kafka-go; waits for the last generation's end
	for {
		gen, err := group.Next(ctx)
		switch {
		case errors.Is(err, kafkago.RebalanceInProgress):
			continue // it is still a member
		case err != nil:
			return joined, err
		}
		joined = true
		c.joins.Inc()
		c.unassigned.Add(time.Since(time.Unix(0, c.idleSince.Load())).Seconds())
		gen.Start(func(ctx context.Context) {
			<-ctx.Done()
			c.idleSince.Store(time.Now().UnixNano())
		})
		c.generation(gen, cl, loops, handle)
	}
}

// removePredecessor removes the members of this consumer's name from the group.
// One that is alive all the same learns of it with its next heartbeat, can
// commit nothing more, and joins again. An error is worth another try; that it
// is not allowed to is none.
func (c *Consumer) removePredecessor(ctx context.Context, cl *kafkago.Client) error {
	if c.cfg.ClientID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err := c.removeMembers(ctx, cl)
	var kerr kafkago.Error
	if errors.As(err, &kerr) && !kerr.Temporary() {
		c.cfg.Log.Warn("what was left of a killed consumer may hold up the group until its session times out", "err", err)
		return nil
	}
	return err
}

func (c *Consumer) removeMembers(ctx context.Context, cl *kafkago.Client) error {
	res, err := cl.DescribeGroups(ctx, &kafkago.DescribeGroupsRequest{GroupIDs: []string{c.cfg.Group}})
	if err != nil {
		return fmt.Errorf("kafka: describe group %s: %w", c.cfg.Group, err)
	}
	for _, g := range res.Groups {
		if g.Error != nil {
			return fmt.Errorf("kafka: describe group %s: %w", c.cfg.Group, g.Error)
		}
		for _, m := range g.Members {
			if g.GroupID != c.cfg.Group || m.ClientID != c.cfg.ClientID {
				continue
			}
			left, err := cl.LeaveGroup(ctx, &kafkago.LeaveGroupRequest{
				GroupID: c.cfg.Group, Members: []kafkago.LeaveGroupRequestMember{{ID: m.MemberID}}})
			if err == nil {
				err = left.Error
			}
			if err != nil {
				return fmt.Errorf("kafka: remove member %s from group %s: %w", m.MemberID, c.cfg.Group, err)
			}
			c.cfg.Log.Info("removed what was left of a consumer", "group", c.cfg.Group, "member", m.MemberID)
		}
	}
	return nil
}

// generation starts the loops of one assignment; the consumer group ends them.
func (c *Consumer) generation(gen *kafkago.Generation, cl *kafkago.Client, loops *sync.WaitGroup,
	handle func(context.Context, *Partition),
) {
	var handlers sync.WaitGroup
	var parts []*Partition
	for topic, assigned := range gen.Assignments {
		for _, a := range assigned {
			p := &Partition{topic: topic, id: a.ID, consumer: c, client: cl, next: a.Offset, committed: a.Offset, mark: a.Offset}
			parts = append(parts, p)
			handlers.Add(1)
			loops.Add(1)
			gen.Start(func(ctx context.Context) {
				defer loops.Done()
				defer handlers.Done()
				handle(ctx, p)
			})
		}
	}
	c.cfg.Log.Info("partitions assigned", "generation", gen.ID, "partitions", len(parts))
	loops.Add(1)
	gen.Start(func(ctx context.Context) {
		defer loops.Done()
		tick := time.NewTicker(c.cfg.CommitEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.commit(gen, parts)
			case <-ctx.Done():
				handlers.Wait()
				c.commit(gen, parts)
				return
			}
		}
	})
}

// commit sends the watermarks that moved. A failure is left to the next tick;
// a generation that can no longer commit is ended by its heartbeat.
func (c *Consumer) commit(gen *kafkago.Generation, parts []*Partition) {
	offsets := map[string]map[int]int64{}
	for _, p := range parts {
		if next, moved := p.moved(); moved {
			if offsets[p.topic] == nil {
				offsets[p.topic] = map[int]int64{}
			}
			offsets[p.topic][p.id] = next
		}
	}
	if len(offsets) == 0 {
		return
	}
	c.commits.Inc()
	began := time.Now()
	err := gen.CommitOffsets(offsets)
	c.commitOp.Done(time.Since(began), err != nil)
	if err != nil {
		c.cfg.Log.Warn("committing offsets", "generation", gen.ID, "err", err)
		return
	}
	for _, p := range parts {
		if next, ok := offsets[p.topic][p.id]; ok {
			p.settled(next)
		}
	}
}

// Partition is one partition for as long as it is assigned. Fetch belongs to
// one goroutine, Commit may be called from any.
type Partition struct {
	topic    string
	id       int
	consumer *Consumer
	client   *kafkago.Client

	next int64 // next offset to fetch; owned by the goroutine that fetches

	mu        sync.Mutex
	mark      int64 // what the caller wants committed
	committed int64 // what is committed
}

// ID returns the partition's number.
func (p *Partition) ID() int { return p.id }

// Name returns the topic and the number of the partition.
func (p *Partition) Name() string { return p.topic + "/" + strconv.Itoa(p.id) }

// Commit says that everything before next is done. Only the greatest counts;
// it is sent with the others of the generation within CommitEvery.
func (p *Partition) Commit(next int64) {
	p.mu.Lock()
	p.mark = max(p.mark, next)
	p.mu.Unlock()
}

func (p *Partition) moved() (int64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mark, p.mark > p.committed && p.mark >= 0
}

func (p *Partition) settled(next int64) {
	p.mu.Lock()
	p.committed = max(p.committed, next)
	p.mu.Unlock()
}

// Fetch returns the next records in order, at least one: their offsets, their
// values, and the offset after the last record that the partition has. It
// waits for records and for an absent broker, and fails only when ctx is done.
func (p *Partition) Fetch(ctx context.Context) (offsets []int64, values [][]byte, high int64, err error) {
	wait := backoff{}
	failing := false
	for {
		offsets, values, high, err = p.fetch(ctx)
		if ctx.Err() != nil {
			return nil, nil, 0, fmt.Errorf("kafka: partition %s: %w", p.Name(), context.Cause(ctx))
		}
		if err == nil && len(offsets) > 0 {
			return offsets, values, high, nil
		}
		if err == nil {
			wait.reset()
			failing = false
			continue // an empty long poll
		}
		if !failing {
			p.consumer.cfg.Log.Warn("fetching, will go on trying", "partition", p.Name(), "offset", p.next, "err", err)
			failing = true
		}
		if !wait.sleep(ctx) {
			return nil, nil, 0, fmt.Errorf("kafka: partition %s: %w", p.Name(), context.Cause(ctx))
		}
	}
}

func (p *Partition) fetch(ctx context.Context) ([]int64, [][]byte, int64, error) {
	cfg := &p.consumer.cfg
	reqCtx, cancel := context.WithTimeout(ctx, cfg.MaxWait+3*time.Second)
	defer cancel()
	if p.next < 0 {
		first, err := p.firstOffset(reqCtx)
		if err != nil {
			return nil, nil, 0, err
		}
		p.next = first
	}
	// Spread the empty polls of many partitions.
	maxWait := cfg.MaxWait - time.Duration(rand.Int64N(int64(cfg.MaxWait)/4+1))
	began := time.Now()
	res, err := p.client.Fetch(reqCtx, &kafkago.FetchRequest{
		Topic: p.topic, Partition: p.id, Offset: p.next,
		MinBytes: 1, MaxBytes: int64(cfg.MaxBytes), MaxWait: maxWait,
	})
	if ctx.Err() == nil { // else nobody wants it any more
		p.consumer.fetchOp.Done(time.Since(began), err != nil || res.Error != nil)
	}
	if err != nil {
		return nil, nil, 0, err
	}
	if errors.Is(res.Error, kafkago.OffsetOutOfRange) {
		// Expired, or the log is another one: what remains starts at its first
		// record. Records were lost by retention, not here, so it is loud.
		cfg.Log.Error("offset out of range, starting over at the first record", "partition", p.Name(), "offset", p.next)
		p.next = kafkago.FirstOffset
		return nil, nil, 0, res.Error
	}
	if res.Error != nil {
		return nil, nil, 0, res.Error
	}
	offsets, values, err := p.read(res.Records)
	if len(offsets) > 0 {
		return offsets, values, res.HighWatermark, nil // a torn last batch comes again
	}
	return nil, nil, res.HighWatermark, err
}

// read copies the records from the response and moves p.next past them.
func (p *Partition) read(records kafkago.RecordReader) (offsets []int64, values [][]byte, err error) {
	size := 0
	for {
		rec, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			var key, value []byte
			if key, value, err = contents(rec); err == nil {
				if rec.Offset >= p.next { // a batch may start before what was asked for
					offsets = append(offsets, rec.Offset)
					values = append(values, value)
					size += len(key) + len(value)
					p.next = rec.Offset + 1
				}
				continue
			}
		}
		p.consumer.records.Add(float64(len(offsets)))
		p.consumer.bytes.Add(float64(size))
		if err != nil {
			err = fmt.Errorf("kafka: partition %s: decode: %w", p.Name(), err)
		}
		return offsets, values, err
	}
}

func contents(rec *protocol.Record) (key, value []byte, err error) {
	if rec.Key != nil {
		key, err = protocol.ReadAll(rec.Key)
		_ = rec.Key.Close() // of a memory page: cannot fail
	}
	if rec.Value != nil && err == nil {
		value, err = protocol.ReadAll(rec.Value)
		_ = rec.Value.Close()
	}
	return key, value, err
}

func (p *Partition) firstOffset(ctx context.Context) (int64, error) {
	topic := p.topic
	res, err := p.client.ListOffsets(ctx, &kafkago.ListOffsetsRequest{
		Topics: map[string][]kafkago.OffsetRequest{topic: {kafkago.FirstOffsetOf(p.id)}},
	})
	if err != nil {
		return 0, err
	}
	for _, o := range res.Topics[topic] {
		if o.Partition == p.id {
			return o.FirstOffset, o.Error
		}
	}
	return 0, kafkago.UnknownTopicOrPartition
}
