package inbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

// server is the Inbox service.
type server struct {
	rpc.UnimplementedInboxServer
	in *Inbox
}

// pump serves a bidirectional stream: send runs beside recv until either ends
// or the stream is cut, and its error is what the caller sees. A receiver that
// is blocked in Recv ends when this returns, so it is waited for elsewhere.
func (in *Inbox) pump(ctx context.Context, ctl *streamCtl, send func(context.Context), recv func(context.Context) error) error {
	defer in.leave(ctl)
	var sender sync.WaitGroup
	sender.Go(func() { send(ctx) })
	in.recvs.Go(func() { ctl.cancel(recv(ctx)) })
	<-ctx.Done()
	sender.Wait()
	err := context.Cause(ctx)
	if errors.Is(err, io.EOF) {
		return nil // the caller is done
	}
	if _, ok := status.FromError(err); !ok {
		err = status.FromContextError(err).Err()
	}
	return err
}

// Append implements rpc.InboxServer.
func (s server) Append(stream rpc.Inbox_AppendServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	as := &appendStream{streamCtl: streamCtl{cancel: cancel}, wake: make(chan struct{}, 1)}
	if _, err := s.in.admit(&as.streamCtl); err != nil {
		return err
	}
	return s.in.pump(ctx, &as.streamCtl, func(ctx context.Context) { as.run(ctx, stream) }, func(ctx context.Context) error {
		for {
			b, err := stream.Recv()
			if err != nil {
				return err
			}
			if err := s.in.append(ctx, as, b); err != nil {
				return err
			}
		}
	})
}

// append splits a batch by loop. Messages are encoded here rather than in the
// loop, of which there are few.
func (in *Inbox) append(ctx context.Context, as *appendStream, b *rpc.AppendBatch) error {
	split := make([][]*Item, len(in.loops))
	calls := make([]call, len(b.Items))
	now := time.Now()
	for i, it := range b.Items {
		c := &calls[i]
		c.stream, c.ref, c.at, c.op = as, it.Ref, now, in.m.appendDirect
		if it.Message.GetGroup() != 0 {
			c.op = in.m.appendGroup
		}
		if st := it.Message.GetStamps(); st != nil {
			st.InboxInUs = time.Now().UnixMicro()
		}
		in.trace(c, it.Message)
		msg, err := NewMessage(it.Message, isOwn(it))
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		users, misrouted := in.splitUsers(it.Users)
		if misrouted {
			c.code.Store(int32(wire.Code_CODE_INTERNAL))
			c.done()
			in.cfg.Log.Error("inbox: a message for a user of another instance", "ref", it.Ref)
			continue
		}
		parts := int32(0)
		for _, u := range users {
			if len(u) > 0 {
				parts++
			}
		}
		if parts == 0 {
			c.done()
			continue
		}
		c.left.Store(parts)
		for l, u := range users {
			if len(u) > 0 {
				split[l] = append(split[l], &Item{Msg: msg, Users: u, Recipients: it.Recipients, Ref: c})
			}
		}
	}
	for l, items := range split {
		if len(items) == 0 {
			continue
		}
		if err := in.loops[l].post(ctx, message{epoch: as.epoch, items: items}); err != nil {
			return err
		}
	}
	return nil
}

// splitUsers returns the users of each loop, and whether there is one whose
// shard another instance owns.
func (in *Inbox) splitUsers(users []uint64) (split [][]uint64, misrouted bool) {
	split = make([][]uint64, len(in.loops))
	for _, u := range users {
		s := placement.InboxShard(u)
		if placement.InboxInstance(s, in.cfg.Instances) != in.cfg.Instance {
			return nil, true
		}
		l := in.loopOfShard(s)
		split[l] = append(split[l], u)
	}
	return split, false
}

