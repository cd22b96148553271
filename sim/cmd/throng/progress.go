package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/mattn/go-isatty"

	"throng/sim/load"
)

// progress shows how a run goes on: one line that rewrites itself on a
// terminal, otherwise a plain line at each change of phase and every 5 s.
type progress struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex
	last  time.Duration
	phase string
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w), last: -time.Hour}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// line prints a line that stays.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *progress) clear() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[2K")
	}
}

// update shows the state of the run.
func (p *progress) update(s load.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const every = 5 * time.Second
	if !p.terminal && s.Phase == p.phase && s.Elapsed-p.last < every {
		return
	}
	p.phase, p.last = s.Phase, s.Elapsed
	p.clear()
	fmt.Fprint(p.w, format(s))
	if !p.terminal {
		fmt.Fprintln(p.w)
	}
}

func format(s load.Progress) string {
	x := s.Second
	out := fmt.Sprintf("%3.0fs %-9s in %d/s  delivered %d/s  connected %d", s.Elapsed.Seconds(), s.Phase,
		x.Written, x.Live+x.Drained+x.Transition+x.Proof, x.Connected)
	if s.P99 > 0 {
		out += fmt.Sprintf("  p50 %s p99 %s", ms(s.P50), ms(s.P99))
	}
	out += fmt.Sprintf("  in flight %d  held %d", x.InFlight, x.Held)
	if s.LateP99 > 0 {
		out += fmt.Sprintf("  late p99 %s", ms(s.LateP99))
	}
	if s.Phase == "proof" {
		out += fmt.Sprintf("  to prove %d", s.Pending)
	}
	if s.Judging >= 0 {
		out += fmt.Sprintf("  judged %d %%", s.Judging)
	}
	if x.Errors > 0 {
		out += fmt.Sprintf("  errors %d/s", x.Errors)
	}
	return out
}

func ms(d time.Duration) string {
	switch v := float64(d) / float64(time.Millisecond); {
	case v < 10:
		return fmt.Sprintf("%.1f ms", v)
	case v < 10_000:
		return fmt.Sprintf("%.0f ms", v)
	default:
		return fmt.Sprintf("%.1f s", v/1000)
	}
}
