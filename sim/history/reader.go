package history

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
)

// Run is a run folder read back. It is not changed after Open.
type Run struct {
	Dir      string
	Manifest Manifest
	Seconds  []Second
	Roles    []RoleSample
	Counters []CounterSample
	Events   []Event
	Rig      []Rig
	Audit    *Audit // nil: the run ended before its proof, evidence is missing
	// Problems says, for people, what could not be read: the incomplete last
	// line of a killed run, a file that is missing. Empty for a whole run.
	Problems []string

	intervals map[string][]interval
	kinds     []string // in order of first appearance
	stages    []Stages
}

// Open reads the run folder dir. A folder of a run that was killed, or is still
// running, opens up to its last complete lines; only a manifest that is
// missing, broken or of a newer format is an error.
func Open(dir string) (*Run, error) {
	r := &Run{Dir: dir, intervals: map[string][]interval{}}
	data, err := os.ReadFile(filepath.Join(dir, FileManifest))
	if err != nil {
		return nil, fmt.Errorf("not a run folder: %w", err)
	}
	var version struct {
		FormatVersion int `json:"format_version"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, fmt.Errorf("run folder %s: %s: %w", dir, FileManifest, err)
	}
	if version.FormatVersion < 1 || version.FormatVersion > FormatVersion {
		return nil, fmt.Errorf("run folder %s has format %d, this program reads formats 1 to %d: use the throng that wrote it", dir, version.FormatVersion, FormatVersion)
	}
	if err := json.Unmarshal(data, &r.Manifest); err != nil {
		return nil, fmt.Errorf("run folder %s: %s: %w", dir, FileManifest, err)
	}
	if err := r.readLog(); err != nil {
		return nil, err
	}
	if r.Seconds, err = readCSV[Second](r, FileSeries); err != nil {
		return nil, err
	}
	if r.Roles, err = readCSV[RoleSample](r, FileRoles); err != nil {
		return nil, err
	}
	if r.Counters, err = readJSONL[CounterSample](r, FileCounters); err != nil {
		return nil, err
	}
	if r.Events, err = readJSONL[Event](r, FileEvents); err != nil {
		return nil, err
	}
	if err := r.readStages(); err != nil {
		return nil, err
	}
	if err := r.readRig(); err != nil {
		return nil, err
	}
	return r, r.readAudit()
}

func (r *Run) readAudit() error {
	data, err := os.ReadFile(filepath.Join(r.Dir, FileAudit))
	if errors.Is(err, fs.ErrNotExist) {
		r.problem("%s is missing: no delivery proof", FileAudit)
		return nil
	}
	if err != nil {
		return fmt.Errorf("run folder: %w", err)
	}
	var a Audit
	if err := json.Unmarshal(data, &a); err != nil {
		r.problem("%s cannot be read, no delivery proof: %v", FileAudit, err)
		return nil
	}
	r.Audit = &a
	return nil
}

func (r *Run) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// eachLine calls f with each complete line of a file. A missing file, an
// incomplete last line and lines that f refuses become problems; only a read
// error is returned.
func (r *Run) eachLine(name string, f func(line string) error) error {
	file, err := os.Open(filepath.Join(r.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		r.problem("%s is missing", name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("run folder: %w", err)
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, 1<<16)
	bad := 0
	for n := 1; ; n++ {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			if line != "" {
				r.problem("%s:%d: the last line is incomplete", name, n)
			}
			if bad > 1 {
				r.problem("%s: %d lines cannot be read", name, bad)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("run folder: %s: %w", name, err)
		}
		if err := f(strings.TrimRight(line, "\r\n")); err != nil {
			if bad++; bad == 1 {
				r.problem("%s:%d: %v", name, n, err)
			}
		}
	}
}

func (r *Run) readLog() error {
	return r.eachLine(FileLatency, func(line string) error {
		kind, iv, err := parseInterval(line)
		if err != nil || kind == "" {
			return err
		}
		if _, ok := r.intervals[kind]; !ok {
			r.kinds = append(r.kinds, kind)
		}
		r.intervals[kind] = append(r.intervals[kind], iv)
		return nil
	})
}

func readJSONL[T any](r *Run, name string) ([]T, error) {
	var all []T
	err := r.eachLine(name, func(line string) error {
		var v T
		if err := json.NewDecoder(bytes.NewReader([]byte(line))).Decode(&v); err != nil {
			return err
		}
		all = append(all, v)
		return nil
	})
	return all, err
}

// readCSV reads rows by the names in the header: a column that T does not know
// is skipped, one that is missing stays zero.
func readCSV[T any](r *Run, name string) ([]T, error) {
	var all []T
	var fields []int // field of T for each column, -1 none
	err := r.eachLine(name, func(line string) error {
		row, err := csv.NewReader(strings.NewReader(line)).Read()
		if err != nil {
			return err
		}
		if fields == nil {
			names := columns(*new(T))
			for _, c := range row {
				at := -1
				for i, n := range names {
					if n == c {
						at = i
					}
				}
				fields = append(fields, at)
			}
			return nil
		}
		if len(row) != len(fields) {
			return fmt.Errorf("%d columns, the header has %d", len(row), len(fields))
		}
		var v T
		for i, at := range fields {
			if at < 0 {
				continue
			}
			if err := setField(reflect.ValueOf(&v).Elem().Field(at), row[i]); err != nil {
				return err
			}
		}
		all = append(all, v)
		return nil
	})
	return all, err
}

func setField(f reflect.Value, s string) error {
	switch f.Kind() {
	case reflect.Float64:
		x, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return err
		}
		f.SetFloat(x)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return err
		}
		f.SetInt(n)
	default:
		f.SetString(s)
	}
	return nil
}
