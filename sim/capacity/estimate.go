package capacity

import (
	"fmt"
	"math"

	"throng/sim/history"
)

// FromRun estimates what the profile needs from the gated phase of a run.
// notUsable, if not empty, is why the run may not be used for a plan (the
// generator was the limit, say): then the estimate has demands as they were
// seen, and no rows.
func FromRun(run *history.Run, p Profile, notUsable string) *Estimate {
	e := &Estimate{Profile: p, NotUsable: notUsable, OfflineShare: Unknown(), Demands: []Demand{}, Rows: []Row{}, Compare: []Comparison{}, Caveats: []string{}}
	phase, ok := gated(run)
	if !ok {
		e.NotUsable = firstOf(e.NotUsable, "the run has no finished gated phase")
		return e
	}
	e.Phase = phase.Name
	o := observe(run, phase)
	e.Blocks = len(o.edges) - 1
	if a := run.Audit; a != nil && a.AllPairs > 0 {
		e.OfflineShare = Number(float64(a.OfflinePairs) / float64(a.AllPairs))
	}
	if v, ok := o.second(sends)(phase.Start, phase.End); !ok || v <= 0 {
		e.NotUsable = firstOf(e.NotUsable, "no send was accepted in the gated phase")
		return e
	}
	b := &builder{e: e, o: o, p: p, fits: map[string]fit{}}
	b.demands()
	if e.NotUsable != "" {
		return e
	}
	b.roles()
	b.gateway()
	b.log()
	b.cache()
	b.sql()
	b.inbox()
	b.push()
	b.network()
	b.standIns()
	b.mix()
	b.compare()
	return e
}

