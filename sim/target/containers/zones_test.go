package containers

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"throng/sim/target"
	"throng/system/placement"
	"throng/system/wire"
)

const zonesOneWay = 60 * time.Millisecond

// TestZones: a gateway, a group instance and a replica of MySQL are far from
// everything else. A send from there takes the way there and back at least, and
// so does a read at the primary; a read at the replica there does not. Without
// that replica the others answer.
func TestZones(t *testing.T) {
	needDocker(t)
	cfg := testConfig(t)
	cfg.Topology.Gateways, cfg.Topology.Groups, cfg.Replicas = 2, 2, 2
	cfg.Zones = target.Zones{
		Zones: []target.Zone{{Name: "near", Region: "eu"}, {Name: "far", Region: "us", Has: []string{"gateway/1", "group/1", "mysql/2"}}},
		Links: []target.ZoneLink{{A: "near", B: "far", Delay: zonesOneWay}},
	}
	d := start(t, cfg)
	if source, err := d.find(RoleMySQL, 2); err != nil || !strings.HasPrefix(source.source, RoleWAN) {
		t.Fatalf("the far replica follows %s: %v", source.source, err)
	}
	ctx := within(t, 3*time.Minute)
	group := atInstance(100, 1)
	if err := provisionLarge(ctx, d, 1, group); err != nil {
		t.Fatal(err)
	}
	t.Run("sends", func(t *testing.T) { farSends(t, d, group) })
	t.Run("reads", func(t *testing.T) { farReads(t, d) })
	if err := d.Kill(RoleMySQL, 2); err != nil {
		t.Fatal(err)
	}
	fallbacks := func() float64 {
		return counter(t, d, "group", 1, `throng_group_read_fallbacks_total{reason="failed"}`) + counter(t, d, "group", 1, `throng_group_replica_lag_seconds{replica="1"}`)
	}
	before := fallbacks()
	if err := sayInLarge(within(t, time.Minute), d, 1, 900, atInstance(90_000, 1)); err != nil {
		t.Errorf("without the far replica: %v", err)
	}
	eventually(t, 20*time.Second, "the loss of the replica shows", func() bool { return fallbacks() > before })
}

// atInstance returns the first group from base on that an instance looks after.
func atInstance(base uint64, instance int) uint64 {
	for placement.GroupInstance(base, 2) != instance {
		base++
	}
	return base
}

// largeGroup has so many members that the primary is not asked for them together
// with the version (group.SmallGroup): they are read at a replica.
const largeGroup = 70

// provisionLarge makes users from base on and a group of them.
func provisionLarge(ctx context.Context, tgt target.Target, base, group uint64) error {
	users, members := &wire.Provision{}, &wire.ProvisionGroup{Group: group, Name: "large"}
	for u := base; u < base+largeGroup; u++ {
		users.Users = append(users.Users, &wire.ProvisionUser{User: u, Devices: []*wire.ProvisionDevice{{}}})
		members.Members = append(members.Members, u)
	}
	return provisionParts(ctx, tgt, users, &wire.Provision{Groups: []*wire.ProvisionGroup{members}})
}

// sayInLarge makes users and a large group, and one of them says something there.
func sayInLarge(ctx context.Context, tgt target.Target, gateway int, base, group uint64) error {
	if err := provisionLarge(ctx, tgt, base, group); err != nil {
		return err
	}
	c, b, err := login(ctx, tgt, gateway, base)
	if err != nil {
		return err
	}
	defer c.Abort()
	return say(ctx, c, b, &wire.Send{ClientMsgId: 1, Group: group, Body: []byte("afar")})
}

// farSends compares the time until Sent with the ways that there are.
func farSends(t *testing.T, d *Deployment, group uint64) {
	ctx := within(t, time.Minute)
	took := func(gateway int, user uint64, s *wire.Send) time.Duration {
		t.Helper()
		c, b, err := login(ctx, d, gateway, user)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Abort()
		start := time.Now()
		if err := say(ctx, c, b, s); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	near := took(0, 1, &wire.Send{ClientMsgId: 1, User: 2})
	far := took(1, 2, &wire.Send{ClientMsgId: 1, User: 1})
	// The gateway asks the message service, and that asks the group instance.
	farGroup := took(1, 2, &wire.Send{ClientMsgId: 2, Group: group})
	t.Logf("until Sent: near %s, far %s, far to a group %s", near, far, farGroup)
	if far < 2*zonesOneWay || farGroup < 4*zonesOneWay {
		t.Errorf("until Sent: far %s, far to a group %s; want at least 2 and 4 ways of %s", far, farGroup, zonesOneWay)
	}
}

// farReads: members are read at the replica that is near to who reads, however
// often it is behind at first, and that is what makes them quick.
func farReads(t *testing.T, d *Deployment) {
	const reads, seconds = `throng_group_reads_total{source=%q}`, `throng_group_read_seconds_total{source=%q}`
	n := uint64(0)
	eventually(t, time.Minute, "a read at the far replica", func() bool {
		n++
		if err := sayInLarge(within(t, time.Minute), d, 1, 1000+100*n, atInstance(1000+100*n, 1)); err != nil {
			t.Fatal(err)
		}
		return counter(t, d, "group", 1, fmt.Sprintf(reads, "1")) > 0
	})
	mean := func(source string) time.Duration {
		s, r := counter(t, d, "group", 1, fmt.Sprintf(seconds, source)), counter(t, d, "group", 1, fmt.Sprintf(reads, source))
		if r == 0 {
			t.Fatalf("no reads at %s", source)
		}
		return time.Duration(s / r * float64(time.Second))
	}
	atReplica, atPrimary := mean("1"), mean("primary")
	t.Logf("a read by the far instance: at the replica beside it %s, at the primary %s", atReplica, atPrimary)
	if atPrimary < 2*zonesOneWay {
		t.Errorf("a read at the primary took %s, less than there and back", atPrimary)
	}
	if atReplica >= atPrimary {
		t.Errorf("a read at the replica beside it took %s, at the primary %s", atReplica, atPrimary)
	}
	if lag := counter(t, d, "group", 1, `throng_group_replica_lag_seconds{replica="1"}`); lag > 3 {
		t.Errorf("the far replica is %v s behind", lag)
	}
}

// counter reads a metric of one instance.
func counter(t *testing.T, d *Deployment, role string, instance int, name string) float64 {
	t.Helper()
	samples, err := d.Scrape(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		if s.Role == role && s.Instance == instance {
			return s.Values[name]
		}
	}
	t.Fatalf("%s/%d does not answer", role, instance)
	return 0
}
