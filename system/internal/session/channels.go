package session

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// topics is what this gateway wants to hear of. The goroutine of exchange makes
// the interests in Redis so.
type topics struct {
	limit int
	wake  chan struct{} // capacity 1, never closed

	mu      sync.Mutex
	wanted  map[string]struct{}
	changed map[string]struct{} // topics whose interest in Redis may not be as wanted
}

func (t *topics) init(limit int) {
	t.limit = limit
	t.wake = make(chan struct{}, 1)
	t.wanted = make(map[string]struct{})
	t.changed = make(map[string]struct{})
}

// Subscribe wants the messages of a topic; calling it again changes nothing.
func (r *Registry) Subscribe(topic string) {
	t := &r.topics
	t.mu.Lock()
	full := len(t.wanted) >= t.limit
	if !full {
		t.wanted[topic] = struct{}{}
		t.changed[topic] = struct{}{}
	}
	r.m.topics.Depth.Set(float64(len(t.wanted)))
	t.mu.Unlock()
	if full {
		r.m.topics.Dropped.Inc()
		return
	}
	t.poke()
}

// Unsubscribe does not want them any more.
func (r *Registry) Unsubscribe(topic string) {
	t := &r.topics
	t.mu.Lock()
	delete(t.wanted, topic)
	if len(t.changed) < 2*t.limit {
		t.changed[topic] = struct{}{}
	} else { // Redis is away: an interest that it holds ends by itself
		delete(t.changed, topic)
		r.m.topics.Dropped.Inc()
	}
	r.m.topics.Depth.Set(float64(len(t.wanted)))
	t.mu.Unlock()
	t.poke()
}

func (t *topics) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *topics) wants(topic string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.wanted[topic]
	return ok
}

// renew makes take return everything that is wanted.
func (t *topics) renew() {
	t.mu.Lock()
	for topic := range t.wanted {
		t.changed[topic] = struct{}{}
	}
	t.mu.Unlock()
	t.poke()
}

// again makes take return these topics once more, if it has to.
func (t *topics) again(lists ...[]string) {
	t.mu.Lock()
	for _, names := range lists {
		for _, topic := range names {
			t.changed[topic] = struct{}{}
		}
	}
	t.mu.Unlock()
	t.poke()
}

// take returns up to limit topics whose interest in Redis may not be as wanted.
func (t *topics) take(limit int) (wanted, unwanted []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for topic := range t.changed {
		if len(wanted)+len(unwanted) >= limit {
			t.poke() // for the rest
			break
		}
		delete(t.changed, topic)
		if _, ok := t.wanted[topic]; ok {
			wanted = append(wanted, topic)
		} else {
			unwanted = append(unwanted, topic)
		}
	}
	return wanted, unwanted
}

// keepSubscribed listens to the channel of this gateway until ctx is done.
func (r *Registry) keepSubscribed(ctx context.Context, deliver func(topic string, payload []byte)) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		}
		if err := r.subscription(ctx, deliver); err != nil && ctx.Err() == nil {
			r.log.Debug("subscription lost", "err", err)
		}
		retry.Reset(retryDelay)
	}
}

func (r *Registry) subscription(ctx context.Context, deliver func(topic string, payload []byte)) error {
	c, err := r.redis(ctx)
	if err != nil {
		return err
	}
	d, release := c.Dedicate()
	defer release()
	// Without this, release would wait for a connection that is dead.
	defer d.Close()
	lost := d.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: func(m rueidis.PubSubMessage) {
		ok := each([]byte(m.Message), func(topic string, payload []byte) {
			if r.topics.wants(topic) { // the publisher may not have read yet that nobody does
				deliver(topic, payload)
			}
		})
		if !ok {
			r.log.Error("malformed message of another gateway", "bytes", len(m.Message))
		}
	}})
	if err := r.ask(ctx, d, "subscribe", d.B().Subscribe().Channel(channelPrefix+r.self).Build().Pin()); err != nil {
		return err
	}
	// A connection that carries nothing is not seen to be dead: ask it.
	ping := time.NewTicker(r.cfg.RenewEvery)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return fmt.Errorf("session: subscription: connection lost: %w", err)
		case <-ping.C:
			if err := r.ask(ctx, d, "ping", d.B().Ping().Build().Pin()); err != nil {
				return err
			}
		}
	}
}

func (r *Registry) ask(ctx context.Context, d rueidis.DedicatedClient, what string, cmd rueidis.Completed) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	r.count(what, 1)
	if err := d.Do(ctx, cmd).Error(); err != nil {
		return fmt.Errorf("session: %s: %w", what, err)
	}
	return nil
}
