package inbox

import (
	"time"

	"throng/system/internal/rpc"
)

// Urgent reports whether the batch holds something that an effect waits for:
// everything but deletions, which can be done later with others, because a
// deletion that is lost is a delivery that is repeated, and receivers drop it.
func (c *Core) Urgent() bool {
	b := &c.batch
	return len(b.Rows)+len(b.Register)+len(b.Pages)+len(b.TakeReceipts)+len(b.DeleteUpTo)+len(b.Marks) > 0
}

// Waiting returns the number of operations in the batch that can wait.
func (c *Core) Waiting() int {
	b := &c.batch
	return len(b.Delete) + len(b.DeletePtr) + len(b.Pushed) + len(b.DeadTokens)
}

// TakeBatch hands over the batch, which must be committed before any event.
func (c *Core) TakeBatch() *Batch {
	if b := &c.batch; c.readsOnly && len(b.Rows)+len(b.Register)+len(b.TakeReceipts)+len(b.DeleteUpTo)+len(b.Marks) == 0 && len(b.Pages) > 0 {
		// Nobody waits for a write: read the pages without a transaction, and
		// let the deletions wait on.
		pages := b.Pages
		b.Pages = nil
		return &Batch{Incarnation: c.incarnation, Pages: pages}
	}
	b := c.batch
	c.generation++
	c.readsOnly = true
	b.Incarnation, b.Now = c.incarnation, c.now/int64(time.Second)
	clear(c.bodies)
	c.batch = Batch{}
	return &b
}

// Committed hands back what the commit read. It may make the core Urgent again.
func (c *Core) Committed(res *Result) error {
	paging, taking := c.paging, c.taking
	c.paging, c.taking = nil, nil
	for i, d := range taking {
		c.receiptsTaken(d, res.Receipts[i])
	}
	for i, s := range paging {
		if err := c.page(s, res.Pages[i]); err != nil {
			return err
		}
	}
	c.sendReceipts()
	return nil
}

// TakeEffects hands over the effects of the turn.
func (c *Core) TakeEffects() Effects {
	e := c.eff
	c.eff = Effects{}
	return e
}

// TakeStats returns the counts since the last call.
func (c *Core) TakeStats() Stats {
	s := c.stats
	c.stats = Stats{}
	return s
}

// Sessions returns the number of sessions, for metrics.
func (c *Core) Sessions() int {
	n := 0
	for _, all := range c.gateways {
		n += len(all)
	}
	return n
}

// Forwarded hands in receipts that another shard or a gateway made.
func (c *Core) Forwarded(updates []*rpc.ReceiptUpdate) {
	for _, u := range updates {
		c.Receipt(u)
	}
}
