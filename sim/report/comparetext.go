package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// JSON is the comparison for programs.
func (c *Comparison) JSON() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(c); err != nil {
		return nil, fmt.Errorf("comparison: %w", err)
	}
	return b.Bytes(), nil
}

// compareNote says what the last columns mean.
const compareNote = `Difference: B - A with its 95 % interval, by a bootstrap over ten time blocks of each run; "~" where the interval includes zero, samples are too few, ` +
	"or a run has one figure alone. It knows what varies within two runs, not how a run differs from its own repetition; of twenty rows one is shown by chance."

// named is a run with what to call it.
func (r ComparedRun) named() string {
	return fmt.Sprintf("%s on %s, scale %s, seed %d, run %s: %s", r.Scenario, r.Target, r.Scale, r.Seed, r.RunID, r.Verdict)
}

// differs is the table of what the runs do not share.
func (c *Comparison) differs() table {
	t := table{Head: []string{"what differs", "A: " + c.A.Target, "B: " + c.B.Target}, Left: 3}
	for _, d := range c.Differs {
		t.Rows = append(t.Rows, []string{d.What, shortHash(d.A), shortHash(d.B)})
	}
	return t
}

// shortHash cuts a long hash to what tells two apart.
func shortHash(s string) string {
	if len(s) >= 40 && strings.Trim(s, "0123456789abcdef") == "" {
		return s[:12]
	}
	return s
}

func (c *Comparison) table(ct CompareTable) table {
	t := table{Head: []string{ct.Name, "A: " + c.A.Target, "B: " + c.B.Target, "difference", "95% interval", "B/A"}, Left: 1}
	for _, r := range ct.Rows {
		if !r.A.Known() && !r.B.Known() {
			continue
		}
		cells := []string{r.Name, r.amount(r.A), r.amount(r.B), unknown, "", ""}
		if r.Shown {
			cells[3] = signed(r.amount(r.Difference))
			cells[4] = shared(signed(r.amount(r.Low)), signed(r.amount(r.High)), " to ")
			if t := r.times(); t.Known() {
				cells[5] = "x" + num(t)
			}
		}
		t.Rows = append(t.Rows, cells)
	}
	return t
}

func signed(s string) string {
	if strings.HasPrefix(s, "-") {
		return s
	}
	return "+" + s
}

// amount writes a figure of the row in its unit.
func (r CompareRow) amount(n Number) string {
	switch {
	case !n.Known():
		return unknown
	case r.Unit == "ms":
		return ms(n)
	case r.Unit == "B":
		return bytesOf(int64(n))
	case r.Unit == "/s":
		return num(n) + "/s"
	}
	return strings.TrimSpace(num(n) + " " + r.Unit)
}

// Terminal writes the comparison for a terminal, with colours if asked: first
// what differs, then the figures.
func (c *Comparison) Terminal(w io.Writer, color bool) error {
	p := &painterText{color: color}
	p.line("")
	p.line("  A  %s", c.A.named())
	p.line("  B  %s", c.B.named())
	p.line("")
	if len(c.Differs) == 0 {
		p.line("  nothing else differs: same target, scenario, seed, machine and versions")
		p.line("")
	}
	p.table(c.differs())
	for _, warning := range c.Warnings {
		p.line("  %s %s", p.verdict(Inconclusive, "warning:"), warning)
	}
	if len(c.Warnings) > 0 {
		p.line("")
	}
	for _, t := range c.Tables {
		p.table(c.table(t))
	}
	p.line("  %s", compareNote)
	_, err := io.WriteString(w, p.b.String())
	return err
}

// Markdown is the comparison for a pull request.
func (c *Comparison) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## throng compare\n\n- **A**: %s\n- **B**: %s\n\n", md(c.A.named()), md(c.B.named()))
	if len(c.Differs) == 0 {
		b.WriteString("Nothing else differs: same target, scenario, seed, machine and versions.\n\n")
	}
	mdTable(&b, c.differs())
	for _, warning := range c.Warnings {
		fmt.Fprintf(&b, "> ⚠️ %s\n>\n", md(warning))
	}
	if len(c.Warnings) > 0 {
		b.WriteString("\n")
	}
	for _, t := range c.Tables {
		mdTable(&b, c.table(t))
	}
	fmt.Fprintf(&b, "%s\n", md(compareNote))
	return b.String()
}
