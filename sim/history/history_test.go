package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)

func manifest() *Manifest {
	return &Manifest{
		RunID: "r1", Scenario: "smoke", Start: start, Seed: 7,
		Phases: []Phase{{Name: "warmup", Start: 0, End: 10}, {Name: "steady", Start: 10, End: 20, Load: true, Gated: true}},
	}
}

func hist(values ...int64) *hdrhistogram.Histogram {
	h := NewHist()
	for _, v := range values {
		if err := h.RecordValue(v); err != nil {
			panic(err)
		}
	}
	return h
}

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "smoke", "r1")
	w, err := Create(dir, manifest())
	if err != nil {
		t.Fatal(err)
	}
	second := Second{T: 1, Phase: "steady", Offered: 3, Written: 2, Errors: 9, Connected: 5}
	role := RoleSample{T: 1.25, Role: "inbox", Instance: 1, CPUSeconds: 0.125, RSSBytes: 1 << 20, Threads: 8}
	counters := CounterSample{T: 5, Role: "inbox", Values: map[string]float64{`a_total{k="v"}`: 2, "bad": math.NaN()}}
	event := Event{T: 2, Kind: "fault", Detail: "kill, \"inbox\"/0\nand more"}
	audit := Audit{Sends: 4, Proved: 3, Examples: []string{"lost: x"}}
	for _, err := range []error{
		w.Second(second), w.Role(role), w.Counters(counters), w.Event(event), w.Audit(&audit),
		w.Interval(Interval{Kind: KindSent, Start: 10, End: 11.001, Hist: hist(5, 5, 70_000)}),
		w.Interval(Interval{Kind: KindSent, Start: 11.001, End: 12, Hist: hist()}), // empty: left out
		w.Interval(Interval{Kind: KindFanoutLast + "2-4", Start: 10, End: 11, Hist: hist(HistMax)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m := manifest()
	m.End = start.Add(time.Minute)
	if err := w.Finish(m); err != nil {
		t.Fatal(err)
	}
	if err := w.Second(second); err != nil {
		t.Fatalf("after Finish: %v", err)
	}

	r, err := Open(filepath.Join(dir, "..", LinkLatest))
	if err != nil {
		t.Fatal(err)
	}
	delete(counters.Values, "bad")
	m.FormatVersion = FormatVersion
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"manifest", r.Manifest, *m},
		{"seconds", r.Seconds, []Second{second}},
		{"roles", r.Roles, []RoleSample{role}},
		{"counters", r.Counters, []CounterSample{counters}},
		{"events", r.Events, []Event{event}},
		{"audit", r.Audit, &audit},
		{"problems", r.Problems, []string(nil)},
		{"kinds", r.Kinds(), []string{KindSent, KindFanoutLast + "2-4"}},
		{"intervals", r.Intervals(KindSent), 1},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, c.got, c.want)
		}
	}
	if got, ok := r.MergedPhase(KindSent, "steady"); !ok || !got.Equals(hist(5, 5, 70_000)) {
		t.Errorf("merged: %v values, %v", got.TotalCount(), ok)
	}
	if _, ok := r.MergedPhase(KindSent, "spike"); ok {
		t.Error("a phase that is not there was merged")
	}
	if _, err := Create(dir, manifest()); err == nil {
		t.Error("a folder was created over another run")
	}
}

// The log must be what other tools of the HdrHistogram family read.
func TestLogIsReadByHdrHistogram(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "r"), manifest())
	if err != nil {
		t.Fatal(err)
	}
	var want []*hdrhistogram.Histogram
	for i := range 20 {
		h := NewHist()
		for range 1 + rng.IntN(3000) {
			// Up to 2^40 times one value: counts of more than one byte.
			if err := h.RecordValues(rng.Int64N(HistMax+1)>>rng.IntN(30), 1+rng.Int64N(1<<rng.IntN(40))); err != nil {
				t.Fatal(err)
			}
		}
		want = append(want, h)
		if err := w.Interval(Interval{Kind: "k", Start: float64(i), End: float64(i + 1), Hist: h}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "r", FileLatency))
	if err != nil {
		t.Fatal(err)
	}
	lr := hdrhistogram.NewHistogramLogReader(bytes.NewReader(data))
	for i, h := range want {
		got, err := lr.NextIntervalHistogram()
		if err != nil || got == nil {
			t.Fatalf("interval %d: %v, %v", i, got, err)
		}
		if !got.Equals(h) || got.Tag() != "k" {
			t.Fatalf("interval %d differs", i)
		}
		if at := start.UnixMilli() + int64(i)*1000; got.StartTimeMs() < at-1 || got.StartTimeMs() > at+1 {
			t.Fatalf("interval %d starts at %d, want %d", i, got.StartTimeMs(), at)
		}
	}
	r, err := Open(filepath.Join(dir, "r"))
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range want {
		if !r.Merged("k", float64(i), float64(i+1)).Equals(h) {
			t.Fatalf("interval %d read back differs", i)
		}
	}
}

