package capacity

import (
	"math"
	"strconv"

	"throng/sim/history"
)

// share is an offline share that rows are given at.
type share struct {
	label string
	f     float64
}

// shares are the assumed ones and, last, the measured one if there is one.
func (b *builder) shares() []share {
	var out []share
	for _, f := range offlineShares() {
		out = append(out, share{strconv.FormatFloat(f, 'g', -1, 64), f})
	}
	if b.e.OfflineShare.Known() {
		out = append(out, share{AsMeasured, float64(b.e.OfflineShare)})
	}
	return out
}

func (s share) input() Input {
	in := Input{Name: "offline_share", Value: Number(s.f), Kind: Assumed, Source: "WORKLOAD.md section 5, sweep 0.3 to 0.7"}
	if s.label == AsMeasured {
		in.Kind, in.Source = Measured, ""
	}
	return in
}

// pairs is how many (message, device) pairs a send of the gated phase makes,
// and how many of them are of group messages.
func (b *builder) pairs() (all, group float64) {
	a := b.o.run.Audit
	n, ok := b.o.second(sends)(b.o.phase.Start, b.o.phase.End)
	if a == nil || !ok || n <= 0 || a.AllPairs == 0 {
		return math.NaN(), math.NaN()
	}
	all = float64(a.AllPairs) / n
	direct, ok := b.o.count(`throng_sends_accepted_total{kind="direct"}`, b.o.phase.Start, b.o.phase.End)
	if !ok {
		return all, math.NaN()
	}
	return all, math.Max(0, all-direct/n*float64(devicesPerUser().Value))
}

// rowsAt is inbox rows for each send at an offline share: what was measured,
// moved by the pairs of group messages that change sides. Direct messages are
// rows whether their device is live or not.
func (b *builder) rowsAt(s share) (Measure, string) {
	m := b.o.perSend("throng_inbox_rows_appended_total")
	if s.label == AsMeasured {
		return m, "rows_per_send x peak_sends"
	}
	_, group := b.pairs()
	if !b.e.OfflineShare.Known() || math.IsNaN(group) {
		return unmeasured(), ""
	}
	return m.plus((s.f - float64(b.e.OfflineShare)) * group).atLeast(0),
		"(rows_per_send + (offline_share - measured offline share) x group_pairs_per_send) x peak_sends"
}

// inbox adds the mailboxes' rows, bytes and dwell.
func (b *builder) inbox() {
	rows := b.o.perSend("throng_inbox_rows_appended_total")
	if !rows.Value.Known() {
		b.caveat("No inbox counters were scraped: no rows for inboxes.")
		return
	}
	bytes := b.o.per(b.o.counter("throng_inbox_row_bytes_total"), b.o.counter("throng_inbox_rows_appended_total"), b.o.coarse)
	pairs, group := b.pairs()
	b.add("inbox", "rows_per_send", "rows", Measured, "inbox rows appended / accepted sends", rows)
	b.add("inbox", "bytes_per_row", "B", Measured, "inbox row bytes / inbox rows appended (a group's body counts once)", bytes)
	b.add("inbox", "rows_deleted_per_send", "rows", Measured, "inbox rows deleted / accepted sends", b.o.perSend("throng_inbox_rows_deleted_total"))
	for _, s := range b.shares() {
		at, formula := b.rowsAt(s)
		per := []Input{b.measured("rows_per_send", rows, "rows"), b.peakSends(), s.input()}
		if s.label != AsMeasured {
			per = append(per, Input{"group_pairs_per_send", Number(group), "pairs", Measured, "pairs - direct sends x 1.2 devices"})
		}
		b.addAt(s.label, "inbox", "rows_written", "/s", Computed, formula, at.times(b.p.SendsPerS), per...)
		daily := at.times(b.p.MessagesPerDay * float64(bytes.Value))
		size := b.measured("bytes_per_row", bytes, "B")
		b.addAt(s.label, "inbox", "bytes_written_day", "B", Computed, "rows per send x messages a day x bytes_per_row", daily, append(per, size)...)
		waiting := bytes.times(s.f * pairs * b.p.MessagesPerDay / secondsPerDay)
		in := []Input{s.input(), {"pairs_per_send", Number(pairs), "pairs", Measured, ""}, size, dwell()}
		b.addAt(s.label, "inbox", "storage_backlog", "B", Computed, "offline_share x pairs_per_send x mean sends/s x mean_dwell x bytes_per_row",
			waiting.times(float64(dwell().Value)), in...)
		b.addAt(s.label, "inbox", "storage_30_days", "B", Computed, "offline_share x pairs_per_send x mean sends/s x 30 days x bytes_per_row, if nothing were fetched",
			waiting.times(30*secondsPerDay), append(in[:3:3], retention())...)
	}
	b.add("inbox", "storage_never_fetched", "B", Computed, "never_fetched x pairs_per_send x messages a day x 30 x bytes_per_row",
		bytes.times(float64(neverFetched().Value)*pairs*b.p.MessagesPerDay*30), b.measured("bytes_per_row", bytes, "B"), neverFetched(), retention())
	b.inboxCores(pairs)
}

