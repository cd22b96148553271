package population

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"sort"
	"testing"
)

// within fails the test when got is not within the relative tolerance of want.
func within(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance*math.Abs(want) {
		t.Errorf("%s: got %.5g, want %.5g within %.2g %%", what, got, want, 100*tolerance)
	}
}

func TestExactFunctionsAgreeWithMath(t *testing.T) {
	s := NewStream(1, 1, 0, 0)
	for range 100_000 {
		x := Exp(40 * (s.Float64() - 0.5))
		if d := math.Abs(Ln(x) - math.Log(x)); d > 1e-15*max(1, math.Abs(math.Log(x))) {
			t.Fatalf("Ln(%g) is off by %g", x, d)
		}
		y := 200 * (s.Float64() - 0.5)
		if d := Exp(y)/math.Exp(y) - 1; math.Abs(d) > 1e-15 {
			t.Fatalf("Exp(%g) is off by %g", y, d)
		}
		z := 16 * (s.Float64() - 0.5)
		if d := math.Abs(NormCDF(z) - 0.5*math.Erfc(-z/math.Sqrt2)); d > 1e-14 {
			t.Fatalf("NormCDF(%g) is off by %g", z, d)
		}
		p := s.Float64()
		if d := math.Abs(NormQuantile(p) - math.Sqrt2*math.Erfinv(2*p-1)); d > 1e-12*max(1, math.Abs(NormQuantile(p))) {
			t.Fatalf("NormQuantile(%g) is off by %g", p, d)
		}
	}
	for _, p := range []float64{1e-200, 1e-20, 1e-12, 1e-6} { // the far tail, where Erfinv has no digits
		within(t, fmt.Sprintf("NormCDF of NormQuantile(%g)", p), NormCDF(NormQuantile(p)), p, 1e-8)
	}
}

func TestPermutationIsABijection(t *testing.T) {
	for _, n := range []uint64{2, 3, 10, 1000, 4097} {
		p := newPermutation(NewStream(7, 1, n, 0), n)
		seen := make([]bool, n)
		for x := range n {
			y := p.at(x)
			if y >= n || seen[y] {
				t.Fatalf("n=%d: %d goes to %d twice or out of range", n, x, y)
			}
			seen[y] = true
			if p.from(y) != x {
				t.Fatalf("n=%d: from(at(%d)) = %d", n, x, p.from(y))
			}
		}
	}
}

// The published figures: mean recipients of a message by preset.
func TestFanOutOfPresets(t *testing.T) {
	for preset, want := range map[string]float64{"A": 2.08, "B": 2.73, "C": 11.2, "direct": 1} {
		got := New(1, 1e6, preset, 1.2).FanOut()
		t.Logf("%s: %.4f", preset, got)
		within(t, "fan-out "+preset, got, want, 0.01)
	}
}

// The size law, sampled through Conversation, against its formula.
func TestGroupSizes(t *testing.T) {
	const n = 2_000_000
	for _, preset := range []string{"A", "B", "C"} {
		p := New(3, 1e6, preset, 1.2)
		s := NewStream(3, 1, 0, 0)
		over := map[int]int{}
		groups, recipients := 0, 0
		for range n {
			conv := p.Conversation(s.Uint64() % ConversationSpace)
			recipients += conv.Size - 1
			if (conv.Group != 0) != (conv.Size > 2) || conv.Size > MaxMembers {
				t.Fatalf("%s: %+v", preset, conv)
			}
			if conv.Group == 0 {
				continue
			}
			groups++
			for _, k := range []int{3, 4, 6, 11, 26, 56, 200} {
				if conv.Size > k {
					over[k]++
				}
			}
		}
		within(t, preset+" group share", float64(groups)/n, p.GroupShare(), 0.01)
		within(t, preset+" mean recipients", float64(recipients)/n, p.FanOut(), 0.03)
		phi := func(x float64) float64 { return NormCDF((math.Log(x) - 2.17) / 1.12) }
		for k, c := range over {
			var want float64
			a := math.Exp(-0.508 * float64(k-2))
			switch preset {
			case "A":
				want = a
			case "B":
				tail := 1.0
				if k >= 27 {
					tail = (phi(1024.5) - phi(float64(k)+0.5)) / (phi(1024.5) - phi(26.5))
				}
				want = 0.9705*a + 0.0295*tail
			case "C":
				want = (phi(1023) - phi(float64(k)-0.5)) / (phi(1023) - phi(2))
			}
			if want > 1e-4 {
				within(t, fmt.Sprintf("%s P(N>%d)", preset, k), float64(c)/float64(groups), want, 0.02+3/math.Sqrt(float64(c)))
			}
		}
	}
	// mim-stm's own summary of A: p90 7, p99 12 (rounded up from the fit).
	a := newSizeLaw("A")
	if q := a.size(0.57 + 0.43*0.90); q != 7 {
		t.Errorf("A p90 is %d, published 7", q)
	}
	if q := a.size(0.57 + 0.43*0.99); q != 12 {
		t.Errorf("A p99 is %d, published 12", q)
	}
}

