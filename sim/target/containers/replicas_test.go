package containers

import (
	"testing"
	"time"
)

// readsAtReplica: members are read at the replica, its lag is measured, and when
// it is lost the primary answers.
func readsAtReplica(t *testing.T, d *Deployment) {
	const atReplica, atPrimary, lag = `throng_group_reads_total{source="0"}`, `throng_group_reads_total{source="primary"}`, `throng_group_replica_lag_seconds{replica="0"}`
	value := func(name string) (float64, bool) {
		samples, err := d.Scrape(within(t, 10*time.Second))
		if err != nil {
			return 0, false
		}
		for _, s := range samples {
			if v, ok := s.Values[name]; ok {
				return v, true
			}
		}
		return 0, false
	}
	base := uint64(7000)
	before, _ := value(atReplica)
	// A group that is sent to at once may be newer than the replica.
	eventually(t, time.Minute, "a read at the replica", func() bool {
		base += 100
		if err := sayInLarge(within(t, 30*time.Second), d, 0, base, base); err != nil {
			t.Fatal(err)
		}
		now, _ := value(atReplica)
		return now > before
	})
	if v, ok := value(lag); !ok || v > 3 {
		t.Errorf("lag %v s, reported: %v", v, ok)
	}
	if err := d.Kill(RoleMySQL, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the lag grows", func() bool { v, ok := value(lag); return ok && v > 3 })
	there, _ := value(atReplica)
	primary, _ := value(atPrimary)
	if err := sayInLarge(within(t, time.Minute), d, 0, base+100, base+100); err != nil {
		t.Errorf("without the replica: %v", err)
	}
	if now, _ := value(atReplica); now != there {
		t.Errorf("%v reads at a replica that is gone", now-there)
	}
	if now, _ := value(atPrimary); now <= primary {
		t.Error("the primary answered nothing")
	}
	if err := d.Restart(RoleMySQL, 1); err != nil {
		t.Fatal(err)
	}
	if err := d.WaitReady(within(t, time.Minute), RoleMySQL, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the lag is gone", func() bool { v, ok := value(lag); return ok && v < 3 })
}
