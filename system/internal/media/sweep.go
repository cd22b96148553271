package media

import (
	"context"
	"time"
)

// sweepBatch bounds what is looked up at once of what has expired.
const sweepBatch = 256

// sweepLoop removes what has expired.
func (s *Service) sweepLoop(ctx context.Context) {
	tick := time.NewTicker(s.limits.SweepEvery)
	defer tick.Stop()
	for {
		s.sweep(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Service) sweep(ctx context.Context) {
	for {
		gone, err := s.cfg.Store.Expired(ctx, time.Now(), sweepBatch)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("what has expired cannot be told", "err", err)
			}
			return
		}
		for _, id := range gone {
			if ctx.Err() != nil {
				return
			}
			if s.remove(ctx, id) != nil {
				return // logged; the next sweep goes on
			}
			s.m.expired.Inc()
		}
		if len(gone) < sweepBatch {
			break
		}
	}
	_, users := s.rates.users.Len()
	_, addresses := s.rates.addresses.Len()
	s.m.users.Depth.Set(float64(users))
	s.m.addresses.Depth.Set(float64(addresses))
	if objects, bytes, err := s.cfg.Store.Usage(ctx); err == nil {
		s.m.objects.Set(float64(objects))
		s.m.bytes.Set(float64(bytes))
	}
}
