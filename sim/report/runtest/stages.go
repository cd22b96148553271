package runtest

import (
	"math"
	"slices"

	"throng/sim/history"
)

// SlowInboxUs is what one delivery in slowEvery of a synthetic run waits in the
// inbox, and StageUs what each delivery spends in a usual stage.
const (
	SlowInboxUs = 60_000.0
	StageUs     = 500.0
	slowEvery   = 30
)

// stages writes the stages of a second: n deliveries of a kind, each of which is
// stamped. What is slow is slow in the inbox.
func (s *state) stages(kind string, t float64, n int) error {
	names := history.StagesOf(kind)
	cells := map[int64]*history.StageCell{}
	alone := make([][]int64, len(names))
	for range n {
		s.stamped[kind]++
		var total int64
		by := make([]int64, len(names))
		for k, name := range names {
			us := StageUs * math.Exp(0.5*s.stage.NormFloat64())
			if name == history.StageInbox && s.stamped[kind]%slowEvery == 0 {
				us += SlowInboxUs
			}
			by[k] = int64(us)
			total += by[k]
			alone[k] = append(alone[k], by[k])
		}
		top := (total/100 + 1) * 100
		if cells[top] == nil {
			cells[top] = &history.StageCell{UpTo: top, Stages: make([]int64, len(names))}
		}
		c := cells[top]
		c.N++
		c.Total += total
		for k, v := range by {
			c.Stages[k] += v
		}
	}
	line := history.Stages{Kind: kind, Start: t - 1, End: t}
	for _, c := range cells {
		line.Cells = append(line.Cells, *c)
	}
	slices.SortFunc(line.Cells, func(a, b history.StageCell) int { return int(a.UpTo - b.UpTo) })
	if err := s.w.Stages(&line); err != nil {
		return err
	}
	for k, name := range names {
		h := history.NewHist()
		for _, us := range alone[k] {
			if err := h.RecordValue(us); err != nil {
				return err
			}
		}
		if err := s.w.Interval(history.Interval{Kind: history.KindStage + kind + "." + name, Start: t - 1, End: t, Hist: h}); err != nil {
			return err
		}
	}
	return nil
}
