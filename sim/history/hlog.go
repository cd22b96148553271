package history

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Range and precision of every latency histogram of a run, in microseconds.
const (
	HistMin    = 1
	HistMax    = 10 * 60 * 1_000_000
	HistDigits = 3
)

// The layout of the counts of NewHist: 2^11 buckets of one microsecond, then 2^10
// for each doubling.
const (
	subMagnitude = 11 // smallest m with 2^m >= 2 * 10^HistDigits
	subHalf      = 1 << (subMagnitude - 1)
	HistBuckets  = (20 + 1) * subHalf // 20 doublings reach HistMax
)

// BucketOf returns the place of a value from 0 to HistMax among the HistBuckets.
func BucketOf(us int64) int {
	doublings := 64 - subMagnitude - bits.LeadingZeros64(uint64(us)|(1<<subMagnitude-1))
	return doublings*subHalf + int(us>>uint(doublings))
}

// HighestOf returns the highest value that a bucket counts.
func HighestOf(bucket int) int64 {
	doublings := max(bucket/subHalf-1, 0)
	return int64(bucket-doublings*subHalf+1)<<uint(doublings) - 1
}

// NewHist returns an empty histogram of the geometry that run folders use.
func NewHist() *hdrhistogram.Histogram { return hdrhistogram.New(HistMin, HistMax, HistDigits) }

// hlogHeader returns the head of an interval log: times in it are seconds since
// start. The lines are those of HistogramLogWriter (format 1.3), with the
// milliseconds of the base time, which hdrhistogram-go's writer cuts off.
func hlogHeader(start time.Time) []byte {
	sec := float64(start.UnixMilli()) / 1000
	var b bytes.Buffer
	fmt.Fprintf(&b, "#[Histogram log format version %s]\n", hdrhistogram.HISTOGRAM_LOG_FORMAT_VERSION)
	fmt.Fprintf(&b, "#[BaseTime: %.3f (seconds since epoch)]\n", sec)
	fmt.Fprintf(&b, "#[StartTime: %.3f (seconds since epoch), %s]\n", sec, start.UTC().Format(time.RFC3339))
	b.WriteString("#[Values are microseconds; Interval_Max is milliseconds]\n")
	b.WriteString("\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n")
	return b.Bytes()
}

// hlogEncoder writes interval lines. hdrhistogram-go's own encoder makes a new
// compressor (about 1 MB) at the highest level for each histogram; twenty of
// them a second would show in the generator's CPU. This one keeps its buffers.
type hlogEncoder struct {
	raw  []byte
	z    *zlib.Writer
	comp bytes.Buffer
	out  bytes.Buffer
}

const (
	v2Cookie           = 0x1c849303 | 0x10
	v2CompressedCookie = 0x1c849304 | 0x10
)

// line returns the log line of one interval; it is valid until the next call.
func (e *hlogEncoder) line(iv Interval) ([]byte, error) {
	if iv.Kind == "" || strings.ContainsAny(iv.Kind, ", \r\n") {
		return nil, fmt.Errorf("%q cannot be a tag", iv.Kind)
	}
	if iv.End < iv.Start || iv.Start < 0 {
		return nil, errors.New("the interval ends before it starts")
	}
	highest, err := e.compress(iv.Hist)
	if err != nil {
		return nil, err
	}
	e.out.Reset()
	fmt.Fprintf(&e.out, "Tag=%s,%.3f,%.3f,%.3f,", iv.Kind, iv.Start, iv.End-iv.Start, float64(highest)/1000)
	payload := e.comp.Bytes()
	binary.BigEndian.PutUint32(payload[0:], v2CompressedCookie)
	binary.BigEndian.PutUint32(payload[4:], uint32(len(payload)-8))
	e.out.Write(base64.StdEncoding.AppendEncode(e.out.AvailableBuffer(), payload))
	e.out.WriteByte('\n')
	return e.out.Bytes(), nil
}

// Encoder makes lines of intervals for another process, which ParseLine reads.
// It is for one goroutine.
type Encoder struct{ enc hlogEncoder }

// Line returns an interval as a line, as in latency.hlog.
func (e *Encoder) Line(iv Interval) (string, error) {
	line, err := e.enc.line(iv)
	return string(line), err
}

// Line is an interval as a line has it: the values that occur. A dense histogram
// is 170 KB, and a second of a crew has a hundred.
type Line struct {
	Kind       string
	Start, End float64
	interval
}

// ParseLine reads what Encoder.Line made.
func ParseLine(line string) (Line, error) {
	kind, iv, err := parseInterval(strings.TrimSuffix(line, "\n"))
	if err == nil && kind == "" {
		err = errors.New("a comment")
	}
	if err != nil {
		return Line{}, fmt.Errorf("history: a line that is no interval: %w", err)
	}
	return Line{Kind: kind, Start: iv.start, End: iv.end, interval: iv}, nil
}

