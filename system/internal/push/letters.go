package push

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DeadLetter is a request that was given up.
type DeadLetter struct {
	At          time.Time `json:"at"`
	User        uint64    `json:"user,string"` // more than a JavaScript number holds
	Device      uint32    `json:"device"`
	CollapseKey string    `json:"collapse_key"`
	MessageID   string    `json:"message_id"` // hex
	Reason      string    `json:"reason"`     // of the last attempt, at most maxReason bytes
}

const (
	maxReason = 500
	// maxLetter bounds a line of a file; the other texts come from the inbox and
	// are short.
	maxLetter = 16 << 10
	// Letters in an answer: by default and at most.
	defaultLetters, maxLetters = 1000, 10_000
)

// letters keeps dead letters as lines of JSON in a file, <path>, that is only
// appended to. A line is with the system once it is written, so what is kept
// survives a kill of the process. When the file has half of the bytes or of the
// age that are allowed, it becomes <path>.old, in place of the one before: what
// is kept is the newest half of the bounds at least, and all of them at most.
type letters struct {
	path     string
	maxBytes int64
	maxAge   time.Duration
	kept     prometheus.Gauge

	mu    sync.Mutex
	f     *os.File
	size  int64
	began time.Time // of the first letter of f; zero while it is empty
	lines [2]int    // of f, and of the old one
	torn  bool      // the last write was not whole
}

func openLetters(path string, maxBytes int64, maxAge time.Duration, kept prometheus.Gauge) (*letters, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("push: dead letters: %w", err)
	}
	l := &letters{path: path, maxBytes: maxBytes, maxAge: maxAge, kept: kept}
	if err := l.open(); err != nil {
		return nil, err
	}
	err := l.scan(func(x *DeadLetter, old bool) {
		if old {
			l.lines[1]++
			return
		}
		if l.lines[0]++; l.lines[0] == 1 {
			l.began = x.At
		}
	})
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.prune(time.Now())
	return l, nil
}

func (l *letters) old() string { return l.path + ".old" }

// open opens the file for appending and finds out whether its last line is
// whole. The caller holds mu, or is alone.
func (l *letters) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("push: dead letters: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("push: dead letters: %w", err), f.Close())
	}
	l.f, l.size, l.began, l.torn = f, info.Size(), time.Time{}, false
	last := []byte{'\n'}
	if l.size > 0 {
		if _, err := f.ReadAt(last, l.size-1); err != nil {
			return errors.Join(fmt.Errorf("push: dead letters: %w", err), f.Close())
		}
	}
	l.torn = last[0] != '\n'
	return nil
}

func (l *letters) close() error { return l.f.Close() }

// add appends x. An error means that x is not kept.
func (l *letters) add(x DeadLetter) error {
	x.Reason = x.Reason[:min(len(x.Reason), maxReason)]
	line, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("push: dead letter: %w", err)
	}
	line = append(line, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && (l.size+int64(len(line)) > l.maxBytes/2 || x.At.Sub(l.began) > l.maxAge/2) {
		if err := l.turn(); err != nil {
			return err
		}
	}
	if l.torn { // the remains of a letter get a line of their own
		line = append([]byte{'\n'}, line...)
	}
	n, err := l.f.Write(line)
	l.size += int64(n)
	l.torn = n > 0 && n < len(line)
	if err != nil {
		return fmt.Errorf("push: dead letter: %w", err)
	}
	if l.lines[0]++; l.began.IsZero() {
		l.began = x.At
	}
	l.count()
	return nil
}

// turn makes the file the old one and begins another. The caller holds mu.
func (l *letters) turn() error {
	// An earlier turn may have come no further than this.
	if err := os.Rename(l.path, l.old()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("push: dead letters: %w", err)
	}
	before := l.f
	if err := l.open(); err != nil {
		return err // before is still there, and takes the next letter
	}
	l.lines = [2]int{0, l.lines[0]}
	if err := before.Close(); err != nil {
		return fmt.Errorf("push: dead letters: %w", err)
	}
	return nil
}

