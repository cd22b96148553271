package group_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/group"
	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

const (
	member  = wire.Code(0)
	not     = wire.Code_CODE_NOT_MEMBER
	noGroup = wire.Code_CODE_NO_SUCH_GROUP
)

func TestCheckAndMembers(t *testing.T) {
	in := newRig(t).one()
	in.create(t, 9, 1, 2, 3)
	in.create(t, 9, 7) // it exists: nothing happens
	res, err := in.Check(t.Context(), &rpc.CheckRequest{Groups: []uint64{9, 9, 8, 9}, Users: []uint64{1, 7, 1, 3}})
	if err != nil || !slices.Equal(res.Codes, []wire.Code{member, not, noGroup, member}) {
		t.Fatalf("%v, %v", res, err)
	}
	in.create(t, 8, 1) // "no such group" is not remembered
	if c := in.check(t, 8, 1); c != member {
		t.Fatalf("after the creation: %v", c)
	}
	if m := in.members(t, 9, 0, 0); m.Version != 1 || !slices.Equal(m.Members, []uint64{1, 2, 3}) {
		t.Fatalf("%v", m)
	}
	if _, err := in.Check(t.Context(), &rpc.CheckRequest{Groups: []uint64{9}}); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("a group without a user: %v", err)
	}
	if _, err := in.Members(t.Context(), &rpc.MembersRequest{Group: 77}); status.Code(err) != codes.NotFound {
		t.Fatalf("members of no group: %v", err)
	}
	if _, err := in.Members(t.Context(), &rpc.MembersRequest{Group: 9, Version: 5}); status.Code(err) != codes.Unavailable {
		t.Fatalf("a version that the store does not have yet: %v", err)
	}
}

// TestChangeIsExactInTheLog: members at an offset, whatever the caller has seen.
func TestChangeIsExactInTheLog(t *testing.T) {
	r := newRig(t)
	in := r.one()
	in.create(t, 9, 1, 2)
	one := in.change(t, 9, []uint64{3}, nil)
	if one.Version != 2 || in.check(t, 9, 3) != member {
		t.Fatalf("%v; the new member may send at once", one)
	}
	two := in.change(t, 9, nil, []uint64{2})
	if two.Version != 3 || two.Offset <= one.Offset || in.check(t, 9, 2) != not {
		t.Fatalf("%v; who was removed may not send any more", two)
	}
	for _, c := range []struct {
		offset  int64
		seen    uint64
		version uint64
		members []uint64
	}{
		{one.Offset - 1, 0, 1, []uint64{1, 2}},
		{one.Offset, 0, 2, []uint64{1, 2, 3}},
		{two.Offset - 1, 0, 2, []uint64{1, 2, 3}},
		{two.Offset, 0, 3, []uint64{1, 3}},
		{one.Offset - 1, 2, 2, []uint64{1, 2, 3}}, // the caller has seen more than its offset tells
		{1000, 1, 3, []uint64{1, 3}},
	} {
		m := in.members(t, 9, c.offset, c.seen)
		if m.Version != c.version || !slices.Equal(m.Members, c.members) {
			t.Errorf("at %d, seen %d: %v; want version %d with %v", c.offset, c.seen, m, c.version, c.members)
		}
	}
	if again := in.change(t, 9, nil, []uint64{2}); again.Version != 3 || again.Offset != two.Offset {
		t.Fatalf("the same again: %v, want %v", again, two)
	}
	// The fan-out saw version 2 earlier than the relay knows of.
	if _, err := in.Applied(t.Context(), &rpc.AppliedRequest{Group: 9, Version: 3, Offset: one.Offset + 10}); err != nil {
		t.Fatal(err)
	}
	if m := in.members(t, 9, two.Offset, 0); m.Version != 3 {
		t.Fatalf("a later sighting moved the position: %v", m)
	}
	if v := r.log.versions(placement.GroupPartition(9, partitions), 9); !slices.Equal(v, []uint64{2, 3}) {
		t.Fatalf("in the log: %v", v)
	}
}

