package group_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

const (
	info       = wire.GroupRequest_ACTION_INFO
	found      = wire.GroupRequest_ACTION_CREATE
	update     = wire.GroupRequest_ACTION_UPDATE
	add        = wire.GroupRequest_ACTION_ADD
	remove     = wire.GroupRequest_ACTION_REMOVE
	leave      = wire.GroupRequest_ACTION_LEAVE
	promote    = wire.GroupRequest_ACTION_PROMOTE
	demote     = wire.GroupRequest_ACTION_DEMOTE
	deactivate = wire.GroupRequest_ACTION_DEACTIVATE
)

// request is a GroupRequest in short.
func request(id, group uint64, action wire.GroupRequest_Action, users ...uint64) *wire.GroupRequest {
	return &wire.GroupRequest{RequestId: id, Group: group, Action: action, Users: users}
}

func text(s string) *string { return &s }

func (in *instance) act(t testing.TB, user uint64, req *wire.GroupRequest) *wire.GroupResult {
	t.Helper()
	res, err := in.GroupClient.Act(t.Context(), &rpc.GroupAct{User: user, Device: 1, Request: req})
	if err != nil {
		t.Fatal(err)
	}
	if res.RequestId != req.RequestId {
		t.Fatalf("answer to request %d: %v", req.RequestId, res)
	}
	return res
}

// TestNobody: users who do not exist cannot be added, and are named.
func TestNobody(t *testing.T) {
	r := newRig(t)
	in := r.one()
	in.create(t, 7, 1, 2)
	in.act(t, 1, request(1, 7, info)) // user 1 is the administrator
	for name, req := range map[string]*wire.GroupRequest{
		"add":    request(2, 7, add, 3, stranger+5, stranger),
		"create": {RequestId: 3, Action: found, Users: []uint64{stranger, 2, stranger + 5}, Name: text("g")},
	} {
		res := in.act(t, 1, req)
		if res.Code != wire.Code_CODE_NO_SUCH_USER || !strings.Contains(res.Detail, "[1000000 1000005]") {
			t.Errorf("%s: %v", name, res)
		}
	}
	if got := fmt.Sprint(in.roster(t, 1, 7)); got != "[-1 2]" && got != "[1 2]" {
		t.Errorf("members %s after two refused requests", got)
	}
	_, err := in.GroupClient.Change(t.Context(), &wire.MembershipChange{Group: 7, Add: []uint64{stranger}})
	if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "no such user") {
		t.Errorf("change: %v", err)
	}
	// Where it cannot be told, nothing is changed and the client may ask again.
	for _, f := range r.inboxes {
		f.away.Store(true)
	}
	if _, err := in.GroupClient.Change(t.Context(), &wire.MembershipChange{Group: 7, Add: []uint64{3}}); status.Code(err) != codes.Unavailable {
		t.Errorf("change with the inboxes away: %v", err)
	}
	for _, f := range r.inboxes {
		f.away.Store(false)
	}
	in.change(t, 7, []uint64{3}, nil)
}

// members of a group as one of them sees them: admins have a negative sign.
func (in *instance) roster(t testing.TB, user, id uint64) []int {
	t.Helper()
	res := in.act(t, user, request(1, id, info))
	var out []int
	for _, m := range res.GetGroup().GetMembers() {
		sign := 1
		if m.Admin {
			sign = -1
		}
		out = append(out, sign*int(m.User))
	}
	if uint32(len(out)) != res.GetGroup().GetSize() {
		t.Fatalf("size %d with members %v", res.GetGroup().GetSize(), out)
	}
	return out
}

