package group

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"throng/system/placement"
)

const (
	relayPage  = 256
	relayEvery = time.Second // looks into the outbox even if nothing was heard
)

// relay carries the outbox into the log: for each group one change at a time,
// in order of version, each at least once. What a crashed process left in the
// outbox is carried by the next one.
type relay struct {
	store      Outbox
	producer   Producer
	partitions int
	owns       func(group uint64) bool
	log        *slog.Logger
	wake       chan struct{} // capacity 1; never closed

	mu        sync.Mutex
	listeners map[uint64]map[*listener]struct{} // by group
	untried   map[change]struct{}               // changes that cannot be in the log yet
}

// change names a change of a group's members.
type change struct{ group, version uint64 }

// listener waits for a version of a group to be in the log.
type listener struct {
	group uint64
	wake  chan struct{} // capacity 1; never closed
	relay *relay
	seen  []Position // relay's mutex
}

func newRelay(cfg Config, owns func(uint64) bool) *relay {
	return &relay{
		store: cfg.Store, producer: cfg.Producer, partitions: cfg.Partitions, owns: owns, log: cfg.Log,
		wake: make(chan struct{}, 1), listeners: map[uint64]map[*listener]struct{}{}, untried: map[change]struct{}{},
	}
}

// made says that a change is about to be stored for the first time: where its
// first copy is in the log will be known without asking the fan-out.
func (r *relay) made(c change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.untried[c] = struct{}{}
}

// first reports whether no copy of the change can be in the log before the one
// that is about to be produced. It does so once.
func (r *relay) first(c change) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.untried[c]
	delete(r.untried, c)
	return ok
}

func (r *relay) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *relay) listen(group uint64) *listener {
	l := &listener{group: group, wake: make(chan struct{}, 1), relay: r}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listeners[group] == nil {
		r.listeners[group] = map[*listener]struct{}{}
	}
	r.listeners[group][l] = struct{}{}
	return l
}

func (r *relay) leave(l *listener) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.listeners[l.group], l)
	if len(r.listeners[l.group]) == 0 {
		delete(r.listeners, l.group)
	}
}

// tell says that a change is in the log.
func (r *relay) tell(p Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for l := range r.listeners[p.Group] {
		l.seen = append(l.seen, p)
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// await waits for the position of a version.
func (l *listener) await(ctx context.Context, version uint64) (Position, error) {
	for {
		l.relay.mu.Lock()
		for _, p := range l.seen {
			if p.Version == version {
				l.relay.mu.Unlock()
				return p, nil
			}
		}
		l.relay.mu.Unlock()
		select {
		case <-l.wake:
		case <-ctx.Done():
			return Position{}, ctx.Err()
		}
	}
}

// run works until ctx is done.
func (r *relay) run(ctx context.Context) {
	tick := time.NewTicker(relayEvery)
	defer tick.Stop()
	wait := 20 * time.Millisecond
	for {
		more, err := r.pass(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.log.Warn("outbox, will go on trying", "err", err)
			if !sleep(ctx, wait) {
				return
			}
			wait = min(2*wait, relayEvery)
			continue
		}
		wait = 20 * time.Millisecond
		if more {
			continue
		}
		select {
		case <-r.wake:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// pass goes through the outbox once and carries the oldest change of each
// group. It reports whether there may be more.
func (r *relay) pass(ctx context.Context) (more bool, err error) {
	var after *Pending
	last := uint64(0) // group whose oldest change was taken
	for {
		page, err := r.store.Pending(ctx, after, relayPage)
		if err != nil {
			return false, err
		}
		var batch []Pending
		for _, p := range page {
			switch {
			case !r.owns(p.Group):
			case p.Group == last:
				more = true // when the one before it is settled
			default:
				last = p.Group
				batch = append(batch, p)
			}
		}
		if err := r.carry(ctx, batch); err != nil {
			return false, err
		}
		if len(page) < relayPage {
			return more, nil
		}
		after = &page[len(page)-1]
	}
}

// carry produces changes of different groups and settles those that are in
// the log. A change that was produced before may be in the log twice, and the
// first copy counts: then its position is what the fan-out says.
func (r *relay) carry(ctx context.Context, batch []Pending) error {
	if len(batch) == 0 {
		return nil
	}
	type result struct {
		Position
		err error
	}
	results := make(chan result, len(batch))
	var errs []error
	expected := 0
	for _, p := range batch {
		first := r.first(change{p.Group, p.Version})
		err := r.producer.Produce(placement.GroupPartition(p.Group, r.partitions), p.Group, p.Record, func(offset int64, err error) {
			if !first {
				offset = NoOffset
			}
			results <- result{Position{Group: p.Group, Version: p.Version, Offset: offset}, err}
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		expected++
	}
	var settled []Position
	for range expected {
		select {
		case res := <-results:
			if res.err != nil {
				errs = append(errs, res.err)
				continue
			}
			settled = append(settled, res.Position)
		case <-ctx.Done():
			return ctx.Err() // at least once: the next process carries them again
		}
	}
	if len(settled) > 0 {
		if err := r.store.Settle(ctx, settled); err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, p := range settled {
			if p.Offset != NoOffset {
				r.tell(p)
			}
		}
	}
	return errors.Join(errs...)
}
