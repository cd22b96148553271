package system_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"throng/system"
	"throng/system/wire"
)

// process is one role instance as a child process.
type process struct {
	t     *testing.T
	args  []string
	debug string
	log   *logs

	cmd   *exec.Cmd
	stdin io.Closer
}

// startEach runs every role instance of cfg as a process of its own and
// returns them by role, in order of their instance.
func startEach(t *testing.T, cfg system.Config) map[system.Role][]*process {
	t.Helper()
	data, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "topology.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out := map[system.Role][]*process{}
	add := func(role system.Role, i int, debug string) {
		p := &process{t: t, debug: debug, log: &logs{},
			args: []string{string(role), "--topology", file, "--instance", strconv.Itoa(i), "--exit-with-parent"}}
		out[role] = append(out[role], p)
		p.start()
		t.Cleanup(func() {
			p.kill()
			if t.Failed() {
				t.Logf("log of %s/%d:\n%s", role, i, p.log.tail(40))
			}
		})
	}
	for i, in := range cfg.Pushes {
		add(system.Push, i, in.Debug)
	}
	for i, in := range cfg.Inboxes {
		add(system.Inbox, i, in.Debug)
	}
	for i, in := range cfg.Groups {
		add(system.Group, i, in.Debug)
	}
	for i, in := range cfg.Medias {
		add(system.Media, i, in.Debug)
	}
	for i, in := range cfg.Messages {
		add(system.Message, i, in.Debug)
	}
	for i, in := range cfg.Fanouts {
		add(system.Fanout, i, in.Debug)
	}
	for i, in := range cfg.Gateways {
		add(system.Gateway, i, in.Debug)
	}
	for _, list := range out {
		for _, p := range list {
			p.awaitReady()
		}
	}
	return out
}

func (p *process) start() {
	p.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(exe, p.args...)
	p.cmd.Env = append(os.Environ(), childEnv+"=1")
	p.cmd.Stderr, p.cmd.Stdout = p.log, p.log
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself; its log says why
	_ = p.cmd.Wait()
}

func (p *process) awaitReady() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.debug+"/readyz", nil)
		if err != nil {
			p.t.Fatal(err)
		}
		if resp, err := client.Do(req); err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			last = string(body)
		} else if ctx.Err() == nil {
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			p.t.Fatalf("%v is not ready: %s\n%s", p.args, last, p.log.tail(20))
		case <-tick.C:
		}
	}
}

// TestKillEveryRole kills an instance of each role with SIGKILL, one after the
// other, while users write to each other and to groups. Everything that was
// accepted arrives once and in order, at those who were online and at those
// who were not.
func TestKillEveryRole(t *testing.T) {
	in := startInfrastructure(t)
	cfg := in.topology(t, counts{gateways: 2, messages: 2, fanouts: 2, groups: 1, inboxes: 2, pushes: 1}, freePort(t))
	cfg.Settings.FramesPerSecond = 10_000 // each user is as busy as several, and acknowledges one by one
	processes := startEach(t, cfg)
	d := describe(t, cfg, in)
	const users = 8
	groups := map[uint64][]uint64{100: {1, 2, 3, 4, 8}, 101: {3, 4, 5, 6}, 102: {5, 6, 7, 1}, 103: {2, 7}}
	d.provision(users, 2, groups)
	online := map[uint64]*device{}
	for u := uint64(1); u < users; u++ { // the last one stays offline
		online[u] = d.dial(u, 0)
	}
	for _, dev := range online {
		dev.awaitCurrent()
	}
	talk := startTalk(online, groups, users)
	for _, role := range []system.Role{system.Gateway, system.Message, system.Fanout, system.Group, system.Inbox, system.Push} {
		for _, p := range processes[role] {
			talk.await(t, 100)
			p.kill()
			talk.await(t, 100)
			p.start()
			p.awaitReady()
			t.Logf("%s was killed and is back", role)
		}
	}
	talk.await(t, 100)
	sent := talk.stop()
	for _, dev := range online {
		dev.awaitSent()
	}
	all := slices.Collect(maps.Values(online))
	for n := range uint32(2) {
		late := d.dial(users, n)
		late.awaitCurrent()
		all = append(all, late)
	}
	total, duplicates := 0, 0
	for _, dev := range all {
		for from, to := range sent {
			for conv, n := range to {
				if !addressed(dev.user, from, conv, groups) {
					continue
				}
				dev.awaitBodies(from, conv.Group, numbered("message", n)...)
				total += n
			}
		}
		dev.update(func() { duplicates += dev.duplicates })
	}
	t.Logf("%d deliveries proved, %d duplicates dropped by clients", total, duplicates)
	if duplicates == 0 {
		t.Error("nothing was delivered twice: no kill hit anything in flight")
	}
}

func addressed(user, from uint64, conv wire.Conversation, groups map[uint64][]uint64) bool {
	if conv.User != 0 {
		return conv.User == user
	}
	for _, m := range groups[conv.Group] {
		if m == user {
			return user != from
		}
	}
	return false
}

// maxUnsent is how much a user has unacknowledged at most: on a slow machine
// more would not be away in time after the talk.
const maxUnsent = 100

// talk is users who write without pause.
type talk struct {
	quit chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	sent map[uint64]map[wire.Conversation]int // by sender
	n    int
}

// startTalk lets every user write to the next one and to their groups, about
// 100 messages a second each.
func startTalk(online map[uint64]*device, groups map[uint64][]uint64, users uint64) *talk {
	k := &talk{quit: make(chan struct{}), sent: map[uint64]map[wire.Conversation]int{}}
	for u, dev := range online {
		conversations := []wire.Conversation{direct(u%users + 1)}
		for g, members := range groups {
			for _, m := range members {
				if m == u {
					conversations = append(conversations, group(g))
				}
			}
		}
		k.sent[u] = map[wire.Conversation]int{}
		k.wg.Go(func() { k.write(u, dev, conversations) })
	}
	return k
}

func (k *talk) write(u uint64, dev *device, conversations []wire.Conversation) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-k.quit:
			return
		case <-tick.C:
		}
		if dev.unsent() >= maxUnsent {
			continue
		}
		conv := conversations[i%len(conversations)]
		k.mu.Lock()
		body := fmt.Sprintf("message %d", k.sent[u][conv])
		k.sent[u][conv]++
		k.n++
		k.mu.Unlock()
		dev.send(conv, body)
	}
}

// await waits until n more messages have been written.
func (k *talk) await(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.n
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for from := count(); count() < from+n; {
		select {
		case <-deadline.C:
			t.Fatal("the talk stands still")
		case <-tick.C:
		}
	}
}

// stop ends the talk and returns what was written, by sender and conversation.
func (k *talk) stop() map[uint64]map[wire.Conversation]int {
	close(k.quit)
	k.wg.Wait()
	return k.sent
}
