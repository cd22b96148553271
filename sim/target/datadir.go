package target

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// dataDir is a folder for the files of one deployment. While its harness
// lives, it holds a lock on a file in it; the kernel drops the lock with the
// process, so that the next harness can tell a folder in use from one that a
// killed harness has left.
type dataDir struct {
	path string
	lock *os.File
}

const (
	dataPrefix = "throng-data-"
	lockName   = "lock"
)

// newDataDir makes a folder under parent ("": the system's folder for
// temporary files) and removes those that killed harnesses left there.
func newDataDir(parent string) (*dataDir, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	removeAbandoned(parent)
	path, err := os.MkdirTemp(parent, dataPrefix)
	if err != nil {
		return nil, fmt.Errorf("target: data folder: %w", err)
	}
	// Locked before it has its name: whoever sees the name sees the lock.
	early := filepath.Join(path, lockName+".new")
	lock, err := os.Create(early)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		err = errors.Join(err, os.Rename(early, filepath.Join(path, lockName)))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("target: lock the data folder: %w", err), os.RemoveAll(path))
	}
	return &dataDir{path: path, lock: lock}, nil
}

// removeAbandoned removes data folders that nobody holds the lock of. What
// cannot be removed, such as another user's, stays.
func removeAbandoned(parent string) {
	locks, err := filepath.Glob(filepath.Join(parent, dataPrefix+"*", lockName))
	if err != nil {
		return // only a malformed pattern is an error
	}
	for _, name := range locks {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(filepath.Dir(name))
		}
		_ = f.Close()
	}
}

// remove removes the folder with everything in it.
func (d *dataDir) remove() error {
	if err := errors.Join(os.RemoveAll(d.path), d.lock.Close()); err != nil {
		return fmt.Errorf("target: remove data: %w", err)
	}
	return nil
}
