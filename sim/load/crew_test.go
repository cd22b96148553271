package load

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"throng/sim/workload"
)

// Each action belongs to exactly one engine of a crew: those of users to the
// agent of the user, in about equal parts, changes of members to the leader.
func TestEachActionHasOneEngine(t *testing.T) {
	const agents, users = 3, 30_000
	lead := &Engine{target: struct{ Target }{}, cfg: Config{Crew: solo{}}}
	all := []*Engine{lead}
	for i := range agents {
		all = append(all, &Engine{cfg: Config{Shard: workload.Shard{Index: i, Of: agents}}})
	}
	alone := &Engine{target: struct{ Target }{}}
	parts := make([]int, len(all))
	for u := range uint64(users) {
		for kind := workload.Open; kind <= workload.GroupAsk; kind++ {
			a := &workload.Action{Kind: kind, User: u}
			owners := 0
			for i, e := range all {
				if e.mine(a) {
					owners++
					if kind == workload.Open {
						parts[i]++
					}
				}
			}
			leads := kind == workload.MemberAdd || kind == workload.MemberRemove
			if owners != 1 || leads != lead.mine(a) || !alone.mine(a) {
				t.Fatalf("action %d of user %d: %d engines, the leader %v, one alone %v", kind, u, owners, lead.mine(a), alone.mine(a))
			}
		}
	}
	for i, n := range parts[1:] {
		if n < users/agents*95/100 {
			t.Errorf("agent %d has %d of %d users", i+1, n, users)
		}
	}
}

// An engine ends when all that connects devices has: a timer that is on its way when
// it ends can begin one more connection, which is waited for.
func TestEndWaitsForTheLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Engine{}
		connected := false
		var bg sync.WaitGroup
		late := time.After(time.Second)
		bg.Go(func() {
			<-late
			e.readers.Go(func() {
				<-time.After(time.Second)
				connected = true
			})
		})
		e.finish(func() {}, &bg)
		if !connected {
			t.Error("it ended before its last connection")
		}
	})
}
