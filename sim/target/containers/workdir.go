package containers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const workPrefix = "throng-run-"

// workDir is the folder of a run. While its harness lives, it holds a lock on a
// file in it, see sweep.
type workDir struct {
	path string
	lock *os.File
}

func newWorkDir(parent string) (*workDir, error) {
	path, err := os.MkdirTemp(parent, workPrefix)
	if err != nil {
		return nil, fmt.Errorf("containers: work folder: %w", err)
	}
	w := &workDir{path: path}
	if w.lock, err = lockFile(w.lockPath()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	return w, nil
}

func (w *workDir) lockPath() string { return filepath.Join(w.path, "lock") }

func (w *workDir) remove() error {
	if err := errors.Join(os.RemoveAll(w.path), w.lock.Close()); err != nil {
		return fmt.Errorf("containers: remove the work folder: %w", err)
	}
	return nil
}

// lockFile makes a file and locks it for as long as this process lives.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("containers: lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("containers: lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// lockExisting locks the file if it is there; nil without an error if it is not.
func lockExisting(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
