package audit

import (
	"slices"
)

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

// judge calls visit for each device that a message is due to, may reach or has
// reached, ordered by user as far as the first two go.
func (l *ledger) judge(r *record, visit func(pair)) {
	g := r.stream.group
	if g == nil || g.still() {
		l.judgePlain(r, visit)
		return
	}
	l.judgeChanged(r, g, visit)
}

// judgePlain: nobody joined or left, the addressees are right.
func (l *ledger) judgePlain(r *record, visit func(pair)) {
	is := r.answer(expected)
	for i, dev := range r.devs {
		visit(pair{dev: dev, due: is, delivered: r.has(false, i), online: r.has(true, i), flaw: l.flawOf(r, i)})
	}
	if r.extras != nil {
		for _, e := range *r.extras {
			visit(pair{dev: e.dev, due: foreign, delivered: true, flaw: e.flaw})
		}
	}
}

// judgeChanged: users that joined or left are judged by when, the others by the
// addressees. The device that sent it is the one member's device it is not for.
func (l *ledger) judgeChanged(r *record, g *group, visit func(pair)) {
	changed := g.byUser()
	sender := r.stream.key.sender
	due := func(dev Device, otherwise due) due {
		if cs, ok := changed[dev.User]; ok && dev != sender {
			if g.outside[dev.User] {
				otherwise = foreign
			}
			otherwise = l.member(cs, r, otherwise)
		}
		return r.answer(otherwise)
	}
	var pairs []pair
	for i, dev := range r.devs {
		pairs = append(pairs, pair{
			dev: dev, due: due(dev, expected),
			delivered: r.has(false, i), online: r.has(true, i), flaw: l.flawOf(r, i),
		})
	}
	if r.extras != nil {
		for _, e := range *r.extras {
			pairs = append(pairs, pair{dev: e.dev, due: due(e.dev, foreign), delivered: true, flaw: e.flaw})
		}
	}
	for user := range changed {
		for _, dev := range l.devicesOf(g, user) {
			if dev != sender && search(r.devs, dev) < 0 && r.extraOf(dev) == nil {
				pairs = append(pairs, pair{dev: dev, due: due(dev, foreign)})
			}
		}
	}
	slices.SortFunc(pairs, func(x, y pair) int { return compare(x.dev, y.dev) })
	for _, p := range pairs {
		visit(p)
	}
}

// answer corrects what is due by what the sender was answered: a refused
// message is for nobody. (Of one that was not answered nothing is expected; the
// caller sees to that.)
func (r *record) answer(is due) due {
	if r.state == refused {
		return foreign
	}
	return is
}

// member says what a message of a group is to a user with these changes,
// inOrder; otherwise is what it is to the user without them.
func (l *ledger) member(cs []change, r *record, otherwise due) due {
	for _, c := range cs {
		if !c.known && l.versus(r, c) != before {
			return undecided
		}
	}
	known := cs
	for len(known) > 0 && !known[len(known)-1].known {
		known = known[:len(known)-1]
	}
	if len(known) == 0 {
		return otherwise // it was acknowledged before any change was asked for
	}
	if r.offMin == noOffset {
		return l.memberByTime(known, r)
	}
	first, second := memberAt(known, r.offMin), memberAt(known, r.offMax)
	if first == foreign && second == expected {
		return allowed // it is in the log twice, and the user joined in between
	}
	return first
}

// memberAt says what a message at a known offset is.
func memberAt(cs []change, offset int64) due {
	in := !cs[0].add
	for _, c := range cs {
		if c.offset == offset {
			return undecided // two records cannot share a position
		}
		if c.offset < offset {
			in = c.add
		}
	}
	if in {
		return expected
	}
	return foreign
}

// memberByTime says the same of a message whose offset nobody told, by what
// happened before what: a change that was answered before the message was
// written is before it in the log, one that was asked for after the message
// was acknowledged is after it.
func (l *ledger) memberByTime(cs []change, r *record) due {
	in := !cs[0].add
	for _, c := range cs {
		switch l.versus(r, c) {
		case after:
			in = c.add
		case concurrent:
			return undecided
		}
	}
	if in {
		return expected
	}
	return foreign
}

// versus says when a message was sent relative to a change.
func (l *ledger) versus(r *record, c change) when {
	wrong := l.cfg.ClockError.Microseconds()
	switch {
	case c.known && r.writtenAt > c.done+wrong:
		return after
	case r.state == acknowledged && r.ackedAt+wrong < c.begun:
		return before
	}
	return concurrent
}

type when uint8

const (
	before when = iota
	concurrent
	after
)
