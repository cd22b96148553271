package inbox

import "slices"

// lookAhead is how many seqs a drain reads ahead. The store finds the rows of a
// device in no order of their seqs, so that each page looks at all that are
// left; with this many known, a mailbox of 100,000 rows is looked through 25
// times instead of 1,000.
const lookAhead = 4000

// next goes on with a draining session that has nothing in flight: the next
// page, or live when the inbox is empty. What is known ahead can be read at
// once; the rest has to wait while deletions are held back.
func (c *Core) next(s *session) {
	d := s.dev
	if s.live || s.loading || s.flight.len() > 0 {
		return
	}
	if s.paged != 0 {
		c.stats.Pages = append(c.stats.Pages, c.now-s.paged)
		s.paged = 0
	}
	if s.asked = min(len(s.ahead), c.lim.PageRows); s.asked > 0 {
		c.readPage(s, Page{Key: d.Key, Seqs: s.ahead[:s.asked]})
		return
	}
	if d.held.some() {
		return
	}
	if d.rows == 0 {
		c.goLive(s)
		return
	}
	p := Page{Key: d.Key, Limit: c.lim.PageRows, All: d.rows <= c.lim.PageRows, Oldest: d.oldest}
	if !p.All {
		p.Ahead = min(lookAhead, max(c.lim.Ahead-c.ahead, 0))
	}
	if d.deleted == c.generation {
		c.pageAfterDelete = true
	}
	c.readPage(s, p)
}

func (c *Core) readPage(s *session, p Page) {
	s.loading = true
	c.batch.Pages = append(c.batch.Pages, p)
	c.paging = append(c.paging, s)
}

// lookAhead replaces what the session knows of the rows to come.
func (c *Core) lookAhead(s *session, seqs []uint64) {
	c.ahead += len(seqs) - len(s.ahead)
	s.ahead = seqs
}

// page sends a page of rows. ahead are the seqs that follow them, unless the
// page was one of known seqs.
func (c *Core) page(s *session, rows []Row, ahead []uint64) error {
	if s.closed {
		return nil
	}
	s.loading = false
	if s.asked > 0 {
		ahead = s.ahead[s.asked:]
	} else if len(rows) < c.lim.PageRows {
		s.dev.rows = len(rows) // all there are
	}
	bytes := 0
	for i := range rows {
		if bytes += len(rows[i].Body); bytes > c.lim.PageBytes && i > 0 {
			ahead = slices.Concat(seqsOf(rows[i:]), ahead)
			break // the rest comes with the next page
		}
		m, err := storedMessage(rows[i].Body)
		if err != nil {
			return err
		}
		c.deliver(s, entry{msg: m, seq: rows[i].Seq, body: rows[i].BodyID})
		c.eff.Frames = append(c.eff.Frames, Outbound{Gateway: s.gateway, Frame: m.frameWithSeq(rows[i].Seq),
			Conns: []uint64{s.conn}, Deliver: true, Stamped: m.stamped(), Traceparent: m.traceparent})
	}
	if len(rows) > 0 {
		s.paged = c.now
	}
	c.lookAhead(s, ahead)
	c.next(s)
	return nil
}

func seqsOf(rows []Row) []uint64 {
	seqs := make([]uint64, len(rows))
	for i := range rows {
		seqs[i] = rows[i].Seq
	}
	return seqs
}
