// Package report turns a run folder into its result: the verdict and why,
// result.json (format: result.schema.json), JUnit XML, a markdown summary, plots
// and report.html, one file that needs no network. It owns the verdict, the
// gates and all wording of results. Everything it writes depends on the folder
// alone: building twice gives the same bytes.
//
// It may import sim/history, sim/scenario, sim/metrics, sim/capacity and its own
// figure package; it has no network and no clock.
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"throng/sim/capacity"
	"throng/sim/history"
	"throng/sim/scenario"
)

// Names of the files that Build writes into a run folder.
const (
	FileResult   = "result.json"
	FileHTML     = "report.html"
	FileMarkdown = "report.md"
	FileJUnit    = "junit.xml"
	DirPlots     = "plots"
)

// terms is what the scenario asked for.
type terms struct {
	spec    *scenario.Spec
	rates   scenario.Rates
	full    capacity.Profile
	problem string // why there is no spec
}

func readTerms(m *history.Manifest) *terms {
	spec, err := scenario.Parse("spec_yaml", []byte(m.SpecYAML))
	if err != nil {
		return &terms{spec: &scenario.Spec{}, problem: "the scenario kept in the manifest cannot be read by this version: " + firstLine(err.Error())}
	}
	return &terms{spec: spec, rates: spec.Resolved(), full: capacity.Full(spec)}
}

func firstLine(s string) string {
	l, _, _ := strings.Cut(s, "\n")
	return l
}

// Build reads the run folder dir, judges the run and writes result.json,
// report.html, report.md, junit.xml and plots/ into it. An error means that the
// report could not be made, not that the run failed: that is in Result.
func Build(dir string) (*Result, error) {
	run, err := history.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	r := evaluate(run, readTerms(&run.Manifest))
	figs := figuresOf(run, r)
	if err := writePlots(dir, r, figs); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	if err := writeAll(dir, r, figs); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return r, nil
}

// writeAll writes everything but the plots' files.
func writeAll(dir string, r *Result, figs []plotted) error {
	if err := inline(figs); err != nil {
		return err
	}
	data, err := r.JSON()
	if err != nil {
		return err
	}
	page, err := r.html(figs)
	if err != nil {
		return err
	}
	junit, err := r.junit()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{FileResult, data}, {FileHTML, page}, {FileMarkdown, []byte(r.markdown())}, {FileJUnit, junit}} {
		if err := replace(filepath.Join(dir, f.name), f.data); err != nil {
			return err
		}
	}
	return nil
}

// replace writes a file as a whole: readers see the old or the new one.
func replace(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o666); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return nil
}

// JSON is the content of result.json.
func (r *Result) JSON() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("%s: %w", FileResult, err)
	}
	return b.Bytes(), nil
}

// Read reads result.json of a run folder.
func Read(dir string) (*Result, error) {
	data, err := os.ReadFile(filepath.Join(dir, FileResult))
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	var r Result
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("result %s: %w", dir, err)
	}
	if r.SchemaVersion < 1 || r.SchemaVersion > SchemaVersion {
		return nil, fmt.Errorf("result %s has schema version %d, this program reads 1 to %d", dir, r.SchemaVersion, SchemaVersion)
	}
	return &r, nil
}
