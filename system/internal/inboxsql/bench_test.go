//go:build unix

package inboxsql_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"throng/system/internal/inbox"
	"throng/system/internal/inboxsql"
	"throng/system/internal/rpc"
	"throng/system/internal/sqlstore"
)

// cpu returns the processor time of this process so far.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perCPU reports units for each CPU-second, and CPU-microseconds for each unit.
func perCPU(b *testing.B, start time.Duration, units int, unit string) {
	d := cpu(b) - start
	b.ReportMetric(float64(units)/d.Seconds(), unit+"/cpu-s")
	b.ReportMetric(float64(d.Microseconds())/float64(units), "cpu-us/"+unit)
}

// bench is a core on a SQLite store, without RPC.
type bench struct {
	b     *testing.B
	store inbox.Store
	core  *inbox.Core
	now   time.Time
	seq   uint64
	rng   *rand.Rand
}

const benchUsers = 100_000

func newBench(b *testing.B) *bench {
	b.Helper()
	st, err := inboxsql.Open(b.Context(), inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(b.TempDir(), "inbox"), Loops: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { st.Close() })
	x := &bench{b: b, store: st.Stores()[0], now: time.Unix(1_700_000_000, 0), rng: rand.New(rand.NewPCG(1, 2))}
	inc, _, err := x.store.Claim(b.Context(), []int{0}, 0)
	if err != nil {
		b.Fatal(err)
	}
	x.core = inbox.NewCore(inbox.Limits{}, inc, x.now.UnixNano(), func(uint64) bool { return true }, false)
	for u := 0; u < benchUsers; u += 10_000 {
		var regs []inbox.Registration
		for i := range 10_000 {
			regs = append(regs, inbox.Registration{Key: inbox.Key{User: uint64(u + i)}})
		}
		x.turn(nil, func() { x.core.Provision(regs) })
	}
	return x
}

func (x *bench) turn(users []uint64, events func()) inbox.Effects {
	var missing []uint64
	for _, u := range users {
		if x.core.Missing(u) {
			missing = append(missing, u)
		}
	}
	ctx := context.Background()
	if len(missing) > 0 {
		states, err := x.store.Load(ctx, missing)
		if err != nil {
			x.b.Fatal(err)
		}
		x.core.Loaded(missing, states)
	}
	x.now = x.now.Add(time.Millisecond)
	x.core.Begin(x.now.UnixNano())
	events()
	x.core.End()
	for x.core.Urgent() || x.core.Waiting() > 250 {
		res, err := x.store.Commit(ctx, x.core.TakeBatch(x.core.Waiting() > 250))
		if err != nil {
			x.b.Fatal(err)
		}
		if err := x.core.Committed(&res); err != nil {
			x.b.Fatal(err)
		}
	}
	return x.core.TakeEffects()
}

func (x *bench) message(group uint64, size int) *inbox.Message {
	x.seq++
	var id [16]byte
	binary.LittleEndian.PutUint64(id[:], x.rng.Uint64())
	binary.LittleEndian.PutUint64(id[8:], x.rng.Uint64())
	m, err := inbox.NewMessage(&rpc.Envelope{MessageId: id[:], Group: group, From: 1<<40 + x.rng.Uint64N(benchUsers), Seq: x.seq, Body: make([]byte, size), AcceptedMs: 1_700_000_000_000}, false)
	if err != nil {
		x.b.Fatal(err)
	}
	return m
}

// BenchmarkStored stores direct messages of 100 bytes for users who are away,
// so many in a transaction.
func BenchmarkStored(b *testing.B) {
	for _, n := range []int{1, 8, 64, 512} {
		b.Run(fmt.Sprintf("rows=%d", n), func(b *testing.B) {
			x := newBench(b)
			b.ResetTimer()
			start, rows := cpu(b), 0
			for b.Loop() {
				users := make([]uint64, n)
				for i := range users {
					users[i] = x.rng.Uint64N(benchUsers)
				}
				x.turn(users, func() {
					for i := range users {
						x.core.Append(&inbox.Item{Msg: x.message(0, 100), Users: users[i : i+1]})
					}
				})
				rows += n
			}
			perCPU(b, start, rows, "row")
		})
	}
}

