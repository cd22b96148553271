package scenario

import (
	"fmt"
	"io"
)

// Provider is how the simulated push provider behaves. External targets have a
// provider of their own, which nobody can tell how to behave.
type Provider struct {
	// LatencyMedianS and LatencySigma are those of a lognormal time to an answer.
	LatencyMedianS float64
	LatencySigma   float64
	// QuotaPerMinute: requests above it, spread over each second, are told to
	// wait (429 with Retry-After). 0: no quota.
	QuotaPerMinute int64
	// ErrorShare of the requests fails with 503.
	ErrorShare float64
	// DeadShare of the devices is gone: 410.
	DeadShare float64
}

func (p *Provider) fields() []field {
	return []field{
		{path: "provider.latency_median", kind: kindDuration, max: 30, def: "30ms", sparse: true, doc: "median time to an answer of the push provider", to: &p.LatencyMedianS},
		{path: "provider.latency_sigma", kind: kindNumber, max: 3, def: "0.5", sparse: true, doc: "spread of it (lognormal)", to: &p.LatencySigma},
		{path: "provider.quota_per_minute", kind: kindInt, max: 1e9, def: "0", sparse: true, doc: "pushes a minute, above it 429 with Retry-After; 0: no quota", to: &p.QuotaPerMinute},
		{path: "provider.error_share", kind: kindNumber, max: 1, def: "0", sparse: true, doc: "share of the requests that fail with 503", to: &p.ErrorShare},
		{path: "provider.dead_share", kind: kindNumber, max: 1, def: "0", sparse: true, doc: "share of the devices whose token is dead, 410", to: &p.DeadShare},
	}
}

// Faulty says whether the scenario asks for more than latency.
func (p Provider) Faulty() bool { return p.QuotaPerMinute > 0 || p.ErrorShare > 0 || p.DeadShare > 0 }

// describe prints what the provider does wrong.
func (p Provider) describe(w io.Writer) {
	if p.QuotaPerMinute > 0 {
		fmt.Fprintf(w, "  provider: 429 with Retry-After above %s pushes/s\n", human(float64(p.QuotaPerMinute)/60))
	}
	if p.ErrorShare > 0 {
		fmt.Fprintf(w, "  provider: %s %% of the requests fail\n", num(100*p.ErrorShare))
	}
	if p.DeadShare > 0 {
		fmt.Fprintf(w, "  provider: %s %% of the tokens are dead\n", num(100*p.DeadShare))
	}
}
