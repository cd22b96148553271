package scenario

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fieldKind is how the text of a value is read.
type fieldKind uint8

const (
	kindString   fieldKind = iota // min..max characters
	kindEnum                      // one of enum
	kindInt                       // integer in min..max
	kindNumber                    // number in min..max
	kindDuration                  // "60s"; min..max in seconds
	kindScale                     // "1/5000" or 0.0002, in min..max
	kindTarget                    // role/instance, the role one of enum
	kindCPUSet                    // "0-1,3"
	kindBytes                     // "512MiB"; min..max in bytes
	kindRestart                   // a duration, or never
	kindPlaces                    // list of role/instance and role, the role one of enum
)

// field is one scalar of the file: how it is read, what is allowed, what it is
// without being given, and where it goes.
type field struct {
	path     string // dotted
	kind     fieldKind
	min, max float64
	enum     []string
	def      string // default as written in YAML; empty and required: must be given
	required bool
	sparse   bool // YAML leaves it out while it is the default, so that it does not change the hash
	doc      string
	to       any // *string *int *int64 *uint64 *float64 *time.Duration *[]string
}

const unlimited = 1 << 53

// fields is the whole scenario but its lists, in the order in which YAML
// writes it. Defaults and ranges stand here and nowhere else.
func (s *Spec) fields() []field {
	out := []field{
		{path: "name", kind: kindString, min: 1, max: 60, required: true, doc: "short name, also of the run's folder", to: &s.Name},
		{path: "question", kind: kindString, min: 10, max: 600, required: true, doc: "what the run answers", to: &s.Question},
		{path: "profile", kind: kindEnum, enum: []string{Whatsapp2025}, def: Whatsapp2025, doc: "published workload figures", to: &s.Profile},
		{path: "preset", kind: kindEnum, enum: []string{PresetA, PresetB, PresetC, PresetDirect}, def: PresetB, doc: "chat mix: fan-out 2.08, 2.73, 11.2, 1", to: &s.Preset},
		{path: "connection", kind: kindEnum, enum: []string{Foreground, Legacy}, def: Foreground, doc: "who holds a socket", to: &s.Connection},
		{path: "scale", kind: kindScale, min: 1e-8, max: 1, def: "1/5000", doc: "share of the whole service", to: &s.Scale},
		{path: "seed", kind: kindInt, min: 0, max: unlimited, def: "1", doc: "everything random derives from it", to: &s.Seed},
	}
	out = append(out, field{path: "agents", kind: kindInt, min: 0, max: 200, def: "0", doc: "processes that play the users; 0: as many as the sockets need, 19,400 each; 1: the harness plays them itself", to: &s.Agents})
	out = append(out, s.Topology.fields()...)
	out = append(out, s.Infrastructure.fields()...)
	out = append(out, s.Limits.fields()...)
	out = append(out, s.Provider.fields()...)
	out = append(out, s.Media.fields()...)
	out = append(out, s.Phases.fields()...)
	out = append(out,
		field{path: "membership.removals_per_s", kind: kindNumber, max: 1000, def: "0", doc: "members removed from groups during steady", to: &s.Membership.RemovalsPerS},
		field{path: "membership.additions_per_s", kind: kindNumber, max: 1000, def: "0", doc: "members added to groups during steady", to: &s.Membership.AdditionsPerS},
		field{path: "membership.creates_per_s", kind: kindNumber, max: 1000, def: "0", doc: "groups created by clients during steady; the founder writes in each", to: &s.Membership.CreatesPerS},
		field{path: "membership.joins_per_s", kind: kindNumber, max: 1000, def: "0", doc: "members added by clients who administrate the group during steady", to: &s.Membership.JoinsPerS},
		field{path: "membership.leaves_per_s", kind: kindNumber, max: 1000, def: "0", doc: "members who leave by themselves during steady", to: &s.Membership.LeavesPerS},
		field{path: "membership.renames_per_s", kind: kindNumber, max: 1000, def: "0", doc: "groups renamed by clients during steady", to: &s.Membership.RenamesPerS},
	)
	out = append(out, s.Gates.fields()...)
	out = append(out,
		field{path: "proof_sample", kind: kindNumber, max: 1, def: "1", doc: "share of offline addressees drained at the end; the rest counts as unproved, declared", to: &s.ProofSample},
		field{path: "reply_hold_limit", kind: kindDuration, max: 600, def: "5s", doc: "longest wait of a reply for the message it answers", to: &s.ReplyHoldLimitS},
		field{path: "resolution", kind: kindDuration, max: 0.1, def: "0s", doc: "the generator starts actions, and when busy looks for what has come, once in so long, which saves it wake-ups: both are up to that late, which counts as latency; 0s: at once", to: &s.ResolutionS},
		field{path: "ack_timeout", kind: kindDuration, min: 0.1, max: 600, def: "10s", doc: "a send unanswered for so long is written again", to: &s.AckTimeoutS},
		field{path: "push_delay", kind: kindDuration, max: 600, def: "3s", doc: "an inbox row unacknowledged for so long is pushed", to: &s.PushDelayS},
		field{path: "push_every", kind: kindDuration, max: 3600, def: "60s", doc: "least time between two pushes to a device that stays away", to: &s.PushEveryS},
		field{path: "backlog_rows_per_login", kind: kindNumber, max: 1000, def: "2.7", doc: "mean inbox rows that a user who opens in the run finds; the balance of offline deliveries and logins", to: &s.BacklogRowsPerLogin},
	)
	out = append(out, field{path: "day", kind: kindDuration, max: 86400, def: "0s", sparse: true, doc: "a day of 24 hours passes in so long, from the start of steady; 0s: it is always the peak", to: &s.DayS})
	return append(out, s.Rates.fields()...)
}

