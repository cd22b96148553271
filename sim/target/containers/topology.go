package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"throng/sim/history"
	"throng/sim/target"
	"throng/sim/target/wan"
	"throng/system"
)

// Ports inside of the containers, the same in all: each has an address of its own.
const (
	loopback  = "127.0.0.1"
	portMain  = "8080" // gateways: clients; provider: pushes and the feed
	portDebug = "8081"
	portRPC   = "8082"
	portAdmin = "8083"
	portRedis = "6379"
	portMySQL = "3306"
	portWAN   = 20000 // and above, one for each proxy between zones

	topologyPath  = "/throng-topology.json"
	mediaFolder   = "/throng-media" // the volume that media instances share without S3
	wanPath       = "/throng-wan.json"
	tlsPath       = "/throng-" // and the name of the file
	certLife      = 24 * time.Hour
	nobody        = "65534:65534"
	scrapeTimeout = 3 * time.Second
)

// describe fills d.sys and d.members.
func (d *Deployment) describe() error {
	d.describeSystem()
	if d.cfg.Topology.RPCTLS {
		if _, err := system.WriteCertificates(d.tlsFolder(), certLife); err != nil {
			return err
		}
		d.sys.RPCTLS = system.RPCTLS{CA: tlsPath + "ca.pem", Cert: tlsPath + "{role}.pem", Key: tlsPath + "{role}.key"}
	}
	if err := d.sys.Check(); err != nil {
		return fmt.Errorf("containers: topology: %w", err)
	}
	d.routes = target.NewRoutes(d.cfg.Zones, d.nextProxy)
	d.describeKafka()
	if err := d.describeMySQL(); err != nil {
		return err
	}
	d.describeRedis()
	d.describeS3()
	d.describeProvider()
	infra := len(d.members)
	if !d.cfg.NoRoles {
		for _, role := range system.Roles() {
			if err := d.describeRole(role); err != nil {
				return err
			}
		}
	}
	return d.describeWAN(infra)
}

// nextProxy is the address of one more proxy between zones.
func (d *Deployment) nextProxy() (string, error) {
	return fmt.Sprintf("%s-0:%d", RoleWAN, portWAN+len(d.routes.Links())), nil
}

// topologyOf is the deployment as one of its processes sees it: with others where
// it reaches them.
func (d *Deployment) topologyOf(role system.Role, i int) ([]byte, error) {
	cfg, err := d.routes.Config(d.sys, role, i)
	if err != nil {
		return nil, err
	}
	reach := func(instance int, schema string, to *string) {
		addr, rerr := d.mysqlFrom(string(role), i, instance)
		err = errors.Join(err, rerr)
		*to = dsn(addr, schema)
	}
	switch role {
	case system.Group:
		reach(0, groupSchema, &cfg.GroupSQL.DSN)
		for r := range cfg.GroupSQL.Replicas {
			reach(r+1, groupSchema, &cfg.GroupSQL.Replicas[r].DSN)
		}
	case system.Inbox:
		reach(0, inboxSchemaOf(i), &cfg.Inboxes[i].SQL.DSN)
	}
	if len(cfg.Medias) > 0 {
		reach(0, mediaSchema, &cfg.MediaStore.SQL.DSN)
	}
	if err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("containers: topology file: %w", err)
	}
	return data, nil
}

// mysqlFrom returns where one instance reaches a MySQL.
func (d *Deployment) mysqlFrom(role string, i, mysql int) (string, error) {
	return d.routes.Addr(role, i, RoleMySQL, mysql, fmt.Sprintf("%s-%d:%s", RoleMySQL, mysql, portMySQL))
}

// describeWAN adds the container of the proxies, where there are any, to the
// infrastructure, which is the first so many members.
func (d *Deployment) describeWAN(infra int) error {
	links := d.routes.Links()
	if len(links) == 0 {
		return nil
	}
	m := &member{d: d, role: RoleWAN, infra: true, image: d.images.role, ports: []string{portDebug}, user: nobody, env: environment(d.cfg.Env),
		cmd: []string{"embedded", "wan", "--config", wanPath}}
	data, err := json.MarshalIndent(wan.Config{Debug: m.host() + ":" + portDebug, Links: links}, "", "  ")
	if err != nil {
		return fmt.Errorf("containers: file of the proxies: %w", err)
	}
	m.files = map[string][]byte{wanPath: data}
	m.probe = func(ctx context.Context) error {
		return target.ProbeHTTP(ctx, d.http, "http://"+m.published[portDebug]+"/readyz")
	}
	d.members = slices.Insert(d.members, infra, m)
	return nil
}

