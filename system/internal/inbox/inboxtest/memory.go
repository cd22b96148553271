// Package inboxtest helps to test mailboxes: a Store in memory that can be
// told to fail, and the conformance suite that every Store passes. It may
// import nothing of this module but inbox.
package inboxtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"throng/system/internal/inbox"
)

// ErrInjected is the failure that Memory was told to have.
var ErrInjected = errors.New("inboxtest: injected failure")

// Memory is an inbox.Store in memory, for one goroutine.
type Memory struct {
	// FailBefore and FailAfter make the next Commit fail without or with effect.
	FailBefore, FailAfter bool

	shards      []int
	incarnation uint64
	devices     map[inbox.Key]*inbox.DeviceState
	rows        map[uint64]inbox.Row
	bodies      map[uint64]*inbox.Body
	marks       map[markKey]storedMark
	hidden      map[uint64]bool
}

type markKey struct {
	inbox.Key
	group, peer uint64
}

type storedMark struct {
	inbox.Mark
	at int64
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{devices: map[inbox.Key]*inbox.DeviceState{}, rows: map[uint64]inbox.Row{},
		bodies: map[uint64]*inbox.Body{}, marks: map[markKey]storedMark{}, hidden: map[uint64]bool{}}
}

// Rows returns the rows of a device in order.
func (m *Memory) Rows(k inbox.Key) []inbox.Row {
	var out []inbox.Row
	for _, seq := range slices.Sorted(maps.Keys(m.rows)) {
		if r := m.rows[seq]; r.Key == k {
			if r.BodyID != 0 {
				r.Body = m.bodies[r.BodyID].Data
			}
			out = append(out, r)
		}
	}
	return out
}

// Bodies returns the number of bodies stored for several rows.
func (m *Memory) Bodies() int { return len(m.bodies) }

// Claim implements inbox.Store.
func (m *Memory) Claim(_ context.Context, shards []int, atLeast uint64) (uint64, int, error) {
	if m.shards != nil && !slices.Equal(m.shards, shards) {
		return 0, 0, inbox.ErrOtherShards
	}
	m.shards = slices.Clone(shards)
	m.incarnation = max(m.incarnation+1, atLeast)
	return m.incarnation, len(m.rows), nil
}

// Load implements inbox.Store.
func (m *Memory) Load(_ context.Context, users []uint64) ([]inbox.DeviceState, error) {
	var out []inbox.DeviceState
	for k, d := range m.devices {
		if !slices.Contains(users, k.User) {
			continue
		}
		st := *d
		for _, r := range m.Rows(k) {
			st.Rows++
			st.Oldest = min(cmp.Or(st.Oldest, r.Seq), r.Seq)
			st.Newest = max(st.Newest, r.Seq)
		}
		for mk := range m.marks {
			st.Receipts = st.Receipts || mk.Key == k
		}
		st.HideLastSeen = m.hidden[k.User]
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b inbox.DeviceState) int {
		return cmp.Or(cmp.Compare(a.User, b.User), cmp.Compare(a.Device, b.Device))
	})
	return out, nil
}

// Commit implements inbox.Store.
func (m *Memory) Commit(_ context.Context, b *inbox.Batch) (inbox.Result, error) {
	if m.FailBefore {
		m.FailBefore = false
		return inbox.Result{}, ErrInjected
	}
	if b.Incarnation != m.incarnation {
		return inbox.Result{}, fmt.Errorf("memory: %w", inbox.ErrFenced)
	}
	var res inbox.Result
	m.write(b, &res)
	for _, p := range b.Pages {
		rows, ahead := m.page(p)
		res.Pages, res.Ahead = append(res.Pages, rows), append(res.Ahead, ahead)
	}
	for _, k := range b.TakeReceipts {
		var ms []inbox.Mark
		for mk, mark := range m.marks {
			if mk.Key != k {
				continue
			}
			ms = append(ms, mark.Mark)
			if mark.Delivered, mark.Read = 0, 0; len(mark.Ledger) > 0 {
				m.marks[mk] = mark
			} else {
				delete(m.marks, mk)
			}
		}
		slices.SortFunc(ms, func(a, b inbox.Mark) int {
			return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Peer, b.Peer))
		})
		res.Receipts = append(res.Receipts, ms)
	}
	if m.FailAfter {
		m.FailAfter = false
		return inbox.Result{}, ErrInjected
	}
	return res, nil
}

