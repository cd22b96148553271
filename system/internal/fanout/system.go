package fanout

import (
	"context"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// systemMessage is what the members are told of a change, in order with the
// group's messages; nil if the record is of before there was such a message.
func systemMessage(offset int64, m *rpc.Membership) *rpc.Envelope {
	if m.Change == nil {
		return nil
	}
	id := wire.SystemIDOf(m.Group, m.Version)
	return &rpc.Envelope{MessageId: id[:], Group: m.Group, Seq: m.Version, Kind: wire.Kind_KIND_SYSTEM,
		AcceptedMs: m.AtMs, Offset: offset, Change: m.Change}
}

// told returns who is told of a change: the members after it and those it
// removes, which are together the members of both versions. So an added member
// gets the change first of all, and a removed one last. It is nil for a change
// that is said again, or of a group that does not exist. It returns false if
// ctx ended.
func (w *worker) told(ctx context.Context, r record, found map[int64]*lookup) (*memberSet, bool) {
	m := r.membership
	set, ok := w.answered(ctx, found[r.offset], &lookup{group: m.Group, offset: r.offset, seen: m.Version})
	if set == nil || set.version > m.Version {
		return nil, ok
	}
	if len(m.Remove) == 0 {
		return set, true
	}
	return set.union(newMemberSet(m.Version, m.Remove, len(w.f.appenders))), true
}
