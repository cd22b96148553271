package load

import (
	"context"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"throng/sim/audit"
	"throng/sim/history"
)

// SpoolFile is the name of a spool in a run folder.
const SpoolFile = "audit.spool"

// Spool is where an engine writes what its audit is told: a file. Who leads a
// crew reads it as well.
type Spool interface {
	io.Writer
	io.ReaderAt
}

// SyncAudit completes the engine's spool up to a mark, so that it can be judged.
func (e *Engine) SyncAudit() (audit.Mark, error) { return e.audit.Sync() }

// judging is what the leader's judgements took so far, and where one is.
type judging struct {
	cost  history.AuditCost
	share atomic.Int32 // of the partitions, percent plus 1; 0 while there is none
}

// judge replays what all engines told until now. When it cannot be judged the
// outcome has nothing but the problem: neither proof nor violation.
func (e *Engine) judge(ctx context.Context, fanout func(audit.Fanout)) *audit.Outcome {
	mark, err := e.audit.Sync()
	sources := append(e.crew.Spools(ctx), audit.Source{Name: "the engine that leads", R: e.cfg.Spool, Mark: mark, Err: err})
	cfg := &audit.Config{Gated: gatedPhases(e.sched), Devices: e.cfg.Population.Devices, Sampled: e.spec.ProofSample, ClockError: e.crew.ClockError()}
	cost := &e.judging.cost
	cost.Events, cost.Bytes = 0, 0
	for _, s := range sources {
		cost.Events += s.Mark.Events
		cost.Bytes += s.Mark.Bytes
	}
	start, cpu := e.now(), processCPU()
	defer e.judging.share.Store(0)
	out, err := audit.Replay(cfg, sources, audit.Visitor{Fanout: fanout, Progress: func(done, of int) {
		cost.Partitions = of
		e.judging.share.Store(int32(100*done/max(of, 1)) + 1)
	}})
	cost.Replays++
	cost.WallS += (e.now() - start).Seconds()
	cost.CPUSeconds += (processCPU() - cpu).Seconds()
	if err != nil {
		out = &audit.Outcome{Audit: history.Audit{Problems: []string{err.Error()}}}
	}
	out.Audit.Cost = *cost
	return out
}

// processCPU is the CPU time that this process used, 0 where nobody knows.
func processCPU() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// fanouts are the latencies of the first and the last member, known after the
// load: a few histograms for each phase. The last slice has what came after the
// load.
type fanouts struct {
	slices []history.Interval // without kind and histogram
	hists  map[fanoutKey]*hdrhistogram.Histogram
}

type fanoutKey struct {
	slice, class int
	last         bool
}

// fanoutBlocks is into how many parts the phases that decide are cut, for
// intervals of confidence.
const fanoutBlocks = 10

func newFanouts(phases []history.Phase, end float64) *fanouts {
	f := &fanouts{hists: map[fanoutKey]*hdrhistogram.Histogram{}}
	at := 0.0
	for _, p := range phases {
		n := 1
		if p.Gated {
			n = fanoutBlocks
		}
		for i := range n {
			part := (p.End - p.Start) / float64(n)
			at = p.Start + part*float64(i+1)
			f.slices = append(f.slices, history.Interval{Start: p.Start + part*float64(i), End: at})
		}
	}
	f.slices = append(f.slices, history.Interval{Start: at, End: max(end, at)})
	return f
}

func (f *fanouts) add(x audit.Fanout) {
	f.record(fanoutKey{class: x.SizeClass}, x.Intended, x.First)
	if x.Complete {
		f.record(fanoutKey{class: x.SizeClass, last: true}, x.Intended, x.Last)
	}
}

// record notes a latency when it ended.
func (f *fanouts) record(k fanoutKey, intended, latency time.Duration) {
	at := (intended + latency).Seconds()
	for k.slice < len(f.slices)-1 && at >= f.slices[k.slice].End {
		k.slice++
	}
	h := f.hists[k]
	if h == nil {
		h = history.NewHist()
		f.hists[k] = h
	}
	_ = h.RecordValue(min(max(latency.Microseconds(), 0), history.HistMax)) // which is its range
}

// write writes the histograms to the record of the run.
func (f *fanouts) write(e *Engine) {
	for k, h := range f.hists {
		iv := f.slices[k.slice]
		iv.Kind, iv.Hist = history.KindFanoutFirst+history.SizeClasses[k.class].Name, h
		if k.last {
			iv.Kind = history.KindFanoutLast + history.SizeClasses[k.class].Name
		}
		e.record(e.cfg.History.Interval(iv))
	}
}
