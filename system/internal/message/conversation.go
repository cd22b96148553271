package message

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

// shards of the conversations' lock.
const shards = 64

// maxQueued bounds the submissions of one conversation without an answer; more
// are answered CODE_RETRY.
const maxQueued = 256

// convKey names the direction that order is kept for: a device's sends in one
// conversation.
type convKey struct {
	user   uint64
	device uint32
	to     wire.Conversation
}

// conversation is what is known of a device's sends in one conversation. Its
// fields belong to its shard's lock, but for key.
type conversation struct {
	key convKey
	// durable is the greatest seq known to be durable, and durableMsg its
	// client_msg_id, 0 if not known.
	durable    uint64
	durableMsg uint64
	// queue holds the submissions without an answer, in order of seq. The
	// first one is on its way; the next starts when it is durable, so that no
	// failure can leave a gap behind it.
	queue []*submission

	newer, older *conversation // in the list of idle ones, only while queue is empty
}

// tail is the last seq accepted.
func (c *conversation) tail() uint64 {
	if n := len(c.queue); n > 0 {
		return c.queue[n-1].seq
	}
	return c.durable
}

// submission is an accepted Send without an answer.
type submission struct {
	service *Service
	conv    *conversation
	seq     uint64
	msg     uint64 // client_msg_id
	env     *rpc.Envelope
	item    *rpc.AppendItem // direct: set by the appender
	appends int             // direct: times that was handed out, by the appender
	at      time.Time       // of acceptance
	dead    atomic.Bool     // answered: whoever still has it drops it
	span    *obs.Span       // nil if it is not traced

	waiters []waiter // shard's lock
}

// waiter is who is told the result.
type waiter struct {
	sink *sink
	ref  uint64
}

// conversations holds all conversations in shards.
type conversations struct {
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	mu   sync.Mutex
	all  map[convKey]*conversation
	busy map[*conversation]struct{} // with a queue
	// Idle ones in order of use; the oldest is forgotten over the limit.
	newest, oldest *conversation
	idle, limit    int
	metric         *obs.Queue
}

func newConversations(limit int, metric *obs.Queue) *conversations {
	cs := &conversations{seed: maphash.MakeSeed()}
	for i := range cs.shards {
		cs.shards[i] = shard{
			all: map[convKey]*conversation{}, busy: map[*conversation]struct{}{},
			limit: max(limit/shards, 1), metric: metric,
		}
	}
	return cs
}

func (cs *conversations) shard(k convKey) *shard {
	return &cs.shards[maphash.Comparable(cs.seed, k)%shards]
}

// olderThan returns the heads of queues accepted before t.
func (cs *conversations) olderThan(t time.Time) []*submission {
	var late []*submission
	for i := range cs.shards {
		sh := &cs.shards[i]
		sh.mu.Lock()
		for c := range sh.busy {
			if c.queue[0].at.Before(t) {
				late = append(late, c.queue[0])
			}
		}
		sh.mu.Unlock()
	}
	return late
}

// add remembers a new conversation.
func (sh *shard) add(k convKey, durable uint64) *conversation {
	c := &conversation{key: k, durable: durable}
	sh.all[k] = c
	sh.pushIdle(c)
	return c
}

// setBusy takes c out of the idle list.
func (sh *shard) setBusy(c *conversation) {
	sh.unlink(c)
	sh.busy[c] = struct{}{}
}

// setIdle puts c, whose queue is empty, back.
func (sh *shard) setIdle(c *conversation) {
	delete(sh.busy, c)
	sh.pushIdle(c)
}

func (sh *shard) pushIdle(c *conversation) {
	c.older, c.newer = sh.newest, nil
	if sh.newest != nil {
		sh.newest.newer = c
	} else {
		sh.oldest = c
	}
	sh.newest = c
	sh.idle++
	sh.metric.Depth.Inc()
	if sh.idle > sh.limit {
		old := sh.oldest
		sh.unlink(old)
		delete(sh.all, old.key)
		sh.metric.Dropped.Inc()
	}
}

func (sh *shard) unlink(c *conversation) {
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		sh.newest = c.older
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		sh.oldest = c.newer
	}
	c.newer, c.older = nil, nil
	sh.idle--
	sh.metric.Depth.Dec()
}

// verdict is what order says about a send.
type verdict struct {
	code      wire.Code // not 0: refused
	expected  uint64    // with CODE_SEQUENCE, 0 if not known
	chain     []byte    // refused for good: proves that the seq is used up
	duplicate bool      // durable already
	join      *submission
}

// judge decides on seq for the conversation, or for none (c == nil) when the
// instance does not know it, in which case durable comes back as what the
// chain proves.
func judge(c *conversation, keys wire.Keys, k convKey, send *wire.Send) (v verdict, durable uint64) {
	proved := func() bool {
		return send.Seq == 1 || keys.VerifyChain(k.user, k.device, k.to, send.Seq-1, send.Chain)
	}
	if c == nil {
		switch {
		case proved():
			return verdict{}, send.Seq - 1
		case len(send.Chain) == 0:
			// Its predecessor was unanswered when it was sent, and what this
			// instance knew of that is gone (a restart): from the first
			// unanswered one, please.
			return verdict{code: wire.Code_CODE_RETRY}, 0
		default:
			return verdict{code: wire.Code_CODE_SEQUENCE}, 0
		}
	}
	tail := c.tail()
	switch {
	case send.Seq == c.durable && c.durableMsg != 0 && c.durableMsg != send.ClientMsgId:
		// Another message under a number that is taken must not be answered
		// as if it had been stored.
		return verdict{code: wire.Code_CODE_SEQUENCE, expected: tail + 1}, c.durable
	case send.Seq <= c.durable:
		return verdict{duplicate: true}, c.durable
	case send.Seq == tail+1:
		return verdict{}, c.durable
	case send.Seq <= tail:
		for _, s := range c.queue {
			if s.seq == send.Seq && s.msg == send.ClientMsgId {
				return verdict{join: s}, c.durable
			}
		}
		return verdict{code: wire.Code_CODE_SEQUENCE, expected: tail + 1}, c.durable
	case len(c.queue) == 0 && proved():
		return verdict{}, send.Seq - 1 // another instance accepted what lies between
	default:
		return verdict{code: wire.Code_CODE_SEQUENCE, expected: tail + 1}, c.durable
	}
}
