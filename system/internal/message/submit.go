package message

import (
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

const (
	// maxResults bounds the answers that wait for one gateway; above it its
	// stream is not read.
	maxResults = 16384
	// resultBatch bounds the answers of one message.
	resultBatch = 1024
	// resultGap is the least time between two batches of answers to a gateway.
	resultGap = 2 * time.Millisecond
	// busyRetryMS is what a client is told to wait when too much is in flight.
	busyRetryMS = 500
)

// sink collects the answers for one stream.
type sink struct {
	wake chan struct{} // capacity 1; never closed

	mu     sync.Mutex
	items  []*rpc.SubmitResult
	spare  []*rpc.SubmitResult
	closed bool
	room   *sync.Cond // fewer than maxResults, or closed
}

func newSink() *sink {
	k := &sink{wake: make(chan struct{}, 1)}
	k.room = sync.NewCond(&k.mu)
	return k
}

func (k *sink) push(r *rpc.SubmitResult) {
	k.mu.Lock()
	if !k.closed {
		k.items = append(k.items, r)
	}
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// take returns what waits; it is valid until the next take.
func (k *sink) take() []*rpc.SubmitResult {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.spare)
	items := k.items
	k.items, k.spare = k.spare[:0], items
	k.room.Broadcast()
	return items
}

func (k *sink) waitForRoom() {
	k.mu.Lock()
	for len(k.items) >= maxResults && !k.closed {
		k.room.Wait()
	}
	k.mu.Unlock()
}

func (k *sink) close() {
	k.mu.Lock()
	k.closed, k.items, k.spare = true, nil, nil
	k.room.Broadcast()
	k.mu.Unlock()
}

// Submit implements rpc.MessageServer. What is in flight when the stream ends
// goes on; its result is found by the retry of the client.
func (s *Service) Submit(stream rpc.Message_SubmitServer) error {
	out := newSink()
	defer out.close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			batch, err := stream.Recv()
			if err != nil {
				return
			}
			now := time.Now()
			for _, item := range batch.Items {
				s.accept(item, out, now)
			}
			out.waitForRoom()
		}
	}()
	flush := func() error {
		for items := out.take(); len(items) > 0; items = out.take() {
			for len(items) > 0 {
				n := min(len(items), resultBatch)
				if err := stream.Send(&rpc.SubmitResultBatch{Items: items[:n]}); err != nil {
					return err
				}
				items = items[n:]
			}
		}
		return nil
	}
	pace := rpc.NewPace(resultGap)
	for {
		select {
		case <-out.wake:
			pace.Wait(ended)
			if err := flush(); err != nil {
				return err
			}
		case <-ended:
			return flush()
		case <-s.drained:
			return flush()
		}
	}
}

// accept takes one submission and answers it now or leaves it in flight.
func (s *Service) accept(item *rpc.Submission, out *sink, now time.Time) {
	send := item.Send
	to := waiter{sink: out, ref: item.Ref}
	if send == nil || item.User == 0 {
		s.refuse(to, 0, verdict{code: wire.Code_CODE_INVALID}, "empty submission", 0)
		return
	}
	if err := wire.Validate(&wire.Frame{Kind: &wire.Frame_Send{Send: send}}); err != nil {
		v := verdict{code: wire.Code_CODE_INVALID}
		var fe *wire.FrameError
		detail := err.Error()
		if errors.As(err, &fe) {
			v.code, detail = fe.Code, fe.Detail
		}
		s.refuse(to, send.ClientMsgId, v, detail, 0)
		return
	}
	if s.draining.Load() {
		s.refuse(to, send.ClientMsgId, verdict{code: wire.Code_CODE_RETRY}, "shutting down", busyRetryMS)
		return
	}
	k := convKey{user: item.User, device: item.Device, to: wire.Conversation{User: send.User, Group: send.Group}}
	sh := s.convs.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.all[k]
	v, durable := judge(c, s.keys, k, send)
	switch {
	case v.code != 0:
		s.refuse(to, send.ClientMsgId, v, "", 0)
	case v.duplicate:
		s.m.duplicates.Inc()
		s.sent(to, k, send.Seq, send.ClientMsgId, now)
	case v.join != nil:
		s.m.duplicates.Inc()
		v.join.waiters = append(v.join.waiters, to)
	case s.inFlight.Load() >= int64(s.cfg.MaxInFlight):
		s.m.inFlight.Dropped.Inc()
		s.refuse(to, send.ClientMsgId, verdict{code: wire.Code_CODE_RETRY}, "too much in flight", busyRetryMS)
	case c != nil && len(c.queue) >= maxQueued:
		s.refuse(to, send.ClientMsgId, verdict{code: wire.Code_CODE_RETRY}, "too much in flight in this conversation", busyRetryMS)
	default:
		if c == nil {
			c = sh.add(k, durable)
		}
		c.durable = durable
		s.enqueue(sh, c, item, to, now)
	}
}

