package system_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"throng/system"
	"throng/system/wire"
)

// get reads a page of a debug port.
func get(t *testing.T, addr, path string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", path, resp.Status, err)
	}
	return string(body)
}

// metric is the sum of a metric without labels over debug ports.
func metric(t *testing.T, name string, addrs ...string) (sum float64) {
	t.Helper()
	for _, addr := range addrs {
		for line := range strings.Lines(get(t, addr, "/metrics")) {
			if value, ok := strings.CutPrefix(line, name+" "); ok {
				v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				sum += v
			}
		}
	}
	return sum
}

// awaitMetric waits until ok is true of a metric.
func awaitMetric(t *testing.T, name string, ok func(float64) bool, addrs ...string) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; <-time.After(20 * time.Millisecond) {
		v := metric(t, name, addrs...)
		if ok(v) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s stays %g", name, v)
		}
	}
}

func (d *deployment) inboxDebug() (addrs []string) {
	for _, in := range d.cfg.Inboxes {
		addrs = append(addrs, in.Debug)
	}
	return addrs
}

func is(want float64) func(float64) bool { return func(v float64) bool { return v == want } }

// TestOfflineGroup: members on several shards who are away get a group's
// messages in order, in acknowledged pages; the bodies are stored once a shard.
func TestOfflineGroup(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 2, 1})
	const members, messages, size = 40, 250, 1000
	var all []uint64
	for u := range uint64(members) {
		all = append(all, u+1)
	}
	d.provision(members, 1, map[uint64][]uint64{900: all})
	a := d.dial(1, 0)
	a.awaitCurrent()
	var want []string
	for i := range messages {
		want = append(want, fmt.Sprintf("%0*d", size, i))
		a.send(group(900), want[i])
	}
	a.awaitSent()
	awaitMetric(t, "throng_inbox_rows", is((members-1)*messages), d.inboxDebug()...)
	// Two instances with two loops each have a store of their own.
	stored := metric(t, "throng_inbox_row_bytes_total", d.inboxDebug()...)
	if low, high := float64(messages*size), float64(4*messages*(size+100)); stored < low || stored > high {
		t.Errorf("%g bytes of bodies stored for %d messages of %d bytes to %d members, want at most %g", stored, messages, size, members-1, high)
	}
	for _, u := range []uint64{2, 3, 4, 5} {
		b := d.dial(u, 0)
		b.awaitBodies(1, 900, want...)
		b.awaitCurrent()
	}
	awaitMetric(t, "throng_inbox_rows", is((members-5)*messages), d.inboxDebug()...)
}

// TestExpiry: rows are deleted when their time is over, and nothing else is.
func TestExpiry(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 1, 1}, func(c *system.Config) { c.Settings.InboxExpiry = system.Duration(2 * time.Second) })
	d.provision(4, 1, map[uint64][]uint64{900: {1, 2, 3}})
	a := d.dial(1, 0)
	a.awaitCurrent()
	a.send(direct(2), "direct, too old")
	a.send(group(900), strings.Repeat("too old ", 100))
	a.awaitSent()
	awaitMetric(t, "throng_inbox_expired_total", is(3), d.inboxDebug()...)
	awaitMetric(t, "throng_inbox_rows", is(0), d.inboxDebug()...)
	a.send(direct(2), "young")
	a.awaitSent()
	b, c := d.dial(2, 0), d.dial(3, 0)
	b.awaitCurrent()
	b.awaitBodies(1, 0, "young")
	c.awaitCurrent()
	c.update(func() {
		if len(c.got) != 0 {
			t.Errorf("%d messages outlived their time", len(c.got))
		}
	})
}

// TestProviderThrottles: after a 429 nobody asks before Retry-After is over, and
// then every push gets through.
func TestProviderThrottles(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 1, 1})
	const users, wait = 10, time.Second
	d.provision(users+1, 1, nil)
	var shut time.Time // guarded by the provider
	d.in.provider.answers(func(string) (int, string) {
		if shut.IsZero() {
			shut = time.Now()
			return http.StatusTooManyRequests, "1"
		}
		return http.StatusOK, ""
	})
	a := d.dial(users+1, 0)
	a.awaitCurrent()
	a.send(direct(1), "this one meets the quota")
	d.in.provider.awaitThat(t, "a refusal", func() bool { return !shut.IsZero() })
	awaitMetric(t, "throng_push_throttled_total", is(1), d.cfg.Pushes[0].Debug)
	for u := uint64(2); u <= users; u++ {
		a.send(direct(u), "these have to wait")
	}
	for u := range users {
		d.in.provider.await(t, fmt.Sprintf("token-%d", u+1))
	}
	for i, r := range d.in.provider.log("") {
		if i > 0 && r.at.Sub(shut) < wait {
			t.Errorf("request %d for %s came %s after the refusal, told to wait %s", i, r.token, r.at.Sub(shut), wait)
		}
	}
}

