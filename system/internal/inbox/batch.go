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
	return len(b.Rows)+len(b.Register)+len(b.Pages)+len(b.TakeReceipts)+len(b.DeleteUpTo)+len(b.Privacy)+len(b.Marks) > 0
}

// Waiting returns the number of operations in the batch that can wait.
func (c *Core) Waiting() int {
	b := &c.batch
	return len(b.Delete) + len(b.DeletePtr) + len(b.Pushed) + len(b.DeadTokens)
}

// TakeBatch hands over the batch, which must be committed before any event.
// Without all, what can wait stays behind, unless a page is to be read whose
// device has deletions among it.
func (c *Core) TakeBatch(all bool) *Batch {
	b := c.batch
	b.Incarnation, b.Now = c.incarnation, c.now/int64(time.Second)
	c.batch = Batch{}
	clear(c.bodies)
	if all || c.pageAfterDelete {
		c.generation++
		c.pageAfterDelete = false
		return &b
	}
	c.batch.Delete, b.Delete = b.Delete, nil
	c.batch.DeletePtr, b.DeletePtr = b.DeletePtr, nil
	c.batch.Pushed, b.Pushed = b.Pushed, nil
	c.batch.DeadTokens, b.DeadTokens = b.DeadTokens, nil
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
		if err := c.page(s, res.Pages[i], res.Ahead[i]); err != nil {
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

// Marks returns the number of receipt marks in memory, those in ledgers
// included, for metrics.
func (c *Core) Marks() int { return c.marks }

// Forwarded hands in receipts that another shard or a gateway made.
func (c *Core) Forwarded(updates []*rpc.ReceiptUpdate) {
	for _, u := range updates {
		c.Receipt(u)
	}
}