// inboxCores moves the measured cores by the difference between a row and a
// live delivery, where the run could tell the two apart.
func (b *builder) inboxCores(pairs float64) {
	f := b.fits["inbox"]
	if !f.ok || !b.e.OfflineShare.Known() || math.IsNaN(pairs) {
		b.caveat("The inbox's cores are as measured only: the run does not say what a row costs beyond a live delivery, so they are not given at other offline shares.")
		return
	}
	cores := b.o.cpuPerSend("inbox").times(b.p.SendsPerS)
	for _, s := range b.shares() {
		shift := (s.f - float64(b.e.OfflineShare)) * pairs * (f.coef[1] - f.coef[0]) * b.p.SendsPerS
		b.addAt(s.label, "inbox", "cores_by_share", "cores", Computed,
			"cores + (offline_share - measured offline share) x pairs_per_send x (CPU of a row - CPU of a live delivery) x peak_sends",
			cores.plus(shift).atLeast(0), b.measured("cores", cores, "cores"), s.input(),
			Input{"row", Number(f.coef[1] * 1e6), "us", Measured, ""}, Input{"live_delivery", Number(f.coef[0] * 1e6), "us", Measured, ""})
	}
}

// sql adds the stores, one tier a store.
func (b *builder) sql() {
	stores := b.o.labels("throng_sql_statements_total", "store")
	if len(stores) == 0 {
		b.caveat("No SQL counters were scraped: no rows for SQL.")
	}
	for _, store := range stores {
		tier, label := "sql "+store, `{store="`+store+`"}`
		for _, q := range []struct{ resource, metric, unit string }{{"statements", "throng_sql_statements_total", "/s"}, {"transactions", "throng_sql_transactions_total", "/s"},
			{"rows_read", "throng_sql_rows_read_total", "/s"}} {
			m := b.o.perSend(q.metric + label)
			b.add(tier, q.resource+"_per_send", "", Measured, q.metric+label+" / accepted sends", m)
			b.add(tier, q.resource, q.unit, Computed, q.resource+"_per_send x peak_sends (as batched in the run)", m.times(b.p.SendsPerS),
				b.measured(q.resource+"_per_send", m, ""), b.peakSends())
		}
		written := b.o.perSend("throng_sql_rows_written_total" + label)
		if store == "inbox" {
			written = b.withLog(written)
		}
		b.add(tier, "rows_written_per_send", "rows", Measured, "rows written / accepted sends", written)
		if store != "inbox" || !b.e.OfflineShare.Known() {
			b.shards("", tier, written, "")
			continue
		}
		_, group := b.pairs()
		for _, s := range b.shares() {
			if s.label == AsMeasured {
				b.shards(s.label, tier, written, "", s.input())
			} else if !math.IsNaN(group) { // a row is written once and deleted once
				b.shards(s.label, tier, written.plus(2*(s.f-float64(b.e.OfflineShare))*group).atLeast(0),
					", moved by 2 x (offline_share - measured offline share) x group pairs per send", s.input())
			}
		}
	}
}

// withLog is what a server would write where no log is in front of it, as there is
// with SQLite: every row is inserted and deleted.
func (b *builder) withLog(written Measure) Measure {
	in, out := b.o.counter("throng_inbox_rows_appended_total"), b.o.counter("throng_inbox_rows_deleted_total")
	rows := b.o.per(func(from, to float64) (float64, bool) {
		n, ok := in(from, to)
		m, too := out(from, to)
		return n + m, ok && too
	}, b.o.second(sends), b.o.coarse)
	if rows.Value > written.Value {
		return rows
	}
	return written
}

func (b *builder) shards(offline, tier string, written Measure, moved string, in ...Input) {
	in = append([]Input{b.measured("rows_written_per_send", written, "rows"), b.peakSends()}, in...)
	b.addAt(offline, tier, "rows_written", "/s", Computed, "rows_written_per_send x peak_sends"+moved, written.times(b.p.SendsPerS), in...)
	b.addAt(offline, tier, "shards", "servers", Computed, "ceil(rows written/s / (sql_shard_rate x utilisation)) + spares"+moved,
		written.times(b.p.SendsPerS).through(func(v float64) float64 {
			return math.Ceil(v/float64(sqlRate().Value*utilisation().Value)) + float64(spares().Value)
		}), append(in, sqlRate(), utilisation(), spares())...)
}

// push adds notifications.
func (b *builder) push() {
	attempts := b.o.perSend("throng_push_attempts_total")
	if !attempts.Value.Known() {
		attempts = b.o.secondPerSend(func(s history.Second) int64 { return s.Pushes })
	}
	b.add("push", "attempts_per_send", "", Measured, "push attempts / accepted sends", attempts)
	for _, s := range b.shares() {
		at := attempts
		if s.label != AsMeasured {
			at = attempts.times(s.f / float64(b.e.OfflineShare))
		}
		in := []Input{b.measured("attempts_per_send", attempts, ""), b.peakSends(), s.input()}
		b.addAt(s.label, "push", "attempts", "/s", Computed, "attempts_per_send x offline_share / measured offline share x peak_sends", at.times(b.p.SendsPerS), in...)
		b.addAt(s.label, "push", "attempts_in_fcm_default_quotas", "×", Computed, "attempts/s / fcm_quota", at.times(b.p.SendsPerS/float64(pushQuota().Value)), append(in, pushQuota())...)
	}
}
