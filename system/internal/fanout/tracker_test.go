package fanout

import (
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestTrackerIsContiguous: whatever the order in which parts are done, the
// watermark is the first record that is not done, and every record is forgotten
// exactly once.
func TestTrackerIsContiguous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type part struct{ id uint64 }
		var tr tracker
		var offsets []int64
		var left []int
		var open []part
		forgotten, mark := 0, int64(0)
		offset := int64(0)
		check := func() {
			n, next := tr.advance()
			forgotten += n
			if n > 0 {
				mark = next
			}
			want, wantN := int64(0), 0
			for i, l := range left {
				if l > 0 {
					break
				}
				want, wantN = offsets[i]+1, i+1
			}
			if mark != want || forgotten != wantN {
				t.Fatalf("watermark %d after %d records, want %d after %d", mark, forgotten, want, wantN)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				offset += rapid.Int64Range(1, 3).Draw(t, "step") // logs have gaps
				parts := rapid.IntRange(0, 3).Draw(t, "parts")
				id := tr.add(offset, parts)
				offsets, left = append(offsets, offset), append(left, parts)
				for range parts {
					open = append(open, part{id})
				}
				check()
			},
			"done": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				id := open[i].id
				open = append(open[:i], open[i+1:]...)
				tr.done(id)
				left[id]--
				check()
			},
		})
	})
}

// cpu returns the processor time this process has used.
func cpu(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
