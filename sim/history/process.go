package history

import (
	"cmp"
	"slices"
)

// Gauges of a Go process among the values of a CounterSample, by the names that
// Prometheus' collector gives them. The generator's have the same.
const (
	GaugeGoroutines = "go_goroutines"
	// GaugeLiveHeap is what the last garbage collection found in use, bytes: unlike
	// the heap's size it does not swing between two collections.
	GaugeLiveHeap = "go_gc_heap_live_bytes"
)

// RoleGenerator is the process that makes the load, the harness itself.
const RoleGenerator = "generator"

// Level is the value of a gauge at a time, seconds since the start of the run.
type Level struct{ T, V float64 }

// Process is what one process had at each sample. A gauge that was never read
// has none; memory has none while the process was down.
type Process struct {
	Role       string
	Instance   int
	RSS        []Level // bytes
	LiveHeap   []Level // bytes
	Goroutines []Level
	// Restarted are the times of the first scrapes of new incarnations.
	Restarted []float64
}

// Processes returns the processes that have samples, by role and instance.
func (r *Run) Processes() []Process {
	type key struct {
		role     string
		instance int
	}
	byKey := map[key]*Process{}
	of := func(role string, instance int) *Process {
		k := key{role, instance}
		if byKey[k] == nil {
			byKey[k] = &Process{Role: role, Instance: instance}
		}
		return byKey[k]
	}
	for _, s := range r.Roles {
		p := of(s.Role, s.Instance)
		if s.RSSBytes > 0 {
			p.RSS = append(p.RSS, Level{s.T, float64(s.RSSBytes)})
		}
	}
	incarnation := map[key]int{}
	for _, s := range r.Counters {
		k, p := key{s.Role, s.Instance}, of(s.Role, s.Instance)
		if before, ok := incarnation[k]; ok && before != s.Restart {
			p.Restarted = append(p.Restarted, s.T)
		}
		incarnation[k] = s.Restart
		if v, ok := s.Values[GaugeGoroutines]; ok {
			p.Goroutines = append(p.Goroutines, Level{s.T, v})
		}
		if v, ok := s.Values[GaugeLiveHeap]; ok {
			p.LiveHeap = append(p.LiveHeap, Level{s.T, v})
		}
	}
	out := make([]Process, 0, len(byKey))
	for _, p := range byKey {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b Process) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Instance, b.Instance))
	})
	return out
}
