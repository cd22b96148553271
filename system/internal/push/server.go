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
}

// stream is one asker. Results that wait are bounded by what it has asked.
type stream struct {
	ctx  context.Context
	wake chan struct{} // holds one token; never closed

	mu      sync.Mutex
	results []*rpc.PushResult
}

func (s *stream) answer(ref uint64, outcome rpc.PushOutcome) {
	s.mu.Lock()
	s.results = append(s.results, &rpc.PushResult{Ref: ref, Outcome: outcome})
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Notify implements rpc.PushServer. While the queue is full the stream is not
// read, so that flow control holds the asker back.
func (s server) Notify(grpcStream rpc.Push_NotifyServer) error {
	ctx, cancel := context.WithCancelCause(grpcStream.Context())
	defer cancel(nil)
	stop := context.AfterFunc(s.run, func() { cancel(status.Error(codes.Unavailable, "push: stopping")) })
	defer stop()
	st := &stream{ctx: ctx, wake: make(chan struct{}, 1)}
	// Recv ends when this returns, so the receiver is waited for in Run.
	s.p.recvs.Go(func() { cancel(s.receive(st, grpcStream)) })
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
			select {
			case s.p.queue <- job{req: r, stream: st, at: now}:
				s.p.m.queue.Depth.Inc()
			case <-st.ctx.Done():
				return context.Cause(st.ctx)
			}
		}
	}
}
