package kafka

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	kafkago "github.com/segmentio/kafka-go"
)

// TestTopicPerGroup: two consumers share the topics of the groups, and a topic
// that is made while they read is read too, from its first record.
func TestTopicPerGroup(t *testing.T) { conformance(t, 2, topicPerGroup) }

func topicPerGroup(t *testing.T, l log) {
	topics, err := NewTopics(l.brokers, nil, l.topic, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer topics.Close()
	const early, late = 20, 5
	var groups []uint64
	for g := range uint64(early) {
		groups = append(groups, g+1)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	for range 2 { // made, and found
		if err := topics.Ensure(ctx, groups); err != nil {
			t.Fatal(err)
		}
	}
	r := &topicReader{read: map[string][]string{}, by: map[string]map[int]bool{}, more: make(chan struct{}, 1)}
	regs := r.start(ctx, t, l, 2)
	p := producer(t, l.brokers, 2, func(c *ProducerConfig) { c.Topic, c.Layout = l.topic, TopicPerGroup })
	write := func(groups []uint64) {
		var open sync.WaitGroup // the end of the producer fails what is not answered
		defer open.Wait()
		for n := range 3 {
			for _, g := range groups {
				open.Add(1)
				done := func(offset int64, err error) {
					defer open.Done()
					if err != nil || offset != int64(n) {
						t.Errorf("record %d of group %d: at %d, %v", n, g, offset, err)
					}
				}
				if err := p.Produce(int(g%2), g, fmt.Appendf(nil, "%d of %d", n, g), done); err != nil {
					open.Done()
					t.Fatal(err)
				}
			}
		}
	}
	for _, reg := range regs {
		awaitMetric(ctx, t, reg, "throng_kafka_joins_total", func(n float64) bool { return n >= 1 })
	}
	write(groups)
	r.await(ctx, t, l.topic, groups)
	if r.readers() != 2 {
		t.Errorf("topics are read by %d consumers, want 2", r.readers())
	}
	var fresh []uint64
	for g := range uint64(late) {
		fresh = append(fresh, 1000+g)
	}
	if err := topics.Ensure(ctx, fresh); err != nil {
		t.Fatal(err)
	}
	write(fresh)
	r.await(ctx, t, l.topic, append(groups, fresh...))
	for _, reg := range regs { // each had to join again for the new topics
		awaitMetric(ctx, t, reg, "throng_kafka_joins_total", func(n float64) bool { return n >= 2 })
		awaitMetric(ctx, t, reg, "throng_kafka_topics", func(n float64) bool { return n == early+late })
	}
}

func awaitMetric(ctx context.Context, t *testing.T, reg *prometheus.Registry, name string, ok func(float64) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		n := metric(t, reg, name)
		if ok(n) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s is %v", name, n)
		}
	}
}

// topicReader collects what consumers read, by topic.
type topicReader struct {
	mu   sync.Mutex
	read map[string][]string
	by   map[string]map[int]bool
	more chan struct{}
}

// start runs n consumers until ctx ends.
func (r *topicReader) start(ctx context.Context, t *testing.T, l log, n int) (regs []*prometheus.Registry) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := range n {
		reg := prometheus.NewRegistry()
		regs = append(regs, reg)
		c, err := NewConsumer(ConsumerConfig{Brokers: l.brokers, Topic: l.topic, Layout: TopicPerGroup, Group: l.group,
			ClientID: fmt.Sprintf("c%d", i), MaxWait: 100 * time.Millisecond, Metrics: reg})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			err := c.Run(ctx, func(ctx context.Context, p *Partition) {
				for {
					offsets, values, _, err := p.Fetch(ctx)
					if err != nil {
						return
					}
					r.add(i, p.Name(), values)
					p.Commit(offsets[len(offsets)-1] + 1)
				}
			})
			if err != nil {
				t.Errorf("consumer %d: %v", i, err)
			}
		})
	}
	return regs
}

func (r *topicReader) add(consumer int, partition string, values [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	topic := strings.TrimSuffix(partition, "/0")
	if r.by[topic] == nil {
		r.by[topic] = map[int]bool{}
	}
	r.by[topic][consumer] = true
	for _, v := range values {
		r.read[topic] = append(r.read[topic], string(v))
	}
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *topicReader) readers() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[int]bool{}
	for _, who := range r.by {
		for c := range who {
			all[c] = true
		}
	}
	return len(all)
}

// await waits until the three records of each group have been read, in order.
// A record may come again after a rebalance.
func (r *topicReader) await(ctx context.Context, t *testing.T, prefix string, groups []uint64) {
	t.Helper()
	for {
		missing := r.missing(prefix, groups)
		if missing == "" {
			return
		}
		select {
		case <-r.more:
		case <-ctx.Done():
			t.Fatal(missing)
		}
	}
}

func (r *topicReader) missing(prefix string, groups []uint64) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range groups {
		got := r.read[topicOf(prefix, g)]
		for n := range 3 {
			want := fmt.Sprintf("%d of %d", n, g)
			i := slices.Index(got, want)
			if i < 0 {
				return fmt.Sprintf("%q of group %d is missing among %q", want, g, got)
			}
			got = got[i+1:]
		}
	}
	return ""
}

func metric(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	found, err := testutil.GatherAndCount(reg, name)
	if err != nil || found != 1 {
		t.Fatalf("%s: %d found, %v", name, found, err)
	}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return 0
}

func TestTopicNames(t *testing.T) {
	for name, want := range map[string]bool{
		topicOf("groups", 0): true, topicOf("groups", 1<<64-1): true,
		"groups": false, "groups-12": false, "groups-000000000000000g": false, topicOf("groups-fanout", 5): false,
	} {
		if isTopicOf("groups", name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestTopicBalancer(t *testing.T) {
	members := []kafkago.GroupMember{{ID: "b", Topics: []string{"x", "y", "only b"}}, {ID: "a", Topics: []string{"x", "y"}}}
	var partitions []kafkago.Partition
	for _, topic := range []string{"x", "y", "only b", "nobody's"} {
		partitions = append(partitions, kafkago.Partition{Topic: topic})
	}
	for i := range 40 {
		topic := fmt.Sprint("t", i)
		members[0].Topics, members[1].Topics = append(members[0].Topics, topic), append(members[1].Topics, topic)
		partitions = append(partitions, kafkago.Partition{Topic: topic})
	}
	got := topicBalancer{}.AssignGroups(members, partitions)
	if len(got["a"]) < 10 || len(got["b"]) < 10 || len(got["a"])+len(got["b"]) != 43 || got["b"]["only b"] == nil {
		t.Errorf("a has %d topics, b %d", len(got["a"]), len(got["b"]))
	}
}
