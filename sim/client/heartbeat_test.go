package client

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"throng/system/wire"
)

// beating returns a heartbeat that runs until the test ends.
func beating(t *testing.T, tick time.Duration) *Heartbeat {
	t.Helper()
	h := NewHeartbeat(tick)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { h.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return h
}

// watched dials url and starts the connection under a heartbeat.
func watched(t *testing.T, h *Heartbeat, d *Dialer, url string, every, wait time.Duration) (*Conn, *frames) {
	t.Helper()
	f := newFrames()
	c, err := d.Dial(t.Context(), url, "good", f)
	if err != nil {
		t.Fatal(err)
	}
	h.Watch(c, every, wait)
	c.Start()
	return c, f
}

// TestSilentServer: a server that reads and answers nothing, as a stopped
// process or a half-open socket does, is noticed, and one that answers is not.
func TestSilentServer(t *testing.T) { bothWays(t, noticesSilence) }

func noticesSilence(t *testing.T, secure bool) {
	var stop atomic.Bool
	silent := make(chan struct{})
	pinged := make(chan struct{}, 100)
	d, url := server(t, secure, func(ws *websocket.Conn) {
		answer := ws.PingHandler()
		ws.SetPingHandler(func(s string) error {
			pinged <- struct{}{}
			if stop.Load() {
				<-silent // reads no more, answers no more, and stays open
			}
			return answer(s)
		})
		for {
			if _, _, err := ws.ReadMessage(); err != nil {
				return
			}
		}
	})
	defer close(silent)
	h := beating(t, time.Millisecond)
	_, f := watched(t, h, d, url, 5*time.Millisecond, 300*time.Millisecond)
	for range 5 { // answered, so it goes on
		wait(t, pinged, "ping")
	}
	select {
	case err := <-f.closed:
		t.Fatalf("closed by a server that answers: %v", err)
	default:
	}
	stop.Store(true)
	if err := wait(t, f.closed, "end of a silent connection"); !errors.Is(err, ErrSilent) {
		t.Errorf("closed with %v, want ErrSilent", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, slot := range h.wheel {
		if len(slot) > 0 {
			t.Errorf("slot %d still has %d connections", i, len(slot))
		}
	}
}

// TestTrafficIsLife: whatever comes puts the next ping off.
func TestTrafficIsLife(t *testing.T) { bothWays(t, trafficIsLife) }

func trafficIsLife(t *testing.T, secure bool) {
	done := make(chan struct{})
	d, url := server(t, secure, func(ws *websocket.Conn) {
		if _, _, err := ws.ReadMessage(); err != nil {
			t.Errorf("read: %v", err)
		}
		if ws.WriteMessage(websocket.BinaryMessage, deliver(t, 1)) == nil {
			<-done
		}
	})
	defer close(done)
	h, f := NewHeartbeat(0), newFrames()
	c, err := d.Dial(t.Context(), url, "good", f)
	if err != nil {
		t.Fatal(err)
	}
	h.Watch(c, time.Minute, time.Minute)
	c.lastRx.Store(0)
	c.Start()
	if err := c.Write(&wire.Frame{Kind: &wire.Frame_Sync{Sync: &wire.Sync{}}}); err != nil {
		t.Fatal(err)
	}
	wait(t, f.got, "frame")
	if c.lastRx.Load() == 0 {
		t.Error("a frame has come and no sign of life was noted")
	}
	c.Abort()
	wait(t, f.closed, "close")
	if c.beat.slot >= 0 {
		t.Error("a connection that has ended is still on the wheel")
	}
}

// TestWheel: intervals longer than the wheel, and those that traffic has moved,
// end when they should.
func TestWheel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHeartbeat(time.Second)
		turns := func(n int) {
			for range n {
				<-time.After(time.Second)
				h.turn(h.now())
			}
		}
		c := &Conn{} // no ping is written, as there is no socket
		h.Watch(c, 1000*time.Second, time.Hour)
		for range pingsAtOnce {
			h.slots <- struct{}{}
		}
		turns(990)
		if c.beat.pinged != 0 {
			t.Fatalf("pinged after %v", c.beat.pinged)
		}
		c.lastRx.Store(int64(h.now()))
		turns(990)
		if c.beat.pinged != 0 {
			t.Fatalf("pinged %v after traffic", c.beat.pinged)
		}
		turns(20)
		if c.beat.pinged == 0 {
			t.Fatal("not pinged in time")
		}
		c.lastRx.Store(int64(h.now()))
		turns(2000)
		if c.silent.Load() || c.beat.slot < 0 {
			t.Error("given up although it had answered")
		}
		h.forget(c)
		if c.beat.slot >= 0 {
			t.Error("still on the wheel")
		}
	})
}

// TestHeartbeatNeedsNoGoroutines: a thousand watched connections add none.
func TestHeartbeatNeedsNoGoroutines(t *testing.T) {
	h := beating(t, time.Second)
	before := runtime.NumGoroutine()
	conns := make([]*Conn, 1000)
	for i := range conns {
		conns[i] = &Conn{}
		h.Watch(conns[i], time.Hour, time.Hour)
	}
	if n := runtime.NumGoroutine() - before; n > 2 {
		t.Errorf("%d goroutines more", n)
	}
	for _, c := range conns {
		h.forget(c)
	}
}
