package history

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestStagesComeBack: what was written is read back by kind and time, merged,
// and a folder without the file is whole.
func TestStagesComeBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	m := manifest()
	w, err := Create(dir, m)
	if err != nil {
		t.Fatal(err)
	}
	direct := []int64{1, 2, 3, 4, 5, 6, 7}
	for _, s := range []*Stages{
		{Kind: KindDeliverDirect, Start: 0, End: 1, Cells: []StageCell{{30, 2, 56, direct}}, Partial: 1},
		{Kind: KindDeliverDirect, Start: 1, End: 2, Cells: []StageCell{{20, 1, 20, direct}, {30, 1, 28, direct}}, Negative: 1},
		{Kind: KindDeliverDirect, Start: 2, End: 3, Cells: []StageCell{{30, 5, 28, direct}}},
		{Kind: KindDeliverGroup, Start: 1, End: 2, Cells: []StageCell{{90, 1, 90, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9}}}},
		{Kind: KindDeliverGroup, Start: 1, End: 2, Cells: []StageCell{{90, 1, 90, direct}}}, // of another version
		{Kind: KindDeliverDirect, Start: 3, End: 4},
	} {
		if err := w.Stages(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(m); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := r.Stages(KindDeliverDirect, 0, 2)
	want := &Stages{Kind: KindDeliverDirect, Start: 0, End: 2, Negative: 1, Partial: 1,
		Cells: []StageCell{{20, 1, 20, direct}, {30, 3, 84, []int64{2, 4, 6, 8, 10, 12, 14}}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if n := r.Stages(KindDeliverGroup, 0, 9).Count(); n != 1 {
		t.Errorf("%d group deliveries, want 1", n)
	}
	if len(r.Problems) != 2 { // the line of another version, and there is no audit
		t.Errorf("problems: %q", r.Problems)
	}
	if err := os.Remove(filepath.Join(dir, FileStages)); err != nil {
		t.Fatal(err)
	}
	if r, err = Open(dir); err != nil || len(r.Problems) != 1 || len(r.Stages(KindDeliverDirect, 0, 9).Cells) != 0 {
		t.Errorf("without the file: %v, problems %q", err, r.Problems)
	}
}