// BenchmarkGroupStored stores a message of a group of 100, of whom nobody is there.
func BenchmarkGroupStored(b *testing.B) {
	x := newBench(b)
	start, rows := cpu(b), 0
	for b.Loop() {
		first := x.rng.Uint64N(benchUsers / 100)
		users := make([]uint64, 100)
		for i := range users {
			users[i] = first + uint64(i)*(benchUsers/100)
		}
		x.turn(users, func() { x.core.Append(&inbox.Item{Msg: x.message(9, 100), Users: users}) })
		rows += len(users)
	}
	perCPU(b, start, rows, "row")
}

// BenchmarkDirectLive delivers direct messages to live devices: a row for each,
// deleted when it is acknowledged.
func BenchmarkDirectLive(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("turn=%d", n), func(b *testing.B) {
			x := newBench(b)
			users := x.live(1000)
			var sent [1000]uint64
			start, deliveries := cpu(b), 0
			for b.Loop() {
				at := x.rng.IntN(1000)
				x.turn(users, func() {
					for i := range n {
						u := (at + i) % 1000
						x.core.Append(&inbox.Item{Msg: x.message(0, 100), Users: users[u : u+1]})
					}
				})
				x.turn(nil, func() {
					for i := range n {
						u := (at + i) % 1000
						sent[u]++
						x.core.Ack(1, uint64(u+1), users[u], sent[u])
					}
				})
				deliveries += n
			}
			perCPU(b, start, deliveries, "delivery")
		})
	}
}

func (x *bench) live(n int) []uint64 {
	users := make([]uint64, n)
	for i := range users {
		users[i] = uint64(i)
	}
	x.turn(users, func() {
		for i, u := range users {
			x.core.Open(1, &rpc.SessionOpen{Conn: uint64(i + 1), User: u})
		}
	})
	return users
}

// BenchmarkGroupLive delivers to a group of 100 who are all there, and takes
// their acknowledgements.
func BenchmarkGroupLive(b *testing.B) {
	x := newBench(b)
	users := x.live(100)
	start, deliveries, sent := cpu(b), 0, uint64(0)
	for b.Loop() {
		x.turn(nil, func() { x.core.Append(&inbox.Item{Msg: x.message(9, 100), Users: users}) })
		sent++
		x.turn(nil, func() {
			for i, u := range users {
				x.core.Ack(1, uint64(i+1), u, sent)
			}
		})
		deliveries += len(users)
	}
	perCPU(b, start, deliveries, "delivery")
}

// BenchmarkLogin opens sessions of users who are not in memory, with as many
// rows waiting, and ends them.
func BenchmarkLogin(b *testing.B) {
	for _, rows := range []int{0, 3} {
		for _, n := range []int{1, 8} {
			b.Run(fmt.Sprintf("rows=%d/turn=%d", rows, n), func(b *testing.B) { benchLogin(b, rows, n) })
		}
	}
}

func benchLogin(b *testing.B, rows, n int) {
	x := newBench(b)
	if rows > 0 {
		for u := 0; u < benchUsers; u += 1000 {
			users := make([]uint64, 1000)
			for i := range users {
				users[i] = uint64(u + i)
			}
			for range rows {
				x.turn(users, func() {
					for i := range users {
						x.core.Append(&inbox.Item{Msg: x.message(0, 100), Users: users[i : i+1]})
					}
				})
			}
		}
	}
	inc, _, err := x.store.Claim(b.Context(), []int{0}, 0)
	if err != nil {
		b.Fatal(err)
	}
	x.core = inbox.NewCore(inbox.Limits{}, inc, x.now.UnixNano(), func(uint64) bool { return true }, false)
	conn, logins, perm := uint64(0), 0, x.rng.Perm(benchUsers)
	b.ResetTimer()
	start := cpu(b)
	for b.Loop() {
		users := make([]uint64, n)
		for i := range users {
			users[i] = uint64(perm[(logins+i)%benchUsers])
		}
		x.turn(users, func() {
			for i, u := range users {
				x.core.Open(1, &rpc.SessionOpen{Conn: conn + uint64(i), User: u})
			}
		})
		x.turn(nil, func() {
			for i, u := range users {
				x.core.Ack(1, conn+uint64(i), u, uint64(rows))
				x.core.Close(1, conn+uint64(i), u)
			}
		})
		conn += uint64(n)
		logins += n
	}
	perCPU(b, start, logins, "login")
}

