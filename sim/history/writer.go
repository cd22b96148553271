package history

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"time"
)

// FormatVersion is the version of the run folder that this package writes, and
// the newest that it reads.
//
//	1  first version
const FormatVersion = 1

// Names of the files of a run folder that this package owns.
const (
	FileManifest = "manifest.json"
	FileLatency  = "latency.hlog"
	FileSeries   = "series.csv"
	FileRoles    = "roles.csv"
	FileCounters = "counters.jsonl"
	FileEvents   = "events.jsonl"
	FileStages   = "stages.jsonl"
	FileAudit    = "audit.json"
	LinkLatest   = "latest" // beside the run folders of one scenario
)

// flushEvery bounds what a killed run loses.
const flushEvery = time.Second

// Writer writes a run folder while the run goes on. Its methods may be called
// from many goroutines. A file that cannot be written (a full disk) is given
// up, so that it ends at most in one incomplete line, which readers drop; the
// error is returned once, by the call that met it or the next one, and kept for
// Err and Finish. The other files go on.
type Writer struct {
	dir   string
	start time.Time

	mu       sync.Mutex
	files    map[string]*file
	enc      hlogEncoder
	err      error // everything that went wrong, joined
	told     bool  // err has been returned by a call
	finished bool
	stop     chan struct{} // closed once, by shut
	flusher  sync.WaitGroup
}

// file is one append-only file of the folder.
type file struct {
	f    *os.File
	buf  *bufio.Writer
	dead bool // a write failed: nothing more is written
}

// Create makes the folder dir of a new run, writes its manifest and points the
// link "latest" beside it at it. It is an error if dir already holds a run. The
// caller must end the writer with Finish or Close.
func Create(dir string, m *Manifest) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, fmt.Errorf("run folder %s: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, FileManifest)); err == nil {
		return nil, fmt.Errorf("run folder %s already holds a run", dir)
	}
	if m.FormatVersion == 0 {
		m.FormatVersion = FormatVersion
	}
	w := &Writer{dir: dir, start: m.Start, files: map[string]*file{}, stop: make(chan struct{})}
	if err := writeJSON(filepath.Join(dir, FileManifest), m); err != nil {
		return nil, err
	}
	for _, name := range []string{FileLatency, FileSeries, FileRoles, FileCounters, FileEvents, FileStages, FileRig} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
		if err != nil {
			w.closeFiles()
			return nil, fmt.Errorf("run folder: %w", err)
		}
		w.files[name] = &file{f: f, buf: bufio.NewWriterSize(f, 1<<16)}
	}
	w.write(FileLatency, hlogHeader(m.Start))
	w.write(FileSeries, csvLine(columns(Second{})))
	w.write(FileRoles, csvLine(columns(RoleSample{})))
	w.write(FileRig, csvLine(columns(Rig{})))
	if err := link(dir); err != nil {
		// The run is worth more than the link.
		w.write(FileEvents, jsonLine(Event{Kind: "warning", Detail: err.Error()}))
	}
	if err := w.Flush(); err != nil {
		w.closeFiles()
		return nil, err
	}
	w.flusher.Go(w.flushLoop)
	return w, nil
}

// Dir returns the run folder.
func (w *Writer) Dir() string { return w.dir }

// Second appends a row to series.csv.
func (w *Writer) Second(s Second) error { return w.append(FileSeries, csvLine(values(s))) }

// Role appends a row to roles.csv.
func (w *Writer) Role(s RoleSample) error { return w.append(FileRoles, csvLine(values(s))) }

// Counters appends a line to counters.jsonl. Values that are not finite (JSON
// has none) are left out.
func (w *Writer) Counters(s CounterSample) error {
	all := s.Values
	s.Values = make(map[string]float64, len(all))
	for name, v := range all {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			s.Values[name] = v
		}
	}
	return w.append(FileCounters, jsonLine(s))
}

// Event appends a line to events.jsonl.
func (w *Writer) Event(e Event) error { return w.append(FileEvents, jsonLine(e)) }

// Interval appends a histogram to latency.hlog; one without values is left
// out. The histogram is read before Interval returns and not kept. Intervals
// may be written in any order and may overlap.
func (w *Writer) Interval(iv Interval) error {
	if iv.Hist == nil || iv.Hist.TotalCount() == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	line, err := w.enc.line(iv)
	if err != nil {
		return w.fail(fmt.Errorf("%s: interval of %s at %.3f s: %w", FileLatency, iv.Kind, iv.Start, err))
	}
	w.write(FileLatency, line)
	return w.tell()
}

