package obs

import (
	"context"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// TimedRedis counts the calls of a client as redis.get, redis.set ...; several
// commands that go together count as one, by the name of the first.
func TimedRedis(c rueidis.Client, ops *Ops) rueidis.Client { return timedRedis{c, ops} }

type timedRedis struct {
	rueidis.Client
	ops *Ops
}

// Do implements rueidis.Client.
func (t timedRedis) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	op, began := t.op(cmd), time.Now()
	res := t.Client.Do(ctx, cmd)
	op.Done(time.Since(began), failed(res))
	return res
}

// DoMulti implements rueidis.Client.
func (t timedRedis) DoMulti(ctx context.Context, cmds ...rueidis.Completed) []rueidis.RedisResult {
	if len(cmds) == 0 {
		return t.Client.DoMulti(ctx)
	}
	op, began := t.op(cmds[0]), time.Now()
	all := t.Client.DoMulti(ctx, cmds...)
	bad := false
	for _, res := range all {
		bad = bad || failed(res)
	}
	op.Done(time.Since(began), bad)
	return all
}

func (t timedRedis) op(cmd rueidis.Completed) *Op {
	return t.ops.Op("redis." + strings.ToLower(cmd.Commands()[0])) // before Do, which may recycle it
}

// failed does not count that there is nothing under a key, nor that Redis does not
// have a script yet, which is sent then.
func failed(res rueidis.RedisResult) bool {
	err := res.Error()
	if answer, ok := rueidis.IsRedisErr(err); ok {
		return !answer.IsNil() && !answer.IsNoScript()
	}
	return err != nil
}
