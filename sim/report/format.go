package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// unknown is what people see where there is no figure, or too few samples.
const unknown = "~"

// grouped puts commas between thousands.
func grouped(t string) string {
	whole, frac, found := strings.Cut(t, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if found {
		return whole + "." + frac
	}
	return whole
}

func count(n int64) string { return grouped(strconv.FormatInt(n, 10)) }

// figures writes v to three significant digits, or to the unit above 100.
func figures(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return unknown
	}
	a := math.Abs(v)
	switch {
	case a >= 100:
		return grouped(strconv.FormatFloat(v, 'f', 0, 64))
	case a == 0:
		return "0"
	}
	digits := max(0, min(6, 2-int(math.Floor(math.Log10(a)))))
	t := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Contains(t, ".") {
		t = strings.TrimRight(strings.TrimRight(t, "0"), ".")
	}
	return t
}

func num(n Number) string { return figures(float64(n)) }

// ms writes milliseconds in the unit that fits.
func ms(n Number) string {
	v := float64(n)
	switch {
	case !n.Known():
		return unknown
	case v >= 999.5:
		return figures(v/1000) + " s"
	}
	return figures(v) + " ms"
}

func percent(v float64) string {
	switch p := v * 100; {
	case math.IsNaN(v):
		return unknown
	case p != 100 && p > 99.95:
		return "99.9%"
	case math.Abs(p-math.Round(p)) < 1e-9:
		return strconv.FormatFloat(p, 'f', 0, 64) + "%"
	case math.Abs(p) >= 1:
		return strconv.FormatFloat(p, 'f', 1, 64) + "%"
	default:
		return figures(p) + "%"
	}
}

// scaled writes v with a decimal prefix before unit: 3.2 TB, 4.1 Gbit/s, 1.79 M/s.
func scaled(v float64, unit string) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return unknown
	}
	for _, p := range []struct {
		f float64
		s string
	}{{1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= p.f*0.9995 {
			return figures(v/p.f) + " " + p.s + unit
		}
	}
	if unit == "/s" {
		return figures(v) + "/s"
	}
	return strings.TrimSpace(figures(v) + " " + unit)
}

// amount writes a figure of the estimate in the form that suits its unit.
func amount(n Number, unit string) string {
	v := float64(n)
	switch {
	case !n.Known():
		return unknown
	case unit == "B" || unit == "bit/s" || unit == "B/s" || unit == "/s":
		return scaled(v, unit)
	case (unit == "connections" || unit == "") && math.Abs(v) >= 1e9:
		return strings.TrimSpace(figures(v/1e9) + " billion " + unit)
	case (unit == "connections" || unit == "") && math.Abs(v) >= 1e6:
		return strings.TrimSpace(figures(v/1e6) + " million " + unit)
	}
	return strings.TrimSpace(figures(v) + " " + unit)
}

// interval writes a 95 % interval, or nothing when there is none to write.
func interval(low, high Number, unit string) string {
	if !low.Known() || !high.Known() || low == high {
		return ""
	}
	l, h := amount(low, unit), amount(high, unit)
	if l == h {
		return "within rounding"
	}
	return shared(l, h, " to ")
}

// shared joins two amounts and writes their unit once if it is the same.
func shared(l, h, between string) string {
	if i := strings.IndexByte(l, ' '); i > 0 && strings.HasSuffix(h, l[i:]) {
		l = l[:i]
	}
	return l + between + h
}

func bytesOf(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
}
