package inbox

type user struct {
	id         uint64
	shard      int
	exists     bool // has devices; else a remembered "no such user"
	hidden     bool // shows others neither presence nor last seen
	devices    []*device
	prev, next *user
}

func (u *user) device(id uint32) *device {
	for _, d := range u.devices {
		if d.Device == id {
			return d
		}
	}
	return nil
}

func (c *Core) link(u *user) {
	u.prev, u.next = c.oldest.prev, &c.oldest
	u.prev.next, u.next.prev = u, u
}

func (u *user) unlink() { u.prev.next, u.next.prev = u.next, u.prev }

// touch returns a loaded user and makes it the most recently used.
func (c *Core) touch(id uint64) *user {
	u := c.users[id]
	if u == nil {
		panic("inbox: event for a user that is not loaded")
	}
	u.unlink()
	c.link(u)
	return u
}

// evict forgets users beyond the limit, least recently used first, except
// those with a session or a push on its way; the store knows all of the rest.
func (c *Core) evict() {
	for tries := 256; len(c.users) > c.lim.Users && tries > 0; tries-- {
		u := c.oldest.next
		u.unlink()
		if u.busy() {
			c.link(u)
			continue
		}
		delete(c.users, u.id)
	}
}

func (u *user) busy() bool {
	for _, d := range u.devices {
		if d.session != nil || d.pushTimer != 0 || d.pushRef != 0 {
			return true
		}
	}
	return false
}
