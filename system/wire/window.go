package wire

// Window de-duplicates, at a receiver, the messages of one (sender device,
// conversation) by their seq. It remembers the highest seq and which of the
// WindowSize before it have come, in 16 bytes. It is not a high-water mark: a
// message that comes late is fresh if it has not come before, and one older
// than the window is taken to be fresh, because showing a message twice is a
// smaller fault than losing it. The zero value is ready.
type Window struct {
	highest uint64
	below   uint64 // bit i: highest-1-i has come
}

// WindowSize is how far below the highest seq a Window remembers.
const WindowSize = 64

// Accept records seq and reports whether it is fresh, that is not known to
// have come before. seq counts from 1; 0 is no sequence number and always fresh.
func (w *Window) Accept(seq uint64) (fresh bool) {
	switch {
	case seq == 0:
		return true
	case seq > w.highest:
		up := seq - w.highest
		if w.highest == 0 || up > WindowSize {
			w.below = 0
		} else {
			// A shift by 64 is 0 in Go, and then bit 63 is the old highest.
			w.below = w.below<<up | 1<<(up-1)
		}
		w.highest = seq
		return true
	case seq == w.highest:
		return false
	}
	down := w.highest - seq
	if down > WindowSize {
		return true
	}
	bit := uint64(1) << (down - 1)
	fresh = w.below&bit == 0
	w.below |= bit
	return fresh
}

// Highest returns the highest seq accepted, 0 if none.
func (w *Window) Highest() uint64 { return w.highest }