// TestLifeOfAGroup goes through every action; each makes one version, with a
// record in the log that says what it changed.
func TestLifeOfAGroup(t *testing.T) {
	r := newRig(t)
	in := r.one()
	create := request(77, 0, found, 2, 3)
	create.Name, create.Icon = text("us"), text("media:1")
	res := in.act(t, 1, create)
	id := wire.GroupIDOf(1, 1, 77)
	if g := res.Group; res.Code != 0 || g.Group != id || g.Version != 2 || g.Name != "us" || g.Icon != "media:1" || g.Size != 3 {
		t.Fatalf("created %v", res)
	}
	rename := request(78, id, update)
	rename.Name, rename.Icon, rename.Description = text("them"), text("media:1"), text("about us")
	for i, step := range []struct {
		user   uint64
		req    *wire.GroupRequest
		roster []int
	}{
		{3, rename, []int{-1, 2, 3}},
		{1, request(79, id, add, 4, 5, 2), []int{-1, 2, 3, 4, 5}},
		{1, request(80, id, promote, 2, 1, 99), []int{-1, -2, 3, 4, 5}},
		{2, request(81, id, remove, 5, 98), []int{-1, -2, 3, 4}},
		{2, request(82, id, demote, 1), []int{1, -2, 3, 4}},
		{2, request(83, id, leave), []int{-1, 3, 4}}, // the oldest member is the new administrator
		{1, request(84, id, deactivate), []int{-1, 3, 4}},
		{3, request(85, id, leave), []int{-1, 4}},
	} {
		if res := in.act(t, step.user, step.req); res.Code != 0 || res.Group.Version != uint64(i+3) {
			t.Fatalf("%s: %v", step.req.Action, res)
		}
		if got := in.roster(t, 1, id); !slices.Equal(got, step.roster) {
			t.Fatalf("after %s: %v, want %v", step.req.Action, got, step.roster)
		}
	}
	if c := in.check(t, id, 1); c != wire.Code_CODE_GROUP_INACTIVE {
		t.Errorf("a send to an inactive group: %v", c)
	}
	if c := in.check(t, id, 3); c != not {
		t.Errorf("a send of who has left: %v", c)
	}
	var got []string
	for _, m := range r.log.changes(placement.GroupPartition(id, partitions)) {
		c := m.Change
		if c.Version != m.Version || !slices.Equal(c.Add, m.Add) || !slices.Equal(c.Remove, m.Remove) || m.AtMs == 0 {
			t.Errorf("record %v", m)
		}
		got = append(got, fmt.Sprintf("%d by %d: +%v -%v admin +%v -%v %q %q %q %v, %d", c.Version, c.By, c.Add, c.Remove, c.Promote, c.Demote,
			c.GetName(), c.GetDescription(), c.GetIcon(), c.Deactivated, c.Size))
	}
	if want := []string{
		`2 by 1: +[2 3] -[] admin +[] -[] "us" "" "media:1" false, 3`,
		`3 by 3: +[] -[] admin +[] -[] "them" "about us" "" false, 3`,
		`4 by 1: +[4 5] -[] admin +[] -[] "" "" "" false, 5`,
		`5 by 1: +[] -[] admin +[2] -[] "" "" "" false, 5`,
		`6 by 2: +[] -[5] admin +[] -[] "" "" "" false, 4`,
		`7 by 2: +[] -[] admin +[] -[1] "" "" "" false, 4`,
		`8 by 2: +[] -[2] admin +[1] -[] "" "" "" false, 3`,
		`9 by 1: +[] -[] admin +[] -[] "" "" "" true, 3`,
		`10 by 3: +[] -[3] admin +[] -[] "" "" "" false, 2`,
	}; !slices.Equal(got, want) {
		t.Errorf("in the log:\n%q\nwant\n%q", got, want)
	}
}

