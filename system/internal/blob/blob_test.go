package blob_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"throng/system/internal/blob"
	"throng/system/internal/media"
	"throng/system/internal/media/mediatest"
)

func TestMain(m *testing.M) {
	var ignore []goleak.Option
	if os.Getenv(s3Env) != "" {
		// The SDK's HTTP client keeps idle connections, and gives nobody the means to
		// close them.
		ignore = append(ignore, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
	}
	goleak.VerifyTestMain(m, ignore...)
}

const s3Env = "THRONG_S3_URL"

func open(t *testing.T, at string) media.Blobs {
	t.Helper()
	s, err := blob.Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformanceOfFiles(t *testing.T) {
	mediatest.Blobs(t, func(t *testing.T) media.Blobs { return open(t, "file://"+filepath.Join(t.TempDir(), "new")) })
}

// TestConformanceOfS3 runs where THRONG_S3_URL is the URL of a bucket that may be
// written to, with its keys in the environment.
func TestConformanceOfS3(t *testing.T) {
	at := os.Getenv(s3Env)
	if at == "" {
		t.Skip(s3Env + " is not set")
	}
	mediatest.Blobs(t, func(t *testing.T) media.Blobs { return open(t, at) })
}

// TestKilled: what a process was writing when it was killed is nothing that
// anybody sees, and goes with the object.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	b := open(t, "file://"+dir)
	if _, err := b.Write(t.Context(), "aa/bb/ab-1-x", bytes.NewReader([]byte("whole"))); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "aa", "bb", "ab-2-x.17f3.tmp") // as fileblob names it
	if err := os.WriteFile(left, []byte("ha"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(t.Context(), "aa/bb/ab-2-x", 0); err == nil {
		t.Error("half a blob can be read")
	}
	if err := b.DeleteAll(t.Context(), "aa/bb/ab-"); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(filepath.Dir(left)); err != nil || len(files) != 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}

func TestURLs(t *testing.T) {
	for at, ok := range map[string]bool{
		"file:///a/b": true, "s3://bucket?region=x&endpoint=http://s3:9000": true,
		"": false, "file://": false, "file://relative": false, "file:///": false, "s3://": false, "gs://bucket": false, "/a/b": false, "mem://": false,
	} {
		if err := blob.Check(at); (err == nil) != ok {
			t.Errorf("%q: %v", at, err)
		}
	}
}
