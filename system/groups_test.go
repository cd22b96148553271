package system_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"throng/system/wire"
)

// TestGroups: what clients do with groups, over real sockets. Each part has
// users of its own.
func TestGroups(t *testing.T) {
	d := startAll(t, counts{gateways: 2, messages: 2, fanouts: 2, groups: 2, inboxes: 2, pushes: 1})
	d.provision(40, 2, map[uint64][]uint64{400: {11, 12}, 500: {21, 22, 23}, 600: {26, 27, 28}})
	t.Run("actions", func(t *testing.T) { testGroupActions(t, d.in2(t)) })
	t.Run("boundary", func(t *testing.T) { testGroupBoundary(t, d.in2(t)) })
	t.Run("create again", func(t *testing.T) { testCreateAgain(t, d.in2(t)) })
	t.Run("administrators at once", func(t *testing.T) { testAdministrators(t, d.in2(t)) })
	t.Run("removed", func(t *testing.T) { testRemoved(t, d.in2(t)) })
	t.Run("nobody", func(t *testing.T) { testNobody(t, d.in2(t)) })
}

// testNobody: a user who is not provisioned cannot be a member, and can be as
// soon as they are.
func testNobody(t *testing.T, d *deployment) {
	a := d.dial(31, 0)
	a.awaitCurrent()
	refused := func(res *wire.GroupResult) {
		t.Helper()
		if res.Code != wire.Code_CODE_NO_SUCH_USER || !strings.Contains(res.Detail, "[1031 1032]") {
			t.Errorf("%v, want a refusal that names 1031 and 1032", res)
		}
	}
	refused(a.ask(wire.GroupRequest_ACTION_CREATE, 0, []uint64{1032, 33, 1031}, named("of strangers")))
	id := a.asked(wire.GroupRequest_ACTION_CREATE, 0, []uint64{32}, named("of friends")).Group
	refused(a.ask(wire.GroupRequest_ACTION_ADD, id, []uint64{1031, 33, 1032}))
	d.provisionTokens(map[uint64]string{1031: "", 1032: ""})
	if info := a.asked(wire.GroupRequest_ACTION_ADD, id, []uint64{1031, 33, 1032}); info.Size != 5 {
		t.Errorf("%v, want five members: nobody came with a refused request", info)
	}
}

// ask makes a group request and waits for its answer. It asks again when the
// answer is to try again.
func (d *device) ask(action wire.GroupRequest_Action, group uint64, users []uint64, edit ...func(*wire.GroupRequest)) *wire.GroupResult {
	d.t.Helper()
	req := &wire.GroupRequest{Group: group, Action: action, Users: users}
	for _, f := range edit {
		f(req)
	}
	d.update(func() {
		d.nextID++
		req.RequestId = d.nextID
	})
	return d.request(req)
}

// request makes a request that may have been made before.
func (d *device) request(req *wire.GroupRequest) *wire.GroupResult {
	d.t.Helper()
	var res *wire.GroupResult
	for res == nil || res.Code == wire.Code_CODE_RETRY || res.Code == wire.Code_CODE_RATE_LIMITED {
		d.update(func() { delete(d.results, req.RequestId) })
		d.do(&wire.Frame{Kind: &wire.Frame_GroupRequest{GroupRequest: req}})
		d.await(fmt.Sprintf("the answer to %s", req.Action), func() bool { res = d.results[req.RequestId]; return res != nil })
	}
	return res
}

// asked is ask for what must be done.
func (d *device) asked(action wire.GroupRequest_Action, group uint64, users []uint64, edit ...func(*wire.GroupRequest)) *wire.GroupInfo {
	d.t.Helper()
	res := d.ask(action, group, users, edit...)
	if res.Code != 0 {
		d.t.Fatalf("device %d.%d: %s of group %d: %v", d.user, d.number, action, group, res)
	}
	return res.Group
}

func named(name string) func(*wire.GroupRequest) {
	return func(r *wire.GroupRequest) { r.Name = &name }
}

