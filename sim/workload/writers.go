package workload

import (
	"math"

	"throng/sim/population"
)

// rankShares are the shares of messages that the first three writers of a chat
// with so many members write (WORKLOAD.md section 2a). Sizes between two rows
// of the table are interpolated; 11 to 30 and more are one row each.
func rankShares(size int) [3]float64 {
	rows := []struct {
		size   int
		shares [3]float64
	}{
		{2, [3]float64{.550, .450, 0}},
		{3, [3]float64{.499, .313, .188}},
		{5, [3]float64{.366, .263, .192}},
		{10, [3]float64{.273, .197, .149}},
	}
	switch {
	case size > 30:
		return [3]float64{.131, .081, .064}
	case size > 10:
		return [3]float64{.226, .151, .115}
	}
	for i := 1; i < len(rows); i++ {
		lo, hi := rows[i-1], rows[i]
		if size > hi.size {
			continue
		}
		f := float64(size-lo.size) / float64(hi.size-lo.size)
		var out [3]float64
		for r := range out {
			out[r] = lo.shares[r] + float64(f*(hi.shares[r]-lo.shares[r]))
		}
		return out
	}
	return rows[0].shares
}

// zipfExponent of the shares beyond rank three.
const zipfExponent = 0.6

// drawRank draws who writes a message: the rank, from 0, among size members.
// Beyond rank three it is Zipf with exponent 0.6, by its integral.
func drawRank(s *population.Stream, size int) int {
	u := s.Float64()
	for r, share := range rankShares(size) {
		if u < share {
			return min(r, size-1)
		}
		u -= share
	}
	if size <= 3 {
		return size - 1
	}
	lo, hi := power(4), power(float64(size)+1)
	x := population.Exp(population.Ln(lo+float64(s.Float64()*(hi-lo))) / (1 - zipfExponent))
	return max(3, min(int(math.Floor(x)), size)-1)
}

// power is x to the (1 - zipfExponent).
func power(x float64) float64 {
	return population.Exp(float64((1 - zipfExponent) * population.Ln(x)))
}

// maxBody bounds a body: the longest text, 65,536 characters, and some.
const maxBody = 60_000
