package system

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"throng/system/internal/blob"
	"throng/system/internal/certs"
	"throng/system/internal/kafka"
	"throng/system/internal/obs"
	"throng/system/internal/sqlstore"
	"throng/system/wire"
)

// Config describes a deployment: every instance of every role with its
// addresses, what they store in, and the settings they share. All processes of
// a deployment are given the same one, but for the addresses of others, which
// are those where this process reaches them; instance i of a role is element i
// of its list. An address is host:port; port 0 is allowed only where one process
// runs the whole deployment (role All).
type Config struct {
	Gateways []GatewayInstance `json:"gateways"`
	Messages []RPCInstance     `json:"messages"`
	Fanouts  []FanoutInstance  `json:"fanouts"`
	Groups   []GroupInstance   `json:"groups"`
	Inboxes  []InboxInstance   `json:"inboxes"`
	Pushes   []RPCInstance     `json:"pushes"`
	// Medias may be none: then there is no media service.
	Medias []MediaInstance `json:"medias,omitempty"`

	// RPCTLS has the roles show each other certificates; empty: they speak
	// without TLS.
	RPCTLS RPCTLS `json:"rpc_tls,omitzero"`

	Kafka    Kafka    `json:"kafka"`
	Redis    Redis    `json:"redis"`
	GroupSQL GroupSQL `json:"group_sql"`
	Provider Provider `json:"provider"`
	// MediaStore is needed where there are Medias.
	MediaStore MediaStore `json:"media_store,omitzero"`

	// Key signs client tokens and the proofs that a message is durable. Base64
	// (standard encoding) of at least wire.MinKeyBytes bytes.
	Key string `json:"key"`
	// OldKeys are accepted beside Key, at most three: those that it takes the place
	// of, and before that the one that will take its place.
	OldKeys []string `json:"old_keys,omitempty"`

	Log      Log      `json:"log"`
	Tracing  Tracing  `json:"tracing,omitzero"`
	Settings Settings `json:"settings"`

	// Plant names a planted bug, for tests of the audit only: drop, ack-early,
	// commit-early, ex-member. Empty in production.
	Plant string `json:"plant,omitempty"`
}

// GatewayInstance is one gateway: clients connect to Listen.
type GatewayInstance struct {
	ID     string `json:"id"` // names it in the registry; "gateway-<i>" when empty
	Listen string `json:"listen"`
	Debug  string `json:"debug"`
	// TLSCert and TLSKey name PEM files: clients then connect by wss://. A load
	// balancer that ends TLS in front of ws:// costs the gateway less.
	TLSCert string `json:"tls_cert,omitempty"`
	TLSKey  string `json:"tls_key,omitempty"`
}

// RPCInstance is one instance of a role that only other roles call.
type RPCInstance struct {
	RPC   string `json:"rpc"`
	Debug string `json:"debug"`
}

// FanoutInstance is one fan-out; nobody calls it.
type FanoutInstance struct {
	Debug string `json:"debug"`
}

// GroupInstance is one group service. HTTP serves the provisioning API.
type GroupInstance struct {
	RPC   string `json:"rpc"`
	HTTP  string `json:"http"`
	Debug string `json:"debug"`
	// Zone and Region are where it is: it reads at the nearest copy of the group
	// store, in its zone, else in its region, else anywhere.
	Zone   string `json:"zone,omitempty"`
	Region string `json:"region,omitempty"`
}

// InboxInstance is one inbox service with the store of its shards.
type InboxInstance struct {
	RPC   string `json:"rpc"`
	Debug string `json:"debug"`
	SQL   SQL    `json:"sql"`
}

// MediaInstance is one media service: clients upload to Listen and fetch there,
// from whichever instance.
type MediaInstance struct {
	Listen string `json:"listen"`
	Debug  string `json:"debug"`
}

// MediaStore is where the media of all instances are.
type MediaStore struct {
	SQL SQL `json:"sql"` // what is known of them
	// Blobs is where the bytes are: file:///folder, which is made if it is missing
	// and must be the same one for all instances, or s3://bucket with the parameters
	// of gocloud.dev/blob/s3blob, such as ?endpoint=http://host:port&region=x&use_path_style=true.
	// The keys of S3 are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
	Blobs string `json:"blobs"`
}

