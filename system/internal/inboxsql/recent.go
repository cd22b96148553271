package inboxsql

import (
	"cmp"
	"hash/maphash"
	"slices"

	"throng/system/internal/inbox"
)

// rowOverhead is what a row in memory takes beside its body, in bytes.
const rowOverhead = 240

// recent are the rows that are in the log and not in the tables. Their seqs are
// above those of every row in the tables.
type recent struct {
	segments []*segment // oldest first; never empty, rows are added to the last one
	devices  map[inbox.Key][]*recentRow
	ids      map[uint64]int // rows by hash of (device, message)
	seed     maphash.Seed
	rows     int
	bytes    int
}

// segment is a file of the log. Its rows are in the order of seq.
type segment struct {
	name  string
	rows  []*recentRow
	live  int
	bytes int // of all its rows, the dead ones too
}

type recentRow struct {
	inbox.Row
	seg    *segment
	dead   bool // deleted
	copied bool // in the tables too, where it cannot be seen yet
}

type identity struct {
	inbox.Key
	message [16]byte
}

func newRecent() recent {
	return recent{devices: make(map[inbox.Key][]*recentRow), ids: make(map[uint64]int), seed: maphash.MakeSeed()}
}

func (r *recent) hash(x *inbox.Row) uint64 {
	return maphash.Comparable(r.seed, identity{x.Key, x.Message})
}

// add takes a row and reports false if the device has the message already.
func (r *recent) add(x inbox.Row) bool {
	h := r.hash(&x)
	all := r.devices[x.Key]
	if r.ids[h] > 0 && slices.ContainsFunc(all, func(o *recentRow) bool { return o.Message == x.Message }) {
		return false
	}
	r.ids[h]++
	seg := r.newest()
	row := &recentRow{Row: x, seg: seg}
	r.devices[x.Key] = insert(all, row)
	seg.rows = insert(seg.rows, row)
	seg.live++
	seg.bytes += row.size()
	r.rows++
	r.bytes += row.size()
	return true
}

func (r *recent) newest() *segment { return r.segments[len(r.segments)-1] }

// insert keeps rows in the order of seq; the new one is nearly always the last.
func insert(rows []*recentRow, row *recentRow) []*recentRow {
	i := len(rows)
	for i > 0 && rows[i-1].Seq > row.Seq {
		i--
	}
	return slices.Insert(rows, i, row)
}

func search(rows []*recentRow, seq uint64) (int, bool) {
	return slices.BinarySearchFunc(rows, seq, func(x *recentRow, seq uint64) int { return cmp.Compare(x.Seq, seq) })
}

// find returns the row of that seq, deleted or not, nil if there is none.
func (r *recent) find(seq uint64) *recentRow {
	for _, s := range slices.Backward(r.segments) {
		if n := len(s.rows); n == 0 || seq < s.rows[0].Seq || seq > s.rows[n-1].Seq {
			continue
		}
		if i, ok := search(s.rows, seq); ok {
			return s.rows[i]
		}
	}
	return nil
}

// drop deletes a row. What it holds is freed with its segment, but for the body.
func (r *recent) drop(x *recentRow) {
	all := r.devices[x.Key]
	i, _ := search(all, x.Seq)
	switch {
	case len(all) == 1:
		delete(r.devices, x.Key)
	case i == 0:
		r.devices[x.Key] = all[1:]
	default:
		r.devices[x.Key] = slices.Delete(all, i, i+1)
	}
	if h := r.hash(&x.Row); r.ids[h] > 1 {
		r.ids[h]--
	} else {
		delete(r.ids, h)
	}
	x.dead, x.Body = true, nil
	x.seg.live--
	r.rows--
}

// forget drops the oldest segment, whose rows are in the tables or deleted.
func (r *recent) forget() {
	s := r.segments[0]
	for _, x := range s.rows {
		if !x.dead {
			r.drop(x)
		}
	}
	r.bytes -= s.bytes
	r.segments = r.segments[1:]
}

func (x *recentRow) size() int { return rowOverhead + len(x.Body) }

// deletion takes rows out of memory. seqs are those that were there, n how many of
// them were there alone.
type deletion struct {
	mem  *recent
	seqs []uint64
	n    int
}

func (d *deletion) drop(x *recentRow) {
	d.seqs = append(d.seqs, x.Seq)
	if !x.copied {
		d.n++
	}
	d.mem.drop(x)
}

// rows deletes rows by their seqs and returns those that the tables (also) have.
func (d *deletion) rows(seqs []uint64) (rest []uint64) {
	for _, seq := range seqs {
		x := d.mem.find(seq)
		if x == nil || x.copied {
			rest = append(rest, seq)
		}
		if x != nil && !x.dead {
			d.drop(x)
		}
	}
	return rest
}

// upTo deletes the rows of a device up to a seq.
func (d *deletion) upTo(u inbox.UpTo) {
	all := d.mem.devices[u.Key]
	n, found := search(all, u.Seq)
	if found {
		n++
	}
	for _, x := range slices.Clone(all[:n]) {
		d.drop(x)
	}
}