// events returns what a device got of a group, in order: "+2" is the system
// message of version 2, anything else a body.
func (d *device) events(group uint64) []string {
	var out []string
	for _, m := range d.got {
		switch {
		case m.Group != group:
		case m.Kind == wire.Kind_KIND_SYSTEM:
			out = append(out, fmt.Sprintf("+%d", m.Seq))
		default:
			out = append(out, string(m.Body))
		}
	}
	return out
}

func (d *device) awaitEvents(group uint64, want ...string) {
	d.t.Helper()
	d.await(fmt.Sprintf("%q in group %d", want, group), func() bool { return len(d.events(group)) >= len(want) })
	d.mu.Lock()
	defer d.mu.Unlock()
	if got := d.events(group); !slices.Equal(got, want) {
		d.t.Fatalf("device %d.%d got %q in group %d, want %q", d.user, d.number, got, group, want)
	}
}

// change returns the system message of a version.
func (d *device) change(group, version uint64) *wire.Deliver {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.got {
		if m.Group == group && m.Kind == wire.Kind_KIND_SYSTEM && m.Seq == version {
			return m
		}
	}
	return nil
}

// tell sends a message that must have been accepted when it returns.
func (d *device) tell(group uint64, body string) {
	d.t.Helper()
	d.send(wire.Conversation{Group: group}, body)
	d.awaitSent()
}

func testGroupActions(t *testing.T, d *deployment) {
	a, a2, b, c, e := d.dial(1, 0), d.dial(1, 1), d.dial(2, 0), d.dial(3, 0), d.dial(4, 0)
	all := []*device{a, a2, b, c, e}
	for _, dev := range all {
		dev.awaitCurrent()
	}
	g := a.asked(wire.GroupRequest_ACTION_CREATE, 0, []uint64{2, 3}, named("us")).Group
	a.tell(g, "hello")
	b.tell(g, "hi")
	b.asked(wire.GroupRequest_ACTION_UPDATE, g, nil, named("them")) // 3
	a.asked(wire.GroupRequest_ACTION_ADD, g, []uint64{4})           // 4
	a.tell(g, "welcome")
	a.asked(wire.GroupRequest_ACTION_PROMOTE, g, []uint64{2}) // 5
	b.asked(wire.GroupRequest_ACTION_DEMOTE, g, []uint64{1})  // 6
	b.asked(wire.GroupRequest_ACTION_REMOVE, g, []uint64{3})  // 7
	b.tell(g, "bye")
	b.asked(wire.GroupRequest_ACTION_LEAVE, g, nil) // 8: the oldest member, 1, is the administrator
	a.tell(g, "alone")
	a.asked(wire.GroupRequest_ACTION_DEACTIVATE, g, nil) // 9
	a.awaitEvents(g, "+2", "hi", "+3", "+4", "+5", "+6", "+7", "bye", "+8", "+9")
	a2.awaitEvents(g, "+2", "hello", "hi", "+3", "+4", "welcome", "+5", "+6", "+7", "bye", "+8", "alone", "+9")
	b.awaitEvents(g, "+2", "hello", "+3", "+4", "welcome", "+5", "+6", "+7", "+8")
	c.awaitEvents(g, "+2", "hello", "hi", "+3", "+4", "welcome", "+5", "+6", "+7")
	e.awaitEvents(g, "+4", "welcome", "+5", "+6", "+7", "bye", "+8", "alone", "+9")
	for version, want := range map[uint64]*wire.GroupChange{
		2: {By: 1, Add: []uint64{2, 3}, Name: a.change(g, 2).Change.Name, Size: 3},
		4: {By: 1, Add: []uint64{4}, Size: 4},
		8: {By: 2, Remove: []uint64{2}, Promote: []uint64{1}, Size: 2},
		9: {By: 1, Deactivated: true, Size: 2},
	} {
		want.Version = version
		m := a.change(g, version)
		if m.From != 0 || m.FromDevice != 0 || m.AcceptedMs == 0 || len(m.MessageId) != 16 || m.Change.String() != want.String() {
			t.Errorf("version %d: %v, want %v", version, m, want)
		}
	}
	a.send(group(g), "too late")
	a.await("the refusal", func() bool { return len(a.refused) == 1 && a.refused[0].Code == wire.Code_CODE_GROUP_INACTIVE })
	info := e.asked(wire.GroupRequest_ACTION_INFO, g, nil)
	if info.Name != "them" || !info.Inactive || info.Size != 2 || len(info.Members) != 2 || !info.Members[0].Admin || info.Members[1].Admin {
		t.Errorf("info %v", info)
	}
	for _, tc := range []struct {
		dev    *device
		action wire.GroupRequest_Action
		group  uint64
		code   wire.Code
	}{
		{b, wire.GroupRequest_ACTION_INFO, g, wire.Code_CODE_NOT_MEMBER},
		{e, wire.GroupRequest_ACTION_DEACTIVATE, g, wire.Code_CODE_GROUP_INACTIVE},
		{e, wire.GroupRequest_ACTION_LEAVE, 400, wire.Code_CODE_NOT_MEMBER},
		{e, wire.GroupRequest_ACTION_LEAVE, 999, wire.Code_CODE_NO_SUCH_GROUP},
	} {
		if res := tc.dev.ask(tc.action, tc.group, nil); res.Code != tc.code {
			t.Errorf("%s of group %d by %d: %v, want %s", tc.action, tc.group, tc.dev.user, res, tc.code)
		}
	}
}

