// Package monitoring_test checks the dashboard, the alerts and the configuration of
// Prometheus in this folder: that they can be read, and that every metric they
// name is one that the backend has.
package monitoring_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/goccy/go-yaml"
)

// known returns the names of metrics in the backend's sources, and those that the
// client library adds.
func known(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{"process_cpu_seconds_total": true, "process_resident_memory_bytes": true, "process_open_fds": true,
		"process_max_fds": true, "go_goroutines": true, "go_gc_duration_seconds": true,
		"go_sql_in_use_connections": true, "go_sql_max_open_connections": true, "go_sql_wait_duration_seconds_total": true}
	literal := regexp.MustCompile(`"(throng_[a-z0-9_]+)"`)
	err := filepath.WalkDir("../../internal", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		src, err := os.ReadFile(name)
		for _, m := range literal.FindAllSubmatch(src, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// check parses an expression and looks every metric in it up.
func check(t *testing.T, where, expr string, names map[string]bool) {
	t.Helper()
	e, err := metricsql.Parse(strings.ReplaceAll(expr, "$__rate_interval", "1m"))
	if err != nil {
		t.Errorf("%s: %v: %s", where, err, expr)
		return
	}
	found := 0
	metricsql.VisitAll(e, func(e metricsql.Expr) {
		m, ok := e.(*metricsql.MetricExpr)
		if !ok {
			return
		}
		for _, filters := range m.LabelFilterss {
			for _, f := range filters {
				if f.Label != "__name__" {
					continue
				}
				found++
				base := f.Value
				for _, suffix := range []string{"_bucket", "_count", "_sum"} {
					base = strings.TrimSuffix(base, suffix)
				}
				if !names[f.Value] && !names[base] {
					t.Errorf("%s: there is no metric %s", where, f.Value)
				}
			}
		}
	})
	if found == 0 {
		t.Errorf("%s: no metric in %s", where, expr)
	}
}

func read(t *testing.T, name string, into any, decode func([]byte, any) error) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := decode(data, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestDashboard(t *testing.T) {
	var d struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ Expr string }
		}
	}
	read(t, "dashboard.json", &d, json.Unmarshal)
	names, ids := known(t), map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id of another one", p.Title)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			check(t, "panel "+p.Title, target.Expr, names)
		}
	}
	if len(ids) < 20 {
		t.Errorf("only %d panels were read", len(ids))
	}
}

func TestAlerts(t *testing.T) {
	var a struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	read(t, "alerts.yml", &a, yaml.Unmarshal)
	names, n := known(t), 0
	for _, g := range a.Groups {
		for _, r := range g.Rules {
			n++
			check(t, "alert "+r.Alert, r.Expr, names)
			if s := r.Labels["severity"]; s != "page" && s != "ticket" || r.Annotations["summary"] == "" {
				t.Errorf("alert %s: severity %q, summary %q", r.Alert, s, r.Annotations["summary"])
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d alerts were read", n)
	}
}

func TestPrometheusConfig(t *testing.T) {
	var c struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName string `yaml:"job_name"`
		} `yaml:"scrape_configs"`
	}
	read(t, "prometheus.yml", &c, yaml.Unmarshal)
	if len(c.ScrapeConfigs) == 0 {
		t.Error("nothing is scraped")
	}
	for _, f := range c.RuleFiles {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
}
