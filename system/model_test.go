package system_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"throng/system"
	"throng/system/wire"
)

const (
	modelUsers  = 4
	modelRows   = 25 // of a device, above which direct messages are refused
	modelChecks = "6"
	modelSettle = patience
)

// TestModel compares the whole backend, over real sockets and with kill -9,
// with a model of what it promises: random users write to each other and to
// groups, connect, leave, stop acknowledging, join groups and are removed from
// them, while processes are killed. In the end everybody comes back, and every
// device must have exactly what it should, each sender's messages in order
// (rules 1 to 9 of ARCHITECTURE.md). A failure is shrunk to the shortest run
// that shows it. -rapid.checks=N runs longer.
func TestModel(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(modelChecks); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(f.DefValue) }() // it took this value once
	}
	in := startInfrastructure(t)
	cfg := in.topology(t, counts{gateways: 2, messages: 2, fanouts: 2, groups: 1, inboxes: 2, pushes: 1}, freePort(t))
	cfg.Settings.DeviceRows, cfg.Settings.AckTimeout = modelRows, system.Duration(300*time.Millisecond)
	processes := slices.Concat(slices.Collect(maps.Values(startEach(t, cfg)))...)
	slices.SortFunc(processes, func(a, b *process) int { return slices.Compare(a.args, b.args) })
	d := describe(t, cfg, in)
	var runs uint64
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		w := newWorld(rt, d, processes, runs*100)
		defer w.close()
		rt.Repeat(map[string]func(*rapid.T){
			"connect":      w.connect,
			"hang up":      w.hangUp,
			"go deaf":      w.goDeaf,
			"write":        w.write,
			"write more":   w.write,
			"write to all": w.writeToAll,
			"members":      w.changeMembers,
			"kill":         w.kill,
		})
		w.settle()
	})
}

// world is one run: users and groups of its own, on a backend that all share.
type world struct {
	t         *rapid.T
	d         *deployment
	processes []*process
	base      uint64 // ids of this run are base+1 and so on
	devices   []*device
	online    map[*device]bool
	groups    []*modelGroup
	sent      []*modelSend
	got       map[*device][]*wire.Deliver // when last looked at
	down      *process                    // killed, not started again
}

// modelGroup is a group with its members by position in its log.
type modelGroup struct {
	id      uint64
	members map[uint64]bool // now
	changes []modelChange   // in order
}

type modelChange struct {
	offset  int64
	members []uint64 // from there on
}

type modelSend struct {
	from *device
	id   uint64 // client_msg_id
	seq  uint64
	conv wire.Conversation
	body string
}

func newWorld(t *rapid.T, d *deployment, processes []*process, base uint64) *world {
	w := &world{t: t, d: d, processes: processes, base: base, online: map[*device]bool{}}
	p := &wire.Provision{}
	for u := base + 1; u <= base+modelUsers; u++ {
		pu := &wire.ProvisionUser{User: u}
		for n := range uint32(1 + u%2) {
			pu.Devices = append(pu.Devices, &wire.ProvisionDevice{Device: n})
			dev := dial(d.t, d.gateways(), d.key, u, n)
			w.devices = append(w.devices, dev)
			w.online[dev] = true
		}
		p.Users = append(p.Users, pu)
	}
	for g := range uint64(2) {
		mg := &modelGroup{id: base + 50 + g, members: map[uint64]bool{}}
		pg := &wire.ProvisionGroup{Group: mg.id, Name: "g"}
		for u := base + 1; u <= base+modelUsers-g; u++ {
			mg.members[u] = true
			pg.Members = append(pg.Members, u)
		}
		mg.changes = []modelChange{{offset: -1, members: pg.Members}}
		p.Groups = append(p.Groups, pg)
		w.groups = append(w.groups, mg)
	}
	data, err := p.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	d.admin("/admin/v1/provision", protowire.AppendBytes(nil, data), &wire.ProvisionResult{})
	return w
}

func (w *world) close() {
	for _, dev := range w.devices {
		dev.hangUp()
	}
	w.revive()
}

// pick draws a device that is online, or one that is not.
func (w *world) pick(t *rapid.T, online bool) *device {
	var some []*device
	for _, dev := range w.devices {
		if w.online[dev] == online {
			some = append(some, dev)
		}
	}
	if len(some) == 0 {
		t.Skip("nobody")
	}
	return choose(t, some, "device")
}

// choose draws one of all, by its index: a failure prints what was drawn.
func choose[T any](t *rapid.T, all []T, what string) T {
	return all[rapid.IntRange(0, len(all)-1).Draw(t, what)]
}

func (w *world) connect(t *rapid.T) {
	dev := w.pick(t, false)
	dev.connect()
	w.online[dev] = true
}

