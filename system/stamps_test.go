package system_test

import (
	"testing"
	"time"

	"throng/system/wire"
)

// testStamps: one in sixteen messages arrives with the time of each stage, in
// the order of its way; the others have none.
func testStamps(t *testing.T, d *deployment) {
	a, b := d.dial(4, 1), d.dial(20, 0)
	a.awaitCurrent()
	b.awaitCurrent()
	const n = 64
	before := time.Now().UnixMicro()
	want := numbered("stamped", n)
	for _, body := range want {
		a.send(direct(20), body)
		a.send(group(400), body)
	}
	b.awaitBodies(4, 0, want...)
	b.awaitBodies(4, 400, want...)
	now := time.Now().UnixMicro()
	b.update(func() {
		kinds := map[bool]int{}
		for _, m := range b.got {
			if m.Stamps == nil {
				continue
			}
			kinds[m.Group != 0]++
			at := before
			for i, us := range waypoints(m) {
				if us < at || us > now {
					t.Errorf("stage %d of %v is out of order, or out of time (%d to %d)", i, m, before, now)
				}
				at = us
			}
		}
		if all := kinds[true] + kinds[false]; all != 2*n/16 {
			t.Errorf("%d of %d messages are stamped (by group or not: %v), want one in 16", all, 2*n, kinds)
		}
	})
}

// waypoints are the stamps that a message must have.
func waypoints(m *wire.Deliver) []int64 {
	s := m.GetStamps()
	if m.Group == 0 {
		return []int64{s.GatewayInUs, s.MessageInUs, s.InboxInUs, s.InboxOutUs, s.GatewayOutUs}
	}
	return []int64{s.GatewayInUs, s.MessageInUs, s.LoggedUs, s.FanoutInUs, s.InboxInUs, s.InboxOutUs, s.GatewayOutUs}
}
