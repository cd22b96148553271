package audit

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"throng/sim/history"
)

// examplesOfAKind bounds the examples of one kind of violation; with five kinds
// there are at most 20 and a few of each.
const examplesOfAKind = 4

// due is what a message is to a device.
type due uint8

const (
	foreign   due = iota
	allowed       // may arrive, need not
	undecided     // may arrive; whether it must is not known
	expected
)

// pair is a message and a device, judged.
type pair struct {
	dev       Device
	due       due
	delivered bool
	online    bool
	flaw      flaw
}

// Fanout is how a group message reached the devices that were online for it.
type Fanout struct {
	SizeClass   int
	Phase       uint8
	Stratum     int8
	Intended    time.Duration
	Marked      int           // devices marked online
	Live        int           // of these, devices that got it live; the others went offline
	First, Last time.Duration // latencies of the live ones, when Live > 0
}

// Fanouts calls f for every group message that had a device online, for exact
// figures at the end: Delivery.Last is not seen for a message when a device
// that was online never got it.
func (a *Audit) Fanouts(f func(Fanout)) {
	a.each(func(_ *stripe, r *record) {
		if r.stream.group != nil && r.marked > 0 {
			f(Fanout{
				SizeClass: int(r.sizeClass), Phase: r.phase, Stratum: r.stratum, Intended: r.intended,
				Marked: int(r.marked), Live: int(r.live),
				First: time.Duration(r.first) * time.Microsecond, Last: time.Duration(r.last) * time.Microsecond,
			})
		}
	})
}

// Pending returns the devices that have not got an acknowledged message that is
// due to them, sorted: those to be connected in the proof phase.
func (a *Audit) Pending() []Device {
	set := map[Device]struct{}{}
	a.each(func(s *stripe, r *record) {
		if r.state == acknowledged {
			a.judge(s, r, func(p pair) {
				if !p.delivered && p.due >= undecided {
					set[p.dev] = struct{}{}
				}
			})
		}
	})
	a.eachGroup(func(g *group) {
		a.judgeSystem(g, func(p systemPair) {
			if !p.delivered {
				set[p.dev] = struct{}{}
			}
		})
	})
	devs := make([]Device, 0, len(set))
	for d := range set {
		devs = append(devs, d)
	}
	sort.Slice(devs, func(i, j int) bool { return devs[i].less(devs[j]) })
	return devs
}

// Report judges everything told so far. Expected is 0 when no message was
// acknowledged: then nothing was shown, and a caller may not say pass. Push is
// left to the caller.
//
// Expected = Proved + Lost + Unproved + the pairs that were delivered, but
// twice, out of order or with a false header. FanoutSends, FanoutRecipients,
// OfflinePairs and AllPairs are of acknowledged sends of gated phases outside
// declared strata. The system messages of groups are pairs like the others, but
// no sends. Foreign counts pairs, and every delivery of a message that
// nobody wrote.
func (a *Audit) Report() history.Audit {
	t := &tally{Audit: history.Audit{Sampled: a.cfg.Sampled}, examples: map[string]int{}}
	if t.Sampled == 0 {
		t.Sampled = 1
	}
	a.mu.Lock()
	t.Foreign = a.unknown
	t.Examples = slices.Clone(a.strange)
	t.examples["foreign"] = len(a.strange)
	t.devices = make(map[Device]proof, len(a.devices))
	for d, p := range a.devices {
		t.devices[d] = p
	}
	a.mu.Unlock()
	a.each(func(s *stripe, r *record) { t.message(a, s, r) })
	a.eachGroup(func(g *group) {
		for _, c := range g.changes {
			if c.known {
				t.Boundaries++
			}
		}
		a.judgeSystem(g, func(p systemPair) { t.systemPair(g, p) })
	})
	t.System = a.system.Load()
	t.Redelivered = a.redelivered.Load()
	t.Live, t.Drain = a.classes[Live].Load(), a.classes[Drain].Load()
	t.Transition, t.Proof = a.classes[Transition].Load(), a.classes[Proof].Load()
	return t.Audit
}

// each visits every message, under the lock of its stripe.
func (a *Audit) each(f func(*stripe, *record)) {
	for i := range a.convs {
		s := &a.convs[i]
		s.mu.Lock()
		for _, slab := range s.slabs {
			for j := range slab {
				f(s, &slab[j])
			}
		}
		s.mu.Unlock()
	}
}

// tally adds up a report.
type tally struct {
	history.Audit
	devices  map[Device]proof
	examples map[string]int
}

func (t *tally) message(a *Audit, s *stripe, r *record) {
	t.Sends++
	switch r.state {
	case acknowledged:
		t.Acknowledged++
	case unanswered:
		t.Unanswered++
	}
	inMean := r.state == acknowledged && r.stratum < 0 && a.gated[r.phase]
	if inMean {
		t.FanoutSends++
	}
	var user uint64 // counted last; pairs of one user are next to each other
	a.judge(s, r, func(p pair) {
		t.pair(r, p)
		if !inMean || p.due != expected {
			return
		}
		t.AllPairs++
		if !p.online {
			t.OfflinePairs++
		}
		if p.dev.User != user && p.dev.User != r.stream.key.sender.User {
			t.FanoutRecipients++
		}
		user = p.dev.User
	})
}

func (t *tally) pair(r *record, p pair) {
	if p.delivered && p.due == foreign {
		t.Foreign++
		t.example("foreign", r, p.dev)
		return
	}
	if p.flaw&duplicated != 0 {
		t.Duplicated++
		t.example("duplicated", r, p.dev)
	}
	if p.flaw&reordered != 0 {
		t.Reordered++
		t.example("reordered", r, p.dev)
	}
	if p.flaw&forged != 0 {
		t.Foreign++
		t.example("foreign", r, p.dev)
	}
	if r.state != acknowledged || p.due < undecided || p.due == undecided && p.delivered {
		return
	}
	t.Expected++
	switch {
	case p.delivered && p.flaw == 0:
		t.Proved++
	case p.delivered:
	case p.due == expected && t.devices[p.dev] == drained:
		t.Lost++
		t.example("lost", r, p.dev)
	default:
		t.Unproved++
		t.example("unproved", r, p.dev)
	}
}

func (t *tally) example(what string, r *record, dev Device) {
	if t.examples[what] >= examplesOfAKind {
		return
	}
	t.examples[what]++
	k := r.stream.key
	where := "to user"
	if k.group {
		where = "in group"
	}
	s := fmt.Sprintf("%s: message %x, number %d of %v %s %d, for %v", what, r.id, r.seq, k.sender, where, k.conv, dev)
	if r.offMin != noOffset {
		s += fmt.Sprintf(", at offset %d", r.offMin)
	}
	t.Examples = append(t.Examples, s)
}

// String writes a device as user/device.
func (d Device) String() string { return fmt.Sprintf("%d/%d", d.User, d.Device) }
