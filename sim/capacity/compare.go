package capacity

import (
	"math"
)

// hops are the ways of bytes between processes, with the counter of each.
func (b *builder) network() {
	hop := func(name, formula string, m Measure) {
		b.add("network", name+"_bytes_per_send", "B", Measured, formula+" / accepted sends", m)
		b.add("network", name, "bit/s", Computed, "bytes_per_send x peak_sends x 8", m.times(8*b.p.SendsPerS), b.measured("bytes_per_send", m, "B"), b.peakSends())
	}
	hop("clients_to_gateways", "WebSocket bytes received, without TLS, TCP and IP", b.o.perSend("throng_ws_rx_bytes_total"))
	hop("gateways_to_clients", "WebSocket bytes written, without TLS, TCP and IP", b.o.perSend("throng_ws_tx_bytes_total"))
	for _, service := range b.o.labels("throng_rpc_tx_bytes_total", "service") {
		hop("rpc "+service, "bytes both ends of the service sent", b.o.perSend(`throng_rpc_tx_bytes_total{service="`+service+`"}`))
	}
	if w := b.o.per(b.o.counter("throng_ws_tx_frames_total"), b.o.counter("throng_ws_writes_total"), b.o.coarse); w.Value.Known() {
		b.add("gateway", "frames_per_write", "frames", Measured, "WebSocket frames written / write calls", w)
	}
}

// standIns adds what is not part of the fleet: the embedded stand-ins for
// Kafka, Redis and the provider, and the generator.
func (b *builder) standIns() {
	for _, role := range infraRoles() {
		b.add("infrastructure", role+"_cpu_per_send", "us", Measured, "CPU of the process / accepted sends; an embedded stand-in is not extrapolated", b.o.cpuPerSend(role).times(1e6))
	}
	b.add("generator", "cpu_per_send", "us", Measured, "CPU of the harness / accepted sends", b.o.cpuPerSend("generator").times(1e6))
	b.add("all roles", "cpu_per_send", "us", Measured, "CPU of the backend's roles / accepted sends, logins, receipts and typing included",
		b.o.per(b.o.cpuOf(backendRoles()), b.o.second(sends), b.o.edges).times(1e6))
	b.add("everything", "cpu_per_send", "us", Measured, "CPU of all processes of the run, harness and infrastructure too / accepted sends",
		b.o.per(b.o.cpuOf(b.o.run.RoleNames()), b.o.second(sends), b.o.edges).times(1e6))
}

// mix says how far the traffic of the run is from the profile's: what scales
// with sends assumes that the rest of the mix is the profile's.
func (b *builder) mix() {
	sendRate := b.o.rate(b.o.second(sends))
	check := func(name string, m Measure, planned float64, planUnit string) {
		b.add("mix", name, "", Measured, name+" in the gated phase; the profile has "+planUnit, m, Input{"profile", Number(planned), "", Assumed, "profile " + b.p.Name})
		if d := float64(m.Value)/planned - 1; planned > 0 && m.Value.Known() && math.Abs(d) > 0.1 {
			b.caveat("The run had %.3g %s, the profile has %.3g: rows that scale with sends are off by what that costs.", float64(m.Value), words(name), planned)
		}
	}
	if a := b.o.run.Audit; a != nil && a.FanoutSends > 0 {
		m := Measure{Value: Number(float64(a.FanoutRecipients) / float64(a.FanoutSends)), Low: Unknown(), High: Unknown()}
		check("recipients_per_send", m, b.p.DeliveriesPerS/b.p.SendsPerS, "deliveries/s over sends/s")
	}
	check("logins_per_send", b.o.secondPerSend(logins), b.p.LoginsPerS/b.p.SendsPerS, "logins/s over sends/s")
	check("connections_per_send_rate", Measure{Value: Number(b.o.rate(b.o.second(connected)) / sendRate), Low: Unknown(), High: Unknown()},
		b.p.Connections/b.p.SendsPerS, "connections over sends/s")
}

