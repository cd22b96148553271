package inbox

import (
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// Copies of what a user sends go to the user's other devices, so that all of
// them show the same conversation. In a group the sender is among the users
// that a message is addressed to; a direct message is appended a second time,
// for its sender alone, when the addressee has it. A copy makes no receipt and
// no push, and a full inbox does not refuse it: the message is accepted by then.

// isOwn reports whether a direct item is the copy for its sender's other devices.
func isOwn(it *rpc.AppendItem) bool {
	return it.Message.GetGroup() == 0 && len(it.Users) == 1 && it.Users[0] == it.Message.GetFrom()
}

// sentBy reports whether d is the device that the message comes from.
func (m *Message) sentBy(d *device) bool { return m.From == d.User && m.FromDevice == d.Device }

// appendOwn puts a direct message into the mailboxes of its sender's other
// devices. Most users have none.
func (c *Core) appendOwn(it *Item) {
	c.stats.Own++
	for _, d := range c.touch(it.Msg.From).devices {
		if !it.Msg.sentBy(d) {
			c.putDirect(d, it)
		}
	}
	c.answer(it, wire.Code_CODE_UNSPECIFIED)
}

// quiet notes that the newest row of a device asks for no push.
func (c *Core) quiet(d *device) {
	if d.token == "" || d.wanted > d.covered { // the push to come covers it as well
		return
	}
	d.covered = d.newest
	c.batch.Pushed = append(c.batch.Pushed, Pushed{Key: d.Key, Seq: d.covered})
}