func (m *Memory) page(p inbox.Page) (page []inbox.Row, ahead []uint64) {
	for i, r := range m.Rows(p.Key) {
		switch {
		case len(p.Seqs) > 0 && slices.Contains(p.Seqs, r.Seq), len(p.Seqs) == 0 && i < p.Limit:
			page = append(page, r)
		case len(p.Seqs) == 0 && i < p.Limit+p.Ahead:
			ahead = append(ahead, r.Seq)
		}
	}
	return page, ahead
}

func (m *Memory) write(b *inbox.Batch, res *inbox.Result) {
	for _, r := range b.Register {
		if d := m.devices[r.Key]; d != nil {
			d.Token = r.Token
		} else {
			m.devices[r.Key] = &inbox.DeviceState{Key: r.Key, Token: r.Token}
		}
	}
	for _, x := range b.Bodies {
		if have := m.bodies[x.ID]; have != nil {
			have.Refs += x.Refs
		} else {
			m.bodies[x.ID] = &x
		}
	}
	for _, r := range b.Rows {
		if slices.ContainsFunc(m.Rows(r.Key), func(have inbox.Row) bool { return have.Message == r.Message }) {
			m.unref(r.BodyID)
			continue
		}
		m.rows[r.Seq] = r
		res.Inserted++
	}
	for _, seqs := range [][]uint64{b.Delete, b.DeletePtr} {
		for _, seq := range seqs {
			m.delete(seq, res)
		}
	}
	for _, u := range b.DeleteUpTo {
		for _, r := range m.Rows(u.Key) {
			if r.Seq <= u.Seq {
				m.delete(r.Seq, res)
			}
		}
	}
	for _, p := range b.Pushed {
		if d := m.devices[p.Key]; d != nil {
			d.Pushed = p.Seq
		}
	}
	for _, p := range b.Privacy {
		m.hidden[p.User] = p.HideLastSeen
	}
	for _, t := range b.DeadTokens {
		if d := m.devices[t.Key]; d != nil && d.Token == t.Token {
			d.Token = ""
		}
	}
	for k, mark := range m.marks {
		if mark.at < b.ExpireMarks {
			delete(m.marks, k)
		}
	}
	for _, mark := range b.Marks {
		k := markKey{mark.Key, mark.Group, mark.Peer}
		old := m.marks[k]
		mark.Delivered, mark.Read = max(mark.Delivered, old.Delivered), max(mark.Read, old.Read)
		if len(mark.Ledger) == 0 {
			mark.Ledger = old.Ledger
		}
		m.marks[k] = storedMark{mark, b.Now}
	}
}

func (m *Memory) delete(seq uint64, res *inbox.Result) {
	r, ok := m.rows[seq]
	if !ok {
		return
	}
	delete(m.rows, seq)
	m.unref(r.BodyID)
	res.Deleted++
}

func (m *Memory) unref(body uint64) {
	if x := m.bodies[body]; x != nil {
		if x.Refs--; x.Refs <= 0 {
			delete(m.bodies, body)
		}
	}
}

// Scan implements inbox.Store.
func (m *Memory) Scan(_ context.Context, after uint64, limit int) ([]inbox.ScanRow, error) {
	var out []inbox.ScanRow
	for _, seq := range slices.Sorted(maps.Keys(m.rows)) {
		if r := m.rows[seq]; seq > after && len(out) < limit {
			out = append(out, inbox.ScanRow{Key: r.Key, Seq: seq, Message: r.Message, BodyID: r.BodyID, At: r.At})
		}
	}
	return out, nil
}