func words(name string) string {
	switch name {
	case "recipients_per_send":
		return "recipients for each send"
	case "logins_per_send":
		return "logins for each send"
	}
	return "sockets for each send a second"
}

// Why the three estimates differ, in one sentence.
const why = "The textbook counts users where connections count and message bodies where envelopes, receipts and fan-out count, keeps every message that a phone " +
	"has long fetched, and takes 10 M connections a server that no published system has; WORKLOAD.md section 6 counts the right things with published component " +
	"rates; this run measured what each of them costs in this implementation on this machine, and multiplies that by the same traffic."

// compare sets this estimate beside the textbook one (WORKLOAD.md 1c) and
// WORKLOAD.md section 6.
func (b *builder) compare() {
	b.e.Why = why
	preset := b.p.Preset
	row := func(q, unit string, textbook float64, w published, ours Number, why string) {
		b.e.Compare = append(b.e.Compare, Comparison{q, unit, Number(textbook), w.of(preset), ours, why})
	}
	find := func(tier, resource string) Number { r, _ := b.e.Find(tier, resource); return r.Value }
	none := math.NaN()
	mean := Number(1 / b.p.PeakToMean)
	cores := Number(0)
	for _, role := range backendRoles() {
		cores += find(role, "cores")
	}
	row("messages sent at the peak", "/s", 1.157e6, same(1.79e6), Number(b.p.SendsPerS), "the textbook has the daily mean")
	row("deliveries at the peak", "/s", none, published{3.73e6, 4.91e6, 20e6}, Number(b.p.DeliveriesPerS), "groups: a send reaches several users")
	row("connections", "", 2e9, b.connections(), Number(b.p.Connections), "users are not connections; only an app on the screen holds a socket in the foreground model")
	row("gateways", "servers", 200, b.gateways(), find("gateway", "instances"), "10 M a server is not published for WhatsApp; CPU for frames and logins counts as well as connections")
	row("cores of all roles at the peak", "cores", none, published{299, 393, 1603}, cores, "section 6 has gateways only, at 12.5 k deliveries/s a core; this run measured all roles, with logins, receipts and inboxes")
	row("bandwidth to clients, mean", "bit/s", 926e6, published{15.1e9, 19.8e9, 81e9}, find("network", "gateways_to_clients")*mean, "100 B a message leaves out envelope, receipts and fan-out; section 6 has 784 B of today's wire, this protocol is smaller")
	row("message storage a day", "B", 10e12, same(25e12), find("inbox", "bytes_written_day"), "written to inboxes and deleted when fetched, not kept")
	row("message storage held", "B", 300e12, published{7.8e12, 10e12, 42e12}, find("inbox", "storage_backlog"), "the textbook keeps 30 days of everything; what is fetched is deleted")
	row("group log, records at the peak", "/s", none, published{0.77e6, 0.77e6, 1.08e6}, find("log", "records"), "one record a group message, membership changes beside it")
	row("cache operations at the peak", "/s", none, published{3.73e6, 4.9e6, 20e6}, find("cache", "ops"), "section 6 looks each delivery's route up; here the inbox shard knows the session")
	row("inbox rows written at the peak", "/s", none, published{1.87e6, 2.45e6, 10e6}, find("inbox", "rows_written"), "section 6 assumes half the recipients offline; here the share is measured, and every direct message is a row first")
	row("push attempts, mean", "/s", none, published{0.60e6, 0.79e6, 3.2e6}, find("push", "attempts")*mean, "section 6 assumes half of the offline deliveries coalesced")
}

func (b *builder) connections() published {
	if b.p.Connection == "legacy" {
		return same(948e6)
	}
	return same(83e6)
}

// gateways of section 6: at 250 k connections and 70 %.
func (b *builder) gateways() published {
	if b.p.Connection == "legacy" {
		return same(5420)
	}
	return same(math.Ceil(83e6 / 0.175e6))
}