func TestChangeRefusals(t *testing.T) {
	in := newRig(t).one()
	in.create(t, 9, 1)
	many := make([]uint64, group.MaxMembers)
	for i := range many {
		many[i] = uint64(i + 10)
	}
	for name, c := range map[string]struct {
		req  *wire.MembershipChange
		code codes.Code
	}{
		"no group":   {&wire.MembershipChange{Add: []uint64{1}}, codes.InvalidArgument},
		"nothing":    {&wire.MembershipChange{Group: 9}, codes.InvalidArgument},
		"twice":      {&wire.MembershipChange{Group: 9, Add: []uint64{5}, Remove: []uint64{5}}, codes.InvalidArgument},
		"user 0":     {&wire.MembershipChange{Group: 9, Add: []uint64{0}}, codes.InvalidArgument},
		"not there":  {&wire.MembershipChange{Group: 8, Add: []uint64{5}}, codes.NotFound},
		"too many":   {&wire.MembershipChange{Group: 9, Add: many}, codes.FailedPrecondition},
		"very large": {&wire.MembershipChange{Group: 9, Add: append(many, 1<<40)}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := in.GroupClient.Change(t.Context(), c.req); status.Code(err) != c.code {
				t.Fatalf("%v, want %v", err, c.code)
			}
		})
	}
	in.change(t, 9, many[:group.MaxMembers-1], nil)
}

// TestRelaySurvivesACrash: changes that were stored while the log was away are
// in the log later, in order of version, from the next process.
func TestRelaySurvivesACrash(t *testing.T) {
	r := newRig(t)
	in := r.one()
	in.create(t, 9, 1)
	r.log.setFail(true)
	var wg sync.WaitGroup
	for u := uint64(2); u <= 6; u++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // enough to store it
		wg.Go(func() {
			defer cancel()
			if _, err := in.GroupClient.Change(ctx, &wire.MembershipChange{Group: 9, Add: []uint64{u}}); err == nil {
				t.Error("a change was answered that is not in the log")
			}
		})
	}
	wg.Wait()
	in.stop()
	r.log.setFail(false)
	in = r.one()
	p := placement.GroupPartition(9, partitions)
	waitFor(t, "the log", func() bool { return len(r.log.versions(p, 9)) == 5 })
	if v := r.log.versions(p, 9); !slices.Equal(v, []uint64{2, 3, 4, 5, 6}) {
		t.Fatalf("in the log: %v", v)
	}
	// The other process may have carried them too: the fan-out says where they are.
	if m := in.members(t, 9, 1000, 0); m.Version != 1 {
		t.Fatalf("a position that nobody can know: %v", m)
	}
	for v := uint64(2); v <= 6; v++ {
		if _, err := in.Applied(t.Context(), &rpc.AppliedRequest{Group: 9, Version: v, Offset: int64(v - 2)}); err != nil {
			t.Fatal(err)
		}
	}
	if m := in.members(t, 9, 1000, 0); m.Version != 6 {
		t.Fatalf("%v", m)
	}
	if res := in.change(t, 9, []uint64{6}, nil); res.Version != 6 {
		t.Fatalf("what is so already: %v", res)
	}
}

// TestRelayCrashBetweenLogAndStore: a process that dies when a record is in
// the log but its position is not stored leaves it to be carried again; the
// fan-out's first sighting is the position that counts.
func TestRelayCrashBetweenLogAndStore(t *testing.T) {
	r := newRig(t)
	in := r.one()
	in.create(t, 9, 1)
	p := placement.GroupPartition(9, partitions)
	hold := make(chan struct{})
	r.log.mu.Lock()
	r.log.after = func() { <-hold }
	r.log.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = in.GroupClient.Change(ctx, &wire.MembershipChange{Group: 9, Add: []uint64{2}}) })
	waitFor(t, "the record", func() bool { return len(r.log.versions(p, 9)) == 1 })
	r.log.mu.Lock()
	r.log.after = nil
	r.log.mu.Unlock()
	cancel()
	wg.Wait()
	in.kill()
	close(hold)
	in.stop()
	in = r.one()
	waitFor(t, "the second copy", func() bool { return len(r.log.versions(p, 9)) == 2 })
	if m := in.members(t, 9, 1000, 0); m.Version != 1 {
		t.Fatalf("before its position is told: %v", m)
	}
	if _, err := in.Applied(t.Context(), &rpc.AppliedRequest{Group: 9, Version: 2, Offset: 0}); err != nil {
		t.Fatal(err)
	}
	if m := in.members(t, 9, 0, 0); m.Version != 2 {
		t.Fatalf("at its first position: %v", m)
	}
}

