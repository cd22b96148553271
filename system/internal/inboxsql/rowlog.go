package inboxsql

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"throng/system/internal/inbox"
)

// rowLog is the files beside a SQLite database that rows are appended to, and
// the file that says who owns them. It is not synced: what write(2) has taken
// survives the process, which is the fault model.
type rowLog struct {
	path  string // of the database
	fence *os.File
	file  *os.File
	next  uint64 // number of the next file; none is used again
	buf   []byte
}

// A record is the length of its payload and its CRC-32C, then the payload: rows
// and deletions of one transaction. One that is cut off or damaged ends a file,
// because nobody was told of it.
const recordHead = 8

func openRowLog(path string) (*rowLog, error) {
	f, err := os.OpenFile(path+".owner", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("the log's owner: %w", err)
	}
	return &rowLog{path: path, fence: f}, nil
}

func (l *rowLog) close() error {
	err := l.fence.Close()
	if l.file != nil {
		err = errors.Join(err, l.file.Close())
	}
	return err
}

// claim makes incarnation the owner. Whoever reads the files after that has all
// that earlier owners have answered for.
func (l *rowLog) claim(incarnation uint64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], incarnation)
	_, err := l.fence.WriteAt(b[:], 0)
	return err
}

// check is called after an append and before anybody is told: while incarnation is
// the owner now, whoever comes next reads the files later, and finds it.
func (l *rowLog) check(incarnation uint64) error {
	var b [8]byte
	if _, err := l.fence.ReadAt(b[:], 0); err != nil {
		return fmt.Errorf("the log's owner: %w", err)
	}
	if owner := binary.LittleEndian.Uint64(b[:]); owner != incarnation {
		return fmt.Errorf("%w (incarnation %d, the log's owner is %d)", inbox.ErrFenced, incarnation, owner)
	}
	return nil
}

// files returns the names of the log, in the order that they were written.
func (l *rowLog) files() ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(l.path)) // sorted
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(l.path)+".log-") {
			names = append(names, filepath.Join(filepath.Dir(l.path), e.Name()))
		}
	}
	return names, nil
}

// start opens a new file, which sorts behind all others, and returns its name.
func (l *rowLog) start(incarnation uint64) (string, error) {
	for {
		name := fmt.Sprintf("%s.log-%016x-%08x", l.path, incarnation, l.next)
		l.next++
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if l.file != nil {
			err = l.file.Close()
		}
		l.file = f
		return name, err
	}
}

// append writes a record with one system call.
func (l *rowLog) append(rows []inbox.Row, dead []uint64) error {
	b := append(l.buf[:0], make([]byte, recordHead)...)
	b = binary.AppendUvarint(b, uint64(len(rows)))
	var body uint64 // that the row before points to: the next one does not repeat it
	for i := range rows {
		r := &rows[i]
		for _, v := range []uint64{r.Seq, uint64(r.Shard), r.User, uint64(r.Device), uint64(r.At), r.BodyID} {
			b = binary.AppendUvarint(b, v)
		}
		b = append(b, r.Message[:]...)
		if r.BodyID == 0 || r.BodyID != body {
			b = binary.AppendUvarint(b, uint64(len(r.Body)))
			b = append(b, r.Body...)
		}
		body = r.BodyID
	}
	b = binary.AppendUvarint(b, uint64(len(dead)))
	for _, seq := range dead {
		b = binary.AppendUvarint(b, seq)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)-recordHead))
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[recordHead:], crc32.MakeTable(crc32.Castagnoli)))
	if l.buf = b; cap(b) > 1<<20 {
		l.buf = nil
	}
	_, err := l.file.Write(b)
	return err
}

// replay hands out the records of a file.
func replay(name string, record func(rows []inbox.Row, dead []uint64)) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	for len(b) >= recordHead {
		n := uint64(binary.LittleEndian.Uint32(b))
		if n > uint64(len(b)-recordHead) {
			return nil
		}
		payload := b[recordHead : recordHead+n]
		if crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(b[4:]) {
			return nil
		}
		d := decoder{b: payload}
		rows, dead := d.record()
		if d.failed {
			return fmt.Errorf("%s: a record cannot be read", name)
		}
		record(rows, dead)
		b = b[recordHead+n:]
	}
	return nil
}

type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.failed, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.failed, d.b = true, nil
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) record() (rows []inbox.Row, dead []uint64) {
	var body []byte
	var id uint64
	for n := d.uvarint(); n > 0 && !d.failed; n-- {
		r := inbox.Row{Seq: d.uvarint(), Shard: int(d.uvarint()), Key: inbox.Key{User: d.uvarint(), Device: uint32(d.uvarint())},
			At: int64(d.uvarint()), BodyID: d.uvarint()}
		copy(r.Message[:], d.bytes(uint64(len(r.Message))))
		if r.BodyID == 0 || r.BodyID != id {
			body = slices.Clone(d.bytes(d.uvarint()))
		}
		r.Body, id = body, r.BodyID
		rows = append(rows, r)
	}
	for n := d.uvarint(); n > 0 && !d.failed; n-- {
		dead = append(dead, d.uvarint())
	}
	return rows, dead
}