// A run that is killed is readable up to its last complete lines, at whatever
// byte each file ends.
func TestKilledRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	w, err := Create(dir, manifest())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := errors.Join(
			w.Second(Second{T: float64(i + 1), Offered: 1}),
			w.Event(Event{T: float64(i), Kind: "warning"}),
			w.Interval(Interval{Kind: KindSent, Start: float64(i), End: float64(i + 1), Hist: hist(int64(i))}),
			w.Flush(), // what the flusher does each second
		); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{FileSeries, FileEvents, FileLatency} {
		whole, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Count(whole, []byte("\n"))
		for _, cut := range []int{len(whole) - 1, len(whole) - 5} {
			if err := os.WriteFile(filepath.Join(dir, name), whole[:cut], 0o666); err != nil {
				t.Fatal(err)
			}
			r, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			n := map[string]int{FileSeries: len(r.Seconds), FileEvents: len(r.Events), FileLatency: r.Intervals(KindSent)}[name]
			if n != 2 {
				t.Fatalf("%s cut at %d of %d bytes, %d lines: %d records, want 2", name, cut, len(whole), lines, n)
			}
			if r.Audit != nil || len(r.Problems) != 2 {
				t.Fatalf("audit %v, problems %q; want none and two: the line and the audit", r.Audit, r.Problems)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), whole, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFlushedWithoutClose(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	w, err := Create(dir, manifest())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Second(Second{T: 1}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		r, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Seconds) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was flushed in 10 s")
		}
		<-time.After(50 * time.Millisecond)
	}
}

func TestNewerFormat(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, FileManifest), []byte(`{"format_version": 2, "seed": "a word"}`), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "format 2") {
		t.Fatalf("err = %v, want one that names format 2", err)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Fatal("an empty folder opened as a run")
	}
}

// /dev/full takes nothing: the error comes once and again from Finish, the
// other files are whole.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	dir := filepath.Join(t.TempDir(), "r")
	w, err := Create(dir, manifest())
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.files[FileSeries].f.Close()
	w.files[FileSeries].f = full
	w.files[FileSeries].buf.Reset(full)
	w.mu.Unlock()
	if err := w.Second(Second{T: 1}); err != nil {
		t.Fatalf("buffered: %v", err)
	}
	if err := errors.Join(w.Flush(), w.Event(Event{T: 1})); err == nil || !strings.Contains(err.Error(), FileSeries) {
		t.Fatalf("err = %v, want one about %s", err, FileSeries)
	}
	for range 3 {
		if err := errors.Join(w.Second(Second{T: 2}), w.Flush()); err != nil {
			t.Fatalf("told again: %v", err)
		}
	}
	if w.Err() == nil {
		t.Fatal("the error was not kept")
	}
	if err := w.Finish(manifest()); err == nil {
		t.Fatal("Finish does not say that the run is incomplete")
	}
	r, err := Open(dir)
	if err != nil || len(r.Events) != 1 {
		t.Fatalf("%v, events %v", err, r.Events)
	}
}

