package target

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDataFoldersOfTheDeadAreRemoved(t *testing.T) {
	parent := t.TempDir()
	dead, err := newDataDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead.path, "data"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(parent, dataPrefix+"not-ours")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	living, err := newDataDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead.path); err != nil {
		t.Fatalf("a folder in use was removed: %v", err)
	}
	if err := dead.lock.Close(); err != nil { // as the kernel does
		t.Fatal(err)
	}
	third, err := newDataDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead.path); err == nil {
		t.Error("the folder of a dead harness was left")
	}
	for _, path := range []string{living.path, third.path, other} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("removed: %v", err)
		}
	}
	for _, d := range []*dataDir{living, third} {
		if err := d.remove(); err != nil {
			t.Error(err)
		}
	}
}