// testGroupBoundary: while somebody writes without pause, a member comes and
// goes, on-line and not. It gets exactly what lies between.
func testGroupBoundary(t *testing.T, d *deployment) {
	owner, writer, guest := d.dial(11, 0), d.dial(12, 0), d.dial(13, 0)
	for _, dev := range []*device{owner, writer, guest} {
		dev.awaitCurrent()
	}
	const rounds = 6
	var wg sync.WaitGroup
	done := make(chan struct{})
	sent := 0
	wg.Go(func() {
		for ; ; sent++ {
			select {
			case <-done:
				return
			default:
			}
			writer.send(group(400), fmt.Sprint(sent))
			writer.await("room", func() bool { return len(writer.outbox[group(400)].unacked) < 8 })
		}
	})
	for i := range rounds {
		owner.asked(wire.GroupRequest_ACTION_ADD, 400, []uint64{13})
		seen := 0
		owner.update(func() { seen = len(owner.bodies(12, 400)) })
		owner.await("messages between", func() bool { return len(owner.bodies(12, 400)) > seen+20 })
		if i%2 == 1 {
			guest.hangUp()
		}
		owner.asked(wire.GroupRequest_ACTION_REMOVE, 400, []uint64{13})
		if i%2 == 1 {
			guest.connect()
		}
	}
	close(done)
	wg.Wait()
	writer.awaitSent()
	owner.await("everything", func() bool { return len(owner.bodies(12, 400)) == sent })
	last := fmt.Sprintf("+%d", 1+2*rounds)
	owner.await("the last change", func() bool { return slices.Contains(owner.events(400), last) })
	guest.await("the last notice", func() bool { return slices.Contains(guest.events(400), last) })
	// The owner saw all of it in the order of the log.
	var want []string
	in := false
	owner.update(func() {
		for _, m := range owner.got {
			if m.Group != 400 {
				continue
			}
			if c := m.Change; c != nil {
				in = in || len(c.Add) > 0
				want = append(want, fmt.Sprintf("+%d", m.Seq))
				in = in && len(c.Remove) == 0
			} else if in {
				want = append(want, string(m.Body))
			}
		}
	})
	guest.awaitEvents(400, want...)
}

// testCreateAgain: a create that is repeated, on another connection too, makes
// one group, and tells its members once.
func testCreateAgain(t *testing.T, d *deployment) {
	a, b := d.dial(31, 0), d.dial(32, 0)
	a.awaitCurrent()
	b.awaitCurrent()
	name := "once"
	req := &wire.GroupRequest{RequestId: 77, Action: wire.GroupRequest_ACTION_CREATE, Users: []uint64{32}, Name: &name}
	first := a.request(req)
	a.hangUp()
	a.connect()
	a.awaitCurrent()
	again := a.request(req)
	if first.Code != 0 || again.Code != 0 || again.Group.Group != first.Group.Group || again.Group.Version != 2 {
		t.Fatalf("%v, then %v", first, again)
	}
	g := first.Group.Group
	a.tell(g, "hello")
	b.awaitEvents(g, "+2", "hello")
	// The same number on another device is another request.
	other := d.dial(31, 1)
	other.awaitCurrent()
	if res := other.request(req); res.Code != 0 || res.Group.Group == g {
		t.Fatalf("by another device: %v", res)
	}
}

