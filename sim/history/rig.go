package history

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// FileRig has what could have limited the harness itself.
const FileRig = "rig.csv"

// Rig is one row of rig.csv, about one a second for each process that plays
// users: what could have made that process, and not the system, the limit. Where
// the machine does not tell something it is 0. Counts are of the interval that
// ends at T.
type Rig struct {
	T        float64 `csv:"t_s"`
	Instance int     `csv:"instance"` // of the role generator: 0 the harness itself, from 1 its agents
	Cores    int     `csv:"cores"`    // that the process may use
	OwnCPU   float64 `csv:"own_cpu"`  // cores that it used
	Busy     float64 `csv:"busy"`     // share of the machine's CPU time that was not idle, steal included
	Steal    float64 `csv:"steal"`    // share of the machine's CPU time that the hypervisor gave to others
	// GCPauseUs is the longest time for which the garbage collector stopped the
	// process, microseconds.
	GCPauseUs int64 `csv:"gc_pause_us"`
	// ClockStepUs is by how much the wall clock jumped against the monotonic one,
	// microseconds.
	ClockStepUs int64 `csv:"clock_step_us"`
	Segments    int64 `csv:"segments"`    // TCP segments that this machine sent
	Retransmits int64 `csv:"retransmits"` // of them, sent again
	Drops       int64 `csv:"drops"`       // segments and connections that full socket buffers and queues of this machine dropped
	NoFiles     int64 `csv:"no_files"`    // connects that failed because the process may open no more files
	NoPorts     int64 `csv:"no_ports"`    // connects that failed because there was no free local port
}

// Rig appends a row to rig.csv.
func (w *Writer) Rig(r Rig) error { return w.append(FileRig, csvLine(values(r))) }

// readRig reads rig.csv, which runs of older versions do not have.
func (r *Run) readRig() (err error) {
	if _, err := os.Stat(filepath.Join(r.Dir, FileRig)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r.Rig, err = readCSV[Rig](r, FileRig)
	return err
}
