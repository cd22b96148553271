package crew

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"throng/sim/audit"
)

// spoolPiece is how much of a spool one message carries, after eight bytes that
// say where it belongs.
const spoolPiece = 1 << 20

// syncWithin is how long an agent has to write its spool out and, from another
// machine, to send it: hundreds of megabytes after a long run.
const syncWithin = 10 * time.Minute

func spoolName(dir string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("audit-%d.spool", number))
}

// openSpool makes the file for what an agent tells the audit: in the leader's
// run folder, or a temporary one of this machine.
func openSpool(folder string, number int) (*os.File, error) {
	if folder == "" {
		f, err := os.CreateTemp("", "throng-audit-*.spool")
		if err != nil {
			return nil, fmt.Errorf("crew: spool: %w", err)
		}
		return f, nil
	}
	f, err := os.OpenFile(spoolName(folder, number), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("crew: spool: %w", err)
	}
	return f, nil
}

func (p *player) closeSpool() {
	if p.spool == nil {
		return
	}
	_ = p.spool.Close() // the leader has read it
	if p.cfg.Folder == "" {
		_ = os.Remove(p.spool.Name())
	}
}

// sync completes the spool up to a mark and sees that the leader can read it.
func (p *player) sync() (audit.Mark, error) {
	mark, err := p.engine.SyncAudit()
	if err != nil || p.cfg.Folder != "" {
		return mark, err
	}
	piece := make([]byte, 8+spoolPiece)
	for p.sent < mark.Bytes {
		n := min(spoolPiece, mark.Bytes-p.sent)
		if _, err := p.spool.ReadAt(piece[8:8+n], p.sent); err != nil {
			return mark, fmt.Errorf("crew: spool: %w", err)
		}
		binary.BigEndian.PutUint64(piece, uint64(p.sent))
		ctx, cancel := context.WithTimeout(p.out, publishIn)
		_, err := p.js.Publish(ctx, subjectSpool+strconv.Itoa(p.number), piece[:8+n])
		cancel()
		if err != nil {
			return mark, fmt.Errorf("crew: spool: %w", err)
		}
		p.sent += n
	}
	return mark, nil
}

// spoolCopy is an agent's spool in the leader's run folder.
type spoolCopy struct {
	mu     sync.Mutex
	file   *os.File
	copied int64 // bytes that came from another machine
	err    error
}

// open opens the file where it is needed first; the caller holds mu.
func (c *spoolCopy) open(dir string, number int) error {
	if c.file != nil || c.err != nil {
		return c.err
	}
	c.file, c.err = os.OpenFile(spoolName(dir, number), os.O_RDWR|os.O_CREATE, 0o666)
	return c.err
}

func (c *spoolCopy) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		_ = c.file.Close()
	}
}

// piece takes a piece of a spool from another machine.
func (l *Lead) piece(m jetstream.Msg) {
	defer func() { _ = m.Ack() }() // else it comes again, and is written to the same place
	number, err := strconv.Atoi(strings.TrimPrefix(m.Subject(), subjectSpool))
	data := m.Data()
	l.mu.Lock()
	known := err == nil && number >= 1 && number <= len(l.agents) && len(data) > 8
	var c *spoolCopy
	if known {
		c = &l.agents[number-1].spool
	}
	l.mu.Unlock()
	if !known {
		l.log.Warn("a piece of a spool of nobody", "subject", m.Subject())
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open(l.cfg.Dir, number) != nil {
		return // Spools says so
	}
	at := int64(binary.BigEndian.Uint64(data))
	if _, err := c.file.WriteAt(data[8:], at); err != nil {
		c.err = fmt.Errorf("crew: spool of agent %d: %w", number, err)
		return
	}
	c.copied = max(c.copied, at+int64(len(data)-8))
}

// Spools has every agent complete its spool and returns them all. One of an agent
// that has died cannot be judged.
func (l *Lead) Spools(ctx context.Context) []audit.Source {
	l.mu.Lock()
	agents := l.agents
	l.mu.Unlock()
	sources := make([]audit.Source, len(agents))
	var all sync.WaitGroup
	for i, a := range agents {
		s := &sources[i]
		s.Name = fmt.Sprintf("agent %d", a.number)
		all.Go(func() { s.R, s.Mark, s.Err = l.spoolOf(ctx, a) })
	}
	all.Wait()
	return sources
}

func (l *Lead) spoolOf(ctx context.Context, a *agent) (io.ReaderAt, audit.Mark, error) {
	if a.alive.Err() != nil {
		return nil, audit.Mark{}, fmt.Errorf("it died: %w", context.Cause(a.alive))
	}
	r, err := l.ask(ctx, a, order{Op: opSync}, syncWithin)
	if err != nil {
		return nil, audit.Mark{}, err
	}
	c := &a.spool
	if !a.hello.Folder {
		if err := l.awaitCopy(ctx, c, r.Mark.Bytes); err != nil {
			return nil, audit.Mark{}, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.open(l.cfg.Dir, a.number); err != nil {
		return nil, audit.Mark{}, err
	}
	return c.file, r.Mark, nil
}

// awaitCopy waits until so many bytes have come from another machine.
func (l *Lead) awaitCopy(ctx context.Context, c *spoolCopy, bytes int64) error {
	ctx, cancel := context.WithTimeout(ctx, orderWithin)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c.mu.Lock()
		copied, err := c.copied, c.err
		c.mu.Unlock()
		switch {
		case err != nil:
			return err
		case copied >= bytes:
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("its spool did not come whole")
		}
	}
}

// ClockError is by how much the clocks of two agents may differ, as far as is
// known by now.
func (l *Lead) ClockError() (within time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.agents {
		if !a.same {
			within = max(within, 2*(a.first.within+a.most))
		}
	}
	return within
}