// RPCTLS names the PEM files of TLS between roles, in which both sides show a
// certificate. {role} in a path is the name of the role: all processes can have one
// topology. Files that change are read again.
type RPCTLS struct {
	CA string `json:"ca"` // who signs all certificates
	// Cert is the certificate of a role, for clients and servers alike. A DNS name in
	// it, such as inbox.throng, says which; who may call whom is rpc.Reaches.
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// keys returns Key and OldKeys.
func (c *Config) keys() (wire.Keys, error) {
	return wire.ParseKeys(append([]string{c.Key}, c.OldKeys...)...)
}

// of returns the files of a role.
func (t RPCTLS) of(r Role) certs.Files {
	in := strings.NewReplacer("{role}", string(r))
	return certs.Files{CA: in.Replace(t.CA), Cert: in.Replace(t.Cert), Key: in.Replace(t.Key)}
}

// Kafka is where the groups' logs are.
type Kafka struct {
	Brokers []string `json:"brokers"`
	// Via is where this process reaches brokers that call themselves otherwise,
	// as through a tunnel: host:port by the host:port that they advertise.
	Via   map[string]string `json:"via,omitempty"`
	Topic string            `json:"topic"`
	// Layout is "hashed" (default), one Topic in which each group's log is in
	// the partition that its id hashes to, or "topic-per-group", where Topic is
	// the prefix of their names. Fixed for life.
	Layout string `json:"layout,omitempty"`
	// Partitions of Topic. Fixed for life: a group's log is in one of them. With
	// a topic for each group, the number of produce requests at a time.
	Partitions int `json:"partitions"`
	// Replication of Topic where it does not exist yet; 0 means 1.
	Replication int `json:"replication,omitempty"`
}

// Redis is the session registry, the group cache and the typing channels.
type Redis struct {
	Addr string `json:"addr"`
}

// SQL names a database.
type SQL struct {
	Driver string `json:"driver"` // "sqlite" or "mysql"
	// DSN is the path of the database file for sqlite, whose folder must
	// exist, and a go-sql-driver DSN for mysql. An inbox adds ".0", ".1" ... to
	// the path, one file for each of its loops, and "_0", "_1" ... to the name
	// of the schema, which it makes; no two inboxes may name the same one.
	DSN string `json:"dsn"`
}

// GroupSQL names the database of the groups: the primary, which is written to,
// and replicas to read from, which somebody else keeps up with it.
type GroupSQL struct {
	SQL
	Zone     string       `json:"zone,omitempty"` // of the primary
	Region   string       `json:"region,omitempty"`
	Replicas []SQLReplica `json:"replicas,omitempty"`
}

// SQLReplica is a read-only copy of a database.
type SQLReplica struct {
	DSN    string `json:"dsn"` // as SQL.DSN, of the same driver
	Zone   string `json:"zone,omitempty"`
	Region string `json:"region,omitempty"`
}

// Provider is who delivers push notifications.
type Provider struct {
	URL string `json:"url"` // http://host:port (HTTP/2 without TLS) or https
	// DeadLetters is a folder in which each push instance keeps the pushes that
	// it has given up, in a file of its own; /dead-letters of its debug port reads
	// it. Empty: they are counted and logged, and not kept.
	DeadLetters string `json:"dead_letters,omitempty"`
}

// Log says how processes log, to standard error.
type Log struct {
	Format string `json:"format"` // text (default) or json
	Level  string `json:"level"`  // debug, info (default), warn, error
}

// Tracing says where the traces of sampled messages go, one from Send to every
// Deliver. Without an Endpoint, which is the default, nothing is traced.
type Tracing struct {
	// Endpoint takes OTLP over gRPC: http://host:4317, or https:// with TLS. Headers
	// that it wants are in OTEL_EXPORTER_OTLP_HEADERS.
	Endpoint string `json:"endpoint,omitempty"`
	CAFile   string `json:"ca_file,omitempty"` // PEM; empty: the system knows who signs
	// SampleRatio is the share of messages that are traced. [0.001]
	SampleRatio float64 `json:"sample_ratio,omitempty"`
	// Queue bounds the spans of a role instance that Endpoint has not taken; one more
	// is dropped, and counted. [8,192]
	Queue int `json:"queue,omitempty"`
}

// Duration is a time.Duration that is written like "2s" or "250ms".
type Duration time.Duration

// MarshalText writes d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads; negative is an error.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration %q: write it like 2s or 250ms", text)
	}
	if v < 0 {
		return fmt.Errorf("duration %q is negative", text)
	}
	*d = Duration(v)
	return nil
}

