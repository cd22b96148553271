package audit

import (
	"cmp"
	"math"
	"slices"
)

// group is the membership history of a group, as far as it changed.
type group struct {
	id      uint64
	asked   []asked
	changes []change        // told by a position; after settle also those that only were asked for
	outside map[uint64]bool // users that were not members at the start
	streams []*stream

	// Of groups that Start was called for.
	start    []uint64
	newest   uint64              // version
	versions map[uint64]*version // that some device has heard of; nil without Start
	told     map[Device]int64    // the greatest offset of its system messages
}

// maxVersions bounds the versions of a group that are followed. No run changes a
// group nearly as often; what claims to be of a later one is nobody's.
const maxVersions = 10_000

// asked is a change that somebody was about to ask for.
type asked struct {
	user uint64
	at   int64
}

// change is one membership change of one user. Times are microseconds.
type change struct {
	user       uint64
	add, known bool // known: it has an offset
	offset     int64
	begun      int64 // when it was about to be asked for, before everything when nobody told
	done       int64 // when its offset was known, after everything when it is not
}

// changes reads an event of a group.
func (l *ledger) changes(k kind, c *cursor) {
	g := l.groupOf(c.uint())
	switch k {
	case start:
		members := c.list()
		if g.versions == nil {
			g.start, g.versions, g.told = members, map[uint64]*version{}, map[Device]int64{}
		}
	case reached:
		g.newest = max(g.newest, min(c.uint(), maxVersions))
	case outside:
		if g.outside == nil {
			g.outside = map[uint64]bool{}
		}
		g.outside[c.uint()] = true
	case changing:
		g.asked = append(g.asked, asked{c.uint(), c.micros()})
	case unchanged:
		x := asked{c.uint(), c.micros()}
		if i := slices.Index(g.asked, x); i >= 0 {
			g.asked = slices.Delete(g.asked, i, i+1)
		}
	case added, removed:
		user, offset := c.uint(), c.int()
		g.changed(user, k == added, offset, c.micros())
	default:
		c.bad = true
	}
}

// changed notes a change at its offset, and when that was known first.
func (g *group) changed(user uint64, add bool, offset, at int64) {
	i := slices.IndexFunc(g.changes, func(c change) bool { return c.user == user && c.add == add && c.offset == offset })
	if i >= 0 {
		g.changes[i].done = min(g.changes[i].done, at)
		return
	}
	g.changes = append(g.changes, change{user: user, add: add, known: true, offset: offset, begun: math.MinInt64, done: at})
}

// settle finds out, when everything of a group has been read, which changes are
// those that were asked for: of each user the first one that was not known
// before. What nobody knows a position of stays open.
func (g *group) settle(clockError int64) {
	for _, v := range g.versions {
		for _, u := range v.add {
			g.changed(u, true, v.offset, v.at)
		}
		for _, u := range v.remove {
			g.changed(u, false, v.offset, v.at)
		}
	}
	slices.SortFunc(g.asked, func(x, y asked) int { return cmp.Compare(x.at, y.at) })
	slices.SortStableFunc(g.changes, func(x, y change) int {
		return cmp.Or(cmp.Compare(x.user, y.user), cmp.Compare(x.offset, y.offset))
	})
	for _, a := range g.asked {
		i := slices.IndexFunc(g.changes, func(c change) bool {
			return c.user == a.user && c.known && c.begun == math.MinInt64 && a.at <= c.done+clockError
		})
		if i >= 0 {
			g.changes[i].begun = a.at
			continue
		}
		g.changes = append(g.changes, change{user: a.user, begun: a.at, done: math.MaxInt64})
	}
}

// still says that nobody joined or left, so that the addressees are right.
func (g *group) still() bool { return len(g.changes) == 0 && len(g.outside) == 0 }

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
func (l *ledger) devicesOf(g *group, user uint64) []Device {
	var devs []Device
	if l.cfg.Devices != nil {
		for i := range l.cfg.Devices(user) {
			devs = append(devs, Device{user, uint32(i)})
		}
		return devs
	}
	for _, st := range g.streams {
		for _, list := range st.sets {
			i, _ := slices.BinarySearchFunc(list, Device{User: user}, compare)
			for ; i < len(list) && list[i].User == user; i++ {
				if !slices.Contains(devs, list[i]) {
					devs = append(devs, list[i])
				}
			}
		}
	}
	return devs
}
