package capacity

import (
	"math"

	"gonum.org/v1/gonum/stat/distuv"

	"throng/sim/metrics"
)

// MinBlocks is the fewest time blocks that an interval is computed from.
const MinBlocks = metrics.MinBlocks

// tQuantile is the two-sided 95 % quantile of Student's t with n-1 degrees of
// freedom.
func tQuantile(n int) float64 {
	return distuv.StudentsT{Mu: 0, Sigma: 1, Nu: float64(n - 1)}.Quantile(0.975)
}

// ratio estimates sum(num)/sum(den) over time blocks with its 95 % interval:
// blocks with more traffic weigh more, and a cost that follows the traffic has a
// narrow interval whatever the traffic does.
func ratio(num, den []float64) Measure {
	ci := metrics.RatioOfBlocks(num, den, 0.95)
	if math.IsNaN(ci.Value) || len(num) == 0 {
		return unmeasured()
	}
	m := Measure{Value: Number(ci.Value), Low: Unknown(), High: Unknown(), Blocks: len(num), warning: ci.Warning}
	if ci.OK {
		m.Low, m.High = Number(math.Max(0, ci.Low)), Number(ci.High)
	}
	return m
}

// fit is a non-negative linear model of a role's CPU over time blocks.
type fit struct {
	coef      []float64
	low, high []float64
	vif       []float64 // variance inflation of each column
	r2        float64   // share of the CPU's square sum that the model explains
	ok        bool      // identifiable and fitting
	why       string    // when not ok
}

// Limits of a fit that is believed.
const (
	maxVIF = 10
	minR2  = 0.9
)

// nonNegative fits y = X c with c >= 0 by least squares weighted with 1/y (the
// noise of counted work grows with the work), with delete-one-block jackknife
// intervals. rows of x are blocks. It says ok only when the columns can be told
// apart (variance inflation at most 10), there are at least three blocks more
// than three a column, and the model explains the CPU.
func nonNegative(x [][]float64, y []float64) fit {
	n := len(y)
	if n == 0 {
		return fit{why: "no time blocks"}
	}
	k := len(x[0])
	if n < 3*k+3 {
		return fit{why: "too few time blocks"}
	}
	wx, wy := weigh(x, y)
	f := fit{coef: solveNonNegative(wx, wy), vif: inflation(wx)}
	f.r2 = explained(wx, wy, f.coef)
	f.low, f.high = jackknife(wx, wy, f.coef)
	for _, v := range f.vif {
		if !(v <= maxVIF) {
			f.why = "the work items rise and fall together, the run cannot tell their costs apart"
			return f
		}
	}
	if f.r2 < minR2 {
		f.why = "CPU does not follow the work items linearly over the phases"
		return f
	}
	f.ok = true
	return f
}

func weigh(x [][]float64, y []float64) (wx [][]float64, wy []float64) {
	mean := 0.0
	for _, v := range y {
		mean += v / float64(len(y))
	}
	for i := range y {
		w := 1 / math.Sqrt(math.Max(y[i], mean/20)+1e-12)
		row := make([]float64, len(x[i]))
		for j := range row {
			row[j] = x[i][j] * w
		}
		wx, wy = append(wx, row), append(wy, y[i]*w)
	}
	return wx, wy
}

// solveNonNegative tries every set of active columns: exact, and with at most
// four columns cheaper than an iteration.
func solveNonNegative(x [][]float64, y []float64) []float64 {
	k := len(x[0])
	best, bestRSS := make([]float64, k), math.Inf(1)
	for set := range 1 << k {
		c, ok := solve(x, y, set)
		if !ok {
			continue
		}
		if rss := residual(x, y, c); rss < bestRSS*(1-1e-12) {
			best, bestRSS = c, rss
		}
	}
	return best
}

// solve is solveAny that takes no negative coefficient.
func solve(x [][]float64, y []float64, set int) ([]float64, bool) {
	c, ok := solveAny(x, y, set)
	for _, v := range c {
		ok = ok && v >= 0
	}
	return c, ok
}