func TestActivityIsLognormal(t *testing.T) {
	p := New(5, 200_000, "B", 1.2)
	var a []float64
	sum := 0.0
	for u := range uint64(200_000) {
		x := p.Activity(u + 1)
		a = append(a, x)
		sum += x
	}
	sort.Float64s(a)
	within(t, "mean", sum/200_000, 1, 0.01)
	for q, z := range map[float64]float64{0.1: -1.2816, 0.5: 0, 0.9: 1.2816, 0.99: 2.3263} {
		within(t, fmt.Sprint("quantile ", q), a[int(q*200_000)], math.Exp(1.2*z-0.72), 0.01)
	}
}

// A draw by activity has the size-biased law: E = E[a^2] = exp(sigma^2), and
// its median is exp(sigma^2/2) times the mean.
func TestSampleByActivityIsSizeBiased(t *testing.T) {
	p := New(5, 600_000, "B", 1.2)
	rng := rand.New(rand.NewPCG(1, 2))
	var a []float64
	for range 200_000 {
		a = append(a, p.Activity(p.SampleByActivity(rng)))
	}
	sort.Float64s(a)
	for q, z := range map[float64]float64{0.1: -1.2816, 0.25: -0.6745, 0.5: 0, 0.75: 0.6745, 0.9: 1.2816} {
		within(t, fmt.Sprint("quantile ", q), a[int(q*200_000)], math.Exp(1.2*z+0.72), 0.02)
	}
}

func TestDevicesAndContacts(t *testing.T) {
	p := New(9, 600_000, "B", 1.2)
	const n = 200_000
	devices, contacts, over := 0, 0.0, 0
	for u := uint64(1); u <= n; u++ {
		d := p.Devices(u)
		if d < 1 || d > 5 {
			t.Fatalf("user %d has %d devices", u, d)
		}
		devices += d
		c := p.Contacts(u)
		contacts += float64(c)
		if c > 1127 { // p90 of the exponential
			over++
		}
	}
	within(t, "devices a user", float64(devices)/n, 1.2, 0.01)
	within(t, "contacts a user", contacts/n, 489.6, 0.01)
	within(t, "P(contacts > p90)", float64(over)/n, 0.1, 0.05)
	for j := range 1000 {
		if c := p.Contact(17, j); c == 17 || c < 1 || c > 600_000 {
			t.Fatalf("contact %d of 17 is %d", j, c)
		}
	}
}

