package containers

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// Listeners of a broker. The host's own listener has the address by which this
// host reaches it, for tests and probes; everybody else is on the network.
const (
	kafkaInside     = "9092"
	kafkaController = "9093"
	kafkaHost       = "9094"

	kafkaData  = "/var/lib/kafka/data"
	kafkaFile  = "/tmp/throng.properties"
	kafkaProbe = 2 * time.Second
	clusterID  = "dGhyb25nLXRocm9uZy0xMA"
)

// kafkaStart formats the data folder at the first start. Both the public image
// and ours have these commands.
const kafkaStart = `[ -f ` + kafkaData + `/meta.properties ] || KAFKA_OPTS=-XX:TieredStopAtLevel=1 /opt/kafka/bin/kafka-storage.sh format -t ` + clusterID + ` -c ` + kafkaFile + ` || exit 1
exec /opt/kafka/bin/kafka-server-start.sh ` + kafkaFile

// describeKafka adds the brokers. Each is a controller too (KRaft).
func (d *Deployment) describeKafka() {
	for i := range d.cfg.Brokers {
		m := &member{d: d, role: RoleKafka, instance: i, infra: true, image: d.images.kafka, ports: []string{kafkaHost},
			entrypoint: []string{"sh", "-c", kafkaStart},
			env:        map[string]string{"KAFKA_HEAP_OPTS": "-Xms384m -Xmx384m"},
			prepare: func(m *member) {
				m.files = map[string][]byte{kafkaFile: []byte(d.brokerProperties(i, m.published[kafkaHost]))}
			}}
		m.probe = func(ctx context.Context) error { return d.probeKafka(ctx, m.published[kafkaHost]) }
		d.members = append(d.members, m)
	}
}

// brokerProperties is the configuration of broker i. What was acknowledged
// survives the death of any process: it is in the page cache at least, and with
// three brokers on two of them.
func (d *Deployment) brokerProperties(i int, hostAddr string) string {
	n := d.cfg.Brokers
	var voters []string
	for j := range n {
		voters = append(voters, fmt.Sprintf("%d@%s-%d:%s", j+1, RoleKafka, j, kafkaController))
	}
	minInSync := min(n, 2)
	return strings.Join([]string{
		"process.roles=broker,controller",
		fmt.Sprintf("node.id=%d", i+1),
		fmt.Sprintf("listeners=INSIDE://:%s,CONTROLLER://:%s,HOST://:%s", kafkaInside, kafkaController, kafkaHost),
		fmt.Sprintf("advertised.listeners=INSIDE://%s-%d:%s,HOST://%s", RoleKafka, i, kafkaInside, hostAddr),
		"listener.security.protocol.map=INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT,HOST:PLAINTEXT",
		"inter.broker.listener.name=INSIDE",
		"controller.listener.names=CONTROLLER",
		"controller.quorum.voters=" + strings.Join(voters, ","),
		"log.dirs=" + kafkaData,
		"auto.create.topics.enable=false",
		fmt.Sprintf("default.replication.factor=%d", n),
		fmt.Sprintf("min.insync.replicas=%d", minInSync),
		"offsets.topic.num.partitions=8",
		fmt.Sprintf("offsets.topic.replication.factor=%d", n),
		"transaction.state.log.num.partitions=1",
		fmt.Sprintf("transaction.state.log.replication.factor=%d", n),
		fmt.Sprintf("transaction.state.log.min.isr=%d", minInSync),
		"share.coordinator.state.topic.num.partitions=1",
		fmt.Sprintf("share.coordinator.state.topic.replication.factor=%d", n),
		fmt.Sprintf("share.coordinator.state.topic.min.isr=%d", minInSync),
		"group.initial.rebalance.delay.ms=0",
		"unclean.leader.election.enable=false",
		// A broker that is killed is noticed, and its partitions move, this soon.
		"broker.session.timeout.ms=6000",
		"broker.heartbeat.interval.ms=1000",
		"controller.quorum.election.timeout.ms=500",
		"controller.quorum.fetch.timeout.ms=1500",
		"",
	}, "\n")
}

// probeKafka asks a broker for the cluster: it is ready when all brokers are
// part of it.
func (d *Deployment) probeKafka(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, kafkaProbe)
	defer cancel()
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	c := &kafka.Client{Addr: kafka.TCP(addr), Timeout: kafkaProbe, Transport: transport}
	meta, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{}})
	if err != nil {
		return err
	}
	if len(meta.Brokers) != d.cfg.Brokers {
		return fmt.Errorf("the cluster has %d of %d brokers", len(meta.Brokers), d.cfg.Brokers)
	}
	return nil
}
