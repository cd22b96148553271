package capacity

const (
	secondsPerDay = 86400
	// peakToMean is the diurnal peak of the global sum over its mean
	// (WORKLOAD.md 1b: 342 k/s over 220 k/s in 2014, confidence S).
	peakToMean = 1.55
)

// AsMeasured marks rows at the offline share of the run.
const AsMeasured = "measured"

// offlineShares are the shares that rows are given at, beside as measured
// (WORKLOAD.md section 5: 0.5, sweep 0.3 to 0.7, an assumption there).
func offlineShares() []float64 { return []float64{0.3, 0.5, 0.7} }

// The planning assumptions: nothing here was measured in the run.
func utilisation() Input {
	return Input{"utilisation", 0.6, "of a core", Assumed, "planning rule: the peak leaves 40 % for spikes and the loss of an instance"}
}
func spares() Input { return Input{"spares", 2, "instances", Assumed, "planning rule N+2"} }
func instanceCores() Input {
	return Input{"cores_per_instance", 16, "cores", Assumed, "planning choice"}
}
func connectionsPerInstance() Input {
	return Input{"connections_per_instance", 250e3, "connections", Assumed, "WORKLOAD.md section 6, Go gateways"}
}
func connectionUse() Input {
	return Input{"connection_use", 0.7, "of the limit", Assumed, "WORKLOAD.md section 6"}
}
func replicas() Input {
	return Input{"replicas", 3, "copies", Assumed, "replication factor of the log"}
}
func brokerRate() Input {
	return Input{"broker_rate", 64e6, "B/s", Assumed, "WORKLOAD.md section 3, LinkedIn 2014 a broker"}
}
func brokerUse() Input {
	return Input{"broker_use", 0.5, "of the rate", Assumed, "WORKLOAD.md section 6"}
}
func partitionRate() Input {
	return Input{"partition_rate", 10e6, "B/s", Assumed, "WORKLOAD.md section 6"}
}
func partitionSlack() Input {
	return Input{"partition_slack", 2, "times", Assumed, "WORKLOAD.md section 6"}
}
func cacheRate() Input {
	return Input{"cache_shard_rate", 72e3, "ops/s", Assumed, "WORKLOAD.md section 3, redis.io over 100 k random keys, no pipeline"}
}
func sqlRate() Input {
	return Input{"sql_shard_rate", 20e3, "rows/s", Assumed, "WORKLOAD.md section 3, planning assumption of 10 to 30 k durable writes/s; measure on own hardware"}
}
func dwell() Input {
	return Input{"mean_dwell", 6 * 3600, "s", Assumed, "WORKLOAD.md section 6"}
}
func neverFetched() Input {
	return Input{"never_fetched", 0.02, "of deliveries", Assumed, "WORKLOAD.md section 5"}
}
func retention() Input { return Input{"retention", 30, "days", Assumed, "WORKLOAD.md section 1"} }
func devicesPerUser() Input {
	return Input{"devices_per_user", 1.2, "devices", Assumed, "WORKLOAD.md section 5"}
}
func pushQuota() Input {
	return Input{"fcm_quota", 10e3, "pushes/s", Assumed, "WORKLOAD.md section 3, default quota of a project"}
}

// published are WORKLOAD.md's own figures by preset: A, B, C.
type published struct{ a, b, c Number }

func (p published) of(preset string) Number {
	switch preset {
	case "A":
		return p.a
	case "B":
		return p.b
	case "C":
		return p.c
	}
	return Unknown()
}

func same(v float64) published { return published{Number(v), Number(v), Number(v)} }

// role order and names of tiers, as they are printed.
func backendRoles() []string {
	return []string{"gateway", "message", "fanout", "group", "inbox", "push"}
}
func infraRoles() []string { return []string{"kafka", "redis", "provider"} }
