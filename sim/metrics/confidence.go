package metrics

// CI is an estimate with its two-sided interval of confidence.
type CI struct {
	Value, Low, High float64
	Level            float64 // of confidence, as 0.95
	N                int64   // samples, or blocks for a mean
	OK               bool    // enough samples: when false, printers show "~"
	Warning          string  // for people, empty when there is none
}