// TestChangeThatIsInTheLogTwice: where the answer of the log was lost, the change
// is answered with the position of the first copy, which the fan-out tells.
func TestChangeThatIsInTheLogTwice(t *testing.T) {
	r := newRig(t)
	in := r.one()
	in.create(t, 9, 1)
	r.log.mu.Lock()
	r.log.lose = true
	r.log.mu.Unlock()
	answer := make(chan *wire.MembershipResult, 1)
	go func() {
		res, err := in.GroupClient.Change(t.Context(), &wire.MembershipChange{Group: 9, Add: []uint64{2}})
		if err != nil {
			t.Error(err)
		}
		answer <- res
	}()
	p := placement.GroupPartition(9, partitions)
	waitFor(t, "the second copy", func() bool { return len(r.log.versions(p, 9)) == 2 })
	select {
	case res := <-answer:
		t.Fatalf("answered %v before anybody can know", res)
	case <-time.After(100 * time.Millisecond):
	}
	for offset := range int64(2) { // in the order of the log
		if _, err := in.Applied(t.Context(), &rpc.AppliedRequest{Group: 9, Version: 2, Offset: offset}); err != nil {
			t.Fatal(err)
		}
	}
	if res := <-answer; res.Version != 2 || res.Offset != 0 {
		t.Errorf("answered %v, want the first copy", res)
	}
	if res := in.change(t, 9, []uint64{2}, nil); res.Offset != 0 {
		t.Errorf("asked again: %v", res)
	}
}

// TestTwoInstances: a change through the instance that does not look after the
// group passes to the one that does, which knows at once; the other one is
// late by Staleness at most.
func TestTwoInstances(t *testing.T) {
	r := newRig(t)
	lns := []net.Listener{listen(t), listen(t)}
	both := []*instance{r.start(0, lns), r.start(1, lns)}
	id := uint64(9)
	owner := both[placement.GroupInstance(id, 2)]
	other := both[1-placement.GroupInstance(id, 2)]
	other.create(t, id, 1)
	for _, in := range both {
		if in.check(t, id, 2) != not {
			t.Fatal("a member too early")
		}
	}
	other.change(t, id, []uint64{2}, nil)
	if owner.check(t, id, 2) != member {
		t.Fatal("the owner does not know of the change")
	}
	start := time.Now()
	waitFor(t, "the other one", func() bool { return other.check(t, id, 2) == member })
	if d := time.Since(start); d > group.Staleness+3*time.Second {
		t.Fatalf("late by %v", d)
	}
}

// TestWithoutRedis: everything works, and a pointer that could not be raised
// is raised when Redis is back.
func TestWithoutRedis(t *testing.T) {
	r := newRig(t)
	lns := []net.Listener{listen(t), listen(t)}
	both := []*instance{r.start(0, lns), r.start(1, lns)}
	id := uint64(9)
	owner := both[placement.GroupInstance(id, 2)]
	other := both[1-placement.GroupInstance(id, 2)]
	owner.create(t, id, 1)
	if other.check(t, id, 2) != not { // sets the pointer to version 1
		t.Fatal("a member too early")
	}
	addr := r.redis.Addr()
	r.redis.Close()
	owner.change(t, id, []uint64{2}, nil)
	if owner.check(t, id, 2) != member || owner.members(t, id, 1000, 0).Version != 2 {
		t.Fatal("without Redis the change is lost")
	}
	waitFor(t, "the other one", func() bool { return other.check(t, id, 2) == member })
	if err := r.redis.StartAddr(addr); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the pointer", func() bool {
		for _, k := range r.redis.Keys() {
			if v, err := r.redis.Get(k); err == nil && strings.HasSuffix(k, ":v") && v == "2" {
				return true
			}
		}
		return false
	})
}

// TestChecksDuringChanges: whoever was added before a check began passes it,
// although loads are shared and run at the same time.
func TestChecksDuringChanges(t *testing.T) {
	in := newRig(t).one()
	in.create(t, 9, 1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = in.Check(context.Background(), &rpc.CheckRequest{Groups: []uint64{9}, Users: []uint64{1}})
				}
			}
		})
	}
	for u := uint64(2); u < 60; u++ {
		in.change(t, 9, []uint64{u}, nil)
		if c := in.check(t, 9, u); c != member {
			t.Errorf("user %d after the answer: %v", u, c)
		}
	}
	close(stop)
	wg.Wait()
}

func (in *instance) post(t *testing.T, path, token, format string, body []byte) (int, []byte) {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Content-Type", format)
	w := httptest.NewRecorder()
	in.service.Admin().ServeHTTP(w, req)
	out, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, out
}

