package capacity

import (
	"math"
	"slices"
	"strings"

	"throng/sim/history"
)

// observer answers questions about the gated phase of a run and its blocks.
type observer struct {
	run   *history.Run
	phase history.Phase
	// edges are the ends of the blocks for what is sampled each second, coarse
	// those for what is scraped every few seconds.
	edges, coarse []float64
	counters      map[string]*history.Run // role and metric -> a run with that metric alone
	roles         []string                // that show counters
}

func observe(run *history.Run, phase history.Phase) *observer {
	o := &observer{run: run, phase: phase, counters: map[string]*history.Run{}}
	length := phase.End - phase.Start
	o.edges = cut(phase.Start, phase.End, clamp(length/5, MinBlocks, 12))
	o.coarse = cut(phase.Start, phase.End, clamp(length/o.spacing(), 1, 12))
	o.index()
	return o
}

func clamp(v float64, lo, hi int) int {
	if math.IsNaN(v) || v < float64(lo) {
		return lo
	}
	return min(int(v+1e-9), hi)
}

func cut(from, to float64, n int) []float64 {
	out := make([]float64, 0, n+1)
	for i := range n + 1 {
		out = append(out, from+(to-from)*float64(i)/float64(n))
	}
	return out
}

// spacing is the usual time between two scrapes of one process in the phase.
func (o *observer) spacing() float64 {
	last := map[history.RoleInstance]float64{}
	var gaps []float64
	for _, s := range o.run.Counters {
		k := history.RoleInstance{Role: s.Role, Instance: s.Instance}
		if t, ok := last[k]; ok && s.T > o.phase.Start && s.T <= o.phase.End+0.5 && s.T > t {
			gaps = append(gaps, s.T-t)
		}
		last[k] = s.T
	}
	if len(gaps) == 0 {
		return math.Inf(1)
	}
	slices.Sort(gaps)
	return gaps[len(gaps)/2]
}

// index splits the scrapes by role and metric name, so that each question reads
// only its own values.
func (o *observer) index() {
	for _, s := range o.run.Counters {
		if !slices.Contains(o.roles, s.Role) {
			o.roles = append(o.roles, s.Role)
		}
	}
	slices.Sort(o.roles)
	for _, role := range o.roles {
		for _, metric := range o.run.Metrics(role) {
			sub := &history.Run{}
			for _, s := range o.run.Counters {
				if s.Role != role {
					continue
				}
				c := s
				c.Values = map[string]float64{}
				for name, v := range s.Values {
					if rest, ok := strings.CutPrefix(name, metric); ok && (rest == "" || rest[0] == '{') {
						c.Values[name] = v
					}
				}
				sub.Counters = append(sub.Counters, c)
			}
			o.counters[role+" "+metric] = sub
		}
	}
}

// count is the rise of a counter over all roles that show it.
func (o *observer) count(metric string, from, to float64) (sum float64, ok bool) {
	base, _, _ := strings.Cut(metric, "{")
	for _, role := range o.roles {
		if sub := o.counters[role+" "+base]; sub != nil {
			v, has := sub.CounterDelta(role, metric, from, to)
			sum, ok = sum+v, ok || has
		}
	}
	return sum, ok
}

