package fanout

import (
	"context"
	"sync"

	"throng/system/internal/rpc"
)

// lookup is one question to the group service: who are the members of a group
// at an offset.
type lookup struct {
	group  uint64
	offset int64
	seen   uint64 // a lower bound of the version
	set    *memberSet
	err    error
}

// warm asks, a few at a time, for what is not known of the members that each
// change, and the first message of each group, will need. It returns the
// answers by offset, and false if ctx ended.
func (w *worker) warm(ctx context.Context, records []record) (map[int64]*lookup, bool) {
	var found map[int64]*lookup
	var settled map[uint64]uint64 // by group: a lower bound of the version after a record that is looked up
	ask := func(group uint64, offset int64, bound uint64) {
		if found == nil {
			found, settled = map[int64]*lookup{}, map[uint64]uint64{}
		}
		found[offset] = &lookup{group: group, offset: offset, seen: bound}
		settled[group] = bound
	}
	for _, r := range records {
		switch {
		case r.membership != nil:
			g, version := r.membership.Group, r.membership.Version
			st, _ := w.groups.Get(g)
			if version > max(st.version, settled[g], w.applyingVersion(g)) {
				ask(g, r.offset, version)
			}
		case r.message != nil:
			g := r.message.Group
			if settled[g] != 0 {
				continue
			}
			st, _ := w.groups.Get(g)
			bound := max(st.version, w.applyingVersion(g))
			if !st.exact || w.f.members.get(g, bound) == nil {
				ask(g, r.offset, max(bound, 1))
			}
		}
	}
	if len(found) == 0 {
		return nil, true
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, resolveParallel)
	for _, l := range found {
		slots <- struct{}{}
		wg.Go(func() {
			w.ask(ctx, l)
			<-slots
		})
	}
	wg.Wait()
	return found, ctx.Err() == nil
}

func (w *worker) applyingVersion(group uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.applying[group]
}

// ask fills in the answer to l.
func (w *worker) ask(ctx context.Context, l *lookup) {
	w.f.m.lookups.Inc()
	l.err = w.call(ctx, l.group, func(ctx context.Context, c rpc.GroupClient) error {
		res, err := c.Members(ctx, &rpc.MembersRequest{Group: l.group, Offset: l.offset, Version: l.seen})
		if err == nil {
			l.set = newMemberSet(res.Version, res.Members, len(w.f.appenders))
		}
		return err
	})
}

// membersAt returns the members at a message's position; nil if the group does
// not exist. It returns false if ctx ended.
func (w *worker) membersAt(ctx context.Context, r record, found map[int64]*lookup) (*memberSet, bool) {
	g := r.message.Group
	st, _ := w.groups.Get(g)
	if st.exact {
		if set := w.f.members.get(g, st.version); set != nil {
			return w.planted(ctx, r, set)
		}
	}
	set, ok := w.answered(ctx, found[r.offset], &lookup{group: g, offset: r.offset, seen: st.version})
	if set == nil {
		return nil, ok
	}
	return w.planted(ctx, r, set)
}

// answered returns the members that l, or where that is nil ask, found, and
// notes them; nil if the group does not exist. It returns false if ctx ended.
func (w *worker) answered(ctx context.Context, l, ask *lookup) (*memberSet, bool) {
	if l == nil {
		l = ask
		l.seen = max(l.seen, w.applyingVersion(l.group))
		w.ask(ctx, l)
	}
	if l.err != nil {
		if ctx.Err() != nil {
			return nil, false
		}
		w.poison(l.offset, "members: "+l.err.Error())
		return nil, true
	}
	w.groups.Add(l.group, groupState{version: l.set.version, exact: true})
	w.f.members.put(l.group, l.set)
	return l.set, true
}

// planted returns set, or what the planted bug makes of it.
func (w *worker) planted(ctx context.Context, r record, set *memberSet) (*memberSet, bool) {
	if w.f.cfg.Plant != PlantExMember || set.version <= 1 {
		return set, true
	}
	g, version := r.message.Group, set.version-1
	old := w.f.members.get(g, version)
	if old == nil {
		// Before the first record of the log only the version asked for counts.
		l := &lookup{group: g, offset: -1, seen: version}
		if w.ask(ctx, l); l.err != nil {
			return nil, ctx.Err() == nil
		}
		old = l.set
		w.f.members.put(g, old)
	}
	return set.union(old), true
}
