package scenario

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// What one socket and the rest of a run need; measured on 2-core machines
// (MEASURED.md) and rounded up. Both ends of every socket are on one machine.
const (
	generatorBytesPerSocket = 10 << 10
	gatewayBytesPerSocket   = 12 << 10
	kernelBytesPerSocket    = 10 << 10
	baseBytes               = 1200 << 20 // processes, broker, stores
	bytesPerSend            = 4 << 10    // of the whole run: log, rows, audit
	spareFiles              = 500        // files of one process beside its sockets
	socketsAnAgent          = 19_400     // unless the scenario says how many agents; a limit of 20,000 files is common
	overMean                = 1.15       // sockets at a time over their mean
)

// Needs is what a run takes from its machine, estimated.
type Needs struct {
	Agents       int   // processes that play the users
	AgentFiles   int64 // open files of each
	GatewayFiles int64 // open files of each gateway
	MemoryBytes  int64
	Sends        int64 // of the whole run
}

// Needs estimates what the run takes when everything is on one machine.
func (s *Spec) Needs() Needs {
	r, ph := s.Resolved(), s.Phases
	sends := r.SendsPerS*(ph.WarmupS+ph.SteadyS) + r.SpikeSendsPerS*ph.SpikeS + r.BacklogSends
	sockets := r.Connections * overMean
	agents := s.Agents
	if agents == 0 {
		agents = max(1, int(math.Ceil(sockets/socketsAnAgent)))
	}
	return Needs{
		Agents:     agents,
		AgentFiles: int64(sockets/float64(agents)) + spareFiles, GatewayFiles: int64(sockets/float64(s.Topology.Gateways)) + spareFiles,
		MemoryBytes: baseBytes + int64(sockets*(generatorBytesPerSocket+gatewayBytesPerSocket+kernelBytesPerSocket)+sends*bytesPerSend),
		Sends:       int64(sends),
	}
}

// Fits says what keeps the run from this machine: its limit of open files of a
// process, and its memory. Where something does, fitting is a scale that fits
// (0: none known, the scenario overrides its rates).
func (s *Spec) Fits(openFiles uint64, memBytes int64) (problems []string, fitting float64) {
	n := s.Needs()
	factor := 1.0
	for _, of := range []struct {
		files   int64
		setting string
	}{{n.AgentFiles, "agents"}, {n.GatewayFiles, "topology.gateways"}} {
		if uint64(of.files) > openFiles {
			problems = append(problems, fmt.Sprintf("needs %d open files in one process, the limit is %d (ulimit -n, or more %s)", of.files, openFiles, of.setting))
			factor = min(factor, max(0, float64(openFiles)-spareFiles)/float64(of.files-spareFiles))
		}
	}
	if n.MemoryBytes > memBytes {
		problems = append(problems, fmt.Sprintf("needs about %.1f GiB of memory, there are %.1f", gib(n.MemoryBytes), gib(memBytes)))
		factor = min(factor, max(0, float64(memBytes-baseBytes))/float64(n.MemoryBytes-baseBytes))
	}
	if len(problems) == 0 || factor <= 0 || s.Rates.LoginsPerS > 0 {
		return problems, 0
	}
	return problems, 1 / (math.Ceil(1/(s.Scale*factor)/100) * 100)
}

func gib(b int64) float64 { return float64(b) / (1 << 30) }

// Describe prints the resolved rates and the arithmetic up to 100 B messages a
// day with the source and confidence of every parameter, the offered rates of
// each phase, the time budget and what the run needs.
func (s *Spec) Describe(w io.Writer) {
	fmt.Fprintf(w, "%s: %s\n", s.Name, strings.TrimSpace(s.Question))
	fmt.Fprintf(w, "profile %s, preset %s, %s sockets, scale %s, seed %d, hash %.12s\n", s.Profile, s.Preset, s.Connection, scaleText(s.Scale), s.Seed, s.Hash())
	s.describeRates(w)
	s.describePhases(w)
	s.Media.describe(w, s.Resolved())
	s.describeContainers(w)
	s.describeZones(w)
	s.describeNeeds(w)
	s.describeParams(w)
}

