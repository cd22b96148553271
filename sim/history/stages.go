package history

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Stages of a delivery on its way, in order. They are cut where the system has
// stamped the message (wire.Stamps), so that their sum is the latency.
const (
	StageClient     = "client"      // from the intended time until its client writes it: lateness, waiting for what it answers, a login
	StageUplink     = "uplink"      // until the gateway has read it
	StageGatewayIn  = "gateway_in"  // until it is at the message service
	StageMessage    = "message"     // until it is at the inbox of its addressee (direct) or handed to Kafka (group)
	StageLog        = "log"         // group: until the fan-out has read it
	StageFanout     = "fanout"      // group: until it is at the inbox of its addressee
	StageInbox      = "inbox"       // until it is released to the gateway of its addressee
	StageGatewayOut = "gateway_out" // until that gateway is about to write it
	StageDownlink   = "downlink"    // until the application has it
)

// KindStage begins the kinds of latency of the stages alone:
// "stage.send_deliver_group.inbox".
const KindStage = "stage."

// StagesOf returns the stages of KindDeliverDirect or KindDeliverGroup, in order.
func StagesOf(kind string) []string {
	if kind == KindDeliverDirect {
		return []string{StageClient, StageUplink, StageGatewayIn, StageMessage, StageInbox, StageGatewayOut, StageDownlink}
	}
	return []string{StageClient, StageUplink, StageGatewayIn, StageMessage, StageLog, StageFanout, StageInbox, StageGatewayOut, StageDownlink}
}

// Stages is where the sampled deliveries of one kind spent their time, over one
// second. A line of stages.jsonl.
type Stages struct {
	Kind  string  `json:"kind"`    // KindDeliverDirect or KindDeliverGroup
	Start float64 `json:"start_s"` // seconds since the start of the run
	End   float64 `json:"end_s"`
	// Cells are by latency, ascending: what the slow ones have in common is not
	// in any histogram of one stage.
	Cells []StageCell `json:"cells"`
	// Negative counts deliveries with a stage below zero, which counts as zero:
	// the clocks of two processes disagree. Partial counts those that lack a
	// stamp and are in no cell.
	Negative int64 `json:"negative,omitempty"`
	Partial  int64 `json:"partial,omitempty"`
}

// StageCell is the deliveries of about the same latency (3 % wide), as sums in
// microseconds.
type StageCell struct {
	UpTo   int64   `json:"us"`  // the highest latency of the cell
	N      int64   `json:"n"`   // deliveries
	Total  int64   `json:"sum"` // of their latencies
	Stages []int64 `json:"by"`  // of each stage, as StagesOf has them
}

// Add merges another interval of the same kind into s.
func (s *Stages) Add(o *Stages) {
	s.Negative += o.Negative
	s.Partial += o.Partial
	for _, c := range o.Cells {
		i, found := slices.BinarySearchFunc(s.Cells, c.UpTo, func(c StageCell, upTo int64) int { return int(c.UpTo - upTo) })
		if !found {
			c.Stages = slices.Clone(c.Stages)
			s.Cells = slices.Insert(s.Cells, i, c)
			continue
		}
		to := &s.Cells[i]
		to.N += c.N
		to.Total += c.Total
		for k := range min(len(to.Stages), len(c.Stages)) {
			to.Stages[k] += c.Stages[k]
		}
	}
}

// Count is the number of deliveries in the cells.
func (s *Stages) Count() (n int64) {
	for _, c := range s.Cells {
		n += c.N
	}
	return n
}

// Stages appends a line to stages.jsonl; one without deliveries is left out.
func (w *Writer) Stages(s *Stages) error {
	if len(s.Cells) == 0 && s.Partial == 0 {
		return nil
	}
	return w.append(FileStages, jsonLine(s))
}

// readStages reads stages.jsonl, which runs of older versions do not have.
func (r *Run) readStages() error {
	if _, err := os.Stat(filepath.Join(r.Dir, FileStages)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lines, err := readJSONL[Stages](r, FileStages)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if n := len(StagesOf(l.Kind)); slices.ContainsFunc(l.Cells, func(c StageCell) bool { return len(c.Stages) != n }) {
			r.problem("%s: %s at %.0f s does not have %d stages", FileStages, l.Kind, l.Start, n)
			continue
		}
		r.stages = append(r.stages, l)
	}
	return nil
}

// Stages returns the stages of a kind in the intervals whose middle is in [from,
// to), merged; without any it has no cells.
func (r *Run) Stages(kind string, from, to float64) *Stages {
	sum := &Stages{Kind: kind, Start: from, End: to}
	for i := range r.stages {
		s := &r.stages[i]
		if mid := (s.Start + s.End) / 2; s.Kind == kind && mid >= from && mid < to {
			sum.Add(s)
		}
	}
	return sum
}
