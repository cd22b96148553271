package capacity

import "math"

// Search finds the largest scale, as the denominator of a share 1/n of the whole
// service, that is carried: a breakpoint test. It doubles the load while it is
// carried, or halves it while it is not, and then halves the distance, in the
// logarithm, until the two ends are close enough. It assumes that a smaller
// load is carried wherever a larger one is. Denominators have two significant
// digits, so that they can be said and typed.
type Search struct {
	// Start is tried first. Most is the denominator of the largest load that is
	// tried, Least that of the smallest: Most <= Start <= Least.
	Start, Most, Least uint64
	// Resolution is how far apart, relatively, the largest load that is carried
	// and the smallest that is not may be in the end, as 0.1.
	Resolution float64

	carried, broken uint64 // denominators nearest to each other, 0: none
}

// Next is what to try now; false when the search has ended.
func (s *Search) Next() (n uint64, ok bool) {
	switch {
	case s.carried == 0 && s.broken == 0:
		return s.Start, true
	case s.broken == 0:
		n = max(twoDigits(float64(s.carried)/2), s.Most)
		return n, n < s.carried
	case s.carried == 0:
		n = min(twoDigits(float64(s.broken)*2), s.Least)
		return n, n > s.broken
	}
	if float64(s.carried) <= float64(s.broken)*(1+s.Resolution) {
		return 0, false
	}
	n = twoDigits(math.Sqrt(float64(s.carried) * float64(s.broken)))
	return n, n > s.broken && n < s.carried
}

// Report says whether 1/n was carried.
func (s *Search) Report(n uint64, carried bool) {
	switch {
	case !carried && (s.broken == 0 || n > s.broken):
		s.broken = n
		if s.carried <= n {
			s.carried = 0 // it was carried once, and is not now: the smaller loads decide
		}
	case carried && (s.carried == 0 || n < s.carried):
		s.carried = n
	}
}

// Found is the denominator of the largest load that was carried, 0 if none was,
// and that of the smallest that was not, 0 if all were.
func (s *Search) Found() (carried, broken uint64) { return s.carried, s.broken }

// Smaller is the next smaller load than 1/n, by one Resolution, for when a
// longer run shows that 1/n is not carried after all; false below Least.
func (s *Search) Smaller(n uint64) (uint64, bool) {
	next := max(twoDigits(float64(n)*(1+s.Resolution)), n+1)
	return next, next <= s.Least
}

// twoDigits rounds to two significant digits.
func twoDigits(v float64) uint64 {
	if v < 100 {
		return uint64(math.Round(v))
	}
	step := math.Pow(10, math.Floor(math.Log10(v))-1)
	return uint64(math.Round(v/step) * step)
}
