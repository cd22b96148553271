package inbox

import (
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// Sessions of a device are fenced: each has an epoch, above that of every
// earlier one, also under earlier owners. A gateway that was cut off and opens
// its sessions again names the epoch that a session has; where the device has
// connected elsewhere since, that session loses. Without it a gateway with a
// half-open socket would take the device away from its user.

// Opened tells a gateway what its session is: its epoch, and what others may see
// of the user. It comes once for each Open that was let in, and when the user
// changes the latter.
type Opened struct {
	Gateway, Conn uint64
	Epoch         uint64
	HideLastSeen  bool
}

func (o *Opened) told() *rpc.SessionOpened {
	return &rpc.SessionOpened{Conn: o.Conn, Epoch: o.Epoch, Privacy: &wire.Privacy{HideLastSeen: o.HideLastSeen}}
}

// admit gives a device's new session (epoch 0) an epoch, or lets one that had
// one keep it. It reports false when there has been a newer session.
func (c *Core) admit(d *device, epoch uint64) bool {
	switch {
	case epoch == 0:
		c.epoch++
		d.epoch = c.epoch
	case epoch < d.epoch:
		return false
	default:
		// One from the future is a fault of the gateway's; it must not make
		// later sessions lose.
		d.epoch = min(epoch, c.epoch)
	}
	return true
}

func (c *Core) opened(s *session) {
	c.eff.Opened = append(c.eff.Opened, Opened{Gateway: s.gateway, Conn: s.conn, Epoch: s.dev.epoch, HideLastSeen: s.dev.user.hidden})
}

// Privacy records what others may see of a loaded user, and tells the gateways
// of all of the user's sessions.
func (c *Core) Privacy(userID uint64, hideLastSeen bool) {
	u := c.touch(userID)
	if !u.exists {
		return
	}
	if u.hidden != hideLastSeen {
		u.hidden = hideLastSeen
		c.batch.Privacy = append(c.batch.Privacy, Privacy{User: userID, HideLastSeen: hideLastSeen})
	}
	for _, d := range u.devices {
		if d.session != nil {
			c.opened(d.session)
		}
	}
}