// solveAny is least squares with the columns of set only; ok is false when they
// are dependent.
func solveAny(x [][]float64, y []float64, set int) ([]float64, bool) {
	k := len(x[0])
	var cols []int
	for j := range k {
		if set>>j&1 == 1 {
			cols = append(cols, j)
		}
	}
	m := make([][]float64, len(cols))
	for a, j := range cols {
		m[a] = make([]float64, len(cols)+1)
		for i := range x {
			for b, l := range cols {
				m[a][b] += x[i][j] * x[i][l]
			}
			m[a][len(cols)] += x[i][j] * y[i]
		}
	}
	norm := make([]float64, len(cols))
	for a := range cols {
		if norm[a] = math.Sqrt(m[a][a]); norm[a] == 0 {
			return nil, false
		}
	}
	for a := range cols {
		for b := range cols {
			m[a][b] /= norm[a] * norm[b]
		}
		m[a][len(cols)] /= norm[a]
	}
	if !eliminate(m) {
		return nil, false
	}
	c := make([]float64, k)
	for a, j := range cols {
		c[j] = m[a][len(cols)] / norm[a]
	}
	return c, true
}

// eliminate solves m, a square matrix with its right side as last column, in place.
func eliminate(m [][]float64) bool {
	n := len(m)
	for a := range n {
		p := a
		for b := a + 1; b < n; b++ {
			if math.Abs(m[b][a]) > math.Abs(m[p][a]) {
				p = b
			}
		}
		m[a], m[p] = m[p], m[a]
		if math.Abs(m[a][a]) < 1e-9 {
			return false
		}
		for b := range n {
			if b == a {
				continue
			}
			f := m[b][a] / m[a][a]
			for c := a; c <= n; c++ {
				m[b][c] -= f * m[a][c]
			}
		}
	}
	for a := range n {
		m[a][n] /= m[a][a]
	}
	return true
}

func residual(x [][]float64, y, c []float64) float64 {
	rss := 0.0
	for i := range x {
		d := y[i]
		for j := range c {
			d -= x[i][j] * c[j]
		}
		rss += d * d
	}
	return rss
}

func explained(x [][]float64, y, c []float64) float64 {
	tss := 0.0
	for _, v := range y {
		tss += v * v
	}
	if tss == 0 {
		return 0
	}
	return 1 - residual(x, y, c)/tss
}

// inflation is 1/(1-R2) of each column regressed on the others, without an
// intercept: how much wider its interval is because they move together.
func inflation(x [][]float64) []float64 {
	k := len(x[0])
	out := make([]float64, k)
	for j := range k {
		col := make([]float64, len(x))
		sum := 0.0
		for i := range x {
			col[i] = x[i][j]
			sum += col[i]
		}
		if sum == 0 {
			out[j] = math.Inf(1) // never happened: nothing can be said
			continue
		}
		set := (1<<k - 1) &^ (1 << j)
		c, ok := solveAny(x, col, set)
		if k == 1 {
			out[j] = 1
			continue
		}
		if !ok {
			out[j] = math.Inf(1)
			continue
		}
		out[j] = 1 / math.Max(1-explained(x, col, c), 1e-12)
	}
	return out
}

func jackknife(x [][]float64, y, c []float64) (low, high []float64) {
	n, k := len(y), len(c)
	sum, sq := make([]float64, k), make([]float64, k)
	for drop := range n {
		var rx [][]float64
		var ry []float64
		rx, ry = append(append(rx, x[:drop]...), x[drop+1:]...), append(append(ry, y[:drop]...), y[drop+1:]...)
		d := solveNonNegative(rx, ry)
		for j := range d {
			sum[j] += d[j]
			sq[j] += d[j] * d[j]
		}
	}
	t := tQuantile(n)
	for j := range k {
		mean := sum[j] / float64(n)
		se := math.Sqrt(math.Max(0, (sq[j]-mean*sum[j])*float64(n-1)/float64(n)))
		low, high = append(low, math.Max(0, c[j]-t*se)), append(high, c[j]+t*se)
	}
	return low, high
}
