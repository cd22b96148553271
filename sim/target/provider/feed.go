package provider

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// reader is one reader of the feed.
type reader struct {
	limit int
	wake  chan struct{} // holds one token; never closed

	mu    sync.Mutex
	lines []Push
	lost  uint64 // since the last line
}

// put queues a line; false: it does not fit and the loss is noted.
func (r *reader) put(line Push) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	// After a loss nothing is queued until the reader has been told, so that
	// the note stands where the gap is.
	if r.lost > 0 || len(r.lines) >= r.limit {
		r.lost++
		return false
	}
	r.lines = append(r.lines, line)
	return true
}

func (r *reader) take() []Push {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.lines
	if r.lost > 0 {
		lines = append(lines, Push{Lost: r.lost})
	}
	r.lines, r.lost = nil, 0
	return lines
}

// gather is how long lines wait for others: each has its own time, and a
// write and a read for each of a thousand a second cost more than all else of them.
const gather = 50 * time.Millisecond

// feed writes answered pushes from now on. The header goes out at once: when
// the reader has it, nothing later is missed.
func (p *Provider) feed(w http.ResponseWriter, req *http.Request) {
	r := &reader{limit: p.cfg.FeedBuffer, wake: make(chan struct{}, 1)}
	p.mu.Lock()
	p.readers[r] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.readers, r)
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(w)
	for {
		if out.Flush() != nil {
			return
		}
		select {
		case <-req.Context().Done():
			return
		case <-r.wake:
		}
		select {
		case <-req.Context().Done():
			return
		case <-time.After(gather):
		}
		for _, line := range r.take() {
			if enc.Encode(line) != nil {
				return
			}
		}
	}
}

// ReadFeed reads the feed of the provider at url, with c or, when it is nil, a
// client of its own, and calls f for each line, from this goroutine, until ctx
// is done (nil) or the feed breaks. Lines with Lost are for f to judge. started
// is called when the feed is open: pushes answered after that will come.
func ReadFeed(ctx context.Context, c *http.Client, url string, started func(), f func(Push)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/feed", nil)
	if err != nil {
		return fmt.Errorf("provider feed: %w", err)
	}
	if c == nil {
		c = &http.Client{Transport: new(http.Transport)}
		defer c.CloseIdleConnections()
	}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("provider feed: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("provider feed: %s", resp.Status)
	}
	if started != nil {
		started()
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var line Push
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("provider feed: line %q: %w", lines.Text(), err)
		}
		f(line)
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("provider feed: %w", err)
	}
	return fmt.Errorf("provider feed: the provider closed it")
}
