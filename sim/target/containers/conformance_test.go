package containers

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"testing"
	"time"
)

// TestConformance runs the suites of the adapters against MySQL, S3, Redis and Kafka
// in containers. They are the suites that run on the embedded ones everywhere.
func TestConformance(t *testing.T) {
	needDocker(t)
	cfg := testConfig(t)
	cfg.NoRoles = true
	d := start(t, cfg)
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range []string{"sqlstore", "groupsql", "inboxsql", "mediasql", "blob", "groupcache", "session", "kafka"} {
		t.Run(suite, func(t *testing.T) {
			dsn, err := d.Schema(t.Context(), "throng_test_"+path.Base(suite))
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(within(t, 5*time.Minute), "go", "test", "-trimpath", "-count=1", "-v", "./system/internal/"+suite)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "THRONG_MYSQL_DSN="+dsn, "THRONG_REDIS_ADDR="+d.Address(RoleRedis, 0, portRedis),
				"THRONG_KAFKA_BROKERS="+d.Address(RoleKafka, 0, kafkaHost), "THRONG_S3_URL="+s3URL(d.Address(RoleS3, 0, portS3)))
			for name, value := range s3Keys() {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
			out, err := cmd.CombinedOutput()
			// Nobody may think that a suite has run that was skipped.
			if err == nil && bytes.Contains(out, []byte("is not set")) {
				err = fmt.Errorf("it left something out")
			}
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			t.Logf("%d tests passed", bytes.Count(out, []byte("--- PASS")))
		})
	}
}