// BenchmarkDrain empties an inbox of so many small rows; the time for a row
// should not depend on their number.
func BenchmarkDrain(b *testing.B) {
	for _, rows := range []int{1_000, 30_000} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			x := newBench(b)
			start, drained := cpu(b), 0
			for conn := uint64(1); b.Loop(); conn++ {
				b.StopTimer()
				filling := cpu(b)
				for sent := 0; sent < rows; sent += 100 {
					x.turn([]uint64{7}, func() {
						for range 100 {
							x.core.Append(&inbox.Item{Msg: x.message(9, 100), Users: []uint64{7}})
						}
					})
				}
				start += cpu(b) - filling
				b.StartTimer()
				event := func() { x.core.Open(1, &rpc.SessionOpen{Conn: conn, User: 7}) }
				for acked, live := uint64(0), false; !live; {
					eff := x.turn([]uint64{7}, event)
					for _, f := range eff.Frames {
						if live = !f.Deliver; !live {
							acked++
							drained++
						}
					}
					event = func() { x.core.Ack(1, conn, 7, acked) }
				}
				x.turn(nil, func() { x.core.Close(1, conn, 7) })
			}
			perCPU(b, start, drained, "row")
		})
	}
}

// BenchmarkPresetB is the steady state of a small deployment, where little is
// batched: each send, acknowledgement and login is a turn of its own. A send
// goes to 2.73 users on the average, one in seven of them is there; for each
// send there is half a login, which finds 2.7 rows.
func BenchmarkPresetB(b *testing.B) {
	x := newBench(b)
	start, sends := cpu(b), 0
	conn := uint64(1 << 20)
	var open []uint64 // users by session
	conns := map[uint64]uint64{}
	acked := map[uint64]uint64{}
	live := map[uint64]bool{}
	ack := func(frames []inbox.Outbound) {
		for {
			var again []inbox.Outbound
			for _, f := range frames {
				if !f.Deliver {
					continue
				}
				for _, c := range f.Conns {
					acked[c]++
					u := open[c-1<<20-1]
					eff := x.turn(nil, func() { x.core.Ack(1, c, u, acked[c]) })
					again = append(again, eff.Frames...)
				}
			}
			if frames = again; len(frames) == 0 {
				return
			}
		}
	}
	var order []uint64
	for b.Loop() {
		users := []uint64{x.rng.Uint64N(benchUsers / 20)}
		group := uint64(0)
		if sends%10 >= 4 {
			group = 9
			for len(users) < 4 {
				users = append(users, x.rng.Uint64N(benchUsers/20))
			}
		}
		if sends%7 == 0 && len(order) > 0 {
			users[0] = order[len(order)-1]
		}
		eff := x.turn(users, func() { x.core.Append(&inbox.Item{Msg: x.message(group, 100), Users: users}) })
		ack(eff.Frames)
		if sends%2 == 0 {
			u := x.rng.Uint64N(benchUsers / 20)
			if !live[u] {
				conn++
				open = append(open, u)
				conns[u], live[u] = conn, true
				order = append(order, u)
				eff := x.turn([]uint64{u}, func() { x.core.Open(1, &rpc.SessionOpen{Conn: conn, User: u}) })
				ack(eff.Frames)
			}
			if len(order) > 100 {
				u := order[0]
				order = order[1:]
				delete(live, u)
				x.turn(nil, func() { x.core.Close(1, conns[u], u) })
			}
		}
		if sends%350 == 0 {
			x.turn(nil, func() { x.core.SaveReceipts(false) })
		}
		sends++
	}
	perCPU(b, start, sends, "send")
}