// Sessions implements rpc.InboxServer.
func (s server) Sessions(stream rpc.Inbox_SessionsServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.Hello == nil {
		return status.Error(codes.InvalidArgument, "inbox: the first message has no hello")
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	g := &gatewayStream{streamCtl: streamCtl{cancel: cancel}, id: s.in.nextID.Add(1), name: first.Hello.Gateway,
		m: s.in.m, wake: make(chan struct{}, 1)}
	incarnation, err := s.in.admit(&g.streamCtl)
	if err != nil {
		return err
	}
	s.in.m.gateways.Inc()
	defer s.in.m.gateways.Dec()
	s.in.replace(ctx, g)
	defer s.in.lost(g)
	if err := stream.Send(&rpc.OwnerBatch{Incarnation: incarnation}); err != nil {
		s.in.leave(&g.streamCtl)
		return err
	}
	return s.in.pump(ctx, &g.streamCtl, func(ctx context.Context) { g.run(ctx, stream) }, func(ctx context.Context) error {
		for b := first; ; {
			if err := s.in.sessions(ctx, g, b); err != nil {
				return err
			}
			if b, err = stream.Recv(); err != nil {
				return err
			}
		}
	})
}

// replace makes g the stream of its gateway. An earlier one of the same name
// is over: the gateway has lost it or has been restarted.
func (in *Inbox) replace(ctx context.Context, g *gatewayStream) {
	in.mu.Lock()
	old := in.gateways[g.name]
	in.gateways[g.name] = g
	in.mu.Unlock()
	if old != nil {
		old.cancel(errReplaced)
		in.tellLost(ctx, old)
	}
}

// lost tells the loops that the stream has ended.
func (in *Inbox) lost(g *gatewayStream) {
	in.mu.Lock()
	if in.gateways[g.name] == g {
		delete(in.gateways, g.name)
	}
	in.mu.Unlock()
	// Not the stream's context, which is done. The loops outlive every stream.
	in.tellLost(context.Background(), g)
}

func (in *Inbox) tellLost(ctx context.Context, g *gatewayStream) {
	g.ended.Store(true)
	for _, l := range in.loops {
		if l.post(ctx, message{gateway: g, gone: true}) != nil {
			return
		}
	}
}

// sessions splits what a gateway says by loop.
func (in *Inbox) sessions(ctx context.Context, g *gatewayStream, b *rpc.GatewayBatch) error {
	split := make([]message, len(in.loops))
	for _, o := range b.Opens {
		l := in.loopOf(o.User)
		if l == nil {
			return errMisrouted(o.User)
		}
		split[l.n].opens = append(split[l.n].opens, o)
	}
	for _, a := range b.Acks {
		if l := in.loopOf(a.User); l != nil {
			split[l.n].acks = append(split[l.n].acks, a)
		}
	}
	for _, c := range b.Closes {
		if l := in.loopOf(c.User); l != nil {
			split[l.n].closes = append(split[l.n].closes, c)
		}
	}
	for _, q := range b.Queries {
		if l := in.loopOf(q.User); l != nil {
			split[l.n].queries = append(split[l.n].queries, q)
		}
	}
	for _, p := range b.Privacy {
		if l := in.loopOf(p.User); l != nil {
			split[l.n].privacy = append(split[l.n].privacy, p)
		}
	}
	for i := range split {
		m := &split[i]
		if len(m.opens)+len(m.acks)+len(m.closes)+len(m.queries)+len(m.privacy) == 0 {
			continue
		}
		m.epoch, m.gateway = g.epoch, g
		if err := in.loops[i].post(ctx, *m); err != nil {
			return err
		}
	}
	in.routeReceipts(b.Reads)
	return nil
}

func errMisrouted(user uint64) error {
	return status.Error(codes.InvalidArgument, fmt.Sprintf("inbox: user %d belongs to another instance", user))
}

// Provision implements rpc.InboxServer. A user without devices gets device 0
// without a push token. It can be repeated; a token is replaced.
func (s server) Provision(ctx context.Context, req *rpc.ProvisionUsersRequest) (*rpc.ProvisionUsersResponse, error) {
	if err := s.in.Ready(); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	epoch := s.in.currentEpoch()
	split := make([][]Registration, len(s.in.loops))
	for _, u := range req.Users {
		l := s.in.loopOf(u.User)
		if l == nil {
			return nil, errMisrouted(u.User)
		}
		if len(u.Devices) == 0 {
			split[l.n] = append(split[l.n], Registration{Key: Key{User: u.User}})
		}
		for _, d := range u.Devices {
			split[l.n] = append(split[l.n], Registration{Key: Key{u.User, d.Device}, Token: d.PushToken})
		}
	}
	var work []task
	for l, regs := range split {
		if len(regs) > 0 {
			work = append(work, task{l, message{epoch: epoch, register: regs}})
		}
	}
	if err := s.in.await(ctx, work); err != nil {
		return nil, err
	}
	return &rpc.ProvisionUsersResponse{Users: uint64(len(req.Users))}, nil
}

// Unknown implements rpc.InboxServer.
func (s server) Unknown(ctx context.Context, req *rpc.Users) (*rpc.Users, error) {
	if err := s.in.Ready(); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	asks := make([]unknown, len(s.in.loops))
	for _, u := range req.Users {
		l := s.in.loopOf(u)
		if l == nil {
			return nil, errMisrouted(u)
		}
		asks[l.n].users = append(asks[l.n].users, u)
	}
	epoch := s.in.currentEpoch()
	var work []task
	for l := range asks {
		if len(asks[l].users) > 0 {
			work = append(work, task{l, message{epoch: epoch, ask: &asks[l]}})
		}
	}
	if err := s.in.await(ctx, work); err != nil {
		return nil, err
	}
	res := &rpc.Users{}
	for _, a := range asks {
		res.Users = append(res.Users, a.users...)
	}
	return res, nil
}

// task is a message for a loop.
type task struct {
	loop int
	m    message
}

// await gives messages to their loops and waits until each is done. The error
// is a status.
func (in *Inbox) await(ctx context.Context, work []task) error {
	done := make(chan error, len(work))
	for _, t := range work {
		t.m.done = done
		if err := in.loops[t.loop].post(ctx, t.m); err != nil {
			return status.FromContextError(err).Err()
		}
	}
	for range work {
		select {
		case err := <-done:
			if err != nil {
				return status.Error(codes.Unavailable, err.Error())
			}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	return nil
}

// receiptsServer is the Receipts service.
type receiptsServer struct {
	rpc.UnimplementedReceiptsServer
	in *Inbox
}

// Forward implements rpc.ReceiptsServer.
func (s receiptsServer) Forward(stream rpc.Receipts_ForwardServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	ctl := &streamCtl{cancel: cancel}
	if _, err := s.in.admit(ctl); err != nil {
		return err
	}
	return s.in.pump(ctx, ctl, func(context.Context) {}, func(context.Context) error {
		for {
			b, err := stream.Recv()
			if err != nil {
				return err
			}
			s.in.routeReceipts(b.Items)
		}
	})
}

// routeReceipts gives receipts to the loops and instances of the senders. It
// never waits: what does not fit is dropped and counted.
func (in *Inbox) routeReceipts(updates []*rpc.ReceiptUpdate) {
	if len(updates) == 0 {
		return
	}
	own := make([][]*rpc.ReceiptUpdate, len(in.loops))
	var away [][]*rpc.ReceiptUpdate
	for _, u := range updates {
		s := placement.InboxShard(u.To)
		if i := placement.InboxInstance(s, in.cfg.Instances); i != in.cfg.Instance {
			if away == nil {
				away = make([][]*rpc.ReceiptUpdate, in.cfg.Instances)
			}
			away[i] = append(away[i], u)
			continue
		}
		l := in.loopOfShard(s)
		own[l] = append(own[l], u)
	}
	for l, us := range own {
		if len(us) > 0 {
			in.loops[l].offer(message{receipts: us})
		}
	}
	for i, us := range away {
		if len(us) > 0 && in.peers[i] != nil {
			in.peers[i].put(us)
		}
	}
}
