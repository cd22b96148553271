package report

import (
	"math"
	"strings"
	"testing"

	"throng/sim/history"
	"throng/sim/scenario"
)

// good is the facts of a run that passes; each case spoils something.
func good() facts {
	q := quantile{value: 20, n: 20_000, enough: true}
	return facts{gates: scenario.Gates{P99SentMs: 500, P99DeliverMs: 1000, GeneratorLateP99Ms: 10, FanoutMeanTolerance: 0.05, RateTolerance: 0.05, MinDeliveries: 1000},
		sample: 1, audit: &history.Audit{Sends: 100, Acknowledged: 100, Expected: 300, Proved: 300, Sampled: 1}, gated: true, complete: true, phase: "steady", seconds: 60,
		sent: q, deliver: q, direct: q, group: q, drain: q, login: q, late: quantile{value: 2, n: 20_000, enough: true},
		offered: 21_500, written: 21_500, logins: 10_900, connected: 16_600, plannedSends: 358, plannedLogin: 181, plannedSockets: 16_600, fanOut: 2.7, plannedFanOut: 2.73, deliveries: 60_000}
}

func TestJudge(t *testing.T) {
	few := quantile{value: 3, n: 12}
	for _, c := range []struct {
		name  string
		spoil func(*facts)
		want  Verdict
		says  string
	}{
		{"nothing wrong", func(*facts) {}, Pass, ""},
		{"lost", func(f *facts) { f.audit.Lost = 1; f.audit.Proved = 299 }, Fail, "1 acknowledged deliveries were lost"},
		{"duplicated", func(f *facts) { f.audit.Duplicated = 1 }, Fail, "twice"},
		{"reordered", func(f *facts) { f.audit.Reordered = 1 }, Fail, "out of order"},
		{"foreign", func(f *facts) { f.audit.Foreign = 1 }, Fail, "not addressed"},
		{"push missing", func(f *facts) { f.audit.Push = history.PushAudit{Checked: 5, Missing: 1} }, Fail, "1 of 5 inbox rows"},
		{"slow", func(f *facts) { f.deliver.value = 1001 }, Fail, "send to deliver, p99: 1 s, limit 1 s"},
		{"at the limit", func(f *facts) { f.deliver.value = 1000 }, Pass, ""},
		{"slow where no gate is", func(f *facts) { f.drain.value = 99_999 }, Pass, ""},
		{"redelivered is no fault", func(f *facts) { f.audit.Redelivered = 500 }, Pass, ""},
		{"no audit", func(f *facts) { f.audit = nil }, Inconclusive, "proof is missing"},
		{"empty audit", func(f *facts) { f.audit = &history.Audit{} }, Inconclusive, "covers 0 pairs"},
		{"unproved", func(f *facts) { f.audit.Unproved, f.audit.Proved = 4, 296 }, Inconclusive, "4 pairs are unproved"},
		{"a record is missing", func(f *facts) { f.audit.Problems = []string{"the record of agent 2 is cut off"} }, Inconclusive, "agent 2 is cut off"},
		{"unproved, sample declared", func(f *facts) { f.audit.Unproved, f.audit.Proved, f.sample = 150, 150, 0.5 }, Pass, ""},
		{"pairs unaccounted for", func(f *facts) { f.audit.Proved = 290 }, Inconclusive, "300 pairs were expected and 290 accounted for"},
		{"generator late", func(f *facts) { f.late.value = 10 }, Inconclusive, "late at p99"},
		{"generator late and slow", func(f *facts) { f.late.value, f.deliver.value = 25, 3000 }, Inconclusive, "but the generator"},
		{"generator late and lossy", func(f *facts) { f.late.value = 25; f.audit.Lost = 2 }, Fail, "lost"},
		{"lateness unknown", func(f *facts) { f.late = few }, Inconclusive, "too few for p99"},
		{"rate not reached", func(f *facts) { f.offered, f.written = 19_000, 19_000 }, Inconclusive, "offered sends: 317/s, planned 358"},
		{"rate not reached and slow", func(f *facts) { f.offered, f.written, f.deliver.value = 19_000, 19_000, 3000 }, Inconclusive, "but offered sends reached"},
		{"not written", func(f *facts) { f.written = 18_000 }, Inconclusive, "were written"},
		{"not written and slow", func(f *facts) { f.written, f.deliver.value = 18_000, 3000 }, Inconclusive, "but 83.7% of the offered sends were written"},
		{"held by the system and slow", func(f *facts) { f.written, f.held, f.deliver.value = 18_000, 3400, 3000 }, Fail, "limit 1 s"},
		{"held by the system", func(f *facts) { f.written, f.held = 18_000, 3400 }, Inconclusive, "up to 3,400 at a time waited"},
		{"given up", func(f *facts) { f.unstarted = 1 }, Inconclusive, "1 scheduled actions were given up"},
		{"few logins", func(f *facts) { f.logins = 8000 }, Inconclusive, "logins"},
		{"many logins", func(f *facts) { f.logins = 14_000 }, Inconclusive, "logins"},
		{"many logins after a kill", func(f *facts) { f.logins, f.faults = 14_000, true }, Pass, ""},
		{"few sockets", func(f *facts) { f.connected = 12_000 }, Inconclusive, "sockets"},
		{"dice of a small run", func(f *facts) { f.plannedLogin, f.logins = 1, 75 }, Pass, ""},
		{"fan-out off", func(f *facts) { f.fanOut = 3.0 }, Inconclusive, "mean fan-out 3, planned 2.73"},
		{"fan-out unknown", func(f *facts) { f.fanOut = math.NaN() }, Inconclusive, "mean fan-out"},
		{"fan-out off and slow", func(f *facts) { f.fanOut, f.deliver.value = 3.0, 3000 }, Fail, "limit 1 s"},
		{"few deliveries", func(f *facts) { f.deliveries = 999 }, Inconclusive, "at least 1,000"},
		{"gated quantile of few samples", func(f *facts) { f.sent = few }, Inconclusive, "send to sent, p99: 12 samples are too few"},
		{"never steady", func(f *facts) { *f = facts{gates: f.gates, audit: f.audit} }, Inconclusive, "never came"},
		{"interrupted steady", func(f *facts) { f.complete = false }, Inconclusive, "interrupted in its gated phase"},
		{"interrupted later", func(f *facts) { f.interrupted = true }, Inconclusive, "interrupted before its end"},
		{"unreadable scenario", func(f *facts) { f.specProblem = "broken" }, Inconclusive, "broken"},
		{"no facts at all", func(f *facts) { *f = facts{} }, Inconclusive, "missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := good()
			c.spoil(&f)
			j := judge(f)
			if j.verdict != c.want {
				t.Errorf("verdict %s, want %s: %q", j.verdict, c.want, j.reasons)
			}
			if (j.verdict == Pass) != (len(j.reasons) == 0) {
				t.Errorf("%s with reasons %q", j.verdict, j.reasons)
			}
			if !strings.Contains(strings.Join(j.reasons, "\n"), c.says) {
				t.Errorf("reasons %q do not say %q", j.reasons, c.says)
			}
			for _, g := range j.gates {
				if g.Text == "" || g.Name == "" {
					t.Errorf("a gate without words: %+v", g)
				}
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	for v, want := range map[Verdict]int{Pass: 0, Fail: 1, Inconclusive: 2, "": 2, Saturated: 2} {
		if got := v.ExitCode(); got != want {
			t.Errorf("%q exits %d, want %d", v, got, want)
		}
	}
}

func TestFormats(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{count(1234567), "1,234,567"}, {count(-1234), "-1,234"}, {count(999), "999"}, {figures(0.00123), "0.00123"}, {figures(3.999), "4"}, {figures(12.34), "12.3"},
		{figures(math.NaN()), "~"}, {ms(0.5), "0.5 ms"}, {ms(1500), "1.5 s"}, {ms(999.4), "999 ms"}, {ms(nan()), "~"}, {percent(0.62), "62%"}, {percent(0.99999), "99.9%"}, {percent(1), "100%"},
		{percent(0.05), "5%"}, {percent(0.0123), "1.2%"}, {scaled(33.5e12, "B"), "33.5 TB"}, {scaled(1.794e6, "/s"), "1.79 M/s"}, {scaled(12, "/s"), "12/s"}, {amount(2e9, ""), "2 billion"},
		{amount(83.2e6, "connections"), "83.2 million connections"}, {interval(897, 939, "cores"), "897 to 939 cores"}, {interval(1, nan(), "B"), ""}, {interval(5, 5, "B"), ""},
		{shared("2.1 ms", "8.3 ms", " · "), "2.1 · 8.3 ms"}, {shared("900 ms", "1.2 s", " · "), "900 ms · 1.2 s"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