func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// describeRates puts the resolved rates beside those of the whole service.
func (s *Spec) describeRates(w io.Writer) {
	whole := *s
	whole.Scale, whole.Rates = 1, ProfileRates()
	at, full := s.Resolved(), whole.Resolved()
	fmt.Fprintf(w, "\nRates at the diurnal peak\n")
	t := table(w)
	fmt.Fprintf(t, "  \tthis run\tscale 1\tarithmetic at scale 1\n")
	row := func(name string, a, b float64, how string) {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", name, human(a), human(b), how)
	}
	row("users", float64(at.Users), float64(full.Users), "monthly active users [S]")
	row("sends/s", at.SendsPerS, full.SendsPerS, "100e9/day [S] / 86,400 s x 1.55 peak to mean [D]")
	row("  to groups", at.GroupSendsPerS, full.GroupSendsPerS, fmt.Sprintf("x %.2f [D]", full.GroupShare))
	row("deliveries/s", at.DeliveriesPerS, full.DeliveriesPerS, fmt.Sprintf("sends/s x fan-out %s [D]", num(full.FanOut)))
	if s.Connection == Legacy {
		row("logins/s", at.LoginsPerS, full.LoginsPerS, "sockets / 639 s [D]")
		row("sockets", at.Connections, full.Connections, "0.316 [D] x monthly users [S]")
	} else {
		row("logins/s", at.LoginsPerS, full.LoginsPerS, "23 opens/day [P] x 2.2e9 daily users [D] / 86,400 s x 1.55 [D]")
		row("sockets", at.Connections, full.Connections, "35.15 min/day [P] / 1,440 x 2.2e9 [D] x 1.55 [D]")
	}
	row("mean session, s", at.MeanSessionS, full.MeanSessionS, "sockets / logins/s (Little's law)")
	row("pushes/s, planned", at.PushesPerS, full.PushesPerS, "deliveries/s x 0.5 offline [A]; the run measures it")
	row("frames in/s, planned", at.InFramesPerS, full.InFramesPerS, "send 1 + typing 1.5 [A] + (ack 1 + read 0.8 [A]) x fan-out, + 4 an open")
	row("active chats", float64(at.ActiveChats), float64(full.ActiveChats), fmt.Sprintf("sends/s x %.0f s mean time between messages [P]", full.MeanGapS))
	t.Flush()
	if s.Rates != ProfileRates() {
		fmt.Fprintf(w, "  this scenario overrides rates, so this run is not the profile at any scale\n")
	} else {
		fmt.Fprintf(w, "  scale-down law: all of these but mean session scale with s = %s; sizes, latencies and one user's behaviour do not\n", scaleText(s.Scale))
		fmt.Fprintf(w, "  if the 100 B are deliveries and not sends, divide all but users, logins and sockets by %s\n", num(full.FanOut))
	}
}

// human writes a number with separators, or two digits after the point when
// it is small.
func human(v float64) string {
	if v < 1000 {
		return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
	}
	digits := fmt.Sprintf("%.0f", v)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func spikeNote(s *Spec) string {
	where := ""
	if s.Phases.SpikeRegion != "" {
		where = " in " + s.Phases.SpikeRegion
	}
	return fmt.Sprintf("x %s sends%s, same logins; measured", num(s.Phases.SpikeFactor), where)
}

// describePhases prints what is offered in each phase, and its time budget.
func (s *Spec) describePhases(w io.Writer) {
	r, p := s.Resolved(), s.Phases
	fmt.Fprintf(w, "\nPhases (budget %s in all)\n", seconds(p.TotalS()))
	t := table(w)
	fmt.Fprintf(t, "  phase\tlength\tsends/s\tdeliveries/s\tlogins/s\t\n")
	row := func(name string, length, sends, fanOut, logins float64, note string) {
		if length > 0 {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\n", name, seconds(length), human(sends), human(sends*fanOut), human(logins), note)
		}
	}
	row("provision", p.ProvisionS, 0, 0, 0, "users and groups that the schedule touches, in bulk")
	row("ramp", p.RampS, 0, 0, r.Connections/p.RampS, "the sessions that are open when warm-up starts")
	if p.BacklogS > 0 {
		row("backlog", p.BacklogS, r.BacklogSends/p.BacklogS, 1, 0, fmt.Sprintf("at most; %s direct sends, %s for each user who opens later", human(r.BacklogSends), num(s.BacklogRowsPerLogin)))
	}
	row("warmup", p.WarmupS, r.SendsPerS, r.FanOut, r.LoginsPerS, "not measured")
	row("steady", p.SteadyS, r.SendsPerS, r.FanOut, r.LoginsPerS, "measured and gated")
	row("spike", p.SpikeS, r.SpikeSendsPerS, r.FanOut, r.LoginsPerS, spikeNote(s))
	row("settle", p.SettleS, 0, 0, 0, "what is under way ends")
	row("proof", p.ProofS, 0, 0, 0, "offline addressees connect and drain")
	row("report", p.ReportS, 0, 0, 0, "")
	t.Flush()
	for _, x := range s.Extra {
		fmt.Fprintf(w, "  beside them %q: %d sends to %d groups of %d in %s, %d deliveries, outside the fan-out\n", x.Name, x.Sends, x.Groups, x.GroupSize, x.Phase, x.Sends*(x.GroupSize-1))
	}
	s.describeRegions(w)
	s.Provider.describe(w)
	for _, f := range s.Faults {
		after := fmt.Sprintf("started again %s later", f.RestartAfter)
		switch {
		case f.Flush != "":
			after = "it goes on empty"
		case f.RestartAfter == Never:
			after = "it stays dead"
		}
		fmt.Fprintf(w, "  fault: %s, %s into steady; %s\n", f.What(), f.At, after)
	}
}

func (s *Spec) describeNeeds(w io.Writer) {
	n := s.Needs()
	fmt.Fprintf(w, "\nNeeds on one machine, estimated: %d agents with %s open files each, gateways with %s each, %.1f GiB of memory; %s sends in the run\n",
		n.Agents, human(float64(n.AgentFiles)), human(float64(n.GatewayFiles)), gib(n.MemoryBytes), human(float64(n.Sends)))
}

func (s *Spec) describeParams(w io.Writer) {
	fmt.Fprintf(w, "\nParameters of %s (%s)\n", s.Profile, ConfidenceTags())
	for _, p := range s.Params() {
		note := p.Source
		if p.Note != "" {
			note += "; " + p.Note
		}
		fmt.Fprintf(w, "  [%s] %s: %s\n", p.Confidence, p.Name, strings.TrimSpace(p.Value+" "+p.Unit))
		fmt.Fprintf(w, "        %s\n", note)
	}
}
