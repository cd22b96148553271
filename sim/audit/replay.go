package audit

import (
	"fmt"
	"slices"

	"throng/sim/history"
)

// Outcome is what the spools say so far.
type Outcome struct {
	Audit history.Audit
	// Pending are the devices that have not got an acknowledged message that is
	// due to them, sorted: those to be connected in the proof phase.
	Pending []Device
}

// Visitor hears of a replay while it goes on. Both may be nil.
type Visitor struct {
	// Fanout is called for every group message that a device got that was online.
	Fanout func(Fanout)
	// Progress is called before each partition and at the end.
	Progress func(done, of int)
}

// Replay judges everything that was told until the marks of the sources.
// Expected is 0 when no message was acknowledged: then nothing was shown, and a
// caller may not say pass. Push and what the judging cost is left to the caller.
//
// Expected = Proved + Lost + Unproved + the pairs that were delivered, but
// twice, out of order or not as sent. FanoutSends, FanoutRecipients,
// OfflinePairs and AllPairs are of acknowledged sends of gated phases outside
// declared strata. The system messages of groups are pairs like the others, but
// no sends. Foreign counts pairs, and every delivery of a message that nobody
// wrote.
//
// A spool that is missing, cut off or damaged is left out as a whole, and a
// sentence in Problems says so. Then nothing is lost or foreign, but unproved:
// what happened may stand in that spool.
//
// An error means that a spool cannot be read although it is sound.
func Replay(cfg *Config, sources []Source, v Visitor) (*Outcome, error) {
	t := &tally{Audit: history.Audit{Sampled: cfg.Sampled}, devices: map[Device]proof{}, examples: map[string]int{},
		pending: map[Device]struct{}{}, fanout: v.Fanout}
	if t.Sampled == 0 {
		t.Sampled = 1
	}
	for _, p := range cfg.Gated {
		t.gated[p] = true
	}
	reels := t.wind(sources)
	partitions := 0
	if len(reels) > 0 {
		partitions = len(reels[0].lanes) / 2
	}
	for p := range partitions {
		if v.Progress != nil {
			v.Progress(p, partitions)
		}
		l := newLedger(cfg)
		if err := l.read(reels, p, t.devices); err != nil {
			return nil, err
		}
		t.add(l)
	}
	if v.Progress != nil {
		v.Progress(partitions, partitions)
	}
	out := &Outcome{Audit: t.Audit, Pending: make([]Device, 0, len(t.pending))}
	for d := range t.pending {
		out.Pending = append(out.Pending, d)
	}
	slices.SortFunc(out.Pending, compare)
	return out, nil
}

// wind returns the sources that can be judged.
func (t *tally) wind(sources []Source) []*reel {
	var reels []*reel
	for i := range sources {
		src := &sources[i]
		r, err := src.wind()
		if err == nil && len(reels) > 0 && len(r.lanes) != len(reels[0].lanes) {
			err = fmt.Errorf("it has %d partitions, the others have %d", len(r.lanes)/2, len(reels[0].lanes)/2)
		}
		if err != nil {
			t.partial = true
			t.Problems = append(t.Problems, fmt.Sprintf("the audit record of %s is left out: %v", src.Name, err))
			continue
		}
		r.name = src.Name
		reels = append(reels, r)
		t.Redelivered += r.redelivered
	}
	return reels
}

// read reads a partition of all spools: first what senders and groups did, in
// all, then what devices received.
func (l *ledger) read(reels []*reel, partition int, proofs map[Device]proof) error {
	for _, r := range reels {
		var all []*record
		err := r.each(2*partition, func(c *cursor) { all = l.did(c, all, proofs) })
		if err != nil {
			return err
		}
	}
	for _, r := range reels {
		if err := r.each(2*partition+1, l.received); err != nil {
			return err
		}
	}
	return nil
}

// each calls f for each block of a lane.
func (r *reel) each(lane int, f func(*cursor)) error {
	for _, p := range r.lanes[lane] {
		err := r.read(p)
		if err == nil {
			c := cursor{b: r.buf}
			f(&c)
			if c.bad {
				err = errEvent
			}
		}
		if err != nil {
			return fmt.Errorf("the audit record of %s at byte %d: %w", r.name, p.at, err)
		}
	}
	return nil
}