// Audit writes audit.json, replacing an earlier one.
func (w *Writer) Audit(a *Audit) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := writeJSON(filepath.Join(w.dir, FileAudit), a); err != nil {
		return w.fail(err)
	}
	return w.tell()
}

// Manifest replaces manifest.json, for what is known only while the run goes on
// (the phases, the processes).
func (w *Writer) Manifest(m *Manifest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := writeJSON(filepath.Join(w.dir, FileManifest), m); err != nil {
		return w.fail(err)
	}
	return w.tell()
}

// Flush hands everything buffered to the operating system.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush()
	return w.tell()
}

// Err returns everything that went wrong so far.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Finish writes the final manifest, closes the files and returns everything
// that went wrong during the run, told before or not. Calls after it do nothing.
func (w *Writer) Finish(m *Manifest) error {
	if m.FormatVersion == 0 {
		m.FormatVersion = FormatVersion
	}
	if err := writeJSON(filepath.Join(w.dir, FileManifest), m); err != nil {
		w.mu.Lock()
		w.err = errors.Join(w.err, err)
		w.mu.Unlock()
	}
	return w.Close()
}

// Close ends a run that has no final manifest to write; the folder stays
// readable. It returns everything that went wrong during the run.
func (w *Writer) Close() error {
	w.mu.Lock()
	if !w.finished {
		w.finished = true
		close(w.stop)
		w.flush()
		w.closeFiles()
	}
	err := w.err
	w.told = true
	w.mu.Unlock()
	w.flusher.Wait()
	return err
}

func (w *Writer) flushLoop() {
	t := time.NewTicker(flushEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			w.mu.Lock()
			w.flush()
			w.mu.Unlock()
		case <-w.stop:
			return
		}
	}
}

func (w *Writer) append(name string, line []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.write(name, line)
	return w.tell()
}

// write appends to one file; the caller holds mu, or is Create.
func (w *Writer) write(name string, line []byte) {
	f := w.files[name]
	if w.finished || f == nil || f.dead {
		return
	}
	if _, err := f.buf.Write(line); err != nil {
		w.giveUp(name, f, err)
	}
}

func (w *Writer) flush() {
	for name, f := range w.files {
		if f.dead {
			continue
		}
		if err := f.buf.Flush(); err != nil {
			w.giveUp(name, f, err)
		}
	}
}

func (w *Writer) giveUp(name string, f *file, err error) {
	f.dead = true
	w.err = errors.Join(w.err, fmt.Errorf("run folder: %s is incomplete from here: %w", name, err))
	w.told = false
}

func (w *Writer) fail(err error) error {
	w.err = errors.Join(w.err, err)
	w.told = true
	return err
}

// tell returns the kept error if nobody has been told yet.
func (w *Writer) tell() error {
	if w.err == nil || w.told {
		return nil
	}
	w.told = true
	return w.err
}

func (w *Writer) closeFiles() {
	for name, f := range w.files {
		if err := f.f.Close(); err != nil && !f.dead {
			w.giveUp(name, f, err)
		}
	}
}

// writeJSON replaces a file as a whole: readers see the old or the new one.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o666); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("run folder: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("run folder: %w", err)
	}
	return nil
}

func jsonLine(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic("history: " + err.Error()) // a time that is not a number: the caller's clock is broken
	}
	return append(data, '\n')
}

func csvLine(fields []string) []byte {
	var b lineBuffer
	c := csv.NewWriter(&b)
	c.Write(fields) //nolint:errcheck // a lineBuffer takes everything
	c.Flush()
	return b
}

type lineBuffer []byte

func (b *lineBuffer) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

// columns returns the csv names of a row type, in the order of its fields.
func columns(row any) []string {
	t := reflect.TypeOf(row)
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("csv")
	}
	return names
}

func values(row any) []string {
	v := reflect.ValueOf(row)
	out := make([]string, v.NumField())
	for i := range out {
		switch f := v.Field(i); f.Kind() {
		case reflect.Float64:
			out[i] = strconv.FormatFloat(f.Float(), 'f', -1, 64)
		case reflect.Int, reflect.Int64:
			out[i] = strconv.FormatInt(f.Int(), 10)
		default:
			out[i] = f.String()
		}
	}
	return out
}