// testAdministrators: two of them change a group at once. Each change is one
// version, and everybody is told of all in the same order.
func testAdministrators(t *testing.T, d *deployment) {
	a, b, c := d.dial(21, 0), d.dial(22, 0), d.dial(23, 0)
	for _, dev := range []*device{a, b, c} {
		dev.awaitCurrent()
	}
	a.asked(wire.GroupRequest_ACTION_PROMOTE, 500, []uint64{22}) // 2
	const each = 10
	var wg sync.WaitGroup
	for i, dev := range []*device{a, b} {
		wg.Go(func() {
			for n := range each {
				switch n % 3 {
				case 0:
					dev.ask(wire.GroupRequest_ACTION_ADD, 500, []uint64{24, 25})
				case 1:
					dev.ask(wire.GroupRequest_ACTION_UPDATE, 500, nil, named(fmt.Sprintf("%d by %d", n, i)))
				case 2:
					dev.ask(wire.GroupRequest_ACTION_REMOVE, 500, []uint64{24, 25})
				}
			}
		})
	}
	wg.Wait()
	info := a.asked(wire.GroupRequest_ACTION_INFO, 500, nil)
	var versions []string
	for v := uint64(2); v <= info.Version; v++ {
		versions = append(versions, fmt.Sprintf("+%d", v))
	}
	for _, dev := range []*device{a, b, c} {
		dev.awaitEvents(500, versions...)
	}
	members, name := map[uint64]bool{21: true, 22: true, 23: true}, ""
	for v := uint64(2); v <= info.Version; v++ {
		change := c.change(500, v).Change
		for _, u := range change.Add {
			if members[u] {
				t.Errorf("version %d adds %d, who is a member", v, u)
			}
			members[u] = true
		}
		for _, u := range change.Remove {
			if !members[u] {
				t.Errorf("version %d removes %d, who is no member", v, u)
			}
			delete(members, u)
		}
		if change.Name != nil {
			name = *change.Name
		}
		if int(change.Size) != len(members) {
			t.Errorf("version %d says size %d, want %d", v, change.Size, len(members))
		}
	}
	if len(info.Members) != len(members) || info.Name != name {
		t.Errorf("the group is %v, its changes add up to %v and %q", info, members, name)
	}
}

// testRemoved: who is removed gets the notice as the last thing, and can read
// and write no more.
func testRemoved(t *testing.T, d *deployment) {
	owner, writer, kicked := d.dial(26, 0), d.dial(27, 0), d.dial(28, 0)
	for _, dev := range []*device{owner, writer, kicked} {
		dev.awaitCurrent()
	}
	for i := range 30 {
		writer.send(group(600), fmt.Sprintf("before %d", i))
	}
	writer.awaitSent()
	owner.asked(wire.GroupRequest_ACTION_REMOVE, 600, []uint64{28})
	for i := range 30 {
		writer.send(group(600), fmt.Sprintf("after %d", i))
	}
	writer.awaitSent()
	owner.awaitEvents(600, append(append(numbered("before", 30), "+2"), numbered("after", 30)...)...)
	kicked.send(group(600), "let me in")
	kicked.await("the refusal", func() bool { return len(kicked.refused) == 1 && kicked.refused[0].Code == wire.Code_CODE_NOT_MEMBER })
	kicked.hangUp() // nor does it come out of the inbox
	kicked.connect()
	kicked.awaitCurrent()
	// A direct message that was sent after all of it comes after it.
	writer.send(direct(28), "still there?")
	kicked.awaitBodies(27, 0, "still there?")
	kicked.awaitEvents(600, append(numbered("before", 30), "+2")...)
}
