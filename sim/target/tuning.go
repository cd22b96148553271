package target

import (
	"fmt"
	"os"
	"runtime"

	"throng/system"
)

// Tuning of the Go runtime of a process. Zero values leave the default.
type Tuning struct {
	GOGC          int
	MemLimitBytes int64
	GOMAXPROCS    int
}

// inboxLoops are the loops of an inbox, by default.
const inboxLoops = 2

// shareCores has each process run as many threads of Go as four times its part of
// the cores, one at least, unless the environment says how many. With more than the
// machine has cores, the threads of one process wait behind each other's, and
// what one process does at once comes late to all: on two cores, with one thread for
// each process, the p99 of milli_whatsapp's deliveries was a third
// (reports/bench/2026-11-28-threads.txt). An inbox has one for each of its
// loops, which else wait for its garbage collection, seconds long for what it keeps.
func (e *Embedded) shareCores() {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	threads := max(1, 4*runtime.NumCPU()/len(e.children))
	for _, c := range e.children {
		n := threads
		if c.role == string(system.Inbox) {
			n = max(n, inboxLoops)
		}
		if n < runtime.NumCPU() && e.cfg.Tuning[c.role].GOMAXPROCS == 0 {
			c.env = append(c.env, fmt.Sprintf("GOMAXPROCS=%d", n))
		}
	}
}

// gcPercent is how much a process allocates, as a share of what it keeps, before it
// collects: on one machine with all others there is more memory than CPU. What
// stands in for Redis keeps its data in maps, whose collection was a third of its
// CPU; an inbox keeps the newest rows, and is slow while it collects. 0: as the
// environment or the runtime says.
func gcPercent(c *child, t Tuning) int {
	switch {
	case t.GOGC != 0 || os.Getenv("GOGC") != "":
		return t.GOGC
	case c.infra || c.role == string(system.Inbox):
		return 400
	}
	return 200
}