func (t *Topology) fields() []field {
	count := func(name, def, doc string, to *int) field {
		return field{path: "topology." + name, kind: kindInt, min: 1, max: 64, def: def, doc: doc, to: to}
	}
	partitions := count("partitions", "16", "partitions of the group log, fixed for life", &t.Partitions)
	partitions.max = 4096
	return []field{
		count("gateways", "1", "processes of the gateway role", &t.Gateways),
		count("messages", "1", "processes of the message role", &t.Messages),
		count("fanouts", "1", "processes of the fanout role", &t.Fanouts),
		count("groups", "1", "processes of the group role", &t.Groups),
		count("inboxes", "1", "processes of the inbox role", &t.Inboxes),
		count("pushes", "1", "processes of the push role", &t.Pushes),
		partitions,
		{path: "topology.topic_layout", kind: kindEnum, enum: []string{Hashed, TopicPerGroup}, def: Hashed, doc: "the groups' logs share the partitions of one topic, or have a topic each", to: &t.TopicLayout},
	}
}

func (p *Phases) fields() []field {
	span := func(name, def, doc string, lo float64, to *float64) field {
		return field{path: "phases." + name, kind: kindDuration, min: lo, max: 86400, def: def, doc: doc, to: to}
	}
	return []field{
		span("provision", "15s", "budget: creating users and groups", 0, &p.ProvisionS),
		span("ramp", "30s", "sessions that are open when warm-up starts open over it", 0.5, &p.RampS),
		span("backlog", "12s", "the inbox of users who open later is sent over it", 0, &p.BacklogS),
		span("warmup", "10s", "full load, not measured", 0, &p.WarmupS),
		span("steady", "60s", "full load, measured and gated", 1, &p.SteadyS),
		span("spike", "0s", "spike_factor x sends, measured, not gated", 0, &p.SpikeS),
		{path: "phases.spike_factor", kind: kindNumber, min: 1, max: 100, def: "5", doc: "sends in the spike over those of steady", to: &p.SpikeFactor},
		{path: "phases.spike_region", kind: kindString, max: 20, sparse: true, doc: "one of regions: the spike is in it alone", to: &p.SpikeRegion},
		span("settle", "5s", "no new load; what is under way ends", 0, &p.SettleS),
		span("proof", "60s", "budget: draining the inboxes of offline addressees", 0, &p.ProofS),
		span("report", "15s", "budget: writing the report", 0, &p.ReportS),
	}
}

