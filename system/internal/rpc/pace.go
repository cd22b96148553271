package rpc

import "time"

// Pace keeps the batches of one sender apart. A batch costs its receiver a
// wake-up and both sides a system call, whatever it holds; where the next items
// come before the gap is over they share that. What comes after a pause is never
// held up. The zero value has no gap. It belongs to one goroutine.
type Pace struct {
	gap   time.Duration
	next  time.Time // when the next batch may go
	timer *time.Timer
}

// NewPace returns a Pace that lets a batch go at most once in each gap, which is
// the most that an item is held up.
func NewPace(gap time.Duration) Pace { return Pace{gap: gap} }

// Busy says whether the last batch is so little time ago that the next one has to
// wait.
func (p *Pace) Busy() bool { return p.next.After(time.Now()) }

// Wait returns true when the next batch may go, and false when done was closed
// before that. The caller then takes all that waits.
func (p *Pace) Wait(done <-chan struct{}) bool {
	now := time.Now()
	if wait := p.next.Sub(now); wait > 0 {
		if p.timer == nil {
			p.timer = time.NewTimer(wait)
		} else {
			p.timer.Reset(wait)
		}
		select {
		case <-p.timer.C:
			now = now.Add(wait)
		case <-done:
			p.timer.Stop()
			return false
		}
	}
	p.next = now.Add(p.gap)
	return true
}
