package wire

// Window de-duplicates, at a receiver, the messages of one (sender device,
// conversation) by their seq. It remembers the unbroken run of seqs that ends
// at the highest one, however long it is, and which of the WindowSize before
// the run have come, in 24 bytes. Messages come in order and without gaps but
// for times in which the receiver was not a member and for what was refused, so the run is nearly
// everything, and a message that comes again is known however old it is.
//
// It is not a high-water mark: a message that comes late is fresh if it has
// not come before, and one older than what is remembered is taken to be fresh,
// because showing a message twice is a smaller fault than losing it. The zero
// value is ready.
type Window struct {
	highest uint64
	start   uint64 // of the run: start..highest have come; 0 before the first
	below   uint64 // bit i: start-1-i has come; bit 0 is never set
}

// WindowSize is how far below the highest seq a Window remembers at least.
const WindowSize = 64

// Accept records seq and reports whether it is fresh, that is not known to
// have come before. seq counts from 1; 0 is no sequence number and always fresh.
func (w *Window) Accept(seq uint64) (fresh bool) {
	switch {
	case seq == 0:
		return true
	case w.highest == 0:
		w.start, w.highest = seq, seq
		return true
	case seq == w.highest+1:
		w.highest = seq
		return true
	case seq > w.highest:
		w.skip(seq)
		return true
	case seq >= w.start:
		return false
	}
	down := w.start - seq
	if down > WindowSize {
		return true
	}
	bit := uint64(1) << (down - 1)
	fresh = w.below&bit == 0
	w.below |= bit
	for w.below&1 != 0 {
		w.start--
		w.below >>= 1
	}
	return fresh
}

// skip starts a new run at seq, above a gap.
func (w *Window) skip(seq uint64) {
	gap, run := seq-1-w.highest, w.highest-w.start+1
	// Shifts by 64 and more are 0 in Go.
	below := w.below << min(gap+run, WindowSize) // what was below the old run
	below |= (1<<min(run, WindowSize) - 1) << min(gap, WindowSize)
	w.start, w.highest, w.below = seq, seq, below
}

// Highest returns the highest seq accepted, 0 if none.
func (w *Window) Highest() uint64 { return w.highest }
