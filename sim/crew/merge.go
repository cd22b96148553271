package crew

import (
	"math"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"throng/sim/history"
	"throng/sim/load"
)

// merger makes one series of what the leader (part 0) and the agents record. A
// second is written when every part that lives has told of it.
type merger struct {
	to       *history.Writer
	progress func(load.Progress)

	mu      sync.Mutex
	last    []int // by part: the second told last
	gone    []bool
	done    int // seconds up to this one are written
	seconds map[int]*second
	late    []*hdrhistogram.Histogram // by part: lateness of the whole load
	proof   load.Progress             // what the leader's engine said of its proof
	err     error

	spare []*hdrhistogram.Histogram // empty
}

// second is one row in the making.
type second struct {
	row       history.Second
	levels    []history.Second // by part: of what is not a count
	intervals map[string]*history.Interval
}

func newMerger(to *history.Writer, parts int, progress func(load.Progress)) *merger {
	m := &merger{to: to, progress: progress, last: make([]int, parts), gone: make([]bool, parts), seconds: map[int]*second{}, proof: load.Progress{Judging: -1}}
	for range parts {
		m.late = append(m.late, history.NewHist())
	}
	return m
}

// add takes what a part recorded. Results of a part come in order.
func (m *merger) add(part int, r *result) error {
	var lines []history.Line
	for _, text := range r.Intervals {
		line, err := history.ParseLine(text)
		if err != nil {
			return err
		}
		lines = append(lines, line)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := max(int(math.Round(r.Second.T)), m.done+1)
	s := m.seconds[n]
	if s == nil {
		s = &second{levels: make([]history.Second, len(m.last)), intervals: map[string]*history.Interval{}}
		m.seconds[n] = s
	}
	s.add(part, r.Second)
	for i := range lines {
		m.merge(s, &lines[i])
		if lines[i].Kind == history.KindLate {
			lines[i].AddTo(m.late[part])
		}
	}
	m.last[part] = n
	m.write()
	return m.err
}

// leave says that nothing more comes of a part.
func (m *merger) leave(part int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone[part] = true
	m.write()
}

// write writes the seconds that all parts have told of.
func (m *merger) write() {
	upTo := math.MaxInt
	for part, n := range m.last {
		if !m.gone[part] {
			upTo = min(upTo, n)
		}
	}
	if upTo == math.MaxInt { // all have left
		upTo = 0
		for n := range m.seconds {
			upTo = max(upTo, n)
		}
	}
	for m.done < upTo {
		m.done++
		if s := m.seconds[m.done]; s != nil {
			delete(m.seconds, m.done)
			m.row(s)
		}
	}
}

// row writes one second.
func (m *merger) row(s *second) {
	row := s.row
	for _, l := range s.levels {
		row.Connected += l.Connected
		row.InFlight += l.InFlight
		row.Held += l.Held
	}
	m.note(m.to.Second(row))
	p := load.Progress{Elapsed: time.Duration(row.T * float64(time.Second)), Phase: row.Phase, Second: row, Pending: m.proof.Pending, Judging: m.proof.Judging}
	micros := func(v int64) time.Duration { return time.Duration(v) * time.Microsecond }
	for _, iv := range s.intervals {
		m.note(m.to.Interval(*iv))
		switch iv.Kind {
		case history.KindDeliverDirect:
			p.P50, p.P99 = micros(iv.Hist.ValueAtQuantile(50)), micros(iv.Hist.ValueAtQuantile(99))
		case history.KindLate:
			p.LateP99 = micros(iv.Hist.ValueAtQuantile(99))
		}
		iv.Hist.Reset()
		m.spare = append(m.spare, iv.Hist)
	}
	m.progress(p)
}

func (m *merger) note(err error) {
	if m.err == nil {
		m.err = err
	}
}

// lateP99 returns the p99 of the lateness of a part over the whole load.
func (m *merger) lateP99(part int) (p99 time.Duration, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.late[part]
	return time.Duration(h.ValueAtQuantile(99)) * time.Microsecond, h.TotalCount()
}

// add takes a part's row. The phase is the leader's where it tells one.
func (s *second) add(part int, r history.Second) {
	s.levels[part] = r
	t, phase := max(s.row.T, r.T), s.row.Phase
	if part == 0 || phase == "" {
		phase = r.Phase
	}
	s.row = s.row.Plus(r)
	s.row.T, s.row.Phase = t, phase
	s.row.Connected, s.row.InFlight, s.row.Held = 0, 0, 0
}

// merge adds a part's histogram to the second's.
func (m *merger) merge(s *second, l *history.Line) {
	have := s.intervals[l.Kind]
	if have == nil {
		have = &history.Interval{Kind: l.Kind, Start: l.Start, End: l.End}
		if n := len(m.spare); n > 0 {
			have.Hist, m.spare = m.spare[n-1], m.spare[:n-1]
		} else {
			have.Hist = history.NewHist()
		}
		s.intervals[l.Kind] = have
	}
	have.Start, have.End = min(have.Start, l.Start), max(have.End, l.End)
	l.AddTo(have.Hist)
}
