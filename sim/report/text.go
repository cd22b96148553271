package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"throng/sim/capacity"
	"throng/sim/history"
	"throng/sim/scenario"
)

// table is rows of cells under a head, for every form of output.
type table struct {
	Head []string
	// Left is how many columns, from the first, are words; the others are figures.
	Left int
	Rows [][]string
	// Marks are verdicts of the rows, for colour; nil without.
	Marks []Verdict
}

func (r *Result) latencyTable() table {
	t := table{Head: []string{"latency", "n", "p50", "p90", "p99", "95% interval", "p99.9", "max"}, Left: 1}
	add := func(name string, l Latency) {
		if l.Count > 0 {
			t.Rows = append(t.Rows, []string{name, count(l.Count), ms(l.P50), ms(l.P90), ms(l.P99), l.interval(), ms(l.P999), ms(l.Max)})
		}
	}
	for _, k := range kindNames() {
		add(k.name, r.LatencyMs[k.kind])
		if k.kind == history.KindDrain {
			for _, c := range history.DrainClasses {
				add(k.name+" of "+c.Name+" messages", r.LatencyMs[history.KindDrainRows+c.Name])
			}
		}
	}
	for _, k := range mediaClassNames() {
		add(k.name, r.LatencyMs[k.kind])
	}
	for _, b := range r.backNames() {
		add(b.name, r.LatencyMs[b.kind])
	}
	add("generator lateness", r.Generator.LateMs)
	add("generator lateness, spike", r.Generator.SpikeLateMs)
	return t
}

// backNames are the kinds of latency after the faults that cost connections.
func (r *Result) backNames() []kindName {
	var out []kindName
	for i, f := range r.spec.spec.Faults {
		name := fmt.Sprintf("connection lost to current, after %s at %s", f.What(), f.At)
		if f.ReconnectJitter != scenario.ReconnectJitter {
			name += fmt.Sprintf(", spread over %s", f.ReconnectJitter)
		}
		out = append(out, kindName{kind: history.KindBack + strconv.Itoa(i), name: name})
	}
	return out
}

func (l Latency) interval() string {
	if !l.P99Low.Known() || !l.P99High.Known() {
		return ""
	}
	return shared(ms(l.P99Low), ms(l.P99High), " to ")
}

func (r *Result) fanoutTable() table {
	t := table{Head: []string{"members", "messages", "first p50", "first p99", "last p50", "last p99", "last max"}, Left: 1}
	for _, c := range r.sortedClasses() {
		f := r.FanoutMs[c]
		t.Rows = append(t.Rows, []string{c, count(f.N), ms(f.First.P50), ms(f.First.P99), ms(f.Last.P50), ms(f.Last.P99), ms(f.Last.Max)})
	}
	return t
}

func (r *Result) phaseTable() table {
	t := table{Head: []string{"phase", "verdict", "what happened"}, Left: 3}
	for _, p := range r.Phases {
		v := string(p.Verdict)
		if p.Gated {
			v += " (gates)"
		}
		t.Rows = append(t.Rows, []string{p.Name, v, p.Line})
		t.Marks = append(t.Marks, p.Verdict)
	}
	return t
}

func (r *Result) gateTable() table {
	t := table{Head: []string{"gate", "kind", "verdict", "finding"}, Left: 4}
	for _, g := range r.Gates {
		t.Rows = append(t.Rows, []string{g.Name, g.Kind, string(g.Verdict), g.Text})
		t.Marks = append(t.Marks, g.Verdict)
	}
	return t
}

// auditRow is a count of the proof; bad: a number above 0 is a finding.
type auditRow struct {
	name string
	n    int64
	bad  bool
}

