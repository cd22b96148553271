package audit

import (
	"cmp"
	"fmt"
	"slices"

	"throng/system/wire"
)

// version is what is known of one version of a group: what its system message
// says, and who has it.
type version struct {
	change *wire.GroupChange
	got    map[Device]flaw
}

// Start tells the members of a group in its first version. Call it before the
// first message of a group that will change; without it any system message of
// the group is foreign.
func (a *Audit) Start(groupID uint64, members []uint64) {
	g, unlock := a.lockGroup(groupID)
	defer unlock()
	g.start = slices.Clone(members)
	g.versions = map[uint64]*version{}
	g.told = map[Device]int64{}
}

// Reached tells that a group has come to a version: of each up to it there is a
// system message, due to the members of that version and of the one before.
func (a *Audit) Reached(groupID, version uint64) {
	g, unlock := a.lockGroup(groupID)
	defer unlock()
	g.newest = max(g.newest, version)
}

// System is Delivered for a system message. What it says also tells the audit
// of the change, see Added and Removed.
func (a *Audit) System(dev Device, d *wire.Deliver) {
	a.system.Add(1)
	c := d.GetChange()
	id, ok := idOf(d.MessageId)
	g, unlock := a.lockGroup(d.Group)
	defer unlock()
	if !ok || g.versions == nil || d.Seq < 2 || c.GetVersion() != d.Seq || d.From != 0 || id != wire.SystemIDOf(d.Group, d.Seq) {
		a.nobodys(dev, d)
		return
	}
	v := g.versions[d.Seq]
	if v == nil {
		v = &version{change: c, got: map[Device]flaw{}}
		g.versions[d.Seq] = v
		g.newest = max(g.newest, d.Seq)
		for _, u := range c.Add {
			g.changed(u, true, d.Offset)
		}
		for _, u := range c.Remove {
			g.changed(u, false, d.Offset)
		}
	}
	f, again := v.got[dev]
	if again {
		f |= duplicated
	} else if g.beyond(dev, d.Offset) {
		f |= reordered
	}
	v.got[dev] = f
	g.told[dev] = max(g.told[dev], d.Offset)
}

// beyond says whether a device has something of the group from after offset.
func (g *group) beyond(dev Device, offset int64) bool {
	if g.told[dev] > offset {
		return true
	}
	for _, st := range g.streams {
		if i := search(st.base, dev); i >= 0 && st.offsets[i] > offset {
			return true
		}
	}
	return false
}

// systemPair is a system message and a device, judged.
type systemPair struct {
	dev       Device
	version   uint64
	delivered bool
	foreign   bool
	flaw      flaw
}

// judgeSystem calls visit for each device that a system message of the group is
// due to or has reached. A version that nobody has heard of is due to the
// members of the one before.
func (a *Audit) judgeSystem(g *group, visit func(systemPair)) {
	if g.versions == nil {
		return
	}
	members := map[uint64]bool{}
	for _, u := range g.start {
		members[u] = true
	}
	for n := uint64(2); n <= g.newest; n++ {
		v := g.versions[n]
		if v == nil {
			v = &version{}
		}
		due := map[Device]bool{}
		add := func(user uint64) {
			for _, dev := range a.devicesOf(g, user) {
				due[dev] = true
			}
		}
		for u := range members {
			add(u)
		}
		for _, u := range v.change.GetAdd() {
			add(u)
			members[u] = true
		}
		for _, u := range v.change.GetRemove() {
			add(u) // who was no member is told all the same
			delete(members, u)
		}
		var pairs []systemPair
		for dev := range due {
			f, got := v.got[dev]
			pairs = append(pairs, systemPair{dev: dev, version: n, delivered: got, flaw: f})
		}
		for dev, f := range v.got {
			if !due[dev] {
				pairs = append(pairs, systemPair{dev: dev, version: n, delivered: true, foreign: true, flaw: f})
			}
		}
		slices.SortFunc(pairs, func(x, y systemPair) int {
			return cmp.Or(cmp.Compare(x.dev.User, y.dev.User), cmp.Compare(x.dev.Device, y.dev.Device))
		})
		for _, p := range pairs {
			visit(p)
		}
	}
}

// eachGroup visits every group, in order, under the lock of its stripe.
func (a *Audit) eachGroup(f func(*group)) {
	for i := range a.convs {
		s := &a.convs[i]
		s.mu.Lock()
		ids := make([]uint64, 0, len(s.groups))
		for id := range s.groups {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		for _, id := range ids {
			f(s.groups[id])
		}
		s.mu.Unlock()
	}
}

func (t *tally) systemPair(g *group, p systemPair) {
	what := ""
	switch {
	case p.foreign:
		t.Foreign++
		what = "foreign"
	case !p.delivered:
		t.Expected++
		t.SystemExpected++
		what = "unproved"
		if t.devices[p.dev] == drained {
			t.Lost++
			what = "lost"
		} else {
			t.Unproved++
		}
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
	if what != "" && t.examples[what] < examplesOfAKind {
		t.examples[what]++
		t.Examples = append(t.Examples, fmt.Sprintf("%s: system message of version %d of group %d, for %v", what, p.version, g.id, p.dev))
	}
}