// errPlant says which planted bugs there are.
var errPlant = errors.New("allowed are drop, ack-early, commit-early, ex-member, or nothing")

// Instances returns the number of instances of a role.
func (c *Config) Instances(r Role) int {
	switch r {
	case Gateway:
		return len(c.Gateways)
	case Message:
		return len(c.Messages)
	case Fanout:
		return len(c.Fanouts)
	case Group:
		return len(c.Groups)
	case Inbox:
		return len(c.Inboxes)
	case Push:
		return len(c.Pushes)
	case Media:
		return len(c.Medias)
	case All:
		return 1
	}
	return 0
}

// Check returns everything that is wrong with c, one error for each finding,
// joined; each names the field.
func (c *Config) Check() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", field, fmt.Errorf(format, args...)))
	}
	for _, r := range Roles() {
		if c.Instances(r) == 0 && r != Media {
			bad(plural(r), "at least one instance is needed")
		}
	}
	c.checkAddresses(bad)
	for i, in := range c.Gateways {
		if (in.TLSCert == "") != (in.TLSKey == "") {
			bad(fmt.Sprintf("gateways[%d]", i), "tls_cert and tls_key go together")
		}
	}
	if t := c.RPCTLS; t != (RPCTLS{}) && (t.CA == "" || t.Cert == "" || t.Key == "") {
		bad("rpc_tls", "ca, cert and key go together")
	}
	c.checkKafka(bad)
	if _, _, err := net.SplitHostPort(c.Redis.Addr); err != nil {
		bad("redis.addr", "%q is not host:port", c.Redis.Addr)
	}
	checkSQL("group_sql", c.GroupSQL.SQL, bad)
	for i, r := range c.GroupSQL.Replicas {
		if r.DSN == "" || r.DSN == c.GroupSQL.DSN {
			bad(fmt.Sprintf("group_sql.replicas[%d].dsn", i), "the DSN of a replica, which is not the primary")
		}
	}
	for i, in := range c.Inboxes {
		checkSQL(fmt.Sprintf("inboxes[%d].sql", i), in.SQL, bad)
	}
	if len(c.Medias) > 0 {
		checkSQL("media_store.sql", c.MediaStore.SQL, bad)
		if err := blob.Check(c.MediaStore.Blobs); err != nil {
			bad("media_store.blobs", "%w", err)
		}
	}
	if c.Provider.URL == "" {
		bad("provider.url", "missing")
	}
	if err := (*obs.TraceConfig)(&c.Tracing).Check(); err != nil {
		bad("tracing", "%w", err)
	}
	if _, err := c.keys(); err != nil {
		bad("key, old_keys", "%w", err)
	}
	c.Settings.check(bad)
	if !slices.Contains([]string{"", "drop", "ack-early", "commit-early", "ex-member"}, c.Plant) {
		bad("plant", "%q: %w", c.Plant, errPlant)
	}
	return errors.Join(errs...)
}

func (c *Config) checkKafka(bad func(field, format string, args ...any)) {
	if len(c.Kafka.Brokers) == 0 {
		bad("kafka.brokers", "at least one is needed")
	}
	for i, b := range c.Kafka.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			bad(fmt.Sprintf("kafka.brokers[%d]", i), "%q is not host:port", b)
		}
	}
	for as, at := range c.Kafka.Via {
		if _, _, err := net.SplitHostPort(at); err != nil {
			bad("kafka.via."+as, "%q is not host:port", at)
		}
	}
	if c.Kafka.Topic == "" {
		bad("kafka.topic", "missing")
	}
	if l := kafka.Layout(c.Kafka.Layout); l != "" && !slices.Contains(kafka.Layouts(), l) {
		bad("kafka.layout", "%q: allowed are %v", l, kafka.Layouts())
	}
	if c.Kafka.Partitions < 1 || c.Kafka.Partitions > maxPartitions {
		bad("kafka.partitions", "%d is not in 1..%d", c.Kafka.Partitions, maxPartitions)
	}
}

