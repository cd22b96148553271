package load

import (
	"testing"
	"time"
)

func TestOutages(t *testing.T) {
	const s = time.Second
	now := time.Duration(0)
	clock := func() time.Duration { return now }
	var o outages
	if got := o.whole(3*s, 8*s); got != 5*s {
		t.Errorf("without an outage: %s", got)
	}
	now = 20 * s
	first := o.begin(clock, false) // 20 to 33
	if got := o.whole(10*s, 100*s); got != 10*s {
		t.Errorf("during one: %s", got)
	}
	now = 23 * s
	first()
	now = 30 * s
	o.begin(clock, true) // 30 to 40
	for _, c := range []struct{ from, to, want time.Duration }{
		{0, 20 * s, 20 * s}, {0, 25 * s, 20 * s}, {25 * s, 28 * s, 0}, {10 * s, 35 * s, 10 * s}, {10 * s, 50 * s, 20 * s}, {32 * s, 45 * s, 5 * s}, {41 * s, 45 * s, 4 * s},
	} {
		if got := o.whole(c.from, c.to); got != c.want {
			t.Errorf("%s to %s: %s, want %s", c.from, c.to, got, c.want)
		}
	}
}