func (g *Gates) fields() []field {
	ms := func(name, def, doc string, to *float64) field {
		return field{path: "gates." + name, kind: kindNumber, max: 600_000, def: def, doc: doc + ", ms; 0: no gate", to: to}
	}
	return []field{
		ms("p99_sent_ms", "0", "p99 send to Sent", &g.P99SentMs),
		ms("p99_deliver_ms", "0", "p99 send to Deliver, online", &g.P99DeliverMs),
		ms("p99_deliver_direct_ms", "0", "the same, direct", &g.P99DeliverDirectMs),
		ms("p99_deliver_group_ms", "0", "the same, groups", &g.P99DeliverGroupMs),
		ms("p99_deliver_own_ms", "0", "the same, copies of direct messages for the sender's other devices", &g.P99DeliverOwnMs),
		ms("p99_drain_ms", "0", "p99 connect to Current", &g.P99DrainMs),
		ms("p99_login_ms", "0", "p99 connect to upgraded", &g.P99LoginMs),
		ms("generator_late_p99_ms", "10", "p99 lateness of the generator, above it inconclusive", &g.GeneratorLateP99Ms),
		{path: "gates.fanout_mean_tolerance", kind: kindNumber, max: 1, def: "0.05", doc: "relative distance of the measured fan-out from the profile's; 0: no gate", to: &g.FanoutMeanTolerance},
		{path: "gates.rate_tolerance", kind: kindNumber, max: 1, def: "0.05", doc: "relative distance of offered rates from the resolved ones; 0: no gate", to: &g.RateTolerance},
		{path: "gates.min_deliveries", kind: kindInt, max: unlimited, def: "0", doc: "deliveries of the whole run, below it inconclusive", to: &g.MinDeliveries},
		{path: "gates.rss_growth_max", kind: kindNumber, max: 10, def: "0", sparse: true, doc: "growth of the resident memory of any process of a role, or of the generator, over steady, as a share of its mean or of 32 MiB; 0: no gate", to: &g.RSSGrowthMax},
		{path: "gates.goroutine_growth_max", kind: kindNumber, max: 10, def: "0", sparse: true, doc: "the same of its goroutines, of 100 at least; 0: no gate", to: &g.GoroutineGrowthMax},
	}
}

func (o *Overrides) fields() []field {
	return []field{
		{path: "rates.users", kind: kindInt, max: 1 << 40, def: "0", doc: "0: 3.0e9 x scale", to: &o.Users},
		{path: "rates.sends_per_s", kind: kindNumber, max: 1e8, def: "0", doc: "0: 1.79e6 x scale", to: &o.SendsPerS},
		{path: "rates.logins_per_s", kind: kindNumber, max: 1e8, def: "0", doc: "0: 0.908e6 x scale in the foreground model", to: &o.LoginsPerS},
		{path: "rates.mean_session", kind: kindDuration, max: 86400, def: "0s", doc: "0s: 91.7 s in the foreground model", to: &o.MeanSessionS},
		{path: "rates.chat_tempo", kind: kindNumber, max: 1000, def: "0", doc: "divides the times between messages of a chat; 0: 1", to: &o.ChatTempo},
		{path: "rates.burst_share", kind: kindNumber, max: 0.999, def: "0", doc: "weight of the conversation burst branch; 0: 0.7473", to: &o.BurstShare},
		{path: "rates.devices", kind: kindNumber, min: 1, max: 2, def: fmt.Sprint(profileDevices), doc: "devices of a user, the phone included, on average", to: &o.Devices},
		{path: "rates.linked_share", kind: kindNumber, max: 0.9, def: fmt.Sprint(profileLinkedShare), doc: "share of the opens without a conversation that are on a linked device", to: &o.LinkedShare},
	}
}

