package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/gorilla/websocket"

	"throng/sim/load/roundtrip"
	"throng/system/wire"
)

// probes are the sockets of a probe, each with one message a second.
const probes = 100

// probe is the truth about a gateway under somebody's load: a few users in a
// process that has nothing else to do.
type probe struct {
	sockets []*websocket.Conn
	frame   []byte
}

func newProbe(ctx context.Context, addr string) (*probe, error) {
	b, err := frame()
	if err != nil {
		return nil, err
	}
	p := &probe{frame: b}
	for i := range uint64(probes) {
		ws, resp, err := websocket.DefaultDialer.DialContext(ctx, "ws://"+addr+wire.Path, http.Header{"Authorization": {fmt.Sprint("Bearer ", roundtrip.FirstProbe+i)}})
		if err != nil {
			p.close()
			return nil, fmt.Errorf("probe: %w", err)
		}
		_ = resp.Body.Close()
		p.sockets = append(p.sockets, ws)
	}
	return p, nil
}

func (p *probe) close() {
	for _, ws := range p.sockets {
		_ = ws.Close()
	}
}

// measure makes round trips for so long and returns how long they took from the
// intended time, in microseconds. The probe is of no use after it.
func (p *probe) measure(ctx context.Context, d time.Duration) (*hdrhistogram.Histogram, error) {
	defer p.close()
	all := hdrhistogram.New(1, 60_000_000, 3)
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	begin := time.Now()
	for i, ws := range p.sockets {
		wg.Go(func() {
			mine := hdrhistogram.New(1, 60_000_000, 3)
			first := begin.Add(time.Duration(i) * time.Second / probes)
			err := p.trips(ctx, ws, first, begin.Add(d), mine)
			mu.Lock()
			defer mu.Unlock()
			all.Merge(mine)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return all, failed
}

func (p *probe) trips(ctx context.Context, ws *websocket.Conn, due, end time.Time, h *hdrhistogram.Histogram) error {
	for ; due.Before(end); due = due.Add(time.Second) {
		if err := wait(ctx, time.Until(due)); err != nil {
			return err
		}
		if err := ws.WriteMessage(websocket.BinaryMessage, p.frame); err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		if _, _, err := ws.ReadMessage(); err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		_ = h.RecordValue(min(time.Since(due).Microseconds(), h.HighestTrackableValue()))
	}
	return nil
}
