package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"slices"
	"strings"

	"throng/sim/history"
	"throng/sim/report/figure"
)

//go:embed report.html.tmpl
var pageTemplate string

// page is what the template sees: everything is text already.
type page struct {
	*Result
	Word      string // the verdict, to be read aloud
	Vars      template.CSS
	DarkVars  template.CSS
	Tiles     []tile
	Figures   map[string]pageFigure
	Latency   table
	StageRows table
	ZoneRows  []table
	Fanout    table
	PhaseRows table
	GateRows  table
	AuditRows table
	RoleRows  table
	Held      table
	Agents    table
	Needs     table
	Shares    table
	Compared  table
	DemandsT  table
	EveryRow  []everyRow
	Facts     [][2]string
	PerDay    string
	Users     string
	LateLimit string
}

type tile struct{ Value, Label, Note string }

type pageFigure struct {
	Wide, Narrow template.HTML
	Caption      string
}

// everyRow is one row of the estimate with formula and inputs as text.
type everyRow struct{ Tier, Resource, Share, Value, Interval, Kind, Formula, Inputs string }

func (r *Result) html(figs []plotted) ([]byte, error) {
	t, err := template.New("report").Parse(pageTemplate)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileHTML, err)
	}
	p := page{Result: r, Word: strings.ToUpper(string(r.Verdict)), Vars: template.CSS(figure.Light().CSS()), DarkVars: template.CSS(figure.Dark().CSS()),
		Tiles: r.tiles(), Figures: map[string]pageFigure{}, Latency: r.latencyTable(), StageRows: r.stageTable(), ZoneRows: r.zoneTables(), Fanout: r.fanoutTable(), PhaseRows: r.phaseTable(), GateRows: r.gateTable(),
		AuditRows: r.auditTable(), RoleRows: r.roleTable(), Held: r.processTable(), Agents: r.agentTable(), Needs: r.capacityTable(), Shares: r.shareTable(), Compared: r.compareTable(), DemandsT: r.demandTable(),
		EveryRow: r.everyRow(), Facts: r.provenance(), PerDay: perDay(r.Estimate.Profile), Users: count(r.Population.Users),
		LateLimit: ms(Number(r.spec.spec.Gates.GeneratorLateP99Ms))}
	for _, f := range figs {
		// The markup is this program's own drawing; its texts are escaped by it.
		p.Figures[f.fig.Name] = pageFigure{Wide: template.HTML(f.Wide), Narrow: template.HTML(f.Narrow), Caption: f.Caption}
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return nil, fmt.Errorf("%s: %w", FileHTML, err)
	}
	return b.Bytes(), nil
}

func (r *Result) tiles() []tile {
	group := r.LatencyMs[history.KindDeliverGroup]
	direct := r.LatencyMs[history.KindDeliverDirect]
	out := []tile{
		{num(r.Rates.Sends), "messages a second", "accepted, gated phase"},
		{num(r.Rates.Deliveries), "deliveries a second", "at the devices, gated phase"},
		{count(r.Sockets.Peak), "live sockets", "of " + count(r.Population.Users) + " users, at most"},
		{num(r.Rates.Logins), "logins a second", "each drains its inbox"},
		{shared(ms(direct.P50), ms(direct.P99), " · "), "direct message", "p50 · p99, to online devices"},
		{shared(ms(group.P50), ms(group.P99), " · "), "group message", "p50 · p99, to online members"},
	}
	if direct.Count == 0 {
		out[4].Value = unknown
	}
	if group.Count == 0 {
		out[5].Value = unknown
	}
	if a := r.Audit; a != nil {
		out = append(out, tile{count(a.Proved), "deliveries proved", "of " + count(a.Expected) + " expected"},
			tile{count(a.Lost + a.Duplicated + a.Reordered + a.Foreign), "violations", "lost, duplicated, reordered, foreign"})
	}
	return out
}

func (r *Result) everyRow() []everyRow {
	var out []everyRow
	for _, c := range r.Capacity {
		var in []string
		for _, i := range c.Inputs {
			s := readable(i.Name) + " " + amount(i.Value, i.Unit) + " (" + i.Kind
			if i.Source != "" {
				s += ": " + i.Source
			}
			in = append(in, s+")")
		}
		out = append(out, everyRow{c.Tier, readable(c.Resource), c.Offline, amount(c.Value, c.Unit), interval(c.Low, c.High, c.Unit), c.Kind, c.Formula, strings.Join(in, "; ")})
	}
	return out
}

// provenance says what ran, where and how to run it again.
func (r *Result) provenance() [][2]string {
	duration := unknown
	if r.DurationS.Known() {
		duration = figures(float64(r.DurationS)) + " s"
	}
	out := [][2]string{{"run", r.RunID}, {"started", r.Start + ", took " + duration}, {"target", r.Target + ": " + r.TargetReason}, {"seed", fmt.Sprint(r.Seed)},
		{"scenario hash", r.SpecHash}, {"machine", fmt.Sprintf("%s, %d cores, %s memory, %s %s", r.Machine.CPU, r.Machine.Cores, bytesOf(r.Machine.MemBytes), r.Machine.OS, r.Machine.Kernel)}}
	var names []string
	for n := range r.Versions {
		names = append(names, n)
	}
	slices.Sort(names)
	var v []string
	for _, n := range names {
		v = append(v, n+" "+r.Versions[n])
	}
	return append(out, [2]string{"versions", strings.Join(v, ", ")}, [2]string{"result format", fmt.Sprint(r.SchemaVersion)})
}

// SpecYAML is the scenario as it was run.
func (r *Result) SpecYAML() string {
	if r.spec == nil || r.spec.problem != "" {
		return ""
	}
	return string(r.spec.spec.YAML())
}
