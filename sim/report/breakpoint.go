package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"throng/sim/capacity"
	"throng/sim/history"
	"throng/sim/report/figure"
)

// Names of the files that Breakpoint.Write makes; the plots are in DirPlots.
const (
	FileBreakpoint         = "breakpoint.json"
	FileBreakpointMarkdown = "breakpoint.md"
)

// Breakpoint is the result of a breakpoint test: runs of one scenario at
// different scales, and the largest that passed.
type Breakpoint struct {
	SchemaVersion int    `json:"schema_version"`
	Scenario      string `json:"scenario"`
	Target        string `json:"target"`
	// Carried is the largest load that passed, as 1/n of the whole service, 0 if
	// none did; Broken the smallest that did not, 0 if all passed.
	Carried uint64 `json:"carried_scale_denominator"`
	Broken  uint64 `json:"broken_scale_denominator"`
	// Confirmed says that Carried passed at the scenario's own length too.
	Confirmed bool            `json:"confirmed"`
	Ended     string          `json:"ended"` // why the search went no further, empty if it was complete
	Machine   Machine         `json:"machine"`
	Tries     []BreakpointTry `json:"tries"` // in order of time
	Again     string          `json:"replay"`
	gate      capacity.Number // of the p99 of deliveries
}

// BreakpointTry is one run. Rates and latencies are those of its gated phase.
type BreakpointTry struct {
	Scale    uint64   `json:"scale_denominator"`
	Folder   string   `json:"folder"` // relative to breakpoint.json
	Confirms bool     `json:"confirms"`
	SteadyS  float64  `json:"steady_s"`
	Verdict  Verdict  `json:"verdict"`
	Reasons  []string `json:"reasons"`
	Users    int64    `json:"users"`
	Sockets  int64    `json:"sockets"`
	Offered  Number   `json:"offered_per_s"`
	Sends    Number   `json:"sends_per_s"`
	Deliver  Number   `json:"deliveries_per_s"`
	Logins   Number   `json:"logins_per_s"`
	P99Ms    Number   `json:"p99_deliver_ms"`
	LateMs   Number   `json:"generator_late_p99_ms"`
	Cores    Number   `json:"cores"`       // busy, of all roles, infrastructure and generator
	RSSBytes int64    `json:"rss_bytes"`   // sum of the peaks of all processes
	CPUUs    Number   `json:"cpu_us_send"` // of all, for each accepted send
	Proved   int64    `json:"proved"`
	Expected int64    `json:"expected"`
	Wrong    int64    `json:"wrong"` // lost, duplicated, reordered, foreign
}

// Lost says that the audit found what no load excuses: messages that are lost,
// duplicated, reordered or foreign.
func (t *BreakpointTry) Lost() bool { return t.Wrong > 0 }

// Read reads the run folder of a try.
func (b *Breakpoint) Read(dir, folder string, scale uint64, confirms bool) (*BreakpointTry, error) {
	run, err := history.Open(filepath.Join(dir, folder))
	if err != nil {
		return nil, fmt.Errorf("breakpoint: %w", err)
	}
	r := evaluate(run, readTerms(&run.Manifest))
	t := BreakpointTry{Scale: scale, Folder: folder, Confirms: confirms, SteadyS: r.spec.spec.Phases.SteadyS, Verdict: r.Verdict, Reasons: r.Reasons,
		Users: r.Population.Users, Sockets: r.Sockets.Peak, Offered: r.Rates.Offered, Sends: r.Rates.Sends, Deliver: r.Rates.Deliveries, Logins: r.Rates.Logins,
		P99Ms: capacity.Unknown(), LateMs: r.Generator.LateMs.P99, CPUUs: capacity.Unknown()}
	for _, g := range r.Gates {
		if g.Name == gateDeliver {
			t.P99Ms, b.gate = g.Value, g.Limit
		}
	}
	for _, role := range r.Roles {
		if role.SteadyCores.Known() {
			t.Cores += role.SteadyCores
		}
		t.RSSBytes += role.RSSPeakBytes
	}
	if t.Sends > 0 {
		t.CPUUs = t.Cores / t.Sends * 1e6
	}
	if a := r.Audit; a != nil {
		t.Proved, t.Expected, t.Wrong = a.Proved, a.Expected, a.Lost+a.Duplicated+a.Reordered+a.Foreign
	}
	b.Scenario, b.Target, b.Machine = r.Scenario, r.Target, r.Machine
	return &t, nil
}

// AddRefused notes a scale that the machine cannot carry by itself, as throng
// run said before it started.
func (b *Breakpoint) AddRefused(scale uint64, why string) {
	b.Tries = append(b.Tries, BreakpointTry{Scale: scale, Verdict: Missing, Reasons: []string{why}, Offered: capacity.Unknown(), Sends: capacity.Unknown(),
		Deliver: capacity.Unknown(), Logins: capacity.Unknown(), P99Ms: capacity.Unknown(), LateMs: capacity.Unknown(), Cores: capacity.Unknown(), CPUUs: capacity.Unknown()})
}

