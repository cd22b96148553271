package audit

import (
	"fmt"
	"time"

	"throng/sim/history"
)

// examplesOfAKind bounds the examples of one kind of violation; with five kinds
// there are at most 20 and a few of each.
const examplesOfAKind = 4

// proof is how the proof phase ended for a device.
type proof uint8

const (
	notDrained proof = iota
	drained
	unprovable
)

// Fanout is how a group message reached the devices that were online for it.
type Fanout struct {
	SizeClass   int
	Phase       uint8
	Stratum     int8
	Intended    time.Duration
	Live        int           // devices that were online for it and got it live, above 0
	First, Last time.Duration // latencies of these
	// Complete: no device that it is due to lacks it. Else Last is not known:
	// nobody can say whether one of those was online.
	Complete bool
}

// tally adds up a report.
type tally struct {
	history.Audit
	gated    [256]bool
	devices  map[Device]proof
	examples map[string]int
	pending  map[Device]struct{}
	fanout   func(Fanout) // may be nil
	// partial: a spool is missing. Then what is not there is no evidence that it
	// was lost, and what nobody seems to have written none that it is foreign.
	partial bool
}

// add judges a partition.
func (t *tally) add(l *ledger) {
	for _, g := range l.groups {
		g.settle(l.cfg.ClockError.Microseconds())
		for _, c := range g.changes {
			if c.known {
				t.Boundaries++
			}
		}
	}
	what := t.foreign(l.unknown)
	for _, x := range l.strange {
		t.example(what, "message %x, which nobody wrote, reached %v", x.id, x.dev)
	}
	l.each(func(r *record) { t.message(l, r) })
	l.eachGroup(func(g *group) { l.judgeSystem(g, func(p systemPair) { t.systemPair(g, p) }) })
	t.System += l.systems
	t.Live += l.classes[Live]
	t.Drain += l.classes[Drain]
	t.Transition += l.classes[Transition]
	t.Proof += l.classes[Proof]
}

// foreign counts what should not have arrived, as far as all that was sent is
// known, and says what that is called.
func (t *tally) foreign(n int64) string {
	if t.partial {
		t.Expected += n
		t.Unproved += n
		return "unproved"
	}
	t.Foreign += n
	return "foreign"
}

// missing counts a pair that is due to a device that has not got it, and says
// what that is called.
func (t *tally) missing(dev Device, certain bool) string {
	t.pending[dev] = struct{}{}
	if certain && t.devices[dev] == drained && !t.partial {
		t.Lost++
		return "lost"
	}
	t.Unproved++
	return "unproved"
}

func (t *tally) message(l *ledger, r *record) {
	t.Sends++
	switch r.state {
	case acknowledged:
		t.Acknowledged++
	case unanswered:
		t.Unanswered++
	}
	inMean := r.state == acknowledged && r.stratum < 0 && t.gated[r.phase]
	if inMean {
		t.FanoutSends++
	}
	var user uint64 // counted last; pairs of one user are next to each other
	complete := true
	l.judge(r, func(p pair) {
		t.pair(r, p)
		complete = complete && (p.delivered || p.due < undecided)
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
	if t.fanout != nil && r.stream.group != nil && r.live > 0 {
		t.fanout(Fanout{
			SizeClass: int(r.sizeClass), Phase: r.phase, Stratum: r.stratum, Intended: r.intended,
			Live: int(r.live), Complete: complete,
			First: time.Duration(r.first) * time.Microsecond, Last: time.Duration(r.last) * time.Microsecond,
		})
	}
}

func (t *tally) pair(r *record, p pair) {
	if p.delivered && p.due == foreign {
		t.messageExample(t.foreign(1), r, p.dev)
		return
	}
	if p.flaw&duplicated != 0 {
		t.Duplicated++
		t.messageExample("duplicated", r, p.dev)
	}
	if p.flaw&reordered != 0 {
		t.Reordered++
		t.messageExample("reordered", r, p.dev)
	}
	if p.flaw&forged != 0 {
		t.Foreign++
		t.messageExample("foreign", r, p.dev)
	}
	if r.state != acknowledged || p.due < undecided || p.due == undecided && p.delivered {
		return
	}
	t.Expected++
	switch {
	case !p.delivered:
		t.messageExample(t.missing(p.dev, p.due == expected), r, p.dev)
	case p.flaw == 0:
		t.Proved++
	}
}

func (t *tally) systemPair(g *group, p systemPair) {
	what := ""
	switch {
	case p.foreign:
		what = t.foreign(1)
	case !p.delivered:
		t.Expected++
		t.SystemExpected++
		what = t.missing(p.dev, true)
	default:
		t.Expected++
		t.SystemExpected++
		if p.flaw == 0 {
			t.Proved++
			t.SystemProved++
		}
		if p.flaw&duplicated != 0 {
			t.Duplicated++
			what = "duplicated"
		}
		if p.flaw&reordered != 0 {
			t.Reordered++
			what = "reordered"
		}
	}
	if what != "" && what != "unproved" {
		t.SystemWrong++
	}
	if what != "" {
		t.example(what, "system message of version %d of group %d, for %v", p.version, g.id, p.dev)
	}
}

func (t *tally) messageExample(what string, r *record, dev Device) {
	k := r.stream.key
	where := "to user"
	if k.group {
		where = "in group"
	}
	at := ""
	if r.offMin != noOffset {
		at = fmt.Sprintf(", at offset %d", r.offMin)
	}
	t.example(what, "message %x, number %d of %v %s %d, for %v%s", r.id, r.seq, k.sender, where, k.conv, dev, at)
}

func (t *tally) example(what, format string, args ...any) {
	if t.examples[what] < examplesOfAKind {
		t.examples[what]++
		t.Examples = append(t.Examples, what+": "+fmt.Sprintf(format, args...))
	}
}
