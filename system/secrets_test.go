package system_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"throng/system"
	"throng/system/wire"
)

// TestNoSecretInLogs runs the backend at debug level through logins, refusals and
// topologies that are wrong, and looks for every secret that it was given in all that
// it said.
func TestNoSecretInLogs(t *testing.T) {
	in := startInfrastructure(t)
	cfg := in.topology(t, counts{1, 1, 1, 1, 1, 1}, func() string { return "127.0.0.1:0" })
	cfg.Log.Level = "debug"
	cfg.OldKeys = []string{wire.Key(strings.Repeat("retiring", 4)).String()}
	log := &logs{}
	p, err := system.Start(t.Context(), cfg, system.All, 0, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	deadline := time.Now().Add(time.Minute)
	for p.Ready() != nil {
		if time.Now().After(deadline) {
			t.Fatal(p.Ready())
		}
		<-time.After(10 * time.Millisecond)
	}
	secrets := map[string]string{"key": cfg.Key, "old key": cfg.OldKeys[0], "raw old key": strings.Repeat("retiring", 4)}
	d := describe(t, p.Addrs(), in)
	d.provision(2, 1, nil)
	gateway := "ws://" + d.gateways()[0]
	for name, token := range badTokens(t, d.key) {
		if len(token) > 20 {
			secrets["token: "+name] = token
		}
		if status, _ := upgrade(t, gateway, token, ""); status != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, status)
		}
		resp, err := http.Get("http://" + d.gateways()[0] + wire.Path + "?access_token=" + token)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	a := d.dial(1, 0)
	secrets["token of a login"] = a.token
	a.awaitCurrent()
	a.send(wire.Conversation{User: 2}, "the body of a message")
	secrets["body"] = "the body of a message"
	secrets["push token"] = "token-2"
	in.provider.await(t, "token-2")
	if err := p.Close(); err != nil {
		t.Error(err)
	}

	said := log.tail(1 << 20)
	if !strings.Contains(said, "token refused") {
		t.Fatal("the log has nothing of what was done")
	}
	const password = "pass-word-of-the-database"
	secrets["password"] = password
	for _, edit := range []func(*system.Config){
		func(c *system.Config) {
			c.GroupSQL.SQL = system.SQL{Driver: "mysql", DSN: "root:" + password + "@tcp(127.0.0.1:1)/groups"}
			c.GroupSQL.Replicas = []system.SQLReplica{{DSN: c.GroupSQL.DSN}}
		},
		func(c *system.Config) {
			c.GroupSQL.SQL = system.SQL{Driver: "mysql", DSN: "root:" + password + "@@tcp(/"}
		},
		func(c *system.Config) { c.GroupSQL.SQL = system.SQL{Driver: "other", DSN: password} },
		func(c *system.Config) { c.Key = base64.StdEncoding.EncodeToString([]byte(password)) },
		func(c *system.Config) { c.Key = password + "!" },
	} {
		wrong := cfg.Clone()
		edit(&wrong)
		q, err := system.Start(t.Context(), wrong, system.All, 0, log)
		if err == nil {
			_ = q.Close()
			t.Fatal("a topology that is wrong was started")
		}
		said += fmt.Sprintln(err)
	}
	said += log.tail(1 << 20)
	for name, secret := range secrets {
		if i := strings.Index(said, secret); i >= 0 {
			t.Errorf("%s is in the log: %s", name, said[max(0, i-200):i+len(secret)])
		}
	}
}
