package gateway

import (
	"context"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// groupLink passes what clients ask of groups to the group service, one call
// for each request: they are rare, and a change waits until it is in the
// group's log.
type groupLink struct {
	g       *Gateway
	conns   []*grpc.ClientConn
	clients []rpc.GroupClient // by instance
	queue   chan groupCall    // as long as the limit, so that nobody waits for room
	calls   atomic.Int32      // queued and under way
}

// groupCall is a request whose conn waits for the answer.
type groupCall struct {
	conn *conn
	req  *wire.GroupRequest
}

func newGroupLink(g *Gateway) *groupLink {
	return &groupLink{g: g, queue: make(chan groupCall, g.limits.GroupCalls)}
}

func (l *groupLink) add(cc *grpc.ClientConn) {
	l.conns = append(l.conns, cc)
	l.clients = append(l.clients, rpc.NewGroupClient(cc))
}

// run makes the calls until ctx is done.
func (l *groupLink) run(ctx context.Context) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		select {
		case c := <-l.queue:
			calls.Go(func() { l.call(ctx, c) })
		case <-ctx.Done():
			return
		}
	}
}

// ask queues a request, or answers why not. It does not block.
func (l *groupLink) ask(c *conn, req *wire.GroupRequest) {
	refuse := func(code wire.Code, why string) {
		c.reply(kindGroupResult, groupResult(&wire.GroupResult{RequestId: req.GetRequestId(), Code: code, Detail: why, RetryAfterMs: retryAfterMS}))
	}
	if c.groupCalls.Add(1) > int32(l.g.limits.GroupCallsOfConn) {
		c.groupCalls.Add(-1)
		c.g.m.limited.groups.Inc()
		refuse(wire.Code_CODE_RATE_LIMITED, "too many group requests without an answer")
		return
	}
	if int(l.calls.Add(1)) > l.g.limits.GroupCalls || len(l.clients) == 0 {
		l.calls.Add(-1)
		c.groupCalls.Add(-1)
		l.g.m.groupCalls.Dropped.Inc()
		refuse(wire.Code_CODE_RETRY, "group service is behind")
		return
	}
	l.g.m.groupCalls.Depth.Inc()
	l.queue <- groupCall{c, req}
}

// call asks the instance that looks after the group.
func (l *groupLink) call(ctx context.Context, c groupCall) {
	id := c.req.GetGroup()
	at := placement.GroupInstance(id, len(l.clients))
	if c.req.GetAction() == wire.GroupRequest_ACTION_CREATE {
		id = wire.GroupIDOf(c.conn.user, c.conn.device, c.req.GetRequestId())
		at = placement.GroupInstance(c.conn.user, len(l.clients)) // which counts them, and hands it on
	}
	ctx, cancel := context.WithTimeout(ctx, groupCallTimeout)
	defer cancel()
	res, err := l.clients[at].Act(ctx,
		&rpc.GroupAct{User: c.conn.user, Device: c.conn.device, Request: c.req})
	if err != nil {
		l.g.log.Warn("group request", "group", id, "action", c.req.GetAction().String(), "err", err)
		res = &wire.GroupResult{RequestId: c.req.GetRequestId(), Code: wire.Code_CODE_RETRY, Detail: "group service was lost"}
	}
	l.calls.Add(-1)
	l.g.m.groupCalls.Depth.Dec()
	c.conn.groupCalls.Add(-1)
	c.conn.reply(kindGroupResult, groupResult(res))
}

func groupResult(res *wire.GroupResult) *wire.Frame {
	return &wire.Frame{Kind: &wire.Frame_GroupResult{GroupResult: res}}
}
