package session

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"throng/system/internal/rpc"
)

// event is something to publish or, if there is an answer, a user to look up.
type event struct {
	topic   string
	payload []byte

	user   uint64
	answer func(online bool, lastSeen time.Time)
}

// Publish sends payload to whoever is subscribed to topic, on any gateway. It
// may be lost.
func (r *Registry) Publish(topic string, payload []byte) {
	r.queueEphemeral(event{topic: topic, payload: payload})
}

// Presence asks whether a user is connected anywhere. answer is called on
// another goroutine, or not at all when Redis does not answer.
func (r *Registry) Presence(user uint64, answer func(online bool, lastSeen time.Time)) {
	r.queueEphemeral(event{user: user, answer: answer})
}

func (r *Registry) queueEphemeral(e event) {
	select {
	case r.ephemeral <- e:
	default:
		r.m.ephemeral.Dropped.Inc()
	}
}

// exchange publishes, looks up and records interests, as many at once as are
// waiting, until ctx is done. What is lost is lost, other than the interests.
func (r *Registry) exchange(ctx context.Context, deliver func(topic string, payload []byte)) {
	batch := make([]event, 0, batchOps)
	renew := time.NewTicker(r.cfg.InterestTTL / 2)
	defer renew.Stop()
	pace := rpc.NewPace(exchangeGap)
	for {
		clear(batch) // releases the payloads
		batch = batch[:0]
		select {
		case <-ctx.Done():
			return
		case e := <-r.ephemeral:
			batch = append(batch, e)
		case <-r.topics.wake:
		case <-renew.C:
			r.topics.renew()
			continue
		}
		pace.Wait(ctx.Done())
		batch = fill(batch, r.ephemeral)
		r.m.ephemeral.Depth.Set(float64(len(r.ephemeral)))
		for _, e := range batch {
			if e.answer == nil && r.topics.wants(e.topic) {
				deliver(e.topic, e.payload)
			}
		}
		if err := r.round(ctx, batch); err != nil && ctx.Err() == nil {
			r.log.Debug("redis", "err", err)
			r.m.failed.Add(float64(len(batch)))
			select { // do not ask it as fast as it refuses
			case <-ctx.Done():
			case <-time.After(retryDelay):
			}
		}
	}
}

// round does one batch of events, and what there is to change of the interests.
func (r *Registry) round(ctx context.Context, batch []event) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	c, err := r.redis(ctx)
	if err != nil {
		r.topics.poke() // for the changes, which nobody has taken
		return err
	}
	// The interests come first: who is told what is so hears what changes.
	wanted, unwanted := r.topics.take(batchOps)
	cmds := r.record(c, wanted, unwanted)
	changes := len(cmds)
	for _, e := range batch {
		key := interestPrefix + e.topic
		if e.answer != nil {
			key = userKey(e.user)
		}
		cmds = append(cmds, c.B().Hgetall().Key(key).Build().Pin())
	}
	r.count("hgetall", len(batch))
	results := c.DoMulti(ctx, cmds...)
	for _, res := range results[:changes] {
		if e := res.Error(); e != nil {
			err = e
		}
	}
	if err != nil {
		r.m.failed.Add(float64(len(wanted) + len(unwanted)))
		r.topics.again(wanted, unwanted)
	}
	hashes := make([]map[string]string, len(batch)) // nil when not answered
	for i, res := range results[changes:] {
		h, e := res.AsStrMap()
		if e != nil {
			err = e
		}
		hashes[i] = h
	}
	return errors.Join(err, r.send(ctx, c, batch, hashes), r.answer(ctx, c, batch, hashes))
}

// record returns the commands that record and delete interests of this gateway.
func (r *Registry) record(c rueidis.Client, wanted, unwanted []string) (cmds rueidis.Commands) {
	until := strconv.FormatInt(time.Now().Add(r.cfg.InterestTTL).UnixMilli(), 10)
	for _, topic := range wanted {
		key := interestPrefix + topic
		cmds = append(cmds,
			c.B().Hset().Key(key).FieldValue().FieldValue(r.self, until).Build().Pin(),
			c.B().Pexpire().Key(key).Milliseconds(r.cfg.InterestTTL.Milliseconds()).Build().Pin())
	}
	for _, topic := range unwanted {
		cmds = append(cmds, c.B().Hdel().Key(interestPrefix+topic).Field(r.self).Build().Pin())
	}
	r.count("hset", len(wanted))
	r.count("expire", len(wanted))
	r.count("hdel", len(unwanted))
	return cmds
}

// send publishes the events to the gateways that the hashes name, in one message
// for each, and deletes interests that are over.
func (r *Registry) send(ctx context.Context, c rueidis.Client, batch []event, hashes []map[string]string) error {
	now := time.Now().UnixMilli()
	messages := make(map[string][]byte) // by gateway and incarnation
	var cmds rueidis.Commands
	for i, e := range batch {
		if e.answer != nil {
			continue
		}
		for gateway, until := range hashes[i] {
			switch ms, err := strconv.ParseInt(until, 10, 64); {
			case gateway == r.self: // exchange has delivered it
			case err != nil || ms < now:
				cmds = append(cmds, c.B().Hdel().Key(interestPrefix+e.topic).Field(gateway).Build().Pin())
			default:
				messages[gateway] = appendEvent(messages[gateway], e)
			}
		}
	}
	r.count("hdel", len(cmds))
	r.count("publish", len(messages))
	for gateway, m := range messages {
		cmds = append(cmds, c.B().Publish().Channel(channelPrefix+gateway).Message(rueidis.BinaryString(m)).Build().Pin())
	}
	for _, res := range c.DoMulti(ctx, cmds...) {
		if err := res.Error(); err != nil {
			return err
		}
	}
	return nil
}

// answer answers the look-ups of users.
func (r *Registry) answer(ctx context.Context, c rueidis.Client, batch []event, hashes []map[string]string) error {
	var asked []event
	var users []map[string]string
	for i, e := range batch {
		if e.answer != nil && hashes[i] != nil {
			asked, users = append(asked, e), append(users, hashes[i])
		}
	}
	leases, err := r.leases(ctx, c, users)
	if err != nil {
		return err
	}
	for i, e := range asked {
		u := userOf(users[i], leases)
		if u.Hidden {
			e.answer(false, time.Time{})
			continue
		}
		e.answer(len(u.Sessions) > 0, u.LastSeen)
	}
	return nil
}

// appendEvent appends an event to a message for a gateway: the topic and the
// payload, each after its length as a varint.
func appendEvent(b []byte, e event) []byte {
	b = append(binary.AppendUvarint(b, uint64(len(e.topic))), e.topic...)
	return append(binary.AppendUvarint(b, uint64(len(e.payload))), e.payload...)
}

// each calls f for each event of a message. It reports false when it meets what
// appendEvent does not write.
func each(message []byte, f func(topic string, payload []byte)) bool {
	for len(message) > 0 {
		topic, rest, ok := cut(message)
		if !ok {
			return false
		}
		payload, rest, ok := cut(rest)
		if !ok {
			return false
		}
		f(string(topic), payload)
		message = rest
	}
	return true
}

// cut cuts off what follows its length.
func cut(b []byte) (part, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, false
	}
	end := size + int(n)
	return b[size:end:end], b[end:], true
}