func TestMembersAreDistinctAndFoundFromTheID(t *testing.T) {
	for _, users := range []int64{2, 30, 1500, 600_000} {
		p := New(11, users, "C", 1.2)
		s := NewStream(1, 1, 0, 0)
		check := func(size int, members []UserID) {
			t.Helper()
			seen := map[UserID]bool{}
			for _, u := range members {
				if u < 1 || u > uint64(users) || seen[u] {
					t.Fatalf("%d users: member %d twice or out of range", users, u)
				}
				seen[u] = true
			}
			if len(members) != size {
				t.Fatalf("%d users: %d members, want %d", users, len(members), size)
			}
		}
		for range 300 {
			c := s.Uint64() % ConversationSpace
			conv := p.Conversation(c)
			members := p.Members(c)
			check(conv.Size, members)
			if conv.Group != 0 {
				if fmt.Sprint(p.GroupMembers(conv.Group)) != fmt.Sprint(members) {
					t.Fatalf("GroupMembers(%d) differs from Members", conv.Group)
				}
			}
		}
		for i := range 3 {
			id, members := p.BigGroup(i, 1024)
			check(int(min(users, 1024)), members)
			if fmt.Sprint(p.GroupMembers(id)) != fmt.Sprint(members) || id >= 1<<53 {
				t.Fatalf("GroupMembers(%d) differs from BigGroup", id)
			}
		}
	}
	if m := New(1, 1000, "B", 1.2).GroupMembers(12345); m != nil {
		t.Errorf("an id that is no group has members %v", m)
	}
}

// The golden value holds on every machine and architecture: a change of it
// changes every published run.
func TestPopulationIsTheSameEverywhere(t *testing.T) {
	p := New(2026, 600_000, "B", 1.2)
	h := fnv.New64a()
	for u := uint64(1); u <= 2000; u++ {
		fmt.Fprintln(h, p.Devices(u), math.Float64bits(p.Activity(u)), p.Contacts(u), p.Contact(u, int(u)))
		c := u * (ConversationSpace / 2001)
		fmt.Fprintln(h, p.Conversation(c), p.Members(c))
	}
	_, members := p.BigGroup(1, 1024)
	fmt.Fprintln(h, members)
	if got, want := fmt.Sprintf("%016x", h.Sum64()), "3191823a4620791c"; got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
}

func BenchmarkMembers(b *testing.B) {
	p := New(1, 600_000, "B", 1.2)
	s := NewStream(1, 1, 0, 0)
	for b.Loop() {
		p.Members(s.Uint64() % ConversationSpace)
	}
}

// Another generation is the same people under other ids.
func TestGenerations(t *testing.T) {
	const users = 5000
	first := New(3, users, "B", 1.2)
	low := func(u UserID) uint64 { return u & (userBits - 1) }
	for _, g := range []uint64{1, 255, 256, 1_234_567, Generations - 1} {
		p := first.Generation(g)
		ids := map[uint64]bool{}
		for c := uint64(0); c < ConversationSpace; c += ConversationSpace / 3000 {
			was, is := first.Conversation(c), p.Conversation(c)
			before, after := first.Members(c), p.Members(c)
			if was.Size != is.Size || (was.Group == 0) != (is.Group == 0) || is.Group != 0 && (is.Group == was.Group || is.Group >= 1<<63) {
				t.Fatalf("generation %d: conversation %+v was %+v", g, is, was)
			}
			for i, u := range after {
				if low(u) != before[i] || u == before[i] || u >= 1<<63 || p.Devices(u) != first.Devices(before[i]) ||
					p.Contacts(u) != first.Contacts(before[i]) || p.Activity(u) != first.Activity(before[i]) {
					t.Fatalf("generation %d: member %d of %d is %d, was %d", g, i, c, u, before[i])
				}
			}
			if is.Group == 0 {
				continue
			}
			if found := p.GroupMembers(is.Group); fmt.Sprint(found) != fmt.Sprint(after) || first.GroupMembers(is.Group) != nil {
				t.Fatalf("generation %d: members of %d: %v, want %v, and none in generation 0", g, is.Group, found, after)
			}
			ids[is.Group] = true
		}
		big, members := p.BigGroup(7, 300)
		if fmt.Sprint(p.GroupMembers(big)) != fmt.Sprint(members) || first.GroupMembers(big) != nil || ids[big] || big >= 1<<63 {
			t.Fatalf("generation %d: big group %d", g, big)
		}
	}
}
