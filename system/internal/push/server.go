package push

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/rpc"
)

// sendItems bounds one message of results.
const sendItems = 4096

// resultGap is the least time between two messages of results: nobody waits for
// them but who has taken a push back.
const resultGap = 5 * time.Millisecond

type server struct {
	rpc.UnimplementedPushServer
	p   *Push
	run context.Context // of the instance
}

// job is a request on its way.
type job struct {
	req    *rpc.PushRequest
	stream *stream
	at     time.Time // when it came
	// ctx is done when nobody wants the push any more: it was taken back, who
	// asked has gone, or this instance stops.
	ctx  context.Context
	stop context.CancelFunc
}

// wanted reports whether an attempt may start. Once a job has been taken back
// it never does.
func (j *job) wanted() bool {
	j.stream.mu.Lock()
	defer j.stream.mu.Unlock()
	return j.ctx.Err() == nil && j.stream.jobs[j.req.Ref] == j
}

// answer tells the outcome to who asked, once; false: it has been told one.
func (j *job) answer(outcome rpc.PushOutcome) bool {
	s := j.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[j.req.Ref] != j {
		return false
	}
	s.end(j, outcome)
	return true
}

// stream is one asker. Its jobs, and results that wait, are bounded by the queue
// and by what the asker keeps unanswered.
type stream struct {
	ctx  context.Context
	wake chan struct{} // holds one token; never closed

	mu      sync.Mutex
	jobs    map[uint64]*job // unanswered, by ref
	results []*rpc.PushResult
}

// end answers a job. The caller holds mu.
func (s *stream) end(j *job, outcome rpc.PushOutcome) {
	delete(s.jobs, j.req.Ref)
	j.stop()
	s.results = append(s.results, &rpc.PushResult{Ref: j.req.Ref, Outcome: outcome})
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// accept queues a request, or answers that there is no room for it.
func (s *stream) accept(p *Push, r *rpc.PushRequest, now time.Time) {
	j := &job{req: r, stream: s, at: now}
	j.ctx, j.stop = context.WithCancel(s.ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs[r.Ref] = j
	select {
	case p.queue <- j:
		p.m.queue.Depth.Inc()
	default:
		p.m.queue.Dropped.Inc()
		s.end(j, rpc.PushOutcome_PUSH_OUTCOME_UNSPECIFIED)
	}
}

// cancel takes requests back. When one is answered "cancelled" no attempt starts
// any more; one that has started before goes on.
func (s *stream) cancel(p *Push, refs []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		if j := s.jobs[ref]; j != nil { // else it has an answer
			s.end(j, rpc.PushOutcome_PUSH_OUTCOME_CANCELLED)
			p.m.cancelled.Inc()
		}
	}
}

// Notify implements rpc.PushServer. The stream is always read, so that what is
// taken back is taken back at once.
func (s server) Notify(grpcStream rpc.Push_NotifyServer) error {
	ctx, cancel := context.WithCancelCause(grpcStream.Context())
	defer cancel(nil)
	stop := context.AfterFunc(s.run, func() { cancel(status.Error(codes.Unavailable, "push: stopping")) })
	defer stop()
	st := &stream{ctx: ctx, wake: make(chan struct{}, 1), jobs: make(map[uint64]*job)}
	// Recv ends when this returns, so the receiver is waited for in Run.
	s.p.recvs.Go(func() { cancel(s.receive(st, grpcStream)) })
	pace := rpc.NewPace(resultGap)
	for {
		select {
		case <-ctx.Done():
			err := context.Cause(ctx)
			if errors.Is(err, io.EOF) {
				return nil // the asker is done
			}
			if _, ok := status.FromError(err); !ok {
				err = status.FromContextError(err).Err()
			}
			return err
		case <-st.wake:
			pace.Wait(ctx.Done())
		}
		st.mu.Lock()
		all := st.results
		st.results = nil
		st.mu.Unlock()
		for len(all) > 0 {
			n := min(len(all), sendItems)
			if err := grpcStream.Send(&rpc.PushResultBatch{Items: all[:n]}); err != nil {
				return err
			}
			all = all[n:]
		}
	}
}

func (s server) receive(st *stream, grpcStream rpc.Push_NotifyServer) error {
	for {
		b, err := grpcStream.Recv()
		if err != nil {
			return err
		}
		now := time.Now()
		for _, r := range b.Items {
			st.accept(s.p, r, now)
		}
		st.cancel(s.p, b.Cancel)
	}
}
