package history

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// NewRunID returns the name of a run's folder: names sort by start time, and the
// rest tells apart runs of the same second and shows at a glance whether two
// runs may be of the same specification.
func NewRunID(start time.Time, specHash string) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s %d", specHash, start.UnixNano()))
	return start.UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(h[:3])
}

// link points "latest" beside dir at dir, in one step.
func link(dir string) error {
	parent, name := filepath.Dir(dir), filepath.Base(dir)
	if name == LinkLatest || name == "." || name == ".." {
		return fmt.Errorf("a run folder cannot be called %q", name)
	}
	latest := filepath.Join(parent, LinkLatest)
	if info, err := os.Lstat(latest); err == nil && info.Mode()&os.ModeSymlink == 0 {
		return fmt.Errorf("%s is not a link: left alone", LinkLatest)
	}
	tmp := filepath.Join(parent, "."+LinkLatest+"-"+name)
	_ = os.Remove(tmp) // left by a kill at this point; mostly there is none
	if err := os.Symlink(name, tmp); err != nil {
		return fmt.Errorf("link %s: %w", LinkLatest, err)
	}
	if err := os.Rename(tmp, latest); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("link %s: %w", LinkLatest, err)
	}
	return nil
}
