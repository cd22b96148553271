package system_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"throng/system/wire"
)

// TestForeignClient runs a client in another language, which knows the protocol from
// chat.proto and PROTOCOL.md alone, against two gateways. It needs Node.js and
// `make client` (which fetches its libraries); where they are missing it is skipped,
// unless THRONG_NODE=1 says that they must be there.
func TestForeignClient(t *testing.T) {
	dir := filepath.Join("..", "testdata", "client")
	node, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "node_modules", "ws"))
	}
	if err != nil {
		if os.Getenv("THRONG_NODE") == "1" {
			t.Fatalf("THRONG_NODE=1, but the client cannot run: %v", err)
		}
		t.Skipf("needs Node.js and `make client`: %v", err)
	}
	d := startAll(t, counts{gateways: 2, messages: 2, fanouts: 1, groups: 1, inboxes: 2, pushes: 1}, withMedia(t, anyPort, 1))
	const theGroup = 77
	d.provision(3, 1, map[uint64][]uint64{theGroup: {1, 2, 3}})

	type person struct {
		User  string `json:"user"`
		Token string `json:"token"`
	}
	setup := struct {
		Proto    string            `json:"proto"`
		Gateways []string          `json:"gateways"`
		Media    string            `json:"media"`
		Group    string            `json:"group"`
		People   map[string]person `json:"people"`
	}{Proto: filepath.Join("..", "..", "system", "wire", "chat.proto"), Media: "http://" + d.cfg.Medias[0].Listen, Group: strconv.Itoa(theGroup), People: map[string]person{}}
	for _, g := range d.gateways() {
		setup.Gateways = append(setup.Gateways, "ws://"+g)
	}
	for i, name := range []string{"ann", "ben", "cleo"} {
		token, err := d.key.Sign(wire.Claims{User: uint64(i + 1), Expires: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		setup.People[name] = person{strconv.Itoa(i + 1), token}
	}
	input, err := json.Marshal(setup)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, "check.js")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(input)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("the client: %v", err)
	}
}
