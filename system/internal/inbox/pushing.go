package inbox

import (
	"strconv"
	"time"

	"throng/system/internal/rpc"
)

// PushRequest asks the push role to wake a device.
type PushRequest struct {
	Ref uint64
	Key
	Token   string
	Message [16]byte
	Waiting int
}

// schedulePush arms the timer of a device that has rows no push covers. One
// push at a time, and at most one in PushEvery unless the app was opened: rows
// that come in between are covered by the next one.
func (c *Core) schedulePush(d *device) {
	if d.token == "" || d.pushTimer != 0 || d.pushRef != 0 || d.rows == 0 || d.wanted <= d.covered {
		return
	}
	at := c.now + int64(c.lim.PushDelay)
	if d.pushedAt != 0 {
		at = max(at, d.pushedAt+int64(c.lim.PushEvery))
	}
	c.pushAt(d, at)
}

func (c *Core) pushAt(d *device, at int64) {
	d.pushTimer = at
	c.wheel.add(timer{at: at, kind: timerPush, dev: d})
}

// seen says that the owner has opened the app: the next push need not wait for
// the end of PushEvery.
func (c *Core) seen(d *device) {
	d.pushedAt, d.pushTimer = 0, 0
	c.schedulePush(d)
}

// pushDue sends the request, unless the rows have gone or a session that
// acknowledges is emptying the inbox.
func (c *Core) pushDue(d *device) {
	if d.pushTimer == 0 || d.pushTimer > c.now {
		return // another timer has taken its place
	}
	d.pushTimer = 0
	if d.token == "" || d.rows == 0 || d.wanted <= d.covered || d.pushRef != 0 {
		return
	}
	if c.attended(d.session) || len(c.pushing) >= c.lim.Pushes {
		c.stats.PushesPostponed++
		c.pushAt(d, c.now+int64(c.lim.PushDelay))
		return
	}
	c.pushRef++
	d.pushRef, d.pushSeq, d.pushToken, d.pushedAt = c.pushRef, d.newest, d.token, c.now
	c.pushing[d.pushRef] = d
	c.eff.Pushes = append(c.eff.Pushes, PushRequest{Ref: d.pushRef, Key: d.Key, Token: d.token,
		Message: d.message, Waiting: d.rows})
}

// drainGrace is how long a session may take to empty an inbox before its device
// is sent a push all the same: every row that waits gets one.
const drainGrace = 5 * time.Second

// attended reports whether there is a session that acknowledges what it gets
// and has all of it, or will soon.
func (c *Core) attended(s *session) bool {
	return s != nil && !s.suspect && (s.live || c.now-s.since < int64(drainGrace))
}

// PushCancel takes a push back: the device has acknowledged rows.
type PushCancel struct {
	Ref  uint64
	User uint64
}

// held are deletions of acknowledged rows of a device that wait for the answer to
// a PushCancel: once an acknowledgement is recorded, no push attempt starts.
type held struct {
	since int64
	late  bool      // no answer in time: nothing is held any more
	rows  []heldRow // bounded by what can be acknowledged in one AckTimeout
	upTo  uint64    // and all rows up to here, 0: none
}

type heldRow struct{ seq, body uint64 }

func (h *held) some() bool { return h != nil && (len(h.rows) > 0 || h.upTo > 0) }

// hold reports whether an acknowledgement of the device has to wait because a
// push is on its way, which it takes back.
func (c *Core) hold(d *device) bool {
	if d.pushRef == 0 {
		return false
	}
	if d.held == nil {
		d.held = &held{since: c.now}
		c.stats.PushesCancelled++
		c.eff.Cancels = append(c.eff.Cancels, PushCancel{Ref: d.pushRef, User: d.User})
		c.wheel.add(timer{at: c.now + int64(c.lim.AckTimeout), kind: timerHeld, dev: d})
	}
	return !d.held.late
}

// heldDue stops waiting: a push instance that does not answer must not keep a
// device from draining.
func (c *Core) heldDue(d *device) {
	if d.held == nil || d.held.late || d.held.since+int64(c.lim.AckTimeout) > c.now {
		return // answered; a later push has a timer of its own
	}
	c.stats.CancelsUnanswered++
	c.unhold(d)
	d.held = &held{late: true}
}

// unhold deletes what was held and goes on with the drain.
func (c *Core) unhold(d *device) {
	h := d.held
	d.held = nil
	if !h.some() {
		return
	}
	for _, r := range h.rows {
		c.deleteRow(d, r.seq, r.body)
	}
	if h.upTo > 0 {
		c.batch.DeleteUpTo = append(c.batch.DeleteUpTo, UpTo{Key: d.Key, Seq: h.upTo})
	}
	if d.session != nil {
		c.next(d.session)
	}
}

// Unhold deletes everything that is held, before a stop.
func (c *Core) Unhold() {
	for _, d := range c.pushing {
		c.unhold(d)
	}
}

// PushResult ends a push. An unspecified outcome means that nobody knows what
// became of it: it is sent again if the rows are still there.
func (c *Core) PushResult(ref uint64, outcome rpc.PushOutcome) {
	d := c.pushing[ref]
	if d == nil {
		return
	}
	delete(c.pushing, ref)
	d.pushRef = 0
	switch outcome {
	case rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED, rpc.PushOutcome_PUSH_OUTCOME_DEAD_LETTER:
		d.covered = max(d.covered, d.pushSeq)
		if d.wanted <= d.covered {
			d.covered = d.newest
		}
		c.batch.Pushed = append(c.batch.Pushed, Pushed{Key: d.Key, Seq: d.covered})
	case rpc.PushOutcome_PUSH_OUTCOME_DEAD_TOKEN:
		c.batch.DeadTokens = append(c.batch.DeadTokens, Registration{Key: d.Key, Token: d.pushToken})
		if d.token == d.pushToken { // else it has been replaced meanwhile
			d.token = ""
		}
		d.pushedAt = 0 // nobody has seen it
	default:
		d.pushedAt = 0 // the provider may have seen nothing
	}
	c.unhold(d)
	c.schedulePush(d)
}

// Scanned hands in rows as a scan of the store found them: pushes that a
// restart has lost are taken up again, rows beyond their time are deleted. The
// users must be known, and no deletion may be waiting.
func (c *Core) Scanned(rows []ScanRow) {
	expired := c.now/int64(time.Second) - int64(c.lim.Expiry/time.Second)
	for i := range rows {
		r := &rows[i]
		u := c.users[r.User]
		if u == nil {
			continue
		}
		d := u.device(r.Device)
		if d == nil {
			continue
		}
		if r.At < expired {
			if d.session == nil { // else it may be in flight; the next scan sees it
				c.stats.Expired++
				c.dropRow(d, r.Seq, r.BodyID)
			}
			continue
		}
		if r.Seq == d.wanted {
			d.message = r.Message
		}
		c.schedulePush(d)
	}
}

// collapseKey names the one notification that the provider keeps of a device.
func (r *PushRequest) collapseKey() string {
	return strconv.FormatUint(r.User, 36) + "." + strconv.FormatUint(uint64(r.Device), 36)
}