// enqueue puts an accepted send behind the others of its conversation.
func (s *Service) enqueue(sh *shard, c *conversation, item *rpc.Submission, to waiter, now time.Time) {
	send := item.Send
	id := wire.IDOf(item.User, item.Device, send.ClientMsgId)
	sub := &submission{
		service: s, conv: c, seq: send.Seq, msg: send.ClientMsgId, at: now,
		env: &rpc.Envelope{
			MessageId: id[:], Group: send.Group, To: send.User, From: item.User, FromDevice: item.Device,
			Seq: send.Seq, Kind: send.Kind, Body: send.Body, AcceptedMs: now.UnixMilli(), About: send.About,
		},
		waiters: []waiter{to},
	}
	if len(send.Media) == len(wire.MediaID{}) {
		sub.env.Media = send.Media
		if send.Group == 0 { // a group's addressees depend on where its log has the message
			sub.env.MediaGrant = wire.SignMediaGrant(s.cfg.Key, wire.MediaID(send.Media),
				wire.MediaGrant{Message: id, From: item.User, To: send.User})
		}
	}
	sub.span = s.cfg.Tracer.Child(item.Traceparent, "message", now, attribute.Int("throng.instance", s.cfg.Instance))
	sub.env.Traceparent = sub.span.Traceparent(item.Traceparent)
	if item.ReceivedUs != 0 {
		sub.env.Stamps = &wire.Stamps{GatewayInUs: item.ReceivedUs, MessageInUs: now.UnixMicro()}
	}
	if s.cfg.Plant == PlantAckEarly {
		s.sent(to, c.key, sub.seq, sub.msg, now)
		sub.waiters = nil
	}
	s.inFlight.Add(1)
	c.queue = append(c.queue, sub)
	if len(c.queue) == 1 {
		sh.setBusy(c)
		s.begin(sub)
	}
}

// complete ends a submission: code 0 means durable. After a failure everything
// behind it in the conversation fails with CODE_RETRY. A submission that ended
// already is left alone.
func (s *Service) complete(sub *submission, code wire.Code, detail string) {
	c := sub.conv
	sh := s.convs.shard(c.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sub.dead.Load() {
		return
	}
	if len(c.queue) == 0 || c.queue[0] != sub {
		panic("message: a submission ended that was not the first of its conversation")
	}
	if code != 0 {
		for i, behind := range c.queue {
			if i > 0 {
				code, detail = wire.Code_CODE_RETRY, "an earlier message failed"
			}
			s.end(behind, code.String())
			v := verdict{code: code}
			if i == 0 && final(code) {
				chain := wire.Chain(s.cfg.Key, c.key.user, c.key.device, c.key.to, behind.seq)
				v.chain = chain[:]
			}
			for _, w := range behind.waiters {
				s.refuse(w, behind.msg, v, detail, 0)
			}
		}
		c.queue = nil
		sh.setIdle(c)
		return
	}
	c.durable, c.durableMsg = sub.seq, sub.msg
	s.end(sub, "")
	s.m.accepted(c.key.to.Group != 0).Inc()
	for _, w := range sub.waiters {
		s.sentAt(w, c.key, sub.seq, sub.env.MessageId, sub.msg, sub.env.AcceptedMs)
	}
	c.queue[0] = nil
	if c.queue = c.queue[1:]; len(c.queue) > 0 {
		s.begin(c.queue[0])
		return
	}
	c.queue = nil
	sh.setIdle(c)
}

// end is for a submission that is answered; why is empty when it is durable.
func (s *Service) end(sub *submission, why string) {
	sub.dead.Store(true)
	sub.span.End(why)
	op := s.m.direct
	if sub.conv.key.to.Group != 0 {
		op = s.m.group
	}
	op.Done(time.Since(sub.at), why != "")
	s.inFlight.Add(-1)
}

func (s *Service) sent(w waiter, k convKey, seq, msg uint64, now time.Time) {
	id := wire.IDOf(k.user, k.device, msg)
	s.sentAt(w, k, seq, id[:], msg, now.UnixMilli())
}

func (s *Service) sentAt(w waiter, k convKey, seq uint64, id []byte, msg uint64, acceptedMS int64) {
	chain := wire.Chain(s.cfg.Key, k.user, k.device, k.to, seq)
	w.sink.push(&rpc.SubmitResult{Ref: w.ref, Sent: &wire.Sent{
		ClientMsgId: msg, MessageId: id, Chain: chain[:], AcceptedMs: acceptedMS}})
}

func (s *Service) refuse(w waiter, msg uint64, v verdict, detail string, retryAfterMS uint32) {
	s.m.refusals.WithLabelValues(codeLabel(v.code)).Inc()
	w.sink.push(&rpc.SubmitResult{Ref: w.ref, Error: &wire.Error{
		Code: v.code, ClientMsgId: msg, Detail: detail, ExpectedSeq: v.expected, RetryAfterMs: retryAfterMS, Chain: v.chain}})
}

// final says whether a send that failed with code never passes. It has used up
// its seq all the same: the instance cannot know whether the client sent it
// before, to one that made it durable and died, and the members have it under
// that seq. A number that is used twice would be a duplicate to them. The chain
// that the client gets lets the next one follow; nothing is remembered, so that
// the same send, if the answer is lost, is judged anew and not taken for durable.
func final(code wire.Code) bool {
	return code != wire.Code_CODE_RETRY && code != wire.Code_CODE_INTERNAL
}
