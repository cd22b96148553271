package mediasql_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"throng/system/internal/media"
	"throng/system/internal/media/mediatest"
	"throng/system/internal/mediasql"
	"throng/system/internal/sqlstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	mediatest.Store(t, func(t *testing.T) func(t *testing.T) media.Store {
		return func(t *testing.T) media.Store {
			return open(t, mediasql.Config{Driver: "sqlite", DSN: filepath.Join(filepath.Dir(t.TempDir()), "media.db")})
		}
	})
}

// TestConformanceOnMySQL runs where THRONG_MYSQL_DSN names a schema that may be
// written to.
func TestConformanceOnMySQL(t *testing.T) {
	dsn := os.Getenv("THRONG_MYSQL_DSN")
	if dsn == "" {
		t.Skip("THRONG_MYSQL_DSN is not set")
	}
	mediatest.Store(t, func(t *testing.T) func(t *testing.T) media.Store {
		schema, err := sqlstore.MySQLSchema(t.Context(), dsn, fmt.Sprintf("_%d", time.Now().UnixNano()))
		if err != nil {
			t.Fatal(err)
		}
		return func(t *testing.T) media.Store { return open(t, mediasql.Config{Driver: "mysql", DSN: schema}) }
	})
}

func open(t *testing.T, cfg mediasql.Config) media.Store {
	t.Helper()
	s, err := mediasql.Open(t.Context(), cfg)
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
