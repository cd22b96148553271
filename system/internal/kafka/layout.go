package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafkago "github.com/segmentio/kafka-go"
)

// Layout says which topics hold the groups' logs.
type Layout string

const (
	// Hashed is one topic with a fixed number of partitions; a group's log is
	// in the partition that its id hashes to. The default.
	Hashed Layout = "hashed"
	// TopicPerGroup gives each group a topic of one partition.
	TopicPerGroup Layout = "topic-per-group"
)

// Layouts returns the layouts there are.
func Layouts() []Layout { return []Layout{Hashed, TopicPerGroup} }

// topicOf is the topic of a group in layout TopicPerGroup.
func topicOf(prefix string, group uint64) string { return fmt.Sprintf("%s-%016x", prefix, group) }

// isTopicOf reports whether topicOf makes name from prefix.
func isTopicOf(prefix, name string) bool {
	id, ok := strings.CutPrefix(name, prefix+"-")
	return ok && len(id) == 16 && strings.Trim(id, "0123456789abcdef") == ""
}

// waitForTopics waits until there are topics to read that have partitions,
// other ones than known, and returns them, sorted. A group that is joined for a
// topic without partitions assigns nothing, and stays so. When ctx ends it
// returns known.
func (c *Consumer) waitForTopics(ctx context.Context, cl *kafkago.Client, known []string) []string {
	for wait := (backoff{}); ; {
		names, err := c.listTopics(ctx, cl)
		if err == nil && len(names) > 0 && !slices.Equal(names, known) {
			return names
		}
		if !wait.sleep(ctx) {
			return known
		}
	}
}

func (c *Consumer) listTopics(ctx context.Context, cl *kafkago.Client) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req := &kafkago.MetadataRequest{}
	if c.cfg.Layout != TopicPerGroup {
		req.Topics = []string{c.cfg.Topic}
	}
	res, err := cl.Metadata(ctx, req)
	if err != nil {
		return nil, err
	}
	for _, t := range res.Topics {
		if t.Error != nil || len(t.Partitions) == 0 {
			continue
		}
		if t.Name == c.cfg.Topic && c.cfg.Layout != TopicPerGroup || c.cfg.Layout == TopicPerGroup && isTopicOf(c.cfg.Topic, t.Name) {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (c *Consumer) balancer() kafkago.GroupBalancer {
	if c.cfg.Layout == TopicPerGroup {
		return topicBalancer{}
	}
	return kafkago.RangeGroupBalancer{}
}

// topicBalancer spreads topics over members. The balancers of kafka-go spread
// the partitions of each topic, which gives the first member all topics that
// have one.
type topicBalancer struct{}

func (topicBalancer) ProtocolName() string      { return "throng-topic" }
func (topicBalancer) UserData() ([]byte, error) { return nil, nil }

// AssignGroups gives a topic to one of the members that ask for it.
func (topicBalancer) AssignGroups(members []kafkago.GroupMember, partitions []kafkago.Partition) kafkago.GroupMemberAssignments {
	asking := map[string][]string{}
	out := kafkago.GroupMemberAssignments{}
	for _, m := range members {
		out[m.ID] = map[string][]int{}
		for _, t := range m.Topics {
			asking[t] = append(asking[t], m.ID)
		}
	}
	for _, ids := range asking {
		slices.Sort(ids)
	}
	for _, p := range partitions {
		if ids := asking[p.Topic]; len(ids) > 0 {
			h := fnv.New32a()
			h.Write([]byte(p.Topic)) // never fails
			id := ids[int(h.Sum32()%uint32(len(ids)))]
			out[id][p.Topic] = append(out[id][p.Topic], p.ID)
		}
	}
	return out
}

// createTopics bounds the topics of one request: a broker takes some
// milliseconds for each.
const createTopics = 200

// Topics makes the topics of groups in layout TopicPerGroup.
type Topics struct {
	client      *kafkago.Client
	transport   *kafkago.Transport
	prefix      string
	replication int
	created     prometheus.Counter
	seconds     prometheus.Counter
}

// NewTopics does not wait for the broker. reg may be nil.
func NewTopics(brokers []string, via Via, prefix string, replication int, reg prometheus.Registerer) (*Topics, error) {
	c, transport, err := client(brokers, via, "throng-topics", prefix, TopicPerGroup)
	if err != nil {
		return nil, err
	}
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	t := &Topics{client: c, transport: transport, prefix: prefix, replication: max(replication, 1)}
	if t.created, err = counter(reg, "throng_kafka_topics_created_total", "Topics made for groups."); err != nil {
		return nil, err
	}
	if t.seconds, err = counter(reg, "throng_kafka_topic_create_seconds_total", "Time spent waiting for topics to be made."); err != nil {
		return nil, err
	}
	return t, nil
}

// Ensure makes the topics of groups that have none yet. It tries until all are
// there, the broker refuses one for good, or ctx is done.
func (t *Topics) Ensure(ctx context.Context, groups []uint64) error {
	for len(groups) > 0 {
		n := min(len(groups), createTopics)
		start := time.Now()
		wait := backoff{}
		for {
			err := t.ensure(ctx, groups[:n])
			if err == nil {
				break
			}
			var kerr kafkago.Error
			if errors.As(err, &kerr) && !kerr.Temporary() || !wait.sleep(ctx) {
				return fmt.Errorf("kafka: topics of %d groups: %w", n, err)
			}
		}
		t.seconds.Add(time.Since(start).Seconds())
		groups = groups[n:]
	}
	return nil
}

func (t *Topics) ensure(ctx context.Context, groups []uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req := &kafkago.CreateTopicsRequest{}
	for _, g := range groups {
		req.Topics = append(req.Topics, kafkago.TopicConfig{Topic: topicOf(t.prefix, g), NumPartitions: 1, ReplicationFactor: t.replication})
	}
	res, err := t.client.CreateTopics(ctx, req)
	if err != nil {
		return err
	}
	var failed error
	for _, topic := range req.Topics {
		err := res.Errors[topic.Topic]
		switch {
		case err == nil:
			t.created.Inc()
		case !errors.Is(err, kafkago.TopicAlreadyExists):
			failed = fmt.Errorf("%s: %w", topic.Topic, err)
		}
	}
	return failed
}

// Close closes the connections.
func (t *Topics) Close() { t.transport.CloseIdleConnections() }
