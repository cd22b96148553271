package workload

import (
	"throng/sim/population"
	"throng/sim/scenario"
)

// minMedia is the least size of an object in bytes.
const minMedia = 64

// Media says whether a send has an object, and what it is like.
type Media struct {
	Bytes     int64
	Interrupt bool // its upload loses the connection half-way
}

// MediaOf returns the object of a send, false if it has none.
func (s *Schedule) MediaOf(a *Action) (Media, bool) {
	m, sizes := s.spec.Media, scenario.MediaBytes()
	if m.Share == 0 || a.Kind != Send || a.MsgKind < 1 || int(a.MsgKind) >= len(sizes) {
		return Media{}, false
	}
	r := population.NewStream(s.spec.Seed, purposeMedia, uint64(a.Index), 0)
	if r.Float64() >= m.Share {
		return Media{}, false
	}
	size := sizes[a.MsgKind] * m.ByteScale * r.Exp()
	return Media{Bytes: max(minMedia, int64(min(size, scenario.MaxMediaBytes))), Interrupt: r.Float64() < m.InterruptShare}, true
}
