package target

import (
	"fmt"
	"slices"
	"time"

	"throng/sim/target/wan"
	"throng/system"
)

// Zones says where the parts of a deployment are and how far apart. The zero
// value puts everything next to everything.
type Zones struct {
	Zones []Zone // what none of them has is in the first
	Links []ZoneLink
}

// Zone is a place.
type Zone struct {
	Name, Region string
	Has          []string // role/instance
}

// ZoneLink is the distance between two zones, in both directions.
type ZoneLink struct {
	A, B          string
	Delay, Jitter time.Duration // one way; at most so much longer
}

// Of returns the zone of an instance, the zero one where there are none.
func (z Zones) Of(role string, instance int) Zone {
	if len(z.Zones) == 0 {
		return Zone{}
	}
	name := fmt.Sprintf("%s/%d", role, instance)
	for _, zone := range z.Zones {
		if slices.Contains(zone.Has, name) {
			return zone
		}
	}
	return z.Zones[0]
}

// Routes are the ways between the parts of a deployment: straight where there
// is no distance, through a proxy of their own between two zones.
type Routes struct {
	zones  Zones
	listen func() (string, error)
	links  []wan.Link
	known  map[[2]string]string // where a zone reaches an address
}

// NewRoutes returns routes without a proxy. listen gives the address of the
// next one: where it listens, and where everybody else reaches it.
func NewRoutes(zones Zones, listen func() (string, error)) *Routes {
	return &Routes{zones: zones, listen: listen, known: map[[2]string]string{}}
}

// Links are the proxies that the routes given out so far need.
func (r *Routes) Links() []wan.Link { return r.links }

// Addr returns where one instance reaches another that listens on addr. mysql/0
// is the primary.
func (r *Routes) Addr(fromRole string, fromInstance int, toRole string, toInstance int, addr string) (string, error) {
	from, to := r.zones.Of(fromRole, fromInstance), r.zones.Of(toRole, toInstance)
	i := slices.IndexFunc(r.zones.Links, func(l ZoneLink) bool {
		return l.A == from.Name && l.B == to.Name || l.A == to.Name && l.B == from.Name
	})
	if from.Name == to.Name || i < 0 || r.zones.Links[i].Delay+r.zones.Links[i].Jitter == 0 {
		return addr, nil
	}
	key := [2]string{from.Name, addr}
	if at, ok := r.known[key]; ok {
		return at, nil
	}
	at, err := r.listen()
	if err != nil {
		return "", err
	}
	l := r.zones.Links[i]
	r.links = append(r.links, wan.Link{From: from.Name, To: to.Name, Listen: at, Addr: addr,
		Delay: system.Duration(l.Delay), Jitter: system.Duration(l.Jitter)})
	r.known[key] = at
	return at, nil
}

// Config returns the deployment as one of its processes sees it: the addresses
// of roles, Kafka and Redis are those where it reaches them. Databases are the
// caller's, who knows what a DSN looks like.
func (r *Routes) Config(cfg system.Config, role system.Role, instance int) (system.Config, error) {
	cfg = cfg.Clone()
	var failed error
	reach := func(toRole string, toInstance int, addr *string) {
		if toRole == string(role) && toInstance == instance {
			return // it listens there
		}
		at, err := r.Addr(string(role), instance, toRole, toInstance, *addr)
		if err != nil {
			failed = err
			return
		}
		*addr = at
	}
	for i := range cfg.Messages {
		reach(string(system.Message), i, &cfg.Messages[i].RPC)
	}
	for i := range cfg.Groups {
		reach(string(system.Group), i, &cfg.Groups[i].RPC)
	}
	for i := range cfg.Inboxes {
		reach(string(system.Inbox), i, &cfg.Inboxes[i].RPC)
	}
	for i := range cfg.Pushes {
		reach(string(system.Push), i, &cfg.Pushes[i].RPC)
	}
	// Clients of Kafka go where a broker says that it is, so the brokers keep
	// their names and the process is told how to reach them.
	for i, name := range cfg.Kafka.Brokers {
		at := name
		if reach(roleKafka, i, &at); at != name {
			if cfg.Kafka.Via == nil {
				cfg.Kafka.Via = map[string]string{}
			}
			cfg.Kafka.Via[name] = at
		}
	}
	reach(roleRedis, 0, &cfg.Redis.Addr)
	if failed != nil {
		return system.Config{}, failed
	}
	return cfg, nil
}

// Place says in cfg where the group instances, their database and its replicas
// are: reads go to the nearest.
func (z Zones) Place(cfg *system.Config) {
	if len(z.Zones) == 0 {
		return
	}
	for i := range cfg.Groups {
		at := z.Of(string(system.Group), i)
		cfg.Groups[i].Zone, cfg.Groups[i].Region = at.Name, at.Region
	}
	at := z.Of(roleMySQL, 0)
	cfg.GroupSQL.Zone, cfg.GroupSQL.Region = at.Name, at.Region
	for i := range cfg.GroupSQL.Replicas {
		at := z.Of(roleMySQL, i+1)
		cfg.GroupSQL.Replicas[i].Zone, cfg.GroupSQL.Replicas[i].Region = at.Name, at.Region
	}
}
