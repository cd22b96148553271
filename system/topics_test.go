package system_test

import (
	"testing"

	"throng/system"
)

// TestTopicPerGroup: with a topic for each group, messages arrive in order, and
// so do those of a group that is made while others are in use.
func TestTopicPerGroup(t *testing.T) {
	d := startAll(t, counts{gateways: 1, messages: 2, fanouts: 2, groups: 1, inboxes: 2, pushes: 1},
		func(c *system.Config) { c.Kafka.Layout = "topic-per-group" })
	d.provision(4, 1, map[uint64][]uint64{10: {1, 2, 3}, 11: {2, 3}, 12: {1, 4}})
	var devices []*device
	for u := uint64(1); u <= 4; u++ {
		devices = append(devices, d.dial(u, 0))
		devices[u-1].awaitCurrent()
	}
	want := numbered("m", 20)
	for _, body := range want {
		devices[0].send(group(10), body)
		devices[1].send(group(11), body)
		devices[3].send(group(12), body)
	}
	devices[1].awaitBodies(1, 10, want...)
	devices[2].awaitBodies(2, 11, want...)
	devices[0].awaitBodies(4, 12, want...)
	d.provision(4, 1, map[uint64][]uint64{13: {4, 3}})
	devices[3].send(group(13), "new")
	devices[0].send(group(10), "old")
	devices[2].awaitBodies(4, 13, "new")
	devices[1].awaitBodies(1, 10, append(want, "old")...)
}