// prune forgets a file whose newest letter is older than is allowed.
func (l *letters) prune(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.count()
	tooOld := func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && now.Sub(info.ModTime()) > l.maxAge
	}
	if l.size > 0 && tooOld(l.path) && l.turn() != nil {
		return // tried again the next time
	}
	if tooOld(l.old()) && os.Remove(l.old()) == nil {
		l.lines[1] = 0
	}
}

func (l *letters) count() { l.kept.Set(float64(l.lines[0] + l.lines[1])) }

// find returns the newest letters, limit at most, oldest first: those since a
// time and, unless user is 0, of that user. It reads the files.
func (l *letters) find(user uint64, since time.Time, limit int) ([]DeadLetter, error) {
	if oldest := time.Now().Add(-l.maxAge); since.Before(oldest) {
		since = oldest
	}
	found := []DeadLetter{}
	next := 0 // the oldest of a full list
	err := l.scan(func(x *DeadLetter, _ bool) {
		switch {
		case x.At.Before(since) || user != 0 && x.User != user:
		case len(found) < limit:
			found = append(found, *x)
		default:
			found[next] = *x
			next = (next + 1) % limit
		}
	})
	return append(found[next:len(found):len(found)], found[:next]...), err
}

// scan calls f with each letter that can be read, oldest first. Letters may be
// added meanwhile.
func (l *letters) scan(f func(x *DeadLetter, old bool)) error {
	l.mu.Lock() // both before or both after a turn
	var files [2]*os.File
	var err error
	for i, path := range []string{l.old(), l.path} {
		if files[i], err = os.Open(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("push: dead letters: %w", err)
			break
		}
		err = nil
	}
	l.mu.Unlock()
	for i, file := range files {
		if file == nil {
			continue
		}
		if err == nil {
			err = scanLetters(file, func(x *DeadLetter) { f(x, i == 0) })
		}
		err = errors.Join(err, file.Close())
	}
	return err
}

// scanLetters leaves out lines that are no letters: the remains of one that was
// not written whole.
func scanLetters(r io.Reader, f func(*DeadLetter)) error {
	in := bufio.NewReaderSize(r, maxLetter)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("push: dead letters: %w", err)
		}
		var x DeadLetter
		if json.Unmarshal(bytes.TrimSpace(line), &x) == nil {
			f(&x)
		}
		if err != nil {
			return nil
		}
	}
}

// ServeDeadLetters answers with the newest letters, oldest first, as a JSON
// list. It is for the debug port. Query: user, since (RFC 3339) and limit, 1,000
// by default and 10,000 at most.
func (p *Push) ServeDeadLetters(w http.ResponseWriter, r *http.Request) {
	if p.letters == nil {
		http.Error(w, "dead letters are counted and logged, but not kept: the configuration has no provider.dead_letters", http.StatusNotFound)
		return
	}
	user, since, limit, err := lettersQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	found, err := p.letters.find(user, since, limit)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(found) // the reader has gone: nobody to tell
}

func lettersQuery(r *http.Request) (user uint64, since time.Time, limit int, err error) {
	q := r.URL.Query()
	limit = defaultLetters
	for name := range q {
		value, bad := q.Get(name), error(nil)
		switch name {
		case "user":
			user, bad = strconv.ParseUint(value, 10, 64)
		case "since":
			since, bad = time.Parse(time.RFC3339, value)
		case "limit":
			limit, bad = strconv.Atoi(value)
			if limit < 1 || limit > maxLetters {
				bad = fmt.Errorf("limit %q is not in 1..%d", value, maxLetters)
			}
		default:
			bad = fmt.Errorf("%q: allowed are user, since and limit", name)
		}
		err = errors.Join(err, bad)
	}
	return user, since, limit, err
}
