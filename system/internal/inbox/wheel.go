package inbox

import "time"

const (
	wheelSlot  = 50 * time.Millisecond
	wheelSlots = 256
)

type timerKind uint8

const (
	timerAck timerKind = iota
	timerPush
	timerReceipts
	timerHeld
)

type timer struct {
	at   int64 // Unix nanoseconds
	kind timerKind
	dev  *device
	s    *session // timerAck, timerReceipts
}

// wheel holds timers in slots of 50 ms. Arming and firing cost a few tens of
// nanoseconds each; there is no cancelling, who fires looks whether there is
// still something to do. A timer fires up to one slot late. Its size is bounded
// by four timers for each cached device, which its owner sees to.
type wheel struct {
	slots [wheelSlots][]timer
	slot  int64 // the slot number that was last fired
	n     int
}

func newWheel(now int64) wheel { return wheel{slot: slotOf(now)} }

func slotOf(at int64) int64 { return at / int64(wheelSlot) }

func (w *wheel) add(t timer) {
	// In a later slot than the last fired, and within one turn of the wheel;
	// one that is further away is put back when its slot comes.
	slot := min(max(slotOf(t.at)+1, w.slot+1), w.slot+wheelSlots-1)
	i := slot % wheelSlots
	w.slots[i] = append(w.slots[i], t)
	w.n++
}

// advance calls fire for every timer due at now.
func (w *wheel) advance(now int64, fire func(timer)) {
	to := slotOf(now)
	w.slot = max(w.slot, to-wheelSlots) // after a long gap each slot is due once
	for w.slot < to {
		w.slot++
		i := w.slot % wheelSlots
		due := w.slots[i]
		w.slots[i] = nil
		w.n -= len(due)
		for _, t := range due {
			if t.at > now {
				w.add(t)
			} else {
				fire(t)
			}
		}
		if w.slots[i] == nil && cap(due) <= 1024 {
			clear(due)
			w.slots[i] = due[:0]
		}
	}
}