func token(t *testing.T, admin bool) string {
	t.Helper()
	s, err := key().Sign(wire.Claims{User: 1, Admin: admin, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func delimited(t *testing.T, messages ...*wire.Provision) []byte {
	t.Helper()
	var out []byte
	for _, m := range messages {
		b, err := m.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		out = append(binary.AppendUvarint(out, uint64(len(b))), b...)
	}
	return out
}

func TestAdminProvision(t *testing.T) {
	const proto = "application/x-protobuf"
	r := newRig(t)
	in := r.one()
	var messages []*wire.Provision
	for i := range uint64(50) {
		p := &wire.Provision{Groups: []*wire.ProvisionGroup{{Group: i + 1, Name: fmt.Sprint(i), Members: []uint64{i + 1, i + 2}}}}
		for u := range uint64(20) {
			p.Users = append(p.Users, &wire.ProvisionUser{User: 100*i + u + 1, Devices: []*wire.ProvisionDevice{{PushToken: "x"}}})
		}
		messages = append(messages, p)
	}
	body := delimited(t, messages...)
	for range 2 { // it can be repeated
		code, out := in.post(t, "/admin/v1/provision", token(t, true), proto, body)
		var res wire.ProvisionResult
		if err := res.UnmarshalVT(out); err != nil || code != http.StatusOK || res.Users != 1000 || res.Groups != 50 {
			t.Fatalf("%d %q: %v, %v", code, out, &res, err)
		}
	}
	if n := r.inboxes[0].count() + r.inboxes[1].count(); n != 1000 || r.inboxes[0].count() == 0 || r.inboxes[1].count() == 0 {
		t.Fatalf("%d and %d users", r.inboxes[0].count(), r.inboxes[1].count())
	}
	if in.check(t, 50, 51) != member {
		t.Fatal("the last group is not there")
	}
	code, out := in.post(t, "/admin/v1/members", token(t, true), "application/json", []byte(`{"group":"50","add":["99"]}`))
	if code != http.StatusOK || !strings.Contains(string(out), `"version"`) || in.check(t, 50, 99) != member {
		t.Fatalf("%d %s", code, out)
	}
	code, out = in.post(t, "/admin/v1/provision", token(t, true), "application/json; charset=utf-8", []byte(`{"groups":[{"group":"77","members":["1"]}]}`))
	if code != http.StatusOK || in.check(t, 77, 1) != member {
		t.Fatalf("%d %s", code, out)
	}
}

func TestAdminRefusals(t *testing.T) {
	const proto, json = "application/x-protobuf", "application/json"
	in := newRig(t).one()
	admin := token(t, true)
	huge := binary.AppendUvarint(nil, 9<<20)
	tooMany := &wire.ProvisionGroup{Group: 1, Members: make([]uint64, group.MaxMembers+1)}
	for i := range tooMany.Members {
		tooMany.Members[i] = uint64(i + 1)
	}
	for name, c := range map[string]struct {
		path, token, format string
		body                []byte
		code                int
	}{
		"no token":         {"provision", "", proto, nil, 401},
		"bad token":        {"provision", "x", proto, nil, 401},
		"not admin":        {"provision", token(t, false), proto, nil, 403},
		"format":           {"provision", admin, "text/plain", nil, 415},
		"torn":             {"provision", admin, proto, []byte{5, 1}, 400},
		"torn length":      {"provision", admin, proto, []byte{0x80}, 400},
		"garbage":          {"provision", admin, proto, []byte{2, 0xff, 0xff}, 400},
		"huge":             {"provision", admin, proto, huge, 413},
		"too many members": {"provision", admin, proto, delimited(t, &wire.Provision{Groups: []*wire.ProvisionGroup{tooMany}}), 400},
		"no members":       {"provision", admin, json, []byte(`{"groups":[{"group":"1"}]}`), 400},
		"no devices":       {"provision", admin, json, []byte(`{"users":[{"user":"1"}]}`), 400},
		"a fifth linked":   {"provision", admin, json, []byte(`{"users":[{"user":"1","devices":[{"device":4},{"device":5}]}]}`), 400},
		"bad json":         {"members", admin, json, []byte(`{`), 400},
		"no such group":    {"members", admin, json, []byte(`{"group":"5","add":["1"]}`), 404},
		"empty body":       {"provision", admin, proto, nil, 200},
	} {
		t.Run(name, func(t *testing.T) {
			if code, out := in.post(t, "/admin/v1/"+c.path, c.token, c.format, c.body); code != c.code {
				t.Fatalf("%d %s, want %d", code, out, c.code)
			}
		})
	}
}