// TestDeadToken: a token that the provider does not know any more is asked for
// once; a new one is used.
func TestDeadToken(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 1, 1}, func(c *system.Config) { c.Settings.PushEvery = system.Duration(100 * time.Millisecond) })
	d.provision(3, 1, nil)
	d.in.provider.answers(func(token string) (int, string) {
		if token == "token-2" {
			return http.StatusGone, ""
		}
		return http.StatusOK, ""
	})
	a := d.dial(1, 0)
	a.awaitCurrent()
	a.send(direct(2), "to a lost phone")
	awaitMetric(t, "throng_push_dead_tokens_total", is(1), d.cfg.Pushes[0].Debug)
	// The next message to it is stored, and the push of a later one to somebody
	// else shows that its own would have gone out.
	a.send(direct(2), "to a lost phone again")
	a.awaitSent()
	a.send(direct(3), "to a phone")
	d.in.provider.await(t, "token-3")
	if n := len(d.in.provider.log("token-2")); n != 1 {
		t.Errorf("the dead token was asked for %d times, want once", n)
	}
	d.provisionTokens(map[uint64]string{2: "token-2-new"})
	d.in.provider.await(t, "token-2-new")
	b := d.dial(2, 0)
	b.awaitBodies(1, 0, "to a lost phone", "to a lost phone again")
}

// TestDeadLetters: a push that fails time and again is given up, kept where it
// can be read, and tried again for the next message only.
func TestDeadLetters(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 1, 1}, func(c *system.Config) {
		c.Settings.PushAttempts = 2
		c.Settings.PushEvery = system.Duration(100 * time.Millisecond)
	})
	d.provision(3, 1, nil)
	d.in.provider.answers(func(token string) (int, string) {
		if token == "token-2" {
			return http.StatusServiceUnavailable, ""
		}
		return http.StatusOK, ""
	})
	a, debug := d.dial(1, 0), d.cfg.Pushes[0].Debug
	a.awaitCurrent()
	a.send(direct(2), "never pushed")
	awaitMetric(t, "throng_push_dead_letters_total", is(1), debug)
	var letters []struct {
		User      uint64 `json:"user,string"`
		MessageID string `json:"message_id"`
		Reason    string `json:"reason"`
	}
	if err := json.Unmarshal([]byte(get(t, debug, "/dead-letters")), &letters); err != nil {
		t.Fatal(err)
	}
	id := wire.IDOf(1, 0, 1)
	if len(letters) != 1 || letters[0].User != 2 || letters[0].MessageID != fmt.Sprintf("%x", id[:]) || !strings.Contains(letters[0].Reason, "503") {
		t.Errorf("dead letters %+v, want the push of message %x to user 2", letters, id)
	}
	a.send(direct(3), "pushed")
	d.in.provider.await(t, "token-3")
	if n := len(d.in.provider.log("token-2")); n != 2 {
		t.Errorf("%d attempts, want 2", n)
	}
	a.send(direct(2), "the next one")
	awaitMetric(t, "throng_push_dead_letters_total", is(2), debug)
	d.dial(2, 0).awaitBodies(1, 0, "never pushed", "the next one")
}

// TestNoPushAfterAcknowledgement: once a device has acknowledged what waited for
// it, no attempt to push that starts any more, also of pushes that were on
// their way for long.
func TestNoPushAfterAcknowledgement(t *testing.T) {
	d := startAll(t, counts{1, 1, 1, 1, 2, 2})
	const come, stay = 30, 6 // users who connect, and users who do not
	d.provision(come+stay+1, 1, nil)
	open := time.Now().Add(3 * time.Second)
	d.in.provider.answers(func(string) (int, string) {
		if time.Now().Before(open) {
			return http.StatusTooManyRequests, "1"
		}
		return http.StatusOK, ""
	})
	a := d.dial(come+stay+1, 0)
	a.awaitCurrent()
	for u := range uint64(come + stay) {
		a.send(direct(u+1), "hello")
	}
	a.awaitSent()
	asked := func() float64 { return metric(t, "throng_queue_depth{queue=\"inbox_pushes\"}", d.inboxDebug()...) }
	for deadline := time.Now().Add(10 * time.Second); asked() < come+stay; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%g pushes on their way, want %d", asked(), come+stay)
		}
	}
	current := map[uint64]time.Time{}
	for u := uint64(1); u <= come; u++ {
		b := d.dial(u, 0)
		b.awaitCurrent() // the acknowledgement is recorded
		current[u] = time.Now()
		b.awaitBodies(uint64(come+stay+1), 0, "hello")
	}
	if left := time.Until(open); left < 0 {
		t.Logf("the provider opened %s before the last device was current", -left)
	}
	for u := uint64(come + 1); u <= come+stay; u++ {
		d.in.provider.await(t, fmt.Sprintf("token-%d", u))
	}
	awaitMetric(t, "throng_queue_depth{queue=\"inbox_pushes\"}", is(0), d.inboxDebug()...)
	attempts := 0
	for u, at := range current {
		for _, r := range d.in.provider.log(fmt.Sprintf("token-%d", u)) {
			attempts++
			if r.at.After(at) {
				t.Errorf("user %d was pushed %s after the acknowledgement was recorded (answer %d)", u, r.at.Sub(at), r.status)
			}
		}
	}
	cancelled := 0.0
	for _, p := range d.cfg.Pushes {
		cancelled += metric(t, "throng_push_cancelled_total", p.Debug)
	}
	if cancelled == 0 {
		t.Errorf("no push was taken back (%d attempts before)", attempts)
	}
	if n := metric(t, "throng_inbox_push_cancels_unanswered_total", d.inboxDebug()...); n > 0 {
		t.Errorf("%g times nobody answered", n)
	}
}