// Headline is the result in a sentence.
func (b *Breakpoint) Headline() string {
	if b.Carried == 0 {
		return fmt.Sprintf("%s: no scale passed on %s", b.Scenario, b.Target)
	}
	s := fmt.Sprintf("%s on %s: the largest scale that passes is 1/%d", b.Scenario, b.Target, b.Carried)
	for i := len(b.Tries) - 1; i >= 0; i-- {
		if t := &b.Tries[i]; t.Scale == b.Carried && t.Verdict == Pass {
			s += fmt.Sprintf(": %s users, %s sockets, %s sends/s, %s deliveries/s, %s logins/s for %s s, %s of %s deliveries proved",
				count(t.Users), count(t.Sockets), num(t.Sends), num(t.Deliver), num(t.Logins), figures(t.SteadyS), count(t.Proved), count(t.Expected))
			break
		}
	}
	if b.Broken > 0 {
		s += fmt.Sprintf("; 1/%d does not pass", b.Broken)
	}
	if !b.Confirmed {
		s += "; not confirmed by a run of the scenario's own length"
	}
	return s
}

func (b *Breakpoint) triesTable() table {
	t := table{Head: []string{"scale", "verdict", "steady", "sends/s", "logins/s", "sockets", "deliver p99", "late p99", "cores", "CPU a send", "memory", "why not"}, Left: 2}
	for i := range b.Tries {
		y := &b.Tries[i]
		t.Rows = append(t.Rows, []string{fmt.Sprintf("1/%d", y.Scale), string(y.Verdict), figures(y.SteadyS) + " s", num(y.Offered), num(y.Logins), count(y.Sockets),
			ms(y.P99Ms), ms(y.LateMs), num(y.Cores), amount(y.CPUUs, "µs"), bytesOf(y.RSSBytes), strings.Join(y.Reasons, "; ")})
		t.Marks = append(t.Marks, y.Verdict)
	}
	return t
}

func (b *Breakpoint) figure() *figure.Figure {
	var tries []figure.Try
	for i := range b.Tries {
		if t := &b.Tries[i]; t.Offered.Known() {
			tries = append(tries, figure.Try{SendsPerS: float64(t.Offered), P99Deliver: float64(t.P99Ms), Late: float64(t.LateMs), Cores: float64(t.Cores), Carried: t.Verdict == Pass})
		}
	}
	gate := 0.0
	if b.gate.Known() {
		gate = float64(b.gate)
	}
	return figure.Breakpoint(tries, gate, float64(b.Machine.Cores), b.Headline())
}

// Write makes the files of the test in dir.
func (b *Breakpoint) Write(dir string) error {
	b.SchemaVersion = 1
	figs := Result{Files: map[string]FileOfPlot{}}
	if err := writePlots(dir, &figs, []plotted{{fig: b.figure()}}); err != nil {
		return fmt.Errorf("breakpoint: %w", err)
	}
	var data bytes.Buffer
	enc := json.NewEncoder(&data)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(b); err != nil {
		return fmt.Errorf("breakpoint: %w", err)
	}
	for name, content := range map[string][]byte{FileBreakpoint: data.Bytes(), FileBreakpointMarkdown: []byte(b.markdown(figs.Files))} {
		if err := replace(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("breakpoint: %w", err)
		}
	}
	return nil
}

func (b *Breakpoint) markdown(plots map[string]FileOfPlot) string {
	var w strings.Builder
	fmt.Fprintf(&w, "# Breakpoint of %s on %s\n\n%s.\n\n", b.Scenario, b.Target, md(b.Headline()))
	if b.Ended != "" {
		fmt.Fprintf(&w, "The search is not complete: %s.\n\n", md(b.Ended))
	}
	fmt.Fprintf(&w, "Machine: %s, %d cores, %s of memory, %s. Each row is a run with a population, a backend and a proof of its own; a run that is inconclusive does not pass.\n\n",
		md(b.Machine.CPU), b.Machine.Cores, bytesOf(b.Machine.MemBytes), md(b.Machine.Kernel))
	mdTable(&w, b.triesTable())
	for _, f := range plots {
		fmt.Fprintf(&w, "![%s](%s)\n\n", f.Title, f.PNG)
	}
	fmt.Fprintf(&w, "Again: `%s`\n", b.Again)
	return w.String()
}

// Terminal writes the result for a terminal, with colours if asked.
func (b *Breakpoint) Terminal(w io.Writer, color bool) error {
	p := &painterText{color: color}
	p.line("")
	p.table(b.triesTable())
	p.line("  %s", b.Headline())
	if b.Ended != "" {
		p.line("  the search is not complete: %s", b.Ended)
	}
	_, err := io.WriteString(w, p.b.String())
	return err
}
