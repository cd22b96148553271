package crew

import (
	"strings"
	"sync"

	"throng/sim/history"
	"throng/sim/load"
)

// Recorder collects what an engine records in a second, as a load.Record, and
// hands it on as one result when the engine has it whole (Tick).
type Recorder struct {
	send   func(*result) error
	folder *history.Writer // the leader's, nil in an agent

	mu  sync.Mutex
	enc history.Encoder
	cur result
}

var _ load.Record = (*Recorder)(nil)

func newRecorder(number int, send func(*result) error, folder *history.Writer) *Recorder {
	return &Recorder{send: send, folder: folder, cur: result{Number: number}}
}

// Second notes the counts of the second.
func (r *Recorder) Second(s history.Second) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur.Second = s
	return nil
}

// Interval notes a histogram of the second. What the leader alone knows, after
// the load, goes to the run folder at once.
func (r *Recorder) Interval(iv history.Interval) error {
	if r.folder != nil && (strings.HasPrefix(iv.Kind, history.KindFanoutFirst) || strings.HasPrefix(iv.Kind, history.KindFanoutLast)) {
		return r.folder.Interval(iv)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	line, err := r.enc.Line(iv)
	if err != nil {
		return err
	}
	r.cur.Intervals = append(r.cur.Intervals, line)
	return nil
}

// Stages notes where the second's deliveries went.
func (r *Recorder) Stages(s *history.Stages) error {
	if len(s.Cells) == 0 && s.Partial == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur.Stages = append(r.cur.Stages, *s)
	return nil
}

// Role notes what a process uses. The leader's go to the run folder at once.
func (r *Recorder) Role(s history.RoleSample) error {
	if r.folder != nil {
		return r.folder.Role(s)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur.Roles = append(r.cur.Roles, s)
	return nil
}

// Rig notes what the process had of its machine. The leader plays nobody.
func (r *Recorder) Rig(s history.Rig) error {
	if r.folder != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur.Rig = append(r.cur.Rig, s)
	return nil
}

// Counters writes a scrape of the leader.
func (r *Recorder) Counters(s history.CounterSample) error { return r.folder.Counters(s) }

// Event notes something that happened once. The leader's go to the run folder
// at once.
func (r *Recorder) Event(e history.Event) error {
	if r.folder != nil {
		return r.folder.Event(e)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur.Events = append(r.cur.Events, e)
	return nil
}

// Tick hands on what has been collected.
func (r *Recorder) Tick() error {
	r.mu.Lock()
	cur := r.cur
	r.cur = result{Number: cur.Number, N: cur.N + 1}
	r.mu.Unlock()
	cur.N++
	return r.send(&cur)
}

// ticks is how many results there were.
func (r *Recorder) ticks() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cur.N
}
