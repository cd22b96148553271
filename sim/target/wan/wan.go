// Package wan is the distance between zones: TCP proxies that hand on what they
// get a delay later, in order and however much it is. A target puts one in front
// of each endpoint that is used from another zone, so that the latency of a
// scenario is really imposed on every link between zones and on nothing else.
// They run in a process of their own, so that their CPU is nobody else's.
//
// It may import system for the way in which durations are written, and nothing
// else of the project.
package wan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system"
)

// Bounds of one direction of one connection: so many reads of so many bytes may
// be on their way, then its sender has to wait, as for a full window. With 40 ms
// one way that is 100 MB/s.
const (
	windowChunks = 1024
	chunkBytes   = 4 << 10
)

// dialTimeout bounds the connect to the endpoint itself, which is near.
const dialTimeout = 2 * time.Second

// Link is an endpoint as processes of one other zone reach it.
type Link struct {
	From   string          `json:"from"`   // zone of those who connect, for metrics
	To     string          `json:"to"`     // zone of the endpoint
	Listen string          `json:"listen"` // host:port where the zone From connects
	Addr   string          `json:"addr"`   // host:port of the endpoint itself
	Delay  system.Duration `json:"delay"`  // one way
	Jitter system.Duration `json:"jitter"` // at most so much longer, evenly spread; the order stays
}

// meter counts what the proxies carried, by pair of zones.
type meter struct {
	bytes, chunks, late, lateBy *prometheus.CounterVec
}

// lateAfter is when a chunk counts as late: the machine had no time for it, and
// the link was longer than it should be.
const lateAfter = 10 * time.Millisecond

func newMeter(reg prometheus.Registerer) (*meter, error) {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"from", "to"})
	}
	m := &meter{
		bytes:  counter("throng_wan_bytes_total", "Bytes carried between zones, in both directions, by who connected to whom."),
		chunks: counter("throng_wan_chunks_total", "Pieces in which they were carried."),
		late:   counter("throng_wan_late_chunks_total", "Pieces that were handed on more than 10 ms after they were due: the machine was busy."),
		lateBy: counter("throng_wan_late_seconds_total", "Time that pieces were handed on after they were due."),
	}
	for _, c := range []prometheus.Collector{m.bytes, m.chunks, m.late, m.lateBy} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("wan: %w", err)
		}
	}
	return m, nil
}

// line is a link with where it is counted.
type line struct {
	Link
	bytes, chunks, late, lateBy prometheus.Counter
}

func newLine(l Link, m *meter) *line {
	return &line{Link: l, bytes: m.bytes.WithLabelValues(l.From, l.To), chunks: m.chunks.WithLabelValues(l.From, l.To),
		late: m.late.WithLabelValues(l.From, l.To), lateBy: m.lateBy.WithLabelValues(l.From, l.To)}
}

// serve carries the connections that ln accepts until ctx is done, then closes
// them all and returns nil.
func (l *line) serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var carried sync.WaitGroup
	defer carried.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("wan: %s to %s: %w", l.From, l.To, errors.Join(err, ln.Close()))
		}
		carried.Go(func() { l.carry(ctx, conn.(*net.TCPConn)) })
	}
}

// carry connects to the endpoint and carries both directions until both have
// ended, one fails, or ctx is done. The client's kernel has told it already that
// it is connected; over a line it would learn that a round trip later, so
// nothing counts as sent before that.
func (l *line) carry(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	oneWay := time.Duration(l.Delay)
	opened := time.Now()
	if !sleepUntil(ctx, opened.Add(oneWay)) {
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	endpoint, err := d.DialContext(ctx, "tcp", l.Addr)
	if err != nil {
		sleepUntil(ctx, time.Now().Add(oneWay)) // the refusal travels as well
		_ = client.SetLinger(0)
		return
	}
	server := endpoint.(*net.TCPConn)
	defer server.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { client.Close(); server.Close() })()
	var both sync.WaitGroup
	direction := func(from, to *net.TCPConn, since time.Time) {
		both.Go(func() {
			if err := l.direction(ctx, from, to, since); err != nil {
				// Who is left learns that the connection is broken, not that it
				// has ended.
				_, _ = client.SetLinger(0), server.SetLinger(0)
				cancel()
			}
		})
	}
	direction(client, server, opened.Add(2*oneWay))
	direction(server, client, opened.Add(3*oneWay)) // it knows of the connection when the client's answer is there
	both.Wait()
}

// chunk is what one read returned.
type chunk struct {
	due  time.Time
	data []byte
	err  error // after data; io.EOF: the sender has ended this direction
}

// halfConn is a connection whose directions end separately.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// direction hands on what from sends, each piece when it is due, and at last its
// end. Nothing is sent before since.
func (l *line) direction(ctx context.Context, from net.Conn, to halfConn, since time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	onTheWay := make(chan chunk, windowChunks)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	reader.Go(func() { l.read(ctx, from, since, onTheWay) })
	for {
		var c chunk
		select {
		case c = <-onTheWay:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !sleepUntil(ctx, c.due) {
			return ctx.Err()
		}
		if len(c.data) > 0 {
			l.count(len(c.data), time.Since(c.due))
			if _, err := to.Write(c.data); err != nil {
				_ = from.SetReadDeadline(time.Now()) // the reader need not wait for more
				return err
			}
		}
		switch {
		case errors.Is(c.err, io.EOF):
			return to.CloseWrite()
		case c.err != nil:
			return c.err
		}
	}
}

// read stamps what comes until the end of the direction.
func (l *line) read(ctx context.Context, from net.Conn, since time.Time, onTheWay chan<- chunk) {
	buf := make([]byte, chunkBytes)
	last := since
	for {
		n, err := from.Read(buf)
		sent := time.Now()
		if sent.Before(since) {
			sent = since
		}
		due := sent.Add(time.Duration(l.Delay))
		if l.Jitter > 0 {
			due = due.Add(rand.N(time.Duration(l.Jitter) + 1))
		}
		if due.Before(last) {
			due = last // it does not overtake, and is not late for that
		}
		last = due
		select {
		case onTheWay <- chunk{due: due, data: bytes.Clone(buf[:n]), err: err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func (l *line) count(n int, late time.Duration) {
	l.bytes.Add(float64(n))
	l.chunks.Inc()
	l.lateBy.Add(late.Seconds())
	if late > lateAfter {
		l.late.Inc()
	}
}

// sleepUntil returns whether t came before the end of ctx.
func sleepUntil(ctx context.Context, t time.Time) bool {
	wait := time.Until(t)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