func TestConcurrentWriters(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	w, err := Create(dir, manifest())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const n, each = 8, 50
	for range n {
		wg.Go(func() {
			for i := range each {
				if err := errors.Join(
					w.Second(Second{T: float64(i)}),
					w.Role(RoleSample{T: float64(i), Role: "inbox"}),
					w.Event(Event{T: float64(i)}),
					w.Interval(Interval{Kind: KindSent, Start: float64(i), End: float64(i + 1), Hist: hist(9)}),
					w.Flush(),
				); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := w.Finish(manifest()); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Seconds) != n*each || len(r.Roles) != n*each || len(r.Events) != n*each || r.MergedAll(KindSent).TotalCount() != n*each {
		t.Fatalf("%d %d %d %d, want %d of each", len(r.Seconds), len(r.Roles), len(r.Events), r.MergedAll(KindSent).TotalCount(), n*each)
	}
}

func TestColumnsOfOtherVersions(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		FileManifest: `{"format_version": 1}`,
		FileSeries:   "t_s,invented,offered\n1,x,5\n2,y,oops\n3,z\n4,w,6\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []Second{{T: 1, Offered: 5}, {T: 4, Offered: 6}}
	if !reflect.DeepEqual(r.Seconds, want) {
		t.Fatalf("%+v, want %+v", r.Seconds, want)
	}
	if !slices.ContainsFunc(r.Problems, func(s string) bool { return strings.Contains(s, "2 lines") }) {
		t.Fatalf("problems %q do not tell of two bad lines", r.Problems)
	}
}

func TestRunIDs(t *testing.T) {
	a, b := NewRunID(start, "h"), NewRunID(start.Add(time.Second), "h")
	if a >= b || a == NewRunID(start, "other") || a != NewRunID(start, "h") || len(a) != len("20060102T150405Z-abcdef") {
		t.Fatalf("%s, %s", a, b)
	}
}

func TestSchemasNameEveryField(t *testing.T) {
	for file, v := range map[string]any{"manifest.schema.json": Manifest{}, "audit.schema.json": Audit{}} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var s schema
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		compare(t, file, reflect.TypeOf(v), &s)
	}
}

type schema struct {
	Type        any                `json:"type"`
	Description string             `json:"description"`
	Properties  map[string]*schema `json:"properties"`
	Items       *schema            `json:"items"`
	Required    []string           `json:"required"`
}

func compare(t *testing.T, path string, typ reflect.Type, s *schema) {
	if s == nil {
		t.Errorf("%s: not in the schema", path)
		return
	}
	switch {
	case typ == reflect.TypeFor[time.Time]():
		if s.Type != "string" {
			t.Errorf("%s: type %v, want string", path, s.Type)
		}
	case typ.Kind() == reflect.Slice:
		compare(t, path+"[]", typ.Elem(), s.Items)
	case typ.Kind() == reflect.Struct:
		names := map[string]bool{}
		for i := range typ.NumField() {
			name, opts, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			names[name] = true
			compare(t, path+"."+name, typ.Field(i).Type, s.Properties[name])
			if slices.Contains(s.Required, name) != (opts == "") {
				t.Errorf("%s.%s: required in the schema: %v", path, name, slices.Contains(s.Required, name))
			}
		}
		for name := range s.Properties {
			if !names[name] {
				t.Errorf("%s.%s: in the schema, not in the type", path, name)
			}
		}
	default:
		want := map[reflect.Kind]string{
			reflect.String: "string", reflect.Bool: "boolean", reflect.Float64: "number", reflect.Map: "object",
			reflect.Int: "integer", reflect.Int64: "integer", reflect.Uint64: "integer",
		}[typ.Kind()]
		if s.Type != want {
			t.Errorf("%s: type %v, want %s", path, s.Type, want)
		}
	}
}

func BenchmarkInterval(b *testing.B) {
	w, err := Create(filepath.Join(b.TempDir(), "r"), manifest())
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	h := NewHist()
	for range 2000 {
		if err := h.RecordValue(int64(math.Exp(rng.NormFloat64()+9)) % HistMax); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := w.Interval(Interval{Kind: KindSent, End: 1, Hist: h}); err != nil {
			b.Fatal(err)
		}
	}
}

// A run of four minutes with 23 kinds, read and cut into blocks.
func BenchmarkOpen(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "r")
	w, err := Create(dir, manifest())
	if err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	h := NewHist()
	for range 500 {
		if err := h.RecordValue(int64(math.Exp(rng.NormFloat64()+9)) % HistMax); err != nil {
			b.Fatal(err)
		}
	}
	kinds := []string{}
	for i := range 23 {
		kinds = append(kinds, "kind_"+string(rune('a'+i)))
	}
	for s := range 240 {
		for _, k := range kinds {
			if err := w.Interval(Interval{Kind: k, Start: float64(s), End: float64(s + 1), Hist: h}); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		for _, k := range kinds {
			r.Blocks(k, "steady", 20)
		}
	}
}

// The layout that is said of NewHist's counts is the one that it has.
func TestLayout(t *testing.T) {
	values := []int64{0, 1, 2047, 2048, 2049, 4095, 4096, HistMax - 1, HistMax}
	for v := int64(1); v < HistMax; v = v*21/20 + 1 {
		values = append(values, v)
	}
	for _, v := range values {
		h := NewHist()
		if err := h.RecordValue(v); err != nil {
			t.Fatal(err)
		}
		s := h.Export()
		if !ours(s) || s.Counts[BucketOf(v)] != 1 {
			t.Fatalf("%d is not in bucket %d of %d", v, BucketOf(v), len(s.Counts))
		}
		if got := HighestOf(BucketOf(v)); got != h.Max() {
			t.Fatalf("the highest value of the bucket of %d: %d, want %d", v, got, h.Max())
		}
	}
}
