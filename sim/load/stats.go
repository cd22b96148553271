package load

import (
	"context"
	"errors"
	"runtime"
	runtimemetrics "runtime/metrics"
	"sync/atomic"
	"syscall"
	"time"

	"throng/sim/history"
	"throng/sim/rig"
)

// stats are cumulative counts, read once a second.
type stats struct {
	offered, written, accepted, refused   atomic.Int64
	live, drained, transition, proof      atomic.Int64
	duplicates, logins, closed, dropped   atomic.Int64
	pushes, framesIn, framesOut           atomic.Int64
	unstarted, errors                     atomic.Int64
	silent                                atomic.Int64 // of dropped: ended by their heartbeat
	expected                              atomic.Int64 // deliveries to devices that were online
	noFiles, noPorts                      atomic.Int64 // connects that failed for want of one, since the last row
	connected, inFlight, waiting, logging atomic.Int64 // gauges
}

func (s *stats) second() history.Second {
	return history.Second{
		Offered: s.offered.Load(), Written: s.written.Load(), Accepted: s.accepted.Load(), Refused: s.refused.Load(),
		Live: s.live.Load(), Drained: s.drained.Load(), Transition: s.transition.Load(), Proof: s.proof.Load(),
		Duplicates: s.duplicates.Load(), Logins: s.logins.Load(), Closed: s.closed.Load(), Dropped: s.dropped.Load(),
		Pushes: s.pushes.Load(), FramesIn: s.framesIn.Load(), FramesOut: s.framesOut.Load(),
		Unstarted: s.unstarted.Load(), Errors: s.errors.Load(),
		Connected: s.connected.Load(), InFlight: s.inFlight.Load(), Held: s.waiting.Load(),
	}
}

// short counts a connect that failed because this process or machine had no
// more to give.
func (s *stats) short(err error) {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		s.noFiles.Add(1)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		s.noPorts.Add(1)
	}
}

// since returns s with its counts reduced by those of before.
func since(s, before history.Second) history.Second {
	s.Offered -= before.Offered
	s.Written -= before.Written
	s.Accepted -= before.Accepted
	s.Refused -= before.Refused
	s.Live -= before.Live
	s.Drained -= before.Drained
	s.Transition -= before.Transition
	s.Proof -= before.Proof
	s.Duplicates -= before.Duplicates
	s.Logins -= before.Logins
	s.Closed -= before.Closed
	s.Dropped -= before.Dropped
	s.Pushes -= before.Pushes
	s.FramesIn -= before.FramesIn
	s.FramesOut -= before.FramesOut
	s.Unstarted -= before.Unstarted
	s.Errors -= before.Errors
	return s
}

// Progress is what a person wants to see while a run goes on. Counts are of
// the last second.
type Progress struct {
	Elapsed   time.Duration
	Phase     string
	Second    history.Second
	P50, P99  time.Duration // send to deliver, online addressees; 0 without any
	LateP99   time.Duration
	Pending   int // devices still to be proved, in the proof phase
	Judging   int // percent of what was recorded that is judged, -1 when it is not being judged
	LoggingIn int64
}

// sampleLoop writes the series at each whole second of the run: counts,
// histograms and processes.
func (e *Engine) sampleLoop(ctx context.Context) {
	next := time.NewTimer(0)
	defer next.Stop()
	var before history.Second
	watch := rig.New()
	for {
		end := ctx.Err() != nil
		now := e.now()
		phase := *e.phase.Load()
		cum := e.stats.second()
		sec := since(cum, before)
		sec.Held += e.replies.held.Load()
		before = cum
		sec.T, sec.Phase = now.Seconds(), phase
		e.record(e.cfg.History.Second(sec))
		p50, p99, late := e.swap(now)
		if samples, err := e.access.Sample(); err == nil {
			for _, s := range samples {
				s.T = now.Seconds()
				e.record(e.cfg.History.Role(s))
			}
		}
		row := watch.Read()
		row.T, row.Instance, row.NoFiles, row.NoPorts = now.Seconds(), e.cfg.Number, e.stats.noFiles.Swap(0), e.stats.noPorts.Swap(0)
		e.record(e.cfg.History.Rig(row))
		e.cfg.Progress(Progress{Elapsed: now, Phase: phase, Second: sec, P50: p50, P99: p99, LateP99: late,
			LoggingIn: e.stats.logging.Load(), Pending: int(e.pending.Load()), Judging: int(e.judging.share.Load()) - 1})
		if end {
			return
		}
		next.Reset(time.Second - e.now()%time.Second)
		select {
		case <-next.C:
		case <-ctx.Done():
		}
	}
}

// scrapeLoop reads the counters every scrapeInterval, when a phase begins and
// at the end. It has a goroutine of its own: a role that is slow to answer must
// not make holes in the series.
func (e *Engine) scrapeLoop(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	scraped, lastPhase := -scrapeInterval, ""
	for ctx.Err() == nil {
		phase := *e.phase.Load()
		if now := e.now(); now-scraped >= scrapeInterval || phase != lastPhase {
			scraped, lastPhase = now, phase
			e.scrape(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	e.scrape(ctx)
}

// scrape reads the counters of all roles. A role that is down answers at the
// next scrape; the reader of the series allows for gaps.
func (e *Engine) scrape(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	samples, err := e.target.Scrape(ctx)
	if err != nil {
		e.log.Debug("scrape", "err", err)
	}
	now := e.now().Seconds()
	for _, s := range append(samples, ownGauges()) {
		s.T = now
		e.record(e.cfg.History.Counters(s))
	}
}

// ownGauges are the generator's own gauges, by the names that roles have.
func ownGauges() history.CounterSample {
	live := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(live)
	return history.CounterSample{Role: history.RoleGenerator, Values: map[string]float64{
		history.GaugeGoroutines: float64(runtime.NumGoroutine()),
		history.GaugeLiveHeap:   float64(live[0].Value.Uint64()),
	}}
}

// record notes the first failure to write the history; the run goes on, and
// its verdict says that evidence is missing.
func (e *Engine) record(err error) {
	if err != nil && !e.historyFailed.Swap(true) {
		e.log.Error("the run's record cannot be written", "err", err)
	}
}

// swap writes the last interval's histograms and returns figures for the
// progress line.
func (e *Engine) swap(to time.Duration) (p50, p99, late time.Duration) {
	e.swapStages(to)
	micros := func(v int64) time.Duration { return time.Duration(v) * time.Microsecond }
	for _, iv := range e.rec.Swap(to.Seconds()) {
		e.record(e.cfg.History.Interval(iv))
		runtime.Gosched() // all of them at once would make a dozen milliseconds in which nothing starts
		switch iv.Kind {
		case history.KindDeliverDirect:
			p50, p99 = micros(iv.Hist.ValueAtQuantile(50)), micros(iv.Hist.ValueAtQuantile(99))
		case history.KindLate:
			late = micros(iv.Hist.ValueAtQuantile(99))
		}
	}
	return p50, p99, late
}

// event notes something that happened once.
func (e *Engine) event(kind, detail string) {
	e.record(e.cfg.History.Event(history.Event{T: e.now().Seconds(), Kind: kind, Detail: detail}))
}

// InFlight returns how many sends are written and not answered, and how many
// deliveries to devices that were online are still to come.
func (e *Engine) InFlight() (sends, deliveries int64) {
	return e.stats.inFlight.Load(), e.stats.expected.Load() - e.stats.live.Load()
}