// TestActRefusals: who may not, and what cannot be done, leaves no version.
func TestActRefusals(t *testing.T) {
	in := newRig(t).one()
	in.create(t, 9, 1, 2)
	in.create(t, 8, 1)
	in.act(t, 1, request(1, 8, deactivate))
	many := make([]uint64, 1023)
	for i := range many {
		many[i] = uint64(i + 10)
	}
	named := func(r *wire.GroupRequest, name string) *wire.GroupRequest { r.Name = &name; return r }
	for name, c := range map[string]struct {
		user uint64
		req  *wire.GroupRequest
		code wire.Code
	}{
		"no such group":   {1, request(2, 7, leave), wire.Code_CODE_NO_SUCH_GROUP},
		"info of none":    {1, request(2, 7, info), wire.Code_CODE_NO_SUCH_GROUP},
		"stranger":        {3, request(2, 9, info), not},
		"stranger joins":  {3, request(2, 9, add, 3), not},
		"plain adds":      {2, request(2, 9, add, 3), wire.Code_CODE_NOT_ADMIN},
		"plain removes":   {2, request(2, 9, remove, 1), wire.Code_CODE_NOT_ADMIN},
		"plain promotes":  {2, request(2, 9, promote, 2), wire.Code_CODE_NOT_ADMIN},
		"plain ends it":   {2, request(2, 9, deactivate), wire.Code_CODE_NOT_ADMIN},
		"last admin":      {1, request(2, 9, demote, 1), wire.Code_CODE_INVALID},
		"full":            {1, request(2, 9, add, many...), wire.Code_CODE_GROUP_FULL},
		"inactive":        {1, request(2, 8, add, 3), wire.Code_CODE_GROUP_INACTIVE},
		"inactive name":   {1, named(request(2, 8, update), "x"), wire.Code_CODE_GROUP_INACTIVE},
		"no request id":   {1, request(0, 9, leave), wire.Code_CODE_INVALID},
		"no group":        {1, request(2, 0, leave), wire.Code_CODE_INVALID},
		"unknown action":  {1, request(2, 9, 55), wire.Code_CODE_INVALID},
		"nobody":          {1, request(2, 9, add), wire.Code_CODE_INVALID},
		"twice":           {1, request(2, 9, add, 5, 5), wire.Code_CODE_INVALID},
		"user 0":          {1, request(2, 9, add, 0), wire.Code_CODE_INVALID},
		"leave of others": {1, request(2, 9, leave, 2), wire.Code_CODE_INVALID},
		"named leave":     {1, named(request(2, 9, leave), "x"), wire.Code_CODE_INVALID},
		"empty update":    {1, request(2, 9, update), wire.Code_CODE_INVALID},
		"no name":         {1, named(request(2, 9, update), ""), wire.Code_CODE_INVALID},
		"not UTF-8":       {1, named(request(2, 9, update), "\xff"), 0}, // see below
		"long name":       {1, named(request(2, 9, update), string(make([]byte, 257))), wire.Code_CODE_TOO_LARGE},
		"create in group": {1, named(request(2, 9, found), "x"), wire.Code_CODE_INVALID},
		"nameless":        {1, request(2, 0, found, 2), wire.Code_CODE_INVALID},
		"creator twice":   {1, named(request(2, 0, found, 1), "x"), wire.Code_CODE_INVALID},
		"too many":        {1, named(request(2, 0, found, append(many, 5)...), "x"), wire.Code_CODE_GROUP_FULL},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "not UTF-8" { // gRPC itself would not carry it
				res, err := in.service.Act(t.Context(), &rpc.GroupAct{User: c.user, Request: c.req})
				if err != nil || res.Code != wire.Code_CODE_INVALID {
					t.Fatalf("%v, %v", res, err)
				}
				return
			}
			if res := in.act(t, c.user, c.req); res.Code != c.code || res.Group != nil {
				t.Fatalf("%v, want %v", res, c.code)
			}
		})
	}
	if got := in.roster(t, 1, 9); !slices.Equal(got, []int{-1, 2}) {
		t.Fatalf("a refused request had an effect: %v", got)
	}
	if res := in.act(t, 1, request(3, 9, add, many[:1022]...)); res.Code != 0 || res.Group.Size != 1024 {
		t.Fatalf("the 1,024th member: %v", res)
	}
}