// maxPartitions bounds a topic: each partition costs a queue in the fan-out.
const maxPartitions = 10_000

func plural(r Role) string {
	switch r {
	case Inbox:
		return "inboxes"
	case Push:
		return "pushes"
	}
	return string(r) + "s"
}

func checkSQL(field string, s SQL, bad func(field, format string, args ...any)) {
	if s.Driver != sqlstore.SQLite && s.Driver != sqlstore.MySQL {
		bad(field+".driver", "%q: allowed are %s, %s", s.Driver, sqlstore.SQLite, sqlstore.MySQL)
	}
	if s.DSN == "" {
		bad(field+".dsn", "missing: the path of the database file, or a MySQL DSN")
	}
}

// addresses calls f with the name and the value of every address that a
// process of the deployment listens on.
func (c *Config) addresses(f func(field string, addr *string)) {
	for i := range c.Gateways {
		f(fmt.Sprintf("gateways[%d].listen", i), &c.Gateways[i].Listen)
		f(fmt.Sprintf("gateways[%d].debug", i), &c.Gateways[i].Debug)
	}
	for i := range c.Messages {
		f(fmt.Sprintf("messages[%d].rpc", i), &c.Messages[i].RPC)
		f(fmt.Sprintf("messages[%d].debug", i), &c.Messages[i].Debug)
	}
	for i := range c.Fanouts {
		f(fmt.Sprintf("fanouts[%d].debug", i), &c.Fanouts[i].Debug)
	}
	for i := range c.Groups {
		f(fmt.Sprintf("groups[%d].rpc", i), &c.Groups[i].RPC)
		f(fmt.Sprintf("groups[%d].http", i), &c.Groups[i].HTTP)
		f(fmt.Sprintf("groups[%d].debug", i), &c.Groups[i].Debug)
	}
	for i := range c.Inboxes {
		f(fmt.Sprintf("inboxes[%d].rpc", i), &c.Inboxes[i].RPC)
		f(fmt.Sprintf("inboxes[%d].debug", i), &c.Inboxes[i].Debug)
	}
	for i := range c.Pushes {
		f(fmt.Sprintf("pushes[%d].rpc", i), &c.Pushes[i].RPC)
		f(fmt.Sprintf("pushes[%d].debug", i), &c.Pushes[i].Debug)
	}
	for i := range c.Medias {
		f(fmt.Sprintf("medias[%d].listen", i), &c.Medias[i].Listen)
		f(fmt.Sprintf("medias[%d].debug", i), &c.Medias[i].Debug)
	}
}

// checkAddresses finds addresses that are not host:port or that two would
// listen on.
func (c *Config) checkAddresses(bad func(field, format string, args ...any)) {
	taken := map[string]string{}
	c.addresses(func(field string, addr *string) {
		_, port, err := net.SplitHostPort(*addr)
		if err != nil {
			bad(field, "%q is not host:port", *addr)
			return
		}
		if port == "0" {
			return
		}
		if other, ok := taken[*addr]; ok {
			bad(field, "%s is the address of %s already", *addr, other)
			return
		}
		taken[*addr] = field
	})
}

// Clone returns a copy that shares nothing with c.
func (c Config) Clone() Config {
	c.Gateways = slices.Clone(c.Gateways)
	c.Messages = slices.Clone(c.Messages)
	c.Fanouts = slices.Clone(c.Fanouts)
	c.Groups = slices.Clone(c.Groups)
	c.Inboxes = slices.Clone(c.Inboxes)
	c.Pushes = slices.Clone(c.Pushes)
	c.Medias = slices.Clone(c.Medias)
	c.Kafka.Brokers = slices.Clone(c.Kafka.Brokers)
	c.Kafka.Via = maps.Clone(c.Kafka.Via)
	c.OldKeys = slices.Clone(c.OldKeys)
	c.GroupSQL.Replicas = slices.Clone(c.GroupSQL.Replicas)
	for _, list := range []*[]string{&c.Settings.AllowedOrigins, &c.Settings.ExemptAddresses, &c.Settings.TrustedProxies} {
		*list = slices.Clone(*list)
	}
	return c
}
