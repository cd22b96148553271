package load

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"throng/sim/client"
)

// Timers run in the order of their times, whatever order they were set in, and
// one set for earlier than the one being slept for wakes the loop.
func TestTimersRunInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		now := func() time.Duration { return time.Since(start) }
		tm := newTimers(now, client.Grid{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go tm.run(ctx)
		type run struct{ set, at time.Duration }
		var got []run
		set := func(d time.Duration) { tm.at(d, func() { got = append(got, run{d, now()}) }) }
		set(30 * time.Second)
		synctest.Wait()
		set(20 * time.Second)
		set(10 * time.Second)
		time.Sleep(15 * time.Second)
		set(time.Second) // in the past: at once
		time.Sleep(time.Minute)
		synctest.Wait()
		want := []run{{10 * time.Second, 10 * time.Second}, {time.Second, 15 * time.Second},
			{20 * time.Second, 20 * time.Second}, {30 * time.Second, 30 * time.Second}}
		if !slices.Equal(got, want) {
			t.Errorf("ran (set for, at) %v, want %v", got, want)
		}
	})
}

// Timers on a grid run at its moments: late by less than a step, and never early.
func TestTimersOnAGrid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const step = 5 * time.Millisecond
		start := time.Now()
		now := func() time.Duration { return time.Since(start) }
		tm := newTimers(now, client.Grid{Epoch: start, Step: step})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go tm.run(ctx)
		synctest.Wait()
		var got []time.Duration
		for _, at := range []time.Duration{12, 11, 7, 20} { // earlier ones while it sleeps for a later one
			tm.at(at*time.Millisecond, func() { got = append(got, now()/time.Millisecond) })
			synctest.Wait()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if want := []time.Duration{10, 15, 15, 20}; !slices.Equal(got, want) {
			t.Errorf("ran at %d ms, want %d", got, want)
		}
	})
}
