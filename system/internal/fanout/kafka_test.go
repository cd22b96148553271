package fanout

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/grpc"

	"throng/system/internal/kafka"
	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// kafkaConsumer is the adapter as it is wired in a deployment.
type kafkaConsumer struct{ *kafka.Consumer }

func (c kafkaConsumer) Run(ctx context.Context, handle func(context.Context, Partition)) error {
	return c.Consumer.Run(ctx, func(ctx context.Context, p *kafka.Partition) { handle(ctx, p) })
}

// TestOnKafka lets fan-outs come and go in one consumer group, and an inbox
// die, while messages are produced. Every addressee must get every message,
// each for the first time in the order of its group.
func TestOnKafka(t *testing.T) {
	const (
		partitions = 6
		groups     = 12
		each       = 150
		topic      = "messages"
	)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topic))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	r := newRig(t, 0, 2)
	for g := uint64(1); g <= groups; g++ {
		r.group.set(g, []uint64{1, 2, 3, 4})
	}
	for _, in := range r.inboxes {
		n := 0
		in.decide = func(delivered) (wire.Code, bool) { n++; return 0, n%7 != 0 } // some are never answered
	}
	consumer := func() Consumer {
		c, err := kafka.NewConsumer(kafka.ConsumerConfig{Brokers: cluster.ListenAddrs(), Topic: topic, Group: "fanout"})
		if err != nil {
			t.Fatal(err)
		}
		return kafkaConsumer{c}
	}
	p, err := kafka.NewProducer(kafka.ProducerConfig{Brokers: cluster.ListenAddrs(), Topic: topic, Partitions: partitions})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var wg sync.WaitGroup
	produce := func(from, to uint64) {
		for seq := from; seq < to; seq++ {
			for g := uint64(1); g <= groups; g++ {
				wg.Add(1)
				value := encoded(&rpc.GroupRecord{Kind: &rpc.GroupRecord_Message{Message: &rpc.Envelope{
					MessageId: make([]byte, 16), Group: g, From: 1, Seq: seq, Body: []byte("hello")}}})
				err := p.Produce(placement.GroupPartition(g, partitions), g, value, func(_ int64, err error) {
					if err != nil {
						t.Error(err)
					}
					wg.Done()
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		wg.Wait()
	}
	_, stopFirst := r.start(consumer(), nil)
	produce(1, 50)
	waitFor(t, "the first deliveries", func() bool { return len(r.inboxes[0].items()) > 0 })
	r.start(consumer(), nil)
	produce(50, 100)
	stopFirst()
	r.stopInbox[1]()
	produce(100, each+1)
	fresh := &fakeInbox{}
	serve(t, r.inboxAddrs[1], func(s *grpc.Server) { rpc.RegisterInboxServer(s, fresh) })
	r.inboxes = append(r.inboxes, fresh)
	r.inboxes[0].release()
	deadline := time.Now().Add(30 * time.Second)
	for g := uint64(1); g <= groups; {
		if r.complete(g, each) {
			g++
			continue
		}
		if time.Now().After(deadline) {
			t.Fatalf("group %d: %v", g, r.received(g))
		}
		r.inboxes[0].release()
		<-time.After(5 * time.Millisecond)
	}
	for g := uint64(1); g <= groups; g++ {
		for user, seqs := range r.received(g) {
			next := uint64(1)
			for _, s := range seqs {
				if s > next {
					t.Fatalf("group %d, user %d: %d before %d", g, user, s, next)
				}
				if s == next {
					next++
				}
			}
		}
	}
}

// complete reports whether every addressee of the group has every message.
func (r *rig) complete(group, each uint64) bool {
	got := r.received(group)
	for user := uint64(2); user <= 4; user++ {
		seqs := slices.Clone(got[user])
		slices.Sort(seqs)
		if n := len(slices.Compact(seqs)); uint64(n) != each {
			return false
		}
	}
	return true
}