func (x *Stratum) fields() []field {
	return []field{
		{path: "name", kind: kindString, min: 1, max: 40, required: true, doc: "of the stratum", to: &x.Name},
		{path: "group_size", kind: kindInt, min: 3, max: 1024, required: true, doc: "members of each group", to: &x.GroupSize},
		{path: "groups", kind: kindInt, min: 1, max: 1000, def: "1", doc: "how many such groups", to: &x.Groups},
		{path: "sends", kind: kindInt, min: 1, max: 1e6, required: true, doc: "messages in all, spread evenly over the phase", to: &x.Sends},
		{path: "phase", kind: kindEnum, enum: []string{"warmup", "steady", "spike"}, def: "steady", doc: "when", to: &x.Phase},
	}
}

func (f *Fault) fields() []field {
	out := []field{
		{path: "at", kind: kindDuration, max: 86400, required: true, doc: "since the start of steady", to: &f.At},
		{path: "kill", kind: kindTarget, enum: killable(), sparse: true, doc: "process that gets SIGKILL; mysql/0 is the primary", to: &f.Kill},
		{path: "flush", kind: kindTarget, enum: []string{"redis"}, sparse: true, doc: "store that is emptied, instead of a kill", to: &f.Flush},
	}
	if f.Flush == "" { // what is flushed goes on, so YAML has none of it
		out = append(out, field{path: "restart_after", kind: kindRestart, max: 600, def: "500ms", doc: "from the kill; never: it stays dead", to: &f.RestartAfter})
	}
	return append(out, field{path: "reconnect_jitter", kind: kindDuration, max: 600, def: "450ms", sparse: true, doc: "from then on, who loses a connection connects again within so long and 50 ms, evenly spread", to: &f.ReconnectJitter})
}

// killable are the roles that a fault may name.
func killable() []string {
	return []string{"gateway", "message", "fanout", "group", "inbox", "push", "media", "kafka", "mysql", "redis", "s3", "provider"}
}

// allowed says what may stand in the field.
func (f *field) allowed() string {
	switch f.kind {
	case kindEnum:
		return "one of " + strings.Join(f.enum, ", ")
	case kindInt:
		return fmt.Sprintf("an integer from %.0f to %.0f", f.min, f.max)
	case kindNumber:
		return fmt.Sprintf("a number from %s to %s", num(f.min), num(f.max))
	case kindDuration:
		return fmt.Sprintf("a duration with its unit (250ms, 60s, 1m30s) from %s to %s", seconds(f.min), seconds(f.max))
	case kindScale:
		return "a share of the whole service, as in 1/5000 or 0.0002, from 1/100000000 to 1"
	case kindTarget:
		return fmt.Sprintf("role/instance, as in %s/0, with a role of %s", f.enum[0], strings.Join(f.enum, ", "))
	case kindPlaces:
		return fmt.Sprintf("a list of role/instance, as in %s/0, or role, with a role of %s", f.enum[0], strings.Join(f.enum, ", "))
	case kindCPUSet:
		return "cores and ranges of them, as in 0-1,3"
	case kindBytes:
		return fmt.Sprintf("a size with its unit (512MiB, 1.5GiB) from %s to %s", bytesText(int64(f.min)), bytesText(int64(f.max)))
	case kindRestart:
		return fmt.Sprintf("a duration with its unit (250ms, 60s, 1m30s) from %s to %s, or never", seconds(f.min), seconds(f.max))
	}
	return fmt.Sprintf("text of %.0f to %.0f characters", f.min, f.max)
}

// seconds writes a number of seconds as a duration.
func seconds(s float64) string { return time.Duration(math.Round(s * 1e9)).String() }

