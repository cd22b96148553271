package inboxsql

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"throng/system/internal/inbox"
	"throng/system/internal/obs"
	"throng/system/internal/sqlstore"
)

const (
	// DefaultKeepFor and DefaultKeepBytes are how long and how much a loop keeps of
	// the rows that came last: with whoever comes back within that time they never
	// touch a table.
	DefaultKeepFor   = 5 * time.Minute
	DefaultKeepBytes = 128 << 20
	// moveLeast and moveMost bound the rows that one transaction moves.
	moveLeast = 256
	moveMost  = 1024
	// segmentRows bounds a segment, which is sorted at once.
	segmentRows = 32_000
)

// logged is an inbox.Store of a log in front of the tables. A row is appended to a
// file and kept in memory; one that is acknowledged in time is gone with its segment
// of the log. What is older moves into the tables, a segment at a time, in the
// order of the devices and a slice with each transaction that brings new rows. The
// rest of what is stored (devices, receipts, owners) is in the tables alone.
//
// The device of a repeated append is not looked for in the tables: it gets the
// message twice, which it drops, and the move leaves the row out.
type logged struct {
	tables  *store
	log     *rowLog
	mem     recent
	keepFor int64 // seconds
	keep    int   // bytes
	metric  *obs.Queue
	shown   int // bytes, as last published

	// moving is the oldest segment while it is being moved: its rows in the order
	// of devices, those not copied yet. credit is how many more may be.
	moving  []*recentRow
	started bool
	credit  int
}

func newLogged(tables *store, path string, cfg Config) (*logged, error) {
	var metric *obs.Queue
	if cfg.Metrics != nil {
		var err error
		if metric, err = obs.NewQueue(cfg.Metrics, "inbox_recent_bytes", cfg.Loops*cfg.KeepBytes); err != nil {
			return nil, err
		}
	}
	log, err := openRowLog(path)
	if err != nil {
		return nil, err
	}
	l := &logged{tables: tables, log: log, keepFor: int64(cfg.KeepFor / time.Second), keep: cfg.KeepBytes, metric: metric}
	tables.claimed = l.recover
	return l, nil
}

// Claim implements inbox.Store.
func (l *logged) Claim(ctx context.Context, shards []int, atLeast uint64) (uint64, int, error) {
	incarnation, rows, err := l.tables.Claim(ctx, shards, atLeast)
	return incarnation, rows + l.mem.rows, err
}

