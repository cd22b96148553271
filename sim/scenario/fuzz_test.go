package scenario

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzParse: a file is a scenario, or errors that say where.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("../../scenarios/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no scenarios: %v", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a: &a [*a, *a]\n"))
	f.Add([]byte("name: x\nphases: {steady: 1e999s}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := Parse("fuzz.yaml", data)
		if (spec == nil) == (err == nil) {
			t.Fatalf("spec %v, error %v", spec, err)
		}
		if err != nil && err.Error() == "" {
			t.Fatal("an error without a word")
		}
	})
}