// gated is the gated phase that has ended.
func gated(run *history.Run) (history.Phase, bool) {
	for _, p := range run.Manifest.Phases {
		if p.Gated && p.End > p.Start {
			return p, true
		}
	}
	return history.Phase{}, false
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// builder collects the rows of an estimate.
type builder struct {
	e    *Estimate
	o    *observer
	p    Profile
	fits map[string]fit
}

func (b *builder) add(tier, resource, unit, kind, formula string, m Measure, in ...Input) {
	b.addAt("", tier, resource, unit, kind, formula, m, in...)
}

func (b *builder) addAt(offline, tier, resource, unit, kind, formula string, m Measure, in ...Input) {
	if !m.Value.Known() {
		return
	}
	b.e.Rows = append(b.e.Rows, Row{Tier: tier, Resource: resource, Value: m.Value, Low: m.Low, High: m.High, Unit: unit,
		Formula: formula, Inputs: append([]Input{}, in...), Kind: kind, Offline: offline})
}

// exact is a figure without an interval: its inputs are not measured.
func exact(v float64) Measure { return Measure{Value: Number(v), Low: Number(v), High: Number(v)} }

func (b *builder) measured(name string, m Measure, unit string) Input {
	return Input{Name: name, Value: m.Value, Unit: unit, Kind: Measured}
}

func (b *builder) peakSends() Input {
	return Input{"peak_sends", Number(b.p.SendsPerS), "/s", Assumed, "profile " + b.p.Name + ": messages a day x peak to mean"}
}

func (b *builder) caveat(format string, args ...any) {
	b.e.Caveats = append(b.e.Caveats, fmt.Sprintf(format, args...))
}

const (
	methodTotal = "utilisation law: CPU of the role in the gated phase / accepted sends in it, all its work (logins, receipts, typing, idle) included"
	methodRatio = "utilisation law: CPU of the role in the gated phase / deliveries to applications in it"
)

// demands fills in the service demand of each role.
func (b *builder) demands() {
	roles := append(append(backendRoles(), infraRoles()...), "generator")
	for _, role := range roles {
		b.demand(role, "send", methodTotal, b.o.cpuPerSend(role))
		b.demand(role, "delivery", methodRatio, b.o.per(b.o.cpu(role), b.o.second(delivered), b.o.edges))
		items, f := b.o.fitItems(role)
		if items == nil {
			continue
		}
		b.fits[role] = f
		if !f.ok {
			b.caveat("The CPU of %s is not split by kind of work: %s. Its total for each send at this mix is used.", role, f.why)
			continue
		}
		for j, it := range items {
			b.demand(role, it.name, "non-negative least squares over time blocks of all load phases on "+it.what+", 95 % jackknife interval",
				Measure{Value: Number(f.coef[j]), Low: Number(f.low[j]), High: Number(f.high[j])})
		}
	}
	b.demand("message", "accepted_send", "the message service does nothing else: the same as its total for each send", b.o.cpuPerSend("message"))
	b.demand("push", "attempt", "utilisation law: CPU of push / attempts", b.o.per(b.o.cpu("push"), b.o.counter("throng_push_attempts_total"), b.o.coarse))
	b.demand("group", "check", "utilisation law: CPU of the group service / membership checks", b.o.per(b.o.cpu("group"), b.o.counter("throng_group_checks_total"), b.o.coarse))
}

func (b *builder) demand(role, per, method string, m Measure) {
	if !m.Value.Known() {
		return
	}
	m = m.times(1e6)
	b.e.Demands = append(b.e.Demands, Demand{Role: role, Per: per, Value: m.Value, Low: m.Low, High: m.High, Method: method})
}

// instances is how many servers carry so many cores at the planned utilisation.
func instances(cores float64) float64 {
	return math.Ceil(cores/(float64(utilisation().Value)*float64(instanceCores().Value))-1e-9) + float64(spares().Value)
}

// roles adds cores and instances of each role of the backend.
func (b *builder) roles() {
	for _, role := range backendRoles() {
		d := b.o.cpuPerSend(role)
		if !d.Value.Known() {
			b.caveat("No CPU samples of %s: no cores for it.", role)
			continue
		}
		if d.warning != "" {
			b.caveat("CPU of %s: %s.", role, d.warning)
		}
		cores := d.times(b.p.SendsPerS)
		in := b.measured("cpu_per_send", d.times(1e6), "us")
		b.add(role, "cpu_per_send", "us", Measured, "CPU of the role / accepted sends, gated phase", d.times(1e6))
		b.add(role, "cores", "cores", Computed, "cpu_per_send x peak_sends", cores, in, b.peakSends())
		if role == "gateway" {
			continue // its instances depend on connections too
		}
		b.add(role, "instances", "servers", Computed, "ceil(cores / (utilisation x cores_per_instance)) + spares", cores.through(instances),
			b.measured("cores", cores, "cores"), utilisation(), instanceCores(), spares())
	}
}

// gateway adds what depends on connections.
func (b *builder) gateway() {
	conns := Input{"peak_connections", Number(b.p.Connections), "", Assumed, "profile " + b.p.Name + ", " + b.p.Connection + " model"}
	b.add("gateway", "connections", "connections", Assumed, "profile", exact(b.p.Connections), conns)
	b.add("gateway", "logins", "/s", Assumed, "profile", exact(b.p.LoginsPerS))
	cores := b.o.cpuPerSend("gateway").times(b.p.SendsPerS)
	bound := math.Ceil(b.p.Connections/float64(connectionsPerInstance().Value*connectionUse().Value)) + float64(spares().Value)
	if cores.Value.Known() {
		b.add("gateway", "instances", "servers", Computed,
			"max(ceil(cores / (utilisation x cores_per_instance)), ceil(peak_connections / (connections_per_instance x connection_use))) + spares",
			cores.through(instances).atLeast(bound),
			b.measured("cores", cores, "cores"), utilisation(), instanceCores(), conns, connectionsPerInstance(), connectionUse(), spares())
	}
	b.add("gateway", "deliveries_per_write", "", Measured,
		"Deliver frames / write system calls of the gateways; writes carry answers, receipts and events too",
		b.o.per(b.o.counter(`throng_ws_tx_frames_total{kind="deliver"}`), b.o.counter("throng_ws_writes_total"), b.o.coarse))
	mem := b.memoryPerConnection()
	b.add("gateway", "memory_per_connection", "B", Measured, "(peak RSS - first RSS) / peak sockets, of the gateways", mem)
	b.add("gateway", "memory", "B", Computed, "memory_per_connection x peak_connections", mem.times(b.p.Connections), b.measured("memory_per_connection", mem, "B"), conns)
}

// memoryPerConnection has no interval: it is one difference of two levels.
func (b *builder) memoryPerConnection() Measure {
	first, peak := map[int]int64{}, map[int]int64{}
	for _, s := range b.o.run.Roles {
		if s.Role != "gateway" {
			continue
		}
		if _, ok := first[s.Instance]; !ok {
			first[s.Instance] = s.RSSBytes
		}
		peak[s.Instance] = max(peak[s.Instance], s.RSSBytes)
	}
	var sockets, grown int64
	for _, s := range b.o.run.Seconds {
		sockets = max(sockets, s.Connected)
	}
	for i := range peak {
		grown += peak[i] - first[i]
	}
	if sockets < 100 || grown <= 0 {
		return unmeasured()
	}
	return Measure{Value: Number(float64(grown) / float64(sockets)), Low: Unknown(), High: Unknown()}
}

// log adds Kafka.
func (b *builder) log() {
	records, bytes := b.o.perSend("throng_kafka_produced_records_total"), b.o.perSend("throng_kafka_produced_bytes_total")
	b.add("log", "records_per_send", "", Measured, "records produced / accepted sends", records)
	b.add("log", "records", "/s", Computed, "records_per_send x peak_sends", records.times(b.p.SendsPerS), b.measured("records_per_send", records, ""), b.peakSends())
	if !bytes.Value.Known() {
		b.caveat("No Kafka counters were scraped: no rows for the log.")
		return
	}
	per := b.measured("bytes_per_send", bytes, "B")
	in := bytes.times(b.p.SendsPerS)
	rf := float64(replicas().Value)
	b.add("log", "bytes_per_send", "B", Measured, "record bytes produced / accepted sends", bytes)
	b.add("log", "throughput_in", "B/s", Computed, "bytes_per_send x peak_sends", in, per, b.peakSends())
	b.add("log", "throughput_replicated", "B/s", Computed, "bytes_per_send x peak_sends x replicas", in.times(rf), per, b.peakSends(), replicas())
	out := b.o.perSend("throng_kafka_consumed_bytes_total")
	b.add("log", "throughput_out", "B/s", Computed, "consumed_bytes_per_send x peak_sends", out.times(b.p.SendsPerS), b.measured("consumed_bytes_per_send", out, "B"), b.peakSends())
	b.add("log", "brokers", "servers", Computed, "ceil(bytes_per_send x peak_sends x replicas / (broker_rate x broker_use)) + spares",
		in.through(func(v float64) float64 {
			return math.Ceil(v*rf/float64(brokerRate().Value*brokerUse().Value)) + float64(spares().Value)
		}), per, b.peakSends(), replicas(), brokerRate(), brokerUse(), spares())
	b.add("log", "partitions", "partitions", Computed, "ceil(bytes_per_send x peak_sends / partition_rate x partition_slack)",
		in.through(func(v float64) float64 {
			return math.Ceil(v / float64(partitionRate().Value) * float64(partitionSlack().Value))
		}), per, b.peakSends(), partitionRate(), partitionSlack())
	day := in.times(secondsPerDay / b.p.PeakToMean * rf)
	mean := Input{"peak_to_mean", Number(b.p.PeakToMean), "", Assumed, "WORKLOAD.md section 5"}
	b.add("log", "storage_day", "B", Computed, "bytes_per_send x peak_sends / peak_to_mean x 86,400 s x replicas", day, per, b.peakSends(), mean, replicas())
	b.add("log", "storage_30_days", "B", Computed, "storage_day x 30, if the log were kept as long as inboxes", day.times(30), per, b.peakSends(), mean, replicas(), retention())
}

// cache adds Redis.
func (b *builder) cache() {
	ops := b.o.perSend("throng_redis_ops_total")
	per := b.measured("ops_per_send", ops, "")
	b.add("cache", "ops_per_send", "", Measured, "Redis operations of all roles / accepted sends", ops)
	b.add("cache", "ops", "/s", Computed, "ops_per_send x peak_sends; a run with one gateway has no PUBLISH between gateways, up to 0.6 more for each send", ops.times(b.p.SendsPerS), per, b.peakSends())
	b.add("cache", "shards", "servers", Computed, "ceil(ops_per_send x peak_sends / (cache_shard_rate x utilisation)) + spares",
		ops.times(b.p.SendsPerS).through(func(v float64) float64 {
			return math.Ceil(v/float64(cacheRate().Value*utilisation().Value)) + float64(spares().Value)
		}), per, b.peakSends(), cacheRate(), utilisation(), spares())
	b.hitShare()
}

// hitShare is how often the group service needed no SQL.
func (b *builder) hitShare() {
	from, to := b.o.phase.Start, b.o.phase.End
	all, ok := b.o.count(`throng_group_cache_total{tier="process"}`, from, to)
	if !ok || all <= 0 {
		return
	}
	reached, ok := b.o.count(`throng_group_cache_total{tier="sql"}`, from, to)
	if !ok {
		reached, _ = b.o.count(`throng_group_cache_total{tier="redis",result="miss"}`, from, to)
	}
	b.add("cache", "group_hit_share", "", Measured, "1 - look-ups of members that reached SQL / look-ups",
		Measure{Value: Number(1 - math.Min(1, reached/all)), Low: Unknown(), High: Unknown()})
}
