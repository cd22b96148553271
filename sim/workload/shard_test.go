package workload

import (
	"fmt"
	"testing"

	"throng/sim/population"
	"throng/sim/scenario"
)

// The shards of a run are parts of the whole: each action of a client is in exactly one,
// with the number that it has in the whole, and what a shard's users decide is
// decided alike.
func TestShardsAreTheWhole(t *testing.T) {
	computes(t)
	const shards = 3
	spec, err := scenario.Parse("shards", []byte("name: shards\nquestion: are the parts the whole?\nscale: 1/100000\nseed: 9\nphases: {spike: 5s}\nmembership: {removals_per_s: 0.2, joins_per_s: 0.2, creates_per_s: 0.2}\nextra: [{name: big, group_size: 100, sends: 5}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	whole := build(t, spec)
	missing := map[Action]int{} // two typing frames can be alike
	changes := 0                // of members: in every shard
	for _, a := range whole.Actions {
		if a.Kind == MemberAdd || a.Kind == MemberRemove {
			changes -= shards
			continue
		}
		missing[a]++
	}
	users := map[uint64]bool{}
	for n := range shards {
		shard := Shard{n, shards}
		s, err := BuildShard(spec, population.New(spec.Seed, spec.Resolved().Users, spec.Preset, spec.Rates.Devices), shard)
		if err != nil {
			t.Fatal(err)
		}
		for i := range s.Actions {
			a := &s.Actions[i]
			if a.Kind == MemberAdd || a.Kind == MemberRemove {
				changes++
				continue
			}
			if !shard.Has(a.User) {
				t.Fatalf("shard %d has %+v", n, *a)
			}
			missing[*a]--
			if a.Kind == Send && s.Send(a.Index) != a {
				t.Fatalf("send %d of shard %d is found at %d", a.Index, n, s.Sends[a.Index])
			}
			if a.About >= 0 {
				if to := whole.Send(a.About); s.SenderOf(a.About) != (Sender{to.User, to.Device}) {
					t.Fatalf("send %d is about one of %+v, found %+v", a.Index, *to, s.SenderOf(a.About))
				}
			}
			if a.Kind == Open {
				at, ok := s.NextOpen(a.User, a.Device, a.At)
				wantAt, wantOK := whole.NextOpen(a.User, a.Device, a.At)
				if at != wantAt || ok != wantOK {
					t.Fatalf("next open of %d is %v in its shard, %v in the whole", a.User, at, wantAt)
				}
			}
		}
		for i := range whole.Actions {
			a := &whole.Actions[i]
			if a.Kind != Send || a.Conv.Peer == 0 || !shard.Has(a.Conv.Peer) {
				continue
			}
			read, after := s.ReadDelay(a.Conv.Peer, a.Index, Conv{Peer: a.User}, a.At)
			wantRead, wantAfter := whole.ReadDelay(a.Conv.Peer, a.Index, Conv{Peer: a.User}, a.At)
			if read != wantRead || after != wantAfter {
				t.Fatalf("send %d is read after %v in the shard of the reader, %v in the whole", a.Index, after, wantAfter)
			}
		}
		touched, _ := s.Touched()
		for u := range touched {
			users[u] = true
		}
		st := s.Stats
		st.TouchedUsers, st.TouchedGroups = whole.Stats.TouchedUsers, whole.Stats.TouchedGroups
		if fmt.Sprint(st) != fmt.Sprint(whole.Stats) {
			t.Errorf("stats of shard %d: %+v, of the whole %+v", n, st, whole.Stats)
		}
	}
	if changes != 0 {
		t.Errorf("%d changes of members too many in the shards", changes)
	}
	for a, n := range missing {
		if n != 0 {
			t.Errorf("%+v is %d times more often in the whole than in the shards", a, n)
		}
	}
	if len(users) != whole.Stats.TouchedUsers {
		t.Errorf("the shards touch %d users, the whole %d", len(users), whole.Stats.TouchedUsers)
	}
}
