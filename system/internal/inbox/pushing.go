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
// push at a time, and at most one in PushEvery: rows that come in between are
// covered by the next one.
func (c *Core) schedulePush(d *device) {
	if d.token == "" || d.pushTimer || d.pushRef != 0 || d.rows == 0 || d.newest <= d.covered {
		return
	}
	d.pushTimer = true
	at := c.now + int64(c.lim.PushDelay)
	if d.pushedAt != 0 {
		at = max(at, d.pushedAt+int64(c.lim.PushEvery))
	}
	c.wheel.add(timer{at: at, kind: timerPush, dev: d})
}

// pushDue sends the request, unless the rows have gone or a session that
// acknowledges is emptying the inbox.
func (c *Core) pushDue(d *device) {
	d.pushTimer = false
	if d.token == "" || d.rows == 0 || d.newest <= d.covered || d.pushRef != 0 {
		return
	}
	if c.attended(d.session) || len(c.pushing) >= c.lim.Pushes {
		c.stats.PushesPostponed++
		d.pushTimer = true
		c.wheel.add(timer{at: c.now + int64(c.lim.PushDelay), kind: timerPush, dev: d})
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
		c.batch.Pushed = append(c.batch.Pushed, Pushed{Key: d.Key, Seq: d.covered})
	case rpc.PushOutcome_PUSH_OUTCOME_DEAD_TOKEN:
		c.batch.DeadTokens = append(c.batch.DeadTokens, Registration{Key: d.Key, Token: d.pushToken})
		if d.token == d.pushToken { // else it has been replaced meanwhile
			d.token = ""
		}
	default:
		d.pushedAt = 0 // the provider may have seen nothing
	}
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
		if r.Seq >= d.newest {
			d.newest, d.message = r.Seq, r.Message
		}
		c.schedulePush(d)
	}
}

// collapseKey names the one notification that the provider keeps of a device.
func (r *PushRequest) collapseKey() string {
	return strconv.FormatUint(r.User, 36) + "." + strconv.FormatUint(uint64(r.Device), 36)
}
