package metrics

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/stat/distuv"
)

// Trend is the straight line that fits a series best: Value, Low and High are
// its slope, a unit of time, and N counts time blocks.
type Trend struct {
	CI
	Mean float64 // of the blocks
}

// TrendOf fits a line to the samples x at times t that lie in [from, to], with
// the t interval of its slope (Draper and Smith, Applied Regression Analysis,
// section 1.4: b ± t(n-2, 1-α/2)·s/√Σ(t-t̄)²). The line goes through the means of
// equal time blocks, not through the samples: neighbouring samples of a level
// are nearly the same, and would make the interval too narrow. OK needs
// MinBlocks with samples. t and x are of equal length, t need not be sorted.
func TrendOf(t, x []float64, from, to float64, blocks int, level float64) Trend {
	sumT, sumX, n := make([]float64, blocks), make([]float64, blocks), make([]float64, blocks)
	for i := range t {
		if t[i] < from || t[i] > to || to <= from {
			continue
		}
		b := min(int((t[i]-from)/(to-from)*float64(blocks)), blocks-1)
		sumT[b] += t[i]
		sumX[b] += x[i]
		n[b]++
	}
	var ts, xs []float64
	for b := range n {
		if n[b] > 0 {
			ts, xs = append(ts, sumT[b]/n[b]), append(xs, sumX[b]/n[b])
		}
	}
	tr := Trend{Mean: math.NaN(), CI: CI{Level: level, N: int64(len(xs)), Value: math.NaN(), Low: math.Inf(-1), High: math.Inf(1)}}
	if len(xs) > 0 {
		tr.Mean = mean(xs)
	}
	if len(xs) < MinBlocks {
		tr.Warning = fmt.Sprintf("%d blocks, at least %d are needed", len(xs), MinBlocks)
		return tr
	}
	tr.fit(ts, xs)
	return tr
}

// fit sets the slope and its interval from three points or more.
func (tr *Trend) fit(t, x []float64) {
	mt := mean(t)
	var stt, stx float64
	for i := range t {
		stt += (t[i] - mt) * (t[i] - mt)
		stx += (t[i] - mt) * (x[i] - tr.Mean)
	}
	tr.Value = stx / stt
	residuals := make([]float64, len(t))
	var ss float64
	for i := range t {
		residuals[i] = x[i] - tr.Mean - tr.Value*(t[i]-mt)
		ss += residuals[i] * residuals[i]
	}
	free := float64(len(t) - 2)
	q := distuv.StudentsT{Mu: 0, Sigma: 1, Nu: free}.Quantile(1 - (1-tr.Level)/2)
	half := q * math.Sqrt(ss/free/stt)
	tr.Low, tr.High, tr.OK = tr.Value-half, tr.Value+half, true
	tr.warnCorrelated(residuals)
}