func (w *world) hangUp(t *rapid.T) {
	dev := w.pick(t, true)
	dev.hangUp()
	dev.update(func() { dev.deaf = false })
	w.online[dev] = false
}

// goDeaf lets a device lose what comes from now on: it acknowledges nothing,
// until it connects again.
func (w *world) goDeaf(t *rapid.T) {
	dev := w.pick(t, true)
	dev.update(func() { dev.deaf = true })
}

// write lets a device, connected or not, write to a user or a group; it need
// not be a member.
func (w *world) write(t *rapid.T) {
	dev := choose(t, w.devices, "writer")
	conv := direct(w.base + 1 + rapid.Uint64Range(0, modelUsers-1).Draw(t, "to"))
	if rapid.Bool().Draw(t, "in a group") || conv.User == dev.user {
		conv = group(choose(t, w.groups, "group").id)
	}
	for range rapid.IntRange(1, 12).Draw(t, "messages") {
		w.send(dev, conv)
	}
}

func (w *world) writeToAll(t *rapid.T) {
	for _, dev := range w.devices {
		w.send(dev, group(choose(t, w.groups, "group").id))
	}
}

func (w *world) send(dev *device, conv wire.Conversation) {
	s := &modelSend{from: dev, conv: conv, body: fmt.Sprintf("%06d", len(w.sent))}
	dev.send(conv, s.body)
	dev.update(func() { s.id, s.seq = dev.nextID, dev.outbox[conv].seq })
	w.sent = append(w.sent, s)
}

// changeMembers adds or removes a user. At least two members remain, so that
// every message has an addressee, who knows its position.
func (w *world) changeMembers(t *rapid.T) {
	w.revive() // the answer says where the change is in the log
	g := choose(t, w.groups, "group")
	u := w.base + 1 + rapid.Uint64Range(0, modelUsers-1).Draw(t, "user")
	var res *wire.MembershipResult
	switch {
	case !g.members[u]:
		g.members[u] = true
		res = w.d.changeMembers(g.id, []uint64{u}, nil)
	case len(g.members) > 2:
		delete(g.members, u)
		res = w.d.changeMembers(g.id, nil, []uint64{u})
	default:
		t.Skip("too few members")
	}
	g.changes = append(g.changes, modelChange{offset: res.Offset, members: slices.Sorted(maps.Keys(g.members))})
}

// kill ends a process, or starts the one that was killed.
func (w *world) kill(t *rapid.T) {
	if w.down != nil {
		w.revive()
		return
	}
	w.down = choose(t, w.processes, "process")
	w.down.kill()
}

func (w *world) revive() {
	if w.down != nil {
		w.down.start()
		w.down.awaitReady()
		w.down = nil
	}
}

// settle brings everybody back and waits until all is as it must be.
func (w *world) settle() {
	w.revive()
	for _, dev := range w.devices {
		dev.hangUp()
		dev.update(func() { dev.deaf = false })
		dev.connect()
		w.online[dev] = true
	}
	ctx, cancel := context.WithTimeout(w.d.t.Context(), modelSettle)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := w.missing()
		if missing == "" {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("after %s: %s", modelSettle, missing)
		}
	}
	w.check()
}

// missing says what has not happened yet.
func (w *world) missing() (what string) {
	for _, dev := range w.devices {
		dev.update(func() {
			for conv, o := range dev.outbox {
				if len(o.unacked) > 0 {
					what = fmt.Sprintf("%s: %d sends to %+v unanswered, connected %v, closes %v", dev.name(), len(o.unacked), conv, dev.ws != nil, dev.closes)
				}
			}
			if !dev.current {
				what = fmt.Sprintf("%s is not current, closes %v", dev.name(), dev.closes)
			}
		})
	}
	if what != "" {
		return what
	}
	w.got = map[*device][]*wire.Deliver{}
	for _, dev := range w.devices {
		dev.update(func() { w.got[dev] = slices.Clone(dev.got) })
	}
	want, _, unseen := w.expected()
	if unseen != "" {
		return unseen
	}
	for dev, bodies := range want {
		for _, m := range w.got[dev] {
			delete(bodies, string(m.Body))
		}
		for body, must := range bodies {
			if must {
				return fmt.Sprintf("%s lacks %s", dev.name(), w.describe(body))
			}
		}
	}
	return ""
}

// describe says who wrote what to whom.
func (w *world) describe(body string) string {
	for _, s := range w.sent {
		if s.body == body {
			return fmt.Sprintf("%s, of %s to %+v", body, s.from.name(), s.conv)
		}
	}
	return body
}

