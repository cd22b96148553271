package load

import (
	"bytes"
	"strings"
	"syscall"
	"testing"
	"time"

	"throng/sim/audit"
	"throng/sim/history"
	"throng/sim/scenario"
	"throng/sim/workload"
)

// fullDisk is a spool's file on a disk that takes no byte more.
type fullDisk struct{ bytes.Reader }

func (*fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// A disk that is full leaves nothing proved, and says so; it is no pass.
func TestFullDiskIsNoProof(t *testing.T) {
	disk := &fullDisk{}
	e := &Engine{start: time.Now(), cfg: Config{Spool: disk}, spec: &scenario.Spec{}, sched: &workload.Schedule{}, audit: audit.NewSpool(disk, 1)}
	e.crew = solo{e}
	e.audit.Written(&audit.Message{Peer: 2, Sender: audit.Device{User: 1}, Addressees: []audit.Device{{User: 2}}}, 0).Acknowledged(0)
	r := e.judge(t.Context(), nil).Audit
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "no space left on device") || r.Expected != 0 || r.Proved != 0 {
		t.Errorf("%+v, want nothing proved and the reason", r)
	}
}

// A latency stands where it ended: in its part of a phase that decides, in one
// part for each other phase, and after the load in a part of its own.
func TestFanoutsStandWhereTheyEnded(t *testing.T) {
	f := newFanouts([]history.Phase{{Name: "warmup", Start: 1, End: 3}, {Name: "steady", Start: 3, End: 13, Gated: true}}, 20)
	if len(f.slices) != 1+fanoutBlocks+1 || f.slices[len(f.slices)-1] != (history.Interval{Start: 13, End: 20}) {
		t.Fatalf("%+v", f.slices)
	}
	f.add(audit.Fanout{SizeClass: 2, Intended: 2900 * time.Millisecond, First: 50 * time.Millisecond, Last: 5 * time.Second, Complete: true})
	f.add(audit.Fanout{SizeClass: 2, Intended: 12 * time.Second, First: 1500 * time.Millisecond, Last: 2 * time.Second})
	want := map[fanoutKey]int64{{slice: 0, class: 2}: 50_000, {slice: 1 + 4, class: 2, last: true}: 5_000_000, {slice: 11, class: 2}: 1_500_000}
	for k, h := range f.hists {
		if us := h.Max(); h.TotalCount() != 1 || us < want[k]*999/1000 || us > want[k]*1001/1000 {
			t.Errorf("%+v: %d of at most %d us, want one of %d", k, h.TotalCount(), us, want[k])
		}
	}
	if len(f.hists) != len(want) {
		t.Errorf("%d histograms, want %d: a last member that is not known was counted", len(f.hists), len(want))
	}
}