func (r *Result) auditTable() table {
	t := table{Head: []string{"audit", "pairs"}, Left: 1}
	a := r.Audit
	if a == nil {
		return t
	}
	rows := []auditRow{{"messages acknowledged", a.Acknowledged, false}, {"messages unanswered", a.Unanswered, false}, {"pairs expected", a.Expected, false}, {"proved", a.Proved, false},
		{"lost", a.Lost, true}, {"duplicated", a.Duplicated, true}, {"reordered", a.Reordered, true}, {"foreign", a.Foreign, true}, {"unproved", a.Unproved, true},
		{"push missing", a.PushMissing, true}, {"push: none, the device is gone", a.PushDead, false}, {"push: none, the provider failed", a.PushFailed, false},
		{"push: none, the provider made it wait", a.PushThrottled, false}, {"push: again to a device that is gone", a.PushDeadAgain, false}, {"redelivered, dropped by the client", a.Redelivered, false}, {"delivered live", a.Live, false}, {"delivered from an inbox", a.Drain, false},
		{"delivered in transition", a.Transition, false}, {"delivered in the proof", a.Proof, false}}
	if a.groupsChanged() != "" {
		rows = append(rows, auditRow{"system messages of groups: expected", a.SystemExpected, false}, auditRow{"of these, proved", a.SystemProved, false},
			auditRow{"of these, lost, duplicated, reordered or foreign", a.SystemWrong, true}, auditRow{"system messages of groups: delivered", a.System, false},
			auditRow{"membership boundaries judged by", a.Boundaries, false})
	}
	rows = append(rows, mediaRows(a.Media)...)
	for _, x := range rows {
		if x.n == 0 && strings.HasPrefix(x.name, "push: ") {
			continue
		}
		t.Rows = append(t.Rows, []string{x.name, count(x.n)})
		v := Done
		if x.bad {
			v = Pass
			if x.n > 0 {
				v = Fail
				if x.name == "unproved" {
					v = Inconclusive
				}
			}
		}
		t.Marks = append(t.Marks, v)
	}
	return t
}

// groupsChanged says in words what the proof has of changes of groups; "" when no
// group changed.
func (a *Audit) groupsChanged() string {
	if a.System == 0 && a.SystemExpected == 0 && a.Boundaries == 0 {
		return ""
	}
	return fmt.Sprintf("Of these, system messages of groups: %s pairs expected, %s proved, %s wrong. Group deliveries were judged by %s membership boundaries.",
		count(a.SystemExpected), count(a.SystemProved), count(a.SystemWrong), count(a.Boundaries))
}

func (r *Result) roleTable() table {
	t := table{Head: []string{"role", "instances", "CPU s", "steady cores", "peak RSS", "CPU for a send", "for a delivery"}, Left: 1}
	us := func(n Number) string {
		if !n.Known() {
			return unknown
		}
		return num(n) + " us"
	}
	for _, n := range r.sortedRoles() {
		role := r.Roles[n]
		d := func(per string) Number {
			if v, ok := role.DemandUs[per]; ok {
				return v
			}
			return nan()
		}
		t.Rows = append(t.Rows, []string{n, fmt.Sprint(role.Instances), num(role.CPUSeconds), num(role.SteadyCores), bytesOf(role.RSSPeakBytes), us(d("send")), us(d("delivery"))})
	}
	for _, tier := range []string{"all roles", "everything"} {
		if row, ok := r.Estimate.Find(tier, "cpu_per_send"); ok {
			t.Rows = append(t.Rows, []string{tier, "", "", "", "", us(row.Value), ""})
		}
	}
	return t
}

// headline are the rows of the estimate that fit on a screen.
func headline() [][2]string {
	return [][2]string{{"gateway", "connections"}, {"gateway", "cores"}, {"gateway", "instances"}, {"gateway", "memory"}, {"message", "cores"}, {"message", "instances"},
		{"fanout", "cores"}, {"fanout", "instances"}, {"group", "cores"}, {"group", "instances"}, {"inbox", "cores"}, {"inbox", "instances"}, {"push", "cores"}, {"push", "instances"},
		{"log", "throughput_in"}, {"log", "brokers"}, {"log", "partitions"}, {"log", "storage_day"}, {"cache", "ops"}, {"cache", "shards"}, {"sql inbox", "shards"}, {"sql group", "shards"},
		{"inbox", "storage_backlog"}, {"inbox", "bytes_written_day"}, {"inbox", "storage_30_days"}, {"push", "attempts"}, {"network", "clients_to_gateways"}, {"network", "gateways_to_clients"}}
}

func (r *Result) capacityTable() table {
	t := table{Head: []string{"tier", "resource", "needs", "95% interval", "kind"}, Left: 2}
	for _, h := range headline() {
		if row, ok := r.Estimate.Find(h[0], h[1]); ok {
			t.Rows = append(t.Rows, []string{row.Tier, readable(row.Resource), amount(row.Value, row.Unit), interval(row.Low, row.High, row.Unit), row.Kind})
		}
	}
	return t
}

func readable(resource string) string { return strings.ReplaceAll(resource, "_", " ") }

