package rpc

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		p := NewPace(10 * time.Millisecond)
		start := time.Now()
		at := func(want time.Duration) {
			t.Helper()
			if !p.Wait(done) {
				t.Fatal("stopped")
			}
			if got := time.Since(start); got != want {
				t.Fatalf("went after %s, want %s", got, want)
			}
		}
		at(0) // nothing has gone before
		at(10 * time.Millisecond)
		<-time.After(3 * time.Millisecond)
		at(20 * time.Millisecond)
		<-time.After(50 * time.Millisecond) // a pause: what comes next is not held up
		at(70 * time.Millisecond)
		at(80 * time.Millisecond)
		close(done)
		if p.Wait(done) {
			t.Fatal("waits although it is done")
		}
		var free Pace
		for range 2 {
			if !free.Wait(done) || time.Since(start) != 80*time.Millisecond {
				t.Fatal("without a gap it waits")
			}
		}
	})
}
