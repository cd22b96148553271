package gateway

import (
	"context"
	"errors"
	"testing"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// fakeGroup is a group instance. Calls are answered by what comes on answers.
type fakeGroup struct {
	rpc.UnimplementedGroupServer
	got     chan *rpc.GroupAct
	answers chan *wire.GroupResult // nil: an error
}

func startGroup(t testing.TB) (*fakeGroup, string) {
	t.Helper()
	f := &fakeGroup{got: make(chan *rpc.GroupAct, 100), answers: make(chan *wire.GroupResult, 100)}
	srv := rpc.NewServer()
	ln := listen(t, "127.0.0.1:0")
	rpc.RegisterGroupServer(srv, f)
	go srv.Serve(ln)
	t.Cleanup(srv.Stop)
	return f, ln.Addr().String()
}

func (f *fakeGroup) Act(ctx context.Context, act *rpc.GroupAct) (*wire.GroupResult, error) {
	f.got <- act
	select {
	case res := <-f.answers:
		if res == nil {
			return nil, errors.New("no")
		}
		res.RequestId = act.Request.RequestId
		return res, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func groupRequest(id, group uint64, action wire.GroupRequest_Action) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_GroupRequest{GroupRequest: &wire.GroupRequest{RequestId: id, Group: group, Action: action}}}
}

// TestGroupRequests: each goes to the instance that looks after its group, its
// answer comes back, and neither a slow group service nor many requests hold
// anything else up.
func TestGroupRequests(t *testing.T) {
	groups := make([]*fakeGroup, 2)
	r := newRig(t, func(cfg *Config) {
		cfg.Limits.GroupCalls, cfg.Limits.GroupCallsOfConn = 3, 2
		for i := range groups {
			f, addr := startGroup(t)
			groups[i] = f
			cfg.Groups = append(cfg.Groups, addr)
		}
	})
	of := func(group uint64) *fakeGroup { return groups[placement.GroupInstance(group, 2)] }
	c, _ := r.login(1, 2, wire.Proto)
	answer := func(c *client) *wire.GroupResult {
		t.Helper()
		f := c.recv()
		if f.GetGroupResult() == nil {
			t.Fatalf("%v, want an answer about a group", f)
		}
		return f.GetGroupResult()
	}
	for group := uint64(1); group < 9; group++ {
		of(group).answers <- &wire.GroupResult{Group: &wire.GroupInfo{Group: group, Version: 5}}
		c.send(groupRequest(10+group, group, wire.GroupRequest_ACTION_LEAVE))
		if res := answer(c); res.RequestId != 10+group || res.Code != 0 || res.Group.Version != 5 {
			t.Fatalf("group %d: %v", group, res)
		}
		if act := <-of(group).got; act.User != 1 || act.Device != 2 || act.Request.Group != group {
			t.Fatalf("group %d: asked for %v", group, act)
		}
	}
	created := of(1) // the user's, which counts what they make
	created.answers <- &wire.GroupResult{Code: wire.Code_CODE_INVALID, Detail: "why"}
	c.send(groupRequest(50, 0, wire.GroupRequest_ACTION_CREATE))
	if res := answer(c); res.RequestId != 50 || res.Code != wire.Code_CODE_INVALID || res.Detail != "why" {
		t.Fatalf("create: %v", res)
	}
	of(1).answers <- nil
	c.send(groupRequest(51, 1, wire.GroupRequest_ACTION_INFO))
	if res := answer(c); res.RequestId != 51 || res.Code != wire.Code_CODE_RETRY {
		t.Fatalf("failed call: %v", res)
	}

	// The group service does not answer any more.
	c.send(groupRequest(60, 1, wire.GroupRequest_ACTION_LEAVE))
	c.send(groupRequest(61, 1, wire.GroupRequest_ACTION_LEAVE))
	c.send(groupRequest(62, 1, wire.GroupRequest_ACTION_LEAVE))
	if res := answer(c); res.RequestId != 62 || res.Code != wire.Code_CODE_RATE_LIMITED {
		t.Fatalf("the third at once: %v", res)
	}
	c.send(sendOf(41, 5, 1, "hi"))
	if s := c.recv().GetSent(); s.GetClientMsgId() != 41 {
		t.Fatalf("a send beside it: %v", s)
	}
	d, _ := r.login(3, 0, wire.JSON)
	d.send(groupRequest(70, 1, wire.GroupRequest_ACTION_LEAVE))
	d.send(groupRequest(71, 1, wire.GroupRequest_ACTION_LEAVE))
	if res := answer(d); res.RequestId != 71 || res.Code != wire.Code_CODE_RETRY {
		t.Fatalf("the fourth at the gateway: %v", res)
	}
	if n := r.metric("throng_queue_depth", "queue=gateway_group_calls"); n != 3 {
		t.Fatalf("%v calls counted", n)
	}
	c.ws.Close() // its answers find nobody
	for range 3 {
		of(1).answers <- &wire.GroupResult{}
	}
	if res := answer(d); res.RequestId != 70 || res.Code != 0 {
		t.Fatalf("the answer at last: %v", res)
	}
	r.until("all calls to end", func() bool { return r.metric("throng_queue_depth", "queue=gateway_group_calls") == 0 })
}

// TestGroupRequestWithoutService: a gateway that knows no group service says so.
func TestGroupRequestWithoutService(t *testing.T) {
	r := newRig(t, nil)
	c, _ := r.login(1, 0, wire.Proto)
	c.send(groupRequest(1, 9, wire.GroupRequest_ACTION_INFO))
	if res := c.recv().GetGroupResult(); res.GetCode() != wire.Code_CODE_RETRY {
		t.Fatalf("%v", res)
	}
}
