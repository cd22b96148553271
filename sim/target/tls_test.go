package target

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"throng/system"
)

// TestRPCTLS: embedded roles speak by mutual TLS. One that comes back with a
// certificate of another authority is refused, says why, and the others go on;
// with a good one it is back.
func TestRPCTLS(t *testing.T) {
	top := small()
	top.RPCTLS = true
	e := startTestEmbedded(t, top, nil)
	folder := filepath.Join(e.data.path, "tls")
	strange := t.TempDir()
	if _, err := system.WriteCertificates(strange, time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"push.pem", "push.key"} {
		data, err := os.ReadFile(filepath.Join(strange, f))
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, f), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Kill("push", 0); err != nil {
		t.Fatal(err)
	}
	if err := e.Restart("push", 0); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, e, "inbox-0.log", "what answers is refused", "unknown authority")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, role := range []system.Role{system.Gateway, system.Message, system.Fanout, system.Group, system.Inbox, system.Media} {
		if err := e.WaitReady(ctx, string(role), 0); err != nil {
			t.Error(err)
		}
	}
	if _, err := system.WriteCertificates(folder, time.Hour); err != nil {
		t.Fatal(err)
	}
	// Nothing is restarted: the inbox's next attempt finds the push role renewed.
	awaitLog(t, e, "push-0.log", "certificate: read again")
}

// awaitLog waits until the log of a process has a line with all of these.
func awaitLog(t *testing.T, e *Embedded, name string, all ...string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		data, err := os.ReadFile(filepath.Join(e.cfg.LogDir, name))
		if err != nil {
			t.Fatal(err)
		}
	lines:
		for line := range strings.Lines(string(data)) {
			for _, s := range all {
				if !strings.Contains(line, s) {
					continue lines
				}
			}
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Fatalf("%s does not say %q", name, all)
}
