package audit

import (
	"cmp"
	"slices"
)

// judge calls visit for each device that a message is due to, may reach or has
// reached, ordered by user as far as the first two go. The caller holds the lock.
func (a *Audit) judge(s *stripe, r *record, visit func(pair)) {
	g := r.stream.group
	if g == nil || g.still() {
		a.judgePlain(s, r, visit)
		return
	}
	a.judgeChanged(s, r, g, visit)
}

// judgePlain: nobody joined or left, the addressees are right.
func (a *Audit) judgePlain(s *stripe, r *record, visit func(pair)) {
	is := r.answer(expected)
	for i, dev := range r.devs {
		visit(pair{dev: dev, due: is, delivered: r.has(false, i), online: r.has(true, i), flaw: s.flawOf(r, i)})
	}
	if r.extras != nil {
		for _, e := range *r.extras {
			visit(pair{dev: e.dev, due: foreign, delivered: true, flaw: e.flaw})
		}
	}
}

// judgeChanged: users that joined or left are judged by when, the others by the
// addressees. The device that sent it is the one member's device it is not for.
func (a *Audit) judgeChanged(s *stripe, r *record, g *group, visit func(pair)) {
	changed := g.byUser()
	sender := r.stream.key.sender
	due := func(dev Device, otherwise due) due {
		if cs, ok := changed[dev.User]; ok && dev != sender {
			if g.outside[dev.User] {
				otherwise = foreign
			}
			otherwise = member(cs, r, otherwise)
		}
		return r.answer(otherwise)
	}
	var pairs []pair
	for i, dev := range r.devs {
		pairs = append(pairs, pair{
			dev: dev, due: due(dev, expected),
			delivered: r.has(false, i), online: r.has(true, i), flaw: s.flawOf(r, i),
		})
	}
	if r.extras != nil {
		for _, e := range *r.extras {
			pairs = append(pairs, pair{dev: e.dev, due: due(e.dev, foreign), delivered: true, flaw: e.flaw})
		}
	}
	for user := range changed {
		for _, dev := range a.devicesOf(g, user) {
			if dev != sender && search(r.devs, dev) < 0 && r.extraOf(dev) == nil {
				pairs = append(pairs, pair{dev: dev, due: due(dev, foreign)})
			}
		}
	}
	slices.SortFunc(pairs, func(x, y pair) int {
		return cmp.Or(cmp.Compare(x.dev.User, y.dev.User), cmp.Compare(x.dev.Device, y.dev.Device))
	})
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

// still says that nobody joined or left, so that the addressees are right.
func (g *group) still() bool { return len(g.changes) == 0 && len(g.outside) == 0 }

// gone says that a message, not delivered to anybody yet, is certainly not for
// a device, by what is known now.
func (g *group) gone(r *record, dev Device) bool {
	if g == nil || g.still() || r.offMin != noOffset {
		return false
	}
	otherwise := expected
	if g.outside[dev.User] {
		otherwise = foreign
	}
	var cs []change
	for _, c := range g.changes {
		if c.user == dev.User {
			cs = append(cs, c)
		}
	}
	inOrder(cs)
	return member(cs, r, otherwise) == foreign
}

// byUser returns the changes, inOrder, of each user who joined or left or was
// outside at the start.
func (g *group) byUser() map[uint64][]change {
	m := map[uint64][]change{}
	for user := range g.outside {
		m[user] = nil
	}
	for _, c := range g.changes {
		m[c.user] = append(m[c.user], c)
	}
	for _, cs := range m {
		inOrder(cs)
	}
	return m
}

// inOrder sorts changes by offset, those without one last.
func inOrder(cs []change) {
	slices.SortStableFunc(cs, func(x, y change) int {
		if x.known != y.known {
			if x.known {
				return -1
			}
			return 1
		}
		return cmp.Compare(x.offset, y.offset)
	})
}

// devicesOf returns the devices of a user whose membership changed.
func (a *Audit) devicesOf(g *group, user uint64) []Device {
	var devs []Device
	if a.cfg.Devices != nil {
		for i := range a.cfg.Devices(user) {
			devs = append(devs, Device{user, uint32(i)})
		}
		return devs
	}
	for _, st := range g.streams {
		for _, list := range st.sets {
			i, _ := slices.BinarySearchFunc(list, Device{User: user}, func(d, want Device) int {
				return cmp.Or(cmp.Compare(d.User, want.User), cmp.Compare(d.Device, want.Device))
			})
			for ; i < len(list) && list[i].User == user; i++ {
				if !slices.Contains(devs, list[i]) {
					devs = append(devs, list[i])
				}
			}
		}
	}
	return devs
}

// member says what a message of a group is to a user with these changes,
// inOrder; otherwise is what it is to the user without them.
func member(cs []change, r *record, otherwise due) due {
	for _, c := range cs {
		if !c.known && r.versus(c) != before {
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
		return memberByTime(known, r)
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
func memberByTime(cs []change, r *record) due {
	in := !cs[0].add
	for _, c := range cs {
		switch r.versus(c) {
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
func (r *record) versus(c change) when {
	switch {
	case c.done > 0 && r.writtenAt >= c.done:
		return after
	case r.state == acknowledged && r.ackedAt < c.begun:
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