// shareTable has the rows that depend on the offline share.
func (r *Result) shareTable() table {
	t := table{Head: []string{"tier", "resource", "0.3", "0.5", "0.7", "measured " + num(r.OfflineRate)}, Left: 2}
	at := map[string]int{}
	for _, row := range r.Capacity {
		if row.Offline == "" {
			continue
		}
		key := row.Tier + " " + row.Resource
		i, ok := at[key]
		if !ok {
			i = len(t.Rows)
			at[key] = i
			t.Rows = append(t.Rows, []string{row.Tier, readable(row.Resource), unknown, unknown, unknown, unknown})
		}
		for c, label := range []string{"0.3", "0.5", "0.7", capacity.AsMeasured} {
			if row.Offline == label {
				t.Rows[i][2+c] = amount(row.Value, row.Unit)
			}
		}
	}
	return t
}

func (r *Result) compareTable() table {
	t := table{Head: []string{"quantity", "textbook", "WORKLOAD.md 6", "this run", "why they differ"}, Left: 1}
	for _, c := range r.Estimate.Compare {
		t.Rows = append(t.Rows, []string{c.Quantity, amount(c.Textbook, c.Unit), amount(c.Workload, c.Unit), amount(c.Ours, c.Unit), c.Why})
	}
	return t
}

func (r *Result) demandTable() table {
	t := table{Head: []string{"role", "for each", "CPU", "95% interval", "method"}, Left: 2}
	for _, d := range r.Estimate.Demands {
		t.Rows = append(t.Rows, []string{d.Role, readable(d.Per), num(d.Value) + " us", interval(d.Low, d.High, "us"), d.Method})
	}
	return t
}

