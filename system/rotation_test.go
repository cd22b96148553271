package system_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"throng/system"
	"throng/system/wire"
)

// TestKeyRotation changes the signing key by restarts, in the steps that
// ARCHITECTURE.md gives, under devices that hold connections, tokens and a chain of
// the old key and go on sending: nobody notices. A token of the key that is then
// retired is refused.
func TestKeyRotation(t *testing.T) {
	in := startInfrastructure(t)
	n := counts{1, 1, 1, 1, 1, 1}
	cfg := in.topology(t, n, freePort(t))
	oldKey, newKey := cfg.Key, wire.Key("another key for tests, 32 bytes and more").String()
	log := &logs{}
	var p *system.Process
	stop := func() {
		if p == nil {
			return
		}
		if err := p.Close(); err != nil {
			t.Errorf("the backend failed: %v\n%s", err, log.tail(50))
		}
		p = nil
	}
	t.Cleanup(stop)
	run := func(key string, old ...string) {
		t.Helper()
		stop()
		cfg.Key, cfg.OldKeys = key, old
		var err error
		if p, err = system.Start(t.Context(), cfg, system.All, 0, log); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Minute)
		for p.Ready() != nil {
			if time.Now().After(deadline) {
				t.Fatalf("not ready: %v\n%s", p.Ready(), log.tail(50))
			}
			<-time.After(10 * time.Millisecond)
		}
	}
	run(oldKey)
	d := describe(t, cfg, in)
	d.provision(2, 1, map[uint64][]uint64{9: {1, 2}})
	a, b := d.dial(1, 0), d.dial(2, 0)
	var direct, group []string
	say := func() {
		direct, group = append(direct, fmt.Sprint("direct ", len(direct))), append(group, fmt.Sprint("group ", len(group)))
		a.send(wire.Conversation{User: 2}, direct[len(direct)-1])
		a.send(wire.Conversation{Group: 9}, group[len(group)-1])
	}
	say()
	b.awaitBodies(1, 0, direct...)
	b.awaitBodies(1, 9, group...)
	for _, step := range [][]string{{oldKey, newKey}, {newKey, oldKey}} {
		say() // may be in flight when the roles go
		run(step[0], step[1:]...)
		say() // proved by a chain: the message service has just started
		b.awaitFor(time.Minute, "messages over a restart", func() bool { return len(b.bodies(1, 0)) >= len(direct) && len(b.bodies(1, 9)) >= len(group) })
		b.awaitBodies(1, 0, direct...)
		b.awaitBodies(1, 9, group...)
	}
	a.awaitSent()
	for _, d := range []*device{a, b} {
		d.mu.Lock()
		if d.connects < 3 || len(d.refused) > 0 {
			t.Errorf("device %d: %d connects, refused %v", d.user, d.connects, d.refused)
		}
		d.mu.Unlock()
	}

	token := func(key string) string {
		k, err := wire.ParseKey(key)
		if err != nil {
			t.Fatal(err)
		}
		token, err := k.Sign(wire.Claims{User: 1, Device: 7, Expires: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	gateway := "ws://" + cfg.Gateways[0].Listen
	for _, key := range []string{oldKey, newKey} {
		if status, _ := upgrade(t, gateway, token(key), ""); status != http.StatusSwitchingProtocols {
			t.Errorf("with both keys listed: %d", status)
		}
	}
	a.hangUp()
	b.hangUp()
	run(newKey)
	if status, _ := upgrade(t, gateway, token(oldKey), ""); status != http.StatusUnauthorized {
		t.Errorf("a token of a retired key: %d", status)
	}
	if status, _ := upgrade(t, gateway, token(newKey), ""); status != http.StatusSwitchingProtocols {
		t.Errorf("a token of the new key: %d", status)
	}
}