// AddTo adds the values to a histogram of NewHist.
func (l *Line) AddTo(h *hdrhistogram.Histogram) { l.addTo(h) }

// compress leaves the zlib stream of the V2 encoding of h in e.comp, after
// eight bytes for its head, and returns the highest value.
func (e *hlogEncoder) compress(h *hdrhistogram.Histogram) (highest int64, err error) {
	s := h.Export()
	e.raw = append(e.raw[:0], make([]byte, 40)...)
	last := len(s.Counts) - 1
	for last >= 0 && s.Counts[last] == 0 {
		last--
	}
	for i := 0; i <= last; {
		n := s.Counts[i]
		if n == 0 {
			run := i
			for i <= last && s.Counts[i] == 0 {
				i++
			}
			n = int64(run - i)
		} else {
			i++
		}
		e.raw = appendZigZag(e.raw, n)
	}
	binary.BigEndian.PutUint32(e.raw[0:], v2Cookie)
	binary.BigEndian.PutUint32(e.raw[4:], uint32(len(e.raw)-40))
	binary.BigEndian.PutUint32(e.raw[8:], 0) // normalising index offset
	binary.BigEndian.PutUint32(e.raw[12:], uint32(s.SignificantFigures))
	binary.BigEndian.PutUint64(e.raw[16:], uint64(s.LowestTrackableValue))
	binary.BigEndian.PutUint64(e.raw[24:], uint64(s.HighestTrackableValue))
	binary.BigEndian.PutUint64(e.raw[32:], math.Float64bits(1))

	e.comp.Reset()
	e.comp.Write(make([]byte, 8))
	if e.z == nil {
		if e.z, err = zlib.NewWriterLevel(&e.comp, zlib.BestSpeed); err != nil {
			return 0, err
		}
	} else {
		e.z.Reset(&e.comp)
	}
	if _, err := e.z.Write(e.raw); err != nil {
		return 0, err
	}
	switch {
	case last < 0:
	case ours(s):
		highest = HighestOf(last)
	default:
		highest = h.Max()
	}
	return highest, e.z.Close()
}

// ours says whether counts are laid out as those of NewHist.
func ours(s *hdrhistogram.Snapshot) bool {
	return s.LowestTrackableValue == HistMin && s.HighestTrackableValue == HistMax && s.SignificantFigures == HistDigits && len(s.Counts) == HistBuckets
}

// appendZigZag appends v as the format's LEB128-64b9B: like a varint, but the
// ninth byte carries eight bits.
func appendZigZag(b []byte, v int64) []byte {
	u := uint64(v<<1) ^ uint64(v>>63)
	for range 8 {
		if u < 0x80 {
			return append(b, byte(u))
		}
		b = append(b, byte(u)|0x80)
		u >>= 7
	}
	return append(b, byte(u))
}

// interval is a decoded line of the log, as the values that occur. A dense
// histogram is 170 KB, and a run has thousands.
type interval struct {
	start, end float64
	values     []int64 // highest equivalent value of each bucket that is not empty
	counts     []int64
}

func (iv *interval) addTo(h *hdrhistogram.Histogram) {
	for i, v := range iv.values {
		// Out of range only for a log of another geometry.
		if h.RecordValues(min(v, HistMax), iv.counts[i]) != nil {
			continue
		}
	}
}

// parseInterval reads one line of the log. kind is empty for comments and the
// legend.
func parseInterval(line string) (kind string, iv interval, err error) {
	if line == "" || line[0] == '#' || line[0] == '"' {
		return "", iv, nil
	}
	kind = "untagged"
	if rest, ok := strings.CutPrefix(line, "Tag="); ok {
		if kind, line, ok = strings.Cut(rest, ","); !ok || kind == "" {
			return "", iv, errors.New("a tag without a histogram")
		}
	}
	f := strings.SplitN(line, ",", 4)
	if len(f) != 4 {
		return "", iv, errors.New("not an interval line")
	}
	start, err := strconv.ParseFloat(f[0], 64)
	if err != nil {
		return "", iv, fmt.Errorf("start: %w", err)
	}
	length, err := strconv.ParseFloat(f[1], 64)
	if err != nil {
		return "", iv, fmt.Errorf("length: %w", err)
	}
	h, err := hdrhistogram.Decode([]byte(strings.TrimSpace(f[3])))
	if err != nil {
		return "", iv, fmt.Errorf("histogram: %w", err)
	}
	iv.start, iv.end = start, start+length
	if s := h.Export(); ours(s) { // Distribution was half of what it takes to read a run
		for i, n := range s.Counts {
			if n > 0 {
				iv.values = append(iv.values, HighestOf(i))
				iv.counts = append(iv.counts, n)
			}
		}
		return kind, iv, nil
	}
	for _, b := range h.Distribution() {
		if b.Count > 0 {
			iv.values = append(iv.values, b.To)
			iv.counts = append(iv.counts, b.Count)
		}
	}
	return kind, iv, nil
}
