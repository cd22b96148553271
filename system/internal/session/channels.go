package session

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// topics is what this gateway wants to be subscribed to. The goroutine that
// talks to Redis makes it so, and makes it so again after a lost connection.
type topics struct {
	limit int
	wake  chan struct{} // capacity 1, never closed

	mu      sync.Mutex
	wanted  map[string]struct{}
	changed map[string]struct{} // topics whose subscription may not be as wanted
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
	t.changed[topic] = struct{}{}
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

// take returns what has to change, given what is subscribed now.
func (t *topics) take(active map[string]struct{}) (add, remove []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for topic := range t.changed {
		_, want := t.wanted[topic]
		_, have := active[topic]
		switch {
		case want && !have:
			add = append(add, topic)
		case !want && have:
			remove = append(remove, topic)
		}
	}
	clear(t.changed)
	return add, remove
}

// all makes take return everything that is wanted: nothing is subscribed.
func (t *topics) all() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.changed)
	for topic := range t.wanted {
		t.changed[topic] = struct{}{}
	}
}

// keepSubscribed holds a connection with the subscriptions until ctx is done.
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
			r.log.Debug("subscriptions lost", "err", err)
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
		deliver(strings.TrimPrefix(m.Channel, channelPrefix), []byte(m.Message))
	}})
	active := make(map[string]struct{})
	r.topics.all()
	r.topics.poke()
	// A connection that carries nothing is not seen to be dead: ask it.
	ping := time.NewTicker(r.cfg.RenewEvery)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return fmt.Errorf("session: subscriptions: connection lost: %w", err)
		case <-ping.C:
			if err := r.ask(ctx, d, "ping", d.B().Ping().Build().Pin()); err != nil {
				return err
			}
		case <-r.topics.wake:
			add, remove := r.topics.take(active)
			if err := r.change(ctx, d, add, remove, active); err != nil {
				return err
			}
		}
	}
}

// change subscribes and unsubscribes, in bounded commands.
func (r *Registry) change(ctx context.Context, d rueidis.DedicatedClient, add, remove []string, active map[string]struct{}) error {
	for i := range add {
		active[add[i]] = struct{}{}
		add[i] = channelPrefix + add[i]
	}
	for i := range remove {
		delete(active, remove[i])
		remove[i] = channelPrefix + remove[i]
	}
	for len(remove) > 0 {
		n := min(len(remove), batchOps)
		if err := r.ask(ctx, d, "unsubscribe", d.B().Unsubscribe().Channel(remove[:n]...).Build().Pin()); err != nil {
			return err
		}
		remove = remove[n:]
	}
	for len(add) > 0 {
		n := min(len(add), batchOps)
		if err := r.ask(ctx, d, "subscribe", d.B().Subscribe().Channel(add[:n]...).Build().Pin()); err != nil {
			return err
		}
		add = add[n:]
	}
	return nil
}

func (r *Registry) ask(ctx context.Context, d rueidis.DedicatedClient, what string, cmd rueidis.Completed) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	r.m.ops.WithLabelValues(what).Inc()
	if err := d.Do(ctx, cmd).Error(); err != nil {
		return fmt.Errorf("session: %s: %w", what, err)
	}
	return nil
}