// set reads text into the field; false when it is not allowed.
func (f *field) set(text string) bool {
	switch f.kind {
	case kindString:
		text = strings.TrimSpace(text)
		return inRange(float64(len([]rune(text))), f) && assign(f.to, text)
	case kindEnum:
		for _, e := range f.enum {
			if e == text {
				return assign(f.to, text)
			}
		}
		return false
	case kindInt:
		v, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 10, 64)
		if err != nil || !inRange(float64(v), f) {
			return false
		}
		switch to := f.to.(type) {
		case *int:
			*to = int(v)
		case *int64:
			*to = v
		case *uint64:
			*to = uint64(v)
		}
		return true
	case kindNumber:
		v, err := strconv.ParseFloat(text, 64)
		return err == nil && inRange(v, f) && assign(f.to, v)
	case kindScale:
		v, ok := parseScale(text)
		return ok && inRange(v, f) && assign(f.to, v)
	case kindDuration:
		d, err := time.ParseDuration(text)
		if err != nil || !inRange(d.Seconds(), f) {
			return false
		}
		if to, ok := f.to.(*time.Duration); ok {
			*to = d
			return true
		}
		return assign(f.to, d.Seconds())
	case kindRestart:
		if text == never {
			return assign(f.to, Never)
		}
		d, err := time.ParseDuration(text)
		return err == nil && inRange(d.Seconds(), f) && assign(f.to, d)
	case kindTarget:
		role, instance, _ := strings.Cut(text, "/")
		n, err := strconv.Atoi(instance)
		return slices.Contains(f.enum, role) && err == nil && n >= 0 && n < 64 && assign(f.to, text)
	case kindCPUSet:
		return isCPUSet(text) && assign(f.to, text)
	case kindBytes:
		v, ok := parseBytes(text)
		return ok && inRange(v, f) && assign(f.to, int64(v))
	}
	return false
}

func assign[T any](to any, v T) bool {
	*to.(*T) = v
	return true
}

func inRange(v float64, f *field) bool { return v >= f.min && v <= f.max } // false for NaN

// parseScale reads 1/5000, 0.0002 or 1.
func parseScale(text string) (float64, bool) {
	a, b, fraction := strings.Cut(text, "/")
	x, err := strconv.ParseFloat(strings.TrimSpace(a), 64)
	if err != nil {
		return 0, false
	}
	if !fraction {
		return x, true
	}
	y, err := strconv.ParseFloat(strings.TrimSpace(b), 64)
	return x / y, err == nil && y > 0
}

// text writes the field's value as YAML.
func (f *field) text() string {
	switch to := f.to.(type) {
	case *string:
		if f.kind == kindString || f.kind == kindCPUSet { // 0 is a number without quotes
			return strconv.Quote(*to)
		}
		return *to
	case *[]string:
		return "[" + strings.Join(*to, ", ") + "]"
	case *int:
		return strconv.Itoa(*to)
	case *int64:
		if f.kind == kindBytes {
			return bytesText(*to)
		}
		return strconv.FormatInt(*to, 10)
	case *uint64:
		return strconv.FormatUint(*to, 10)
	case *time.Duration:
		if *to == Never {
			return never
		}
		return to.String()
	case *float64:
		switch f.kind {
		case kindDuration:
			return seconds(*to)
		case kindScale:
			return scaleText(*to)
		}
		return strconv.FormatFloat(*to, 'g', -1, 64)
	}
	return ""
}

// isDefault says whether the field has the value that it has without being given.
func (f *field) isDefault() bool {
	switch to := f.to.(type) {
	case *string:
		return *to == f.def
	case *float64:
		return *to == 0
	case *int64:
		return *to == 0
	case *[]string:
		return len(*to) == 0
	}
	return f.text() == f.def
}

// scaleText writes a scale as 1/n where that is exact.
func scaleText(v float64) string {
	if n := math.Round(1 / v); v < 1 && 1/n == v {
		return fmt.Sprintf("1/%.0f", n)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