// describeSystem fills d.sys. Names are those of the containers on the network.
func (d *Deployment) describeSystem() {
	s, t := &d.sys, d.cfg.Topology
	at := func(role system.Role, i int, port string) string { return fmt.Sprintf("%s-%d:%s", role, i, port) }
	for i := range t.Medias {
		s.Medias = append(s.Medias, system.MediaInstance{Listen: at(system.Media, i, portMain), Debug: at(system.Media, i, portDebug)})
	}
	if t.Medias > 0 {
		s.MediaStore = system.MediaStore{SQL: system.SQL{Driver: "mysql", DSN: dsn("mysql-0:"+portMySQL, mediaSchema)}, Blobs: d.blobsURL()}
	}
	for i := range t.Gateways {
		s.Gateways = append(s.Gateways, system.GatewayInstance{ID: fmt.Sprintf("gateway-%d", i),
			Listen: at(system.Gateway, i, portMain), Debug: at(system.Gateway, i, portDebug)})
	}
	for i := range t.Messages {
		s.Messages = append(s.Messages, system.RPCInstance{RPC: at(system.Message, i, portRPC), Debug: at(system.Message, i, portDebug)})
	}
	for i := range t.Fanouts {
		s.Fanouts = append(s.Fanouts, system.FanoutInstance{Debug: at(system.Fanout, i, portDebug)})
	}
	for i := range t.Groups {
		s.Groups = append(s.Groups, system.GroupInstance{RPC: at(system.Group, i, portRPC), HTTP: at(system.Group, i, portAdmin), Debug: at(system.Group, i, portDebug)})
	}
	for i := range t.Inboxes {
		s.Inboxes = append(s.Inboxes, system.InboxInstance{RPC: at(system.Inbox, i, portRPC), Debug: at(system.Inbox, i, portDebug),
			SQL: system.SQL{Driver: "mysql", DSN: dsn("mysql-0:"+portMySQL, inboxSchemaOf(i))}})
	}
	for i := range t.Pushes {
		s.Pushes = append(s.Pushes, system.RPCInstance{RPC: at(system.Push, i, portRPC), Debug: at(system.Push, i, portDebug)})
	}
	for i := range d.cfg.Brokers {
		s.Kafka.Brokers = append(s.Kafka.Brokers, fmt.Sprintf("%s-%d:%s", RoleKafka, i, kafkaInside))
	}
	s.Kafka.Topic, s.Kafka.Layout, s.Kafka.Partitions, s.Kafka.Replication = topic, t.TopicLayout, t.Partitions, d.cfg.Brokers
	s.Redis = system.Redis{Addr: RoleRedis + "-0:" + portRedis}
	s.GroupSQL.SQL = system.SQL{Driver: "mysql", DSN: dsn("mysql-0:"+portMySQL, groupSchema)}
	for i := range d.cfg.Replicas {
		s.GroupSQL.Replicas = append(s.GroupSQL.Replicas, system.SQLReplica{DSN: dsn(fmt.Sprintf("%s-%d:%s", RoleMySQL, i+1, portMySQL), groupSchema)})
	}
	s.Provider = system.Provider{URL: "http://" + RoleProvider + "-0:" + portMain, DeadLetters: "/tmp"}
	s.Key = d.cfg.Key.String()
	s.Log, s.Settings, s.Plant = d.cfg.Log, d.cfg.Settings, d.cfg.Plant
	d.cfg.Zones.Place(s)
}