// markdown is the summary for a pull request.
func (r *Result) markdown() string {
	var b strings.Builder
	icon := map[Verdict]string{Pass: "✅", Fail: "❌", Inconclusive: "⚠️"}[r.Verdict]
	fmt.Fprintf(&b, "## %s throng `%s`: %s\n\n%s\n\n", icon, r.Scenario, r.Verdict, md(r.Summary))
	if len(r.Reasons) > 0 {
		for _, why := range r.Reasons {
			fmt.Fprintf(&b, "- %s\n", md(why))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "%s users, %s sockets at most, %s sends/s and %s deliveries/s in the gated phase on target `%s` (%s, %d cores). Seed %d.\n\n",
		count(r.Population.Users), count(r.Sockets.Peak), num(r.Rates.Sends), num(r.Rates.Deliveries), r.Target, md(r.Machine.CPU), r.Machine.Cores, r.Seed)
	mdTable(&b, r.latencyTable())
	if answers := r.StageAnswers(); len(answers) > 0 {
		b.WriteString("**Where did the p99 go?**\n\n")
		for _, a := range answers {
			fmt.Fprintf(&b, "- %s\n", md(a))
		}
		b.WriteString("\n")
		mdTable(&b, r.stageTable())
		b.WriteString(md(r.StageNote()) + "\n\n")
	}
	if r.Zones != nil {
		fmt.Fprintf(&b, "**What distance cost.** %s\n\n", md(r.ZonePlaces()))
		for _, a := range r.Zones.Answers {
			fmt.Fprintf(&b, "- %s\n", md(a))
		}
		b.WriteString("\n")
		for _, t := range r.zoneTables() {
			mdTable(&b, t)
		}
	}
	mdTable(&b, r.phaseTable())
	if r.Audit != nil {
		a := r.Audit
		fmt.Fprintf(&b, "Audit: %s pairs expected, %s proved, %s lost, %s duplicated, %s reordered, %s foreign, %s unproved.\n\n",
			count(a.Expected), count(a.Proved), count(a.Lost), count(a.Duplicated), count(a.Reordered), count(a.Foreign), count(a.Unproved))
		for _, s := range []string{a.groupsChanged(), r.mediaLine()} {
			if s != "" {
				b.WriteString(s + "\n\n")
			}
		}
	}
	b.WriteString("<details><summary>Group fan-out, gates, capacity</summary>\n\n")
	mdTable(&b, r.fanoutTable())
	mdTable(&b, r.gateTable())
	mdTable(&b, r.processTable())
	mdTable(&b, r.agentTable())
	if r.Estimate.NotUsable != "" {
		fmt.Fprintf(&b, "No capacity estimate: %s.\n\n", md(r.Estimate.NotUsable))
	} else {
		fmt.Fprintf(&b, "For %s messages a day at the diurnal peak (preset %s):\n\n", perDay(r.Estimate.Profile), r.Estimate.Profile.Preset)
		mdTable(&b, r.capacityTable())
	}
	fmt.Fprintf(&b, "</details>\n\nRun `%s`. Again: `%s`\n", r.RunID, r.Replay)
	return b.String()
}

func md(s string) string { return strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;").Replace(s) }

func mdTable(b *strings.Builder, t table) {
	if len(t.Rows) == 0 {
		return
	}
	b.WriteString("| " + strings.Join(t.Head, " | ") + " |\n|")
	for i := range t.Head {
		if i < t.Left {
			b.WriteString(" --- |")
		} else {
			b.WriteString(" ---: |")
		}
	}
	b.WriteString("\n")
	for _, row := range t.Rows {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = md(c)
		}
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	b.WriteString("\n")
}

// Terminal writes the summary for a terminal, with colours if asked.
func (r *Result) Terminal(w io.Writer, color bool) error {
	p := &painterText{color: color}
	p.line("")
	p.line("  %s  %s", p.verdict(r.Verdict, strings.ToUpper(string(r.Verdict))), r.Scenario+" on "+r.Target)
	p.line("  %s", r.Summary)
	for _, why := range r.Reasons {
		p.line("    - %s", why)
	}
	p.line("")
	p.line("  %s users, %s sockets at most; gated phase: %s sends/s, %s deliveries/s, %s logins/s, %s pushes/s, %s of addressees offline",
		count(r.Population.Users), count(r.Sockets.Peak), num(r.Rates.Sends), num(r.Rates.Deliveries), num(r.Rates.Logins), num(r.Rates.Pushes), percent(float64(r.OfflineRate)))
	p.line("")
	p.table(r.latencyTable())
	for _, a := range r.StageAnswers() {
		p.line("  %s", a)
	}
	if len(r.Stages) > 0 {
		p.line("")
	}
	p.table(r.fanoutTable())
	if r.Zones != nil {
		for _, a := range r.Zones.Answers {
			p.line("  %s", a)
		}
		p.line("")
		for _, t := range r.zoneTables() {
			p.table(t)
		}
	}
	p.table(r.phaseTable())
	p.table(r.agentTable())
	if g := r.spec.spec.Gates; g.RSSGrowthMax > 0 || g.GoroutineGrowthMax > 0 {
		p.table(r.processTable())
	}
	if a := r.Audit; a != nil {
		p.line("  audit: %s pairs expected, %s proved, %s lost, %s duplicated, %s reordered, %s foreign, %s unproved, %s redelivered",
			count(a.Expected), count(a.Proved), count(a.Lost), count(a.Duplicated), count(a.Reordered), count(a.Foreign), count(a.Unproved), count(a.Redelivered))
		if c := a.Cost; c != nil {
			p.line("  judged %d times in %.1f s, with %.1f s of CPU, from a record of %s events and %.1f MB", c.Replays, float64(c.WallS), float64(c.CPUSeconds), count(c.Events), float64(c.Bytes)/1e6)
		}
		for _, s := range []string{a.groupsChanged(), r.mediaLine()} {
			if s != "" {
				p.line("  %s", s)
			}
		}
		p.line("")
	}
	if r.Estimate.NotUsable != "" {
		p.line("  no capacity estimate: %s", r.Estimate.NotUsable)
	} else {
		p.line("  capacity for %s messages a day at the diurnal peak (preset %s)", perDay(r.Estimate.Profile), r.Estimate.Profile.Preset)
		p.table(r.capacityTable())
	}
	p.line("  again: %s", r.Replay)
	_, err := io.WriteString(w, p.b.String())
	return err
}

type painterText struct {
	b     strings.Builder
	color bool
}

func (p *painterText) line(format string, args ...any) {
	p.b.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

func (p *painterText) verdict(v Verdict, text string) string {
	if !p.color {
		return text
	}
	code := map[Verdict]string{Pass: "32", Fail: "31", Inconclusive: "33", Saturated: "33", Missing: "33"}[v]
	if code == "" {
		return text
	}
	return "\x1b[1;" + code + "m" + text + "\x1b[0m"
}

func (p *painterText) table(t table) {
	if len(t.Rows) == 0 {
		return
	}
	width := make([]int, len(t.Head))
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		for i, c := range row {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	for n, row := range append([][]string{t.Head}, t.Rows...) {
		var cells []string
		for i, c := range row {
			pad := strings.Repeat(" ", width[i]-len([]rune(c)))
			if n > 0 && len(t.Marks) > 0 && i == 1 {
				c = p.verdict(t.Marks[n-1], c)
			}
			if i < t.Left {
				c += pad
			} else {
				c = pad + c
			}
			cells = append(cells, c)
		}
		if n == 0 && p.color {
			p.line("  \x1b[2m%s\x1b[0m", strings.Join(cells, "  "))
			continue
		}
		p.line("  %s", strings.Join(cells, "  "))
	}
	p.line("")
}
