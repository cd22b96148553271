package audit

import (
	"maps"
	"slices"

	"throng/system/wire"
)

// version is what is known of one version of a group: what its system message
// says, and who has it.
type version struct {
	add, remove []uint64
	offset, at  int64 // of its first copy, and when a device had one
	got         map[Device]flaw
}

// system notes that a device has a system message.
func (l *ledger) system(n *notice) {
	l.systems++
	g := l.groups[n.group]
	if !n.proper || n.version > maxVersions || g == nil || g.versions == nil {
		l.nobodys(wire.SystemIDOf(n.group, n.version), n.dev)
		return
	}
	v := g.versions[n.version]
	if v == nil {
		v = &version{add: n.add, remove: n.remove, offset: n.offset, at: n.at, got: map[Device]flaw{}}
		g.versions[n.version] = v
		g.newest = max(g.newest, n.version)
	}
	v.offset, v.at = min(v.offset, n.offset), min(v.at, n.at) // in force from its first copy on
	f, again := v.got[n.dev]
	if again {
		f |= duplicated
	} else if g.beyond(n.dev, n.offset) {
		f |= reordered
	}
	v.got[n.dev] = f
	g.told[n.dev] = max(g.told[n.dev], n.offset)
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
func (l *ledger) judgeSystem(g *group, visit func(systemPair)) {
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
			for _, dev := range l.devicesOf(g, user) {
				due[dev] = true
			}
		}
		for u := range members {
			add(u)
		}
		for _, u := range v.add {
			add(u)
			members[u] = true
		}
		for _, u := range v.remove {
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
		slices.SortFunc(pairs, func(x, y systemPair) int { return compare(x.dev, y.dev) })
		for _, p := range pairs {
			visit(p)
		}
	}
}

// eachGroup visits every group, in order.
func (l *ledger) eachGroup(f func(*group)) {
	for _, id := range slices.Sorted(maps.Keys(l.groups)) {
		f(l.groups[id])
	}
}
