package fanout

import "time"

// tracker finds the contiguous watermark: records are added in the order of
// the log and done in any order. It is pure; its user locks it.
type tracker struct {
	entries []entry // in order; entries[i] has the id first+i
	first   uint64
}

type entry struct {
	offset int64
	left   int // parts not done
	// fetched is its user's, for how long the record took.
	fetched time.Time
}

// add notes a record that is done when parts of it are.
func (t *tracker) add(offset int64, parts int) (id uint64) {
	t.entries = append(t.entries, entry{offset: offset, left: parts})
	return t.first + uint64(len(t.entries)-1)
}

// done notes that one part of a record is done.
func (t *tracker) done(id uint64) { t.entries[id-t.first].left-- }

// advance forgets the records at the front that are done, and returns how many
// they were and the offset after the last one.
func (t *tracker) advance() (n int, next int64) {
	for n < len(t.entries) && t.entries[n].left == 0 {
		next = t.entries[n].offset + 1
		n++
	}
	t.entries = t.entries[n:]
	t.first += uint64(n)
	return n, next
}