func (d *device) name() string { return fmt.Sprintf("device %d.%d", d.user%100, d.number) }

// refusals returns the sends of a device that were refused for good. Of one that
// was written more than once, that may have been accepted before: sure is false.
func (d *device) refusals() (sure map[uint64]bool) {
	sure = map[uint64]bool{}
	d.update(func() {
		for _, e := range d.refused {
			sure[e.ClientMsgId] = d.writes[e.ClientMsgId] == 1
		}
	})
	return sure
}

// expected returns what each device may have, true what it must have, and the
// highest seq that each has got accepted in each conversation. A group message
// that nobody has yet is unseen: its position, and so its addressees, are not
// known. One whose sender did not learn in time that it was accepted may be in
// the log twice; it is for the members at each of the positions. If it was
// refused in the end, it was accepted if anybody has it, but for the copies for
// its sender's other devices, which come last.
func (w *world) expected() (want map[*device]map[string]bool, top map[*device]map[wire.Conversation]uint64, unseen string) {
	offsets := map[string][]int64{}
	refused := map[*device]map[uint64]bool{}
	want, top = map[*device]map[string]bool{}, map[*device]map[wire.Conversation]uint64{}
	for _, dev := range w.devices {
		want[dev], top[dev], refused[dev] = map[string]bool{}, map[wire.Conversation]uint64{}, dev.refusals()
		for _, m := range w.got[dev] {
			if m.Kind != wire.Kind_KIND_SYSTEM {
				offsets[string(m.Body)] = append(offsets[string(m.Body)], m.Offset)
			}
		}
	}
	for _, s := range w.sent {
		at := offsets[s.body]
		sure, no := refused[s.from][s.id]
		if no && (sure || len(at) == 0) {
			continue
		}
		if s.conv.Group != 0 && len(at) == 0 {
			return nil, nil, fmt.Sprintf("message %s of %s to %+v was accepted, and nobody has it", s.body, s.from.name(), s.conv)
		}
		top[s.from][s.conv] = s.seq // in order
		for _, dev := range w.devices {
			// The other devices of the sender get a copy, in a group as a member's.
			own := s.conv.Group == 0 && dev.user == s.from.user
			if dev != s.from && (own || w.addressed(dev.user, s.conv, at...)) {
				want[dev][s.body] = !own || !no
			}
		}
	}
	return want, top, ""
}

// addressed says whether a message is for a user, in a group at one of the
// positions.
func (w *world) addressed(user uint64, conv wire.Conversation, at ...int64) bool {
	if conv.Group == 0 {
		return conv.User == user
	}
	g := w.groups[slices.IndexFunc(w.groups, func(g *modelGroup) bool { return g.id == conv.Group })]
	return slices.ContainsFunc(at, func(offset int64) bool {
		i, _ := slices.BinarySearchFunc(g.changes, offset, func(c modelChange, o int64) int { return cmp.Compare(c.offset, o) })
		return slices.Contains(g.changes[i-1].members, user)
	})
}

// check looks for what must not be: what is nobody's business, came twice to
// the application, is out of order, or was said to have been read or received
// and was not.
func (w *world) check() {
	want, highest, _ := w.expected()
	place := map[string]int{}
	for i, s := range w.sent {
		place[s.body] = i
	}
	for _, dev := range w.devices {
		dev.update(func() {
			seen := map[string]bool{}
			last := map[sender]int{}
			for _, m := range w.got[dev] {
				body, from := string(m.Body), sender{m.From, m.FromDevice, m.Group, m.To}
				if m.Kind == wire.Kind_KIND_SYSTEM {
					continue
				}
				_, may := want[dev][body]
				if !may || seen[body] || m.Group != 0 && !w.addressed(dev.user, group(m.Group), m.Offset) {
					w.t.Errorf("%s got %s of %d in group %d at %d: wanted %v, before %v", dev.name(), body, m.From, m.Group, m.Offset, may, seen[body])
				}
				seen[body] = true
				if before, ok := last[from]; ok && before > place[body] {
					w.t.Errorf("%s got %s after %06d of the same sender", dev.name(), body, before)
				}
				last[from] = place[body]
			}
			for at, r := range dev.receipts {
				top := highest[dev][wire.Conversation{User: cmp.Or(at.peer, math.MaxUint64), Group: at.group}]
				if at.group != 0 {
					top = highest[dev][group(at.group)]
				}
				// Nobody reads; but of a message whose addressees have all been
				// removed since, everybody who is left has read it.
				if r.delivered > top || r.read > r.delivered || at.group == 0 && r.read > 0 {
					w.t.Errorf("%s: receipts of %+v say %+v, %d were sent and none read", dev.name(), at, r, top)
				}
			}
		})
	}
}