// labels returns the values of a label that a metric has, over all roles.
func (o *observer) labels(metric, label string) []string {
	set := map[string]bool{}
	for _, role := range o.roles {
		sub := o.counters[role+" "+metric]
		if sub == nil {
			continue
		}
		for _, s := range sub.Counters {
			for name := range s.Values {
				if _, rest, ok := strings.Cut(name, label+`="`); ok {
					v, _, _ := strings.Cut(rest, `"`)
					set[v] = true
				}
			}
		}
	}
	var out []string
	for v := range set {
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

// source is something counted between two times.
type source func(from, to float64) (float64, bool)

func (o *observer) counter(metric string) source {
	return func(from, to float64) (float64, bool) { return o.count(metric, from, to) }
}

func (o *observer) cpu(role string) source {
	return func(from, to float64) (float64, bool) { return o.run.RoleCPU(role, from, to) }
}

// cpuOf is the CPU of several roles together.
func (o *observer) cpuOf(roles []string) source {
	return func(from, to float64) (sum float64, ok bool) {
		for _, r := range roles {
			cpu, has := o.run.RoleCPU(r, from, to)
			sum, ok = sum+cpu, ok || has
		}
		return sum, ok
	}
}

// second counts something of series.csv. Rows are one-second counts; a row that
// a border cuts counts by the part inside.
func (o *observer) second(f func(history.Second) int64) source {
	return func(from, to float64) (float64, bool) {
		sum, any := 0.0, false
		for _, s := range o.run.Seconds {
			if in := math.Min(s.T, to) - math.Max(s.T-1, from); in > 0 {
				sum += float64(f(s)) * math.Min(in, 1)
				any = true
			}
		}
		return sum, any
	}
}

func sends(s history.Second) int64  { return s.Accepted }
func logins(s history.Second) int64 { return s.Logins }
func frames(s history.Second) int64 { return s.FramesIn + s.FramesOut }

// delivered counts all deliveries to applications but those of the proof.
func delivered(s history.Second) int64 { return s.Live + s.Drained + s.Transition }

// connected is connection-seconds: the level at the end of a second stands for it.
func connected(s history.Second) int64 { return s.Connected }

// per is the ratio of two sources over the phase, with an interval over blocks.
func (o *observer) per(num, den source, edges []float64) Measure {
	var ns, ds []float64
	for i := range len(edges) - 1 {
		n, ok1 := num(edges[i], edges[i+1])
		d, ok2 := den(edges[i], edges[i+1])
		if !ok1 || !ok2 {
			continue
		}
		ns, ds = append(ns, n), append(ds, d)
	}
	return ratio(ns, ds)
}

// cpuPerSend is CPU-seconds of a role for each accepted send.
func (o *observer) cpuPerSend(role string) Measure {
	return o.per(o.cpu(role), o.second(sends), o.edges)
}

// perSend is a counter for each accepted send.
func (o *observer) perSend(metric string) Measure {
	return o.per(o.counter(metric), o.second(sends), o.coarse)
}

// secondPerSend is something of series.csv for each accepted send.
func (o *observer) secondPerSend(f func(history.Second) int64) Measure {
	return o.per(o.second(f), o.second(sends), o.edges)
}

// rate is the mean of a source a second.
func (o *observer) rate(s source) float64 {
	v, ok := s(o.phase.Start, o.phase.End)
	if !ok || o.phase.End <= o.phase.Start {
		return math.NaN()
	}
	return v / (o.phase.End - o.phase.Start)
}

// item is a kind of work whose cost a fit looks for.
type item struct {
	name string
	what string
	src  source
}

// items are the kinds of work of a role that several phases may tell apart.
func (o *observer) items(role string) []item {
	switch role {
	case "gateway":
		return []item{{"frame", "frames in and out", o.second(frames)}, {"login", "logins", o.second(logins)}, {"connection_s", "connection-seconds", o.second(connected)}}
	case "inbox":
		return []item{{"live_delivery", "deliveries to live devices", o.counter(`throng_inbox_devices_total{how="live"}`)},
			{"row", "inbox rows appended", o.counter("throng_inbox_rows_appended_total")}, {"open", "sessions opened", o.counter("throng_inbox_opens_total")}}
	case "fanout":
		return []item{{"group_message", "group messages", o.counter("throng_fanout_records_total")}, {"recipient", "recipients", o.counter("throng_fanout_recipients_total")}}
	}
	return nil
}

// fitItems fits a role's CPU to its items over blocks of all load phases.
func (o *observer) fitItems(role string) ([]item, fit) {
	items := o.items(role)
	if len(items) == 0 {
		return nil, fit{}
	}
	var x [][]float64
	var y []float64
	for _, b := range o.loadBlocks() {
		cpu, ok := o.run.RoleCPU(role, b[0], b[1])
		row := make([]float64, len(items))
		for j, it := range items {
			v, has := it.src(b[0], b[1])
			row[j], ok = v, ok && has
		}
		if ok {
			x, y = append(x, row), append(y, cpu)
		}
	}
	if len(y) == 0 {
		return items, fit{why: "its work was not counted"}
	}
	return items, nonNegative(x, y)
}

// loadBlocks cuts the load phases into blocks of about five seconds.
func (o *observer) loadBlocks() [][2]float64 {
	var out [][2]float64
	for _, p := range o.run.Manifest.Phases {
		if !p.Load || p.End-p.Start < 2 {
			continue
		}
		e := cut(p.Start, p.End, clamp((p.End-p.Start)/5, 1, 1000))
		for i := range len(e) - 1 {
			out = append(out, [2]float64{e[i], e[i+1]})
		}
	}
	return out
}
