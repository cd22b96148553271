package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Without peers there is nothing to compare with, and what would install them is said.
func TestNothingInstalled(t *testing.T) {
	t.Chdir("../../..")
	t.Setenv("PATH", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	out := t.TempDir()
	var said strings.Builder
	if err := run(t.Context(), []string{"-out", out}, &said); err == nil {
		t.Error("compared with nobody")
	}
	for _, p := range peers() {
		if !strings.Contains(said.String(), "NOT RUN: "+p.name+" is not installed") || !strings.Contains(said.String(), p.install[0]) {
			t.Errorf("%s: said %q", p.name, said.String())
		}
	}
	if files, err := os.ReadDir(out); err != nil || len(files) != 0 {
		t.Errorf("wrote %v, %v", files, err)
	}
}

// The CPU and memory of a process are those of what it started as well.
func TestTree(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command("sh", "-c", "(while :; do :; done) & wait")
	p, err := start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		children, _ := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/" + strconv.Itoa(cmd.Process.Pid) + "/children")
		for child := range strings.FieldsSeq(string(children)) {
			_ = exec.Command("kill", "-9", child).Run()
		}
		p.stop()
	})
	for end := time.Now().Add(time.Minute); ; {
		u, err := p.usage()
		if err != nil {
			t.Fatal(err)
		}
		if u.cpu >= 200*time.Millisecond && u.rss > 0 { // the shell itself only waits
			return
		}
		if time.Now().After(end) {
			t.Fatalf("a loop in a child is not counted: %+v", u)
		}
		if err := wait(t.Context(), 20*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// summary is what the script of k6 writes, with each value being its quantile.
func summary(t *testing.T, failed float64, leaveOut string) []byte {
	t.Helper()
	metrics := map[string]map[string]map[string]float64{"failed": {"values": {"count": failed}}}
	for _, name := range []string{"from_intended", "from_send", "whole_run"} {
		values := map[string]float64{}
		for _, q := range quantiles() {
			if k := quantileOfK6(q); name != "from_send" || k != leaveOut {
				values[k] = q
			}
		}
		metrics[name] = map[string]map[string]float64{"values": values}
	}
	data, err := json.Marshal(metrics)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSummaryOfK6(t *testing.T) {
	r, err := readK6(summary(t, 0, ""))
	if err != nil || at(r.Reported, 99.9) != 99.9 || at(r.FromSend, 50) != 50 || at(r.Whole, 99) != 99 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := readK6(summary(t, 0, "p(99)")); err == nil {
		t.Error("a summary without p99 was taken")
	}
	if _, err := readK6(summary(t, 3, "")); err == nil || !strings.Contains(err.Error(), "3 sockets failed") {
		t.Errorf("failed sockets: %v", err)
	}
	if _, err := readK6([]byte("{}")); err == nil {
		t.Error("a summary without anything was taken")
	}
}

func TestMetricsOfBenchmarks(t *testing.T) {
	m := metricsOf([]byte("goos: linux\nBenchmarkBackendGroup100-2   \t 1\t 23750 deliveries/backend-CPU-s\t 23.94 gateway-us/delivery\nPASS\n"))
	if m["deliveries/backend-CPU-s"] != 23750 || m["gateway-us/delivery"] != 23.94 || len(m) != 2 {
		t.Errorf("%v", m)
	}
}

// The page shows medians and ranges, who did not run, and that others used the machine.
func TestPage(t *testing.T) {
	c := &comparison{Date: "2026-01-31", NotRun: []string{"centrifugo"}, Users: 5000}
	for _, cpu := range []float64{0.05, 0.07, 0.06} {
		times := make([]float64, len(quantiles()))
		for i := range times {
			times[i] = 3
		}
		c.Generators = append(c.Generators, generation{Name: "throng", CPUPer1000: cpu, Reported: times, Truth: times},
			generation{Name: "k6", CPUPer1000: 3 * cpu, Reported: times, Truth: times, FromSend: times, Whole: times, OtherCores: 1.2})
	}
	dir := t.TempDir()
	if err := c.write(dir); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 0.060 (0.050 to 0.070) | 0.180 (0.150 to 0.210) |", "**NOT RUN**: centrifugo", "used up to 1.2 cores", "go install go.k6.io/k6@latest"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	var back comparison
	data, err := os.ReadFile(filepath.Join(dir, "peers.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &back); err != nil || len(back.Generators) != 6 {
		t.Errorf("%d generators, %v", len(back.Generators), err)
	}
	for _, name := range []string{"spectrum.svg", "spectrum.png"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