// TestRequestRepeated: a request that comes again is answered and has no second
// effect, whatever happened in between.
func TestRequestRepeated(t *testing.T) {
	r := newRig(t)
	in := r.one()
	create := request(5, 0, found, 2)
	create.Name = text("us")
	first := in.act(t, 1, create)
	if again := in.act(t, 1, create); again.Code != 0 || again.Group.Group != first.Group.Group || again.Group.Version != 2 {
		t.Fatalf("created again: %v", again)
	}
	id := first.Group.Group
	join := request(6, id, add, 3)
	in.act(t, 1, join)
	in.act(t, 3, request(1, id, leave))
	if again := in.act(t, 3, request(1, id, leave)); again.Code != 0 || again.Group.Version != 4 || again.Group.Size != 0 {
		t.Fatalf("left again: %v", again)
	}
	in.act(t, 1, join)
	if got := in.roster(t, 1, id); !slices.Equal(got, []int{-1, 2}) {
		t.Fatalf("a repeated request added the one who left: %v", got)
	}
	join.RequestId = 7
	in.act(t, 1, join)
	if got := in.roster(t, 1, id); !slices.Equal(got, []int{-1, 2, 3}) {
		t.Fatalf("another request did not: %v", got)
	}
	// The first answer is lost: the log is away for longer than the caller waits.
	r.log.setFail(true)
	late := request(8, id, deactivate)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := in.GroupClient.Act(ctx, &rpc.GroupAct{User: 1, Device: 1, Request: late}); err == nil {
		t.Fatal("answered before it is in the log")
	}
	r.log.setFail(false)
	// Earlier copies may be in the log, for all that anybody knows: the fan-out
	// says where the first one is.
	p := placement.GroupPartition(id, partitions)
	waitFor(t, "the deactivation in the log", func() bool { return len(r.log.versions(p, id)) == 5 })
	if _, err := in.Applied(t.Context(), &rpc.AppliedRequest{Group: id, Version: 6, Offset: 4}); err != nil {
		t.Fatal(err)
	}
	if res := in.act(t, 1, late); res.Code != 0 || !res.Group.Inactive || res.Group.Version != 6 {
		t.Fatalf("after the log is back: %v", res)
	}
	if v := r.log.versions(p, id); !slices.Equal(v, []uint64{2, 3, 4, 5, 6}) {
		t.Fatalf("in the log: %v", v)
	}
}

// TestActAtTheOtherInstance: any instance takes a request, one decides.
func TestActAtTheOtherInstance(t *testing.T) {
	r := newRig(t)
	lns := []net.Listener{listen(t), listen(t)}
	ins := []*instance{r.start(0, lns), r.start(1, lns)}
	ins[0].create(t, 9, 1, 2)
	var wg sync.WaitGroup
	results := make([]*wire.GroupResult, 20)
	for i := range results {
		wg.Go(func() {
			results[i] = ins[i%2].act(t, 1, request(uint64(i+1), 9, add, uint64(100+i)))
		})
	}
	wg.Wait()
	seen := map[uint64]bool{}
	for _, res := range results {
		if res.GetCode() != 0 || seen[res.GetGroup().GetVersion()] {
			t.Fatalf("%v, or its version came twice", res)
		}
		seen[res.Group.Version] = true
	}
	if res := ins[0].act(t, 2, request(90, 9, add, 7)); res.Code != wire.Code_CODE_NOT_ADMIN {
		t.Fatalf("%v", res)
	}
	if res := ins[1].act(t, 2, request(90, 9, add, 7)); res.Code != wire.Code_CODE_NOT_ADMIN {
		t.Fatalf("%v", res)
	}
	ins[0].act(t, 1, request(91, 9, deactivate))
	for i, in := range ins {
		waitFor(t, fmt.Sprintf("instance %d to know", i), func() bool { return in.check(t, 9, 2) == wire.Code_CODE_GROUP_INACTIVE })
	}
}

// TestCreations: a user makes so many groups in an hour, wherever they are looked
// after, and learns when there can be another; others make theirs.
func TestCreations(t *testing.T) {
	r := newRig(t)
	r.hourly = 3
	lns := []net.Listener{listen(t), listen(t)}
	ins := []*instance{r.start(0, lns), r.start(1, lns)}
	for user := uint64(1); user <= 3; user++ {
		at := ins[placement.GroupInstance(user, 2)]
		made := 0
		for id := uint64(1); id <= 12; id++ {
			req := request(id, 0, found)
			req.Name = text("g")
			res := at.act(t, user, req)
			switch {
			case res.Code == 0:
				made++
			case res.Code != wire.Code_CODE_RATE_LIMITED || res.RetryAfterMs == 0 || res.RetryAfterMs > 1_200_000+1:
				t.Fatalf("user %d, group %d: %v", user, id, res)
			}
		}
		if made != r.hourly {
			t.Errorf("user %d made %d groups, want %d", user, made, r.hourly)
		}
	}
	if res := ins[0].act(t, 1, request(50, 12345, info)); res.Code != wire.Code_CODE_NO_SUCH_GROUP {
		t.Errorf("other requests: %v", res)
	}
}