// describeRole adds the containers of one role.
func (d *Deployment) describeRole(role system.Role) error {
	for i := range d.sys.Instances(role) {
		topology, err := d.topologyOf(role, i)
		if err != nil {
			return err
		}
		files, err := d.certificates(role)
		if err != nil {
			return err
		}
		files[topologyPath] = topology
		m := &member{d: d, role: string(role), instance: i, image: d.images.role, user: nobody,
			cmd:   []string{"chatd", string(role), "--topology", topologyPath, "--instance", fmt.Sprint(i)},
			env:   environment(d.cfg.Env),
			files: files,
			ports: []string{portDebug}}
		switch role {
		case system.Gateway:
			m.ports = append(m.ports, portMain)
		case system.Group:
			m.ports = append(m.ports, portAdmin)
		case system.Media:
			m.ports = append(m.ports, portMain)
			if d.usesS3() {
				maps.Copy(m.env, s3Keys())
				break
			}
			folder, err := d.mediaVolume()
			if err != nil {
				return err
			}
			m.binds = []string{folder + ":" + mediaFolder}
		}
		m.probe = func(ctx context.Context) error {
			return target.ProbeHTTP(ctx, d.http, "http://"+m.published[portDebug]+"/readyz")
		}
		d.members = append(d.members, m)
	}
	return nil
}

func (d *Deployment) tlsFolder() string { return filepath.Join(d.work.path, "tls") }

// certificates returns the files of TLS between roles that a role needs, by path.
func (d *Deployment) certificates(role system.Role) (map[string][]byte, error) {
	files := map[string][]byte{}
	if !d.cfg.Topology.RPCTLS {
		return files, nil
	}
	for _, name := range []string{"ca.pem", string(role) + ".pem", string(role) + ".key"} {
		data, err := os.ReadFile(filepath.Join(d.tlsFolder(), name))
		if err != nil {
			return nil, fmt.Errorf("containers: certificate: %w", err)
		}
		files[tlsPath+name] = data
	}
	return files, nil
}

func (d *Deployment) describeRedis() {
	m := &member{d: d, role: RoleRedis, infra: true, image: d.images.redis, ports: []string{portRedis},
		// Nothing is kept over a restart: nothing that must not be lost is in it.
		entrypoint: []string{"redis-server"}, cmd: []string{"--protected-mode", "no", "--save", "", "--appendonly", "no"}}
	m.probe = func(ctx context.Context) error { return target.ProbeRedis(ctx, m.published[portRedis]) }
	d.members = append(d.members, m)
}

func (d *Deployment) describeProvider() {
	m := &member{d: d, role: RoleProvider, infra: true, image: d.images.role, ports: []string{portMain}, user: nobody, env: environment(d.cfg.Env),
		cmd: append([]string{"embedded", "provider", "--listen", "0.0.0.0:" + portMain}, d.cfg.ProviderArgs...)}
	m.probe = func(ctx context.Context) error {
		return target.ProbeHTTP(ctx, d.http, "http://"+m.published[portMain]+"/stats")
	}
	d.members = append(d.members, m)
}

// environment turns "name=value" strings into a map.
func environment(list []string) map[string]string {
	out := map[string]string{}
	for _, e := range list {
		name, value, _ := strings.Cut(e, "=")
		out[name] = value
	}
	return out
}

// debugPort is where one instance of a role is scraped.
type debugPort struct {
	Role     string `json:"role"`
	Instance int    `json:"instance"`
	Addr     string `json:"addr"`
}

// Scrape reads /metrics of every role at once.
func (d *Deployment) Scrape(ctx context.Context) ([]history.CounterSample, error) {
	var ports []debugPort
	for _, m := range d.members {
		if addr, ok := m.published[portDebug]; ok {
			ports = append(ports, debugPort{m.role, m.instance, addr})
		}
	}
	return scrape(ctx, d.http, ports, d.restarts())
}

// scrape reads the debug ports at once. One that does not answer is left out:
// it is down or just starting, and there is nothing to say about it.
func scrape(ctx context.Context, c *http.Client, ports []debugPort, restarts map[string]int) ([]history.CounterSample, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	var mu sync.Mutex
	var samples []history.CounterSample
	var wg sync.WaitGroup
	for _, p := range ports {
		wg.Go(func() {
			values, err := target.ScrapeMetrics(ctx, c, p.Addr)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			samples = append(samples, history.CounterSample{Role: p.Role, Instance: p.Instance,
				Restart: restarts[fmt.Sprintf("%s/%d", p.Role, p.Instance)], Values: values})
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil && len(samples) == 0 {
		return nil, fmt.Errorf("containers: scrape: %w", err)
	}
	slices.SortFunc(samples, func(a, b history.CounterSample) int {
		return strings.Compare(fmt.Sprintf("%s/%06d", a.Role, a.Instance), fmt.Sprintf("%s/%06d", b.Role, b.Instance))
	})
	return samples, nil
}