// recover reads the log and begins a new one, while the lock of the database
// keeps out whoever else claims it. Earlier owners can append to the old files
// after that, which nobody reads, but no longer answer.
func (l *logged) recover(ctx context.Context, tx *sqlstore.Tx, incarnation uint64) error {
	if err := l.log.claim(incarnation); err != nil {
		return err
	}
	upTo, err := number(ctx, tx, "SELECT upto FROM inbox_moved")
	if err != nil {
		return err
	}
	l.tables.upTo = upTo
	if err := l.tables.uncopy(ctx, tx, upTo); err != nil {
		return err
	}
	old, err := l.log.files()
	if err != nil {
		return err
	}
	l.mem, l.moving, l.started, l.credit = newRecent(), nil, false, 0
	if err := l.rotate(incarnation); err != nil {
		return err
	}
	live, err := l.replay(old, uint64(upTo))
	if err != nil {
		return err
	}
	for part := range slices.Chunk(live, segmentRows/8) {
		for i := range part {
			l.mem.add(part[i])
		}
		if err := l.log.append(part, nil); err != nil {
			return err
		}
		if len(l.mem.newest().rows) >= segmentRows {
			if err := l.rotate(incarnation); err != nil {
				return err
			}
		}
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	l.publish()
	return nil
}

// replay returns the rows of files that are neither deleted nor moved.
func (l *logged) replay(files []string, upTo uint64) (live []inbox.Row, err error) {
	all := newRecent()
	all.segments = []*segment{{}}
	for _, name := range files {
		err := replay(name, func(rows []inbox.Row, dead []uint64) {
			for i := range rows {
				if rows[i].Seq > upTo && all.find(rows[i].Seq) == nil {
					all.add(rows[i])
				}
			}
			for _, seq := range dead {
				if x := all.find(seq); x != nil && !x.dead {
					all.drop(x)
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	for _, x := range all.segments[0].rows {
		if !x.dead {
			live = append(live, x.Row)
		}
	}
	return live, nil
}

func (l *logged) rotate(incarnation uint64) error {
	name, err := l.log.start(incarnation)
	if err != nil {
		return err
	}
	l.mem.segments = append(l.mem.segments, &segment{name: name})
	return nil
}

// Load implements inbox.Store.
func (l *logged) Load(ctx context.Context, users []uint64) ([]inbox.DeviceState, error) {
	states, err := l.tables.Load(ctx, users)
	for i := range states {
		d := &states[i]
		if rows := l.mem.devices[d.Key]; len(rows) > 0 {
			if d.Rows == 0 {
				d.Oldest = rows[0].Seq
			}
			d.Rows += len(rows)
			d.Newest = rows[len(rows)-1].Seq
		}
	}
	return states, err
}

// Scan implements inbox.Store.
func (l *logged) Scan(ctx context.Context, after uint64, limit int) (out []inbox.ScanRow, err error) {
	if after < uint64(l.tables.upTo) {
		if out, err = l.tables.Scan(ctx, after, limit); err != nil {
			return nil, err
		}
	}
	for _, s := range l.mem.segments {
		first, _ := search(s.rows, after+1)
		for _, x := range s.rows[first:] {
			if len(out) >= limit {
				return out, nil
			}
			if !x.dead {
				out = append(out, inbox.ScanRow{Key: x.Key, Seq: x.Seq, Message: x.Message, BodyID: x.BodyID, At: x.At})
			}
		}
	}
	return out, nil
}

// Commit implements inbox.Store.
func (l *logged) Commit(ctx context.Context, b *inbox.Batch) (inbox.Result, error) {
	res, err := l.write(ctx, b)
	if err == nil && !b.ReadOnly() {
		err = l.move(ctx, b)
		l.publish()
	}
	for i := 0; err == nil && i < len(b.Pages); i++ {
		err = l.page(ctx, &b.Pages[i], &res)
	}
	if err != nil {
		return inbox.Result{}, fmt.Errorf("inboxsql: %w", err)
	}
	return res, nil
}

// write does all of a batch but its pages. What is in memory already when it
// fails goes with the claim that has to follow.
func (l *logged) write(ctx context.Context, b *inbox.Batch) (inbox.Result, error) {
	if b.ReadOnly() {
		return inbox.Result{}, nil
	}
	rest := *b
	rest.Pages = nil
	rows, err := l.insert(b)
	if err != nil {
		return inbox.Result{}, err
	}
	rest.Bodies, rest.Rows = nil, nil
	d := deletion{mem: &l.mem}
	rest.Delete = d.rows(b.Delete)
	rest.DeletePtr = d.rows(b.DeletePtr)
	for _, u := range b.DeleteUpTo { // the tables have their part of it too
		d.upTo(u)
	}
	if len(rows)+len(d.seqs) > 0 {
		if err := l.log.append(rows, d.seqs); err != nil {
			return inbox.Result{}, err
		}
	}
	res := inbox.Result{}
	if rest.Empty() {
		err = l.log.check(b.Incarnation)
	} else {
		res, err = l.tables.Commit(ctx, &rest)
	}
	res.Inserted += len(rows)
	res.Deleted += d.n
	return res, err
}

// insert takes the rows of a batch into memory and returns those that were new.
func (l *logged) insert(b *inbox.Batch) ([]inbox.Row, error) {
	bodies := make(map[uint64][]byte, len(b.Bodies))
	for i := range b.Bodies {
		bodies[b.Bodies[i].ID] = slices.Clone(b.Bodies[i].Data)
	}
	rows := make([]inbox.Row, 0, len(b.Rows))
	for _, r := range b.Rows {
		if r.Seq <= uint64(l.tables.upTo) {
			return nil, fmt.Errorf("row %d comes after row %d", r.Seq, l.tables.upTo)
		}
		if r.BodyID != 0 {
			r.Body = bodies[r.BodyID]
		} else {
			r.Body = slices.Clone(r.Body) // it may be a part of a batch of messages
		}
		if l.mem.add(r) {
			rows = append(rows, r)
		}
	}
	l.credit += 2 * len(rows)
	return rows, nil
}

// move moves rows that have been here for long enough, or are too many: where
// there is room twice as many as have come, so that it gets done.
func (l *logged) move(ctx context.Context, b *inbox.Batch) error {
	for {
		now := l.mem.newest()
		if len(now.rows) >= segmentRows || now.bytes >= l.keep/8+1 || len(now.rows) > 0 && b.Now-now.rows[0].At >= l.keepFor/4+1 {
			if err := l.rotate(b.Incarnation); err != nil {
				return err
			}
		}
		first := l.mem.segments[0]
		full := l.mem.bytes > l.keep
		switch {
		case len(l.mem.segments) == 1:
			return nil
		case first.live == 0 && !l.started:
			if err := l.forget(); err != nil {
				return err
			}
			continue
		case full:
		case l.mem.bytes <= l.keep*3/4 && b.Now-first.rows[0].At < l.keepFor:
			l.credit = 0
			return nil
		case l.credit < moveLeast:
			return nil
		}
		if err := l.slice(ctx, b.Incarnation); err != nil {
			return err
		}
	}
}

// slice copies rows of the oldest segment into the tables. With the last ones
// all of them are seen there and no longer here.
func (l *logged) slice(ctx context.Context, incarnation uint64) error {
	seg := l.mem.segments[0]
	if !l.started {
		l.moving = slices.DeleteFunc(slices.Clone(seg.rows), func(x *recentRow) bool { return x.dead })
		slices.SortFunc(l.moving, func(x, y *recentRow) int {
			return cmp.Or(cmp.Compare(x.User, y.User), cmp.Compare(x.Device, y.Device), cmp.Compare(x.Seq, y.Seq))
		})
		l.started = true
	}
	n := min(len(l.moving), moveMost)
	b := inbox.Batch{Incarnation: incarnation}
	at := make(map[uint64]int)
	for _, x := range l.moving[:n] {
		if x.dead {
			continue
		}
		x.copied = true
		b.Rows = append(b.Rows, x.Row)
		if x.BodyID == 0 {
			continue
		}
		i, ok := at[x.BodyID]
		if !ok {
			i = len(b.Bodies)
			at[x.BodyID] = i
			b.Bodies = append(b.Bodies, inbox.Body{ID: x.BodyID, Data: x.Body})
		}
		b.Bodies[i].Refs++
	}
	l.moving = l.moving[n:]
	l.credit = max(l.credit-n, 0)
	upTo := l.tables.upTo
	if len(l.moving) == 0 {
		upTo = int64(seg.rows[len(seg.rows)-1].Seq)
	}
	if err := l.tables.copy(ctx, &b, upTo); err != nil {
		return err
	}
	if len(l.moving) > 0 {
		return nil
	}
	l.tables.upTo, l.started = upTo, false
	return l.forget()
}

func (l *logged) forget() error {
	name := l.mem.segments[0].name
	l.mem.forget()
	if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) { // else there is a new owner
		return err
	}
	return nil
}

// page adds a page of what the tables and the memory have of a device.
func (l *logged) page(ctx context.Context, p *inbox.Page, res *inbox.Result) error {
	var got inbox.Result
	asked := *p
	rows := l.mem.devices[p.Key]
	if len(p.Seqs) > 0 {
		n, _ := slices.BinarySearch(p.Seqs, uint64(l.tables.upTo)+1)
		asked.Seqs = p.Seqs[:n]
		var known []*recentRow
		for _, seq := range p.Seqs[n:] {
			if i, ok := search(rows, seq); ok {
				known = append(known, rows[i])
			}
		}
		rows = known
	}
	if len(p.Seqs) == 0 && p.Oldest <= uint64(l.tables.upTo) || len(asked.Seqs) > 0 {
		if err := l.tables.page(ctx, l.tables.db, asked, &got); err != nil {
			return err
		}
	} else {
		got.Pages, got.Ahead = [][]inbox.Row{nil}, [][]uint64{nil}
	}
	page, ahead := got.Pages[0], got.Ahead[0]
	room := len(p.Seqs)
	if room == 0 {
		room = p.Limit
	}
	for _, x := range rows {
		switch {
		case len(page) < room && len(ahead) == 0:
			page = append(page, x.Row)
		case len(p.Seqs) == 0 && len(ahead) < p.Ahead:
			ahead = append(ahead, x.Seq)
		}
	}
	for i := range page {
		page[i].Shard = 0 // not read back
	}
	res.Pages, res.Ahead = append(res.Pages, page), append(res.Ahead, ahead)
	return nil
}

func (l *logged) publish() {
	if l.metric != nil {
		l.metric.Depth.Add(float64(l.mem.bytes - l.shown))
		l.shown = l.mem.bytes
	}
}
