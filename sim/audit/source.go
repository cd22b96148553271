package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Source is a spool to be judged, up to a mark.
type Source struct {
	Name string      // for people, as "agent 3"
	R    io.ReaderAt // nil when there is none
	Mark Mark        // what Sync returned
	Err  error       // why it is missing or incomplete, nil: it is neither
}

// place is where the content of a block is.
type place struct {
	at     int64
	length uint32
}

// reel is a spool that has been looked through.
type reel struct {
	name        string
	r           io.ReaderAt
	lanes       [][]place
	redelivered int64
	buf         []byte // of the last block read
}

// wind looks through a spool: every block is there, whole, in its place and as
// it was written, and the last is the mark. What is said after the mark is not
// looked at.
func (src *Source) wind() (*reel, error) {
	if src.Err != nil {
		return nil, src.Err
	}
	if src.R == nil {
		return nil, errors.New("there is none")
	}
	r := &reel{r: src.R}
	at, number := int64(0), uint32(0)
	marked := Mark{}
	for at < src.Mark.Bytes {
		lane, err := r.check(at, src.Mark.Bytes, number)
		if err != nil {
			return nil, fmt.Errorf("at byte %d: %w", at, err)
		}
		where := place{at + blockHeader, uint32(len(r.buf))}
		at += int64(len(r.buf)) + blockHeader
		number++
		c := cursor{b: r.buf}
		switch {
		case lane == laneStart:
			r.lanes = make([][]place, 2*min(c.uint(), MaxPartitions))
		case lane == laneMark:
			r.redelivered = int64(c.uint())
			marked = Mark{at, int64(c.uint())}
		case int(lane) < len(r.lanes):
			r.lanes[lane] = append(r.lanes[lane], where)
		default:
			return nil, fmt.Errorf("at byte %d: a block of lane %d, of %d", where.at, lane, len(r.lanes))
		}
	}
	if marked != src.Mark || len(r.lanes) == 0 {
		return nil, fmt.Errorf("it should end with %d events at byte %d, and its last mark says %d at %d",
			src.Mark.Events, src.Mark.Bytes, marked.Events, marked.Bytes)
	}
	return r, nil
}

// check reads the block at a place and says whose it is.
func (r *reel) check(at, end int64, number uint32) (lane uint32, err error) {
	var h [blockHeader]byte
	if err := readFull(r.r, h[:], at); err != nil {
		return 0, err
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(h[4*i:]) }
	n := word(4)
	if word(0) != spoolMagic || word(2) != number || n > maxBlock || at+blockHeader+int64(n) > end {
		return 0, errors.New("there is no block")
	}
	if err := r.read(place{at + blockHeader, n}); err != nil {
		return 0, err
	}
	if checksum(checksum(0, h[8:]), r.buf) != word(1) {
		return 0, errors.New("the block is damaged")
	}
	return word(3), nil
}

// read reads the content of a block into buf.
func (r *reel) read(p place) error {
	if cap(r.buf) < int(p.length) {
		r.buf = make([]byte, p.length)
	}
	r.buf = r.buf[:p.length]
	return readFull(r.r, r.buf, p.at)
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	if n, err := r.ReadAt(b, at); n < len(b) {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is cut off")
		}
		return err
	}
	return nil
}
