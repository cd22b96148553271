// Package population says who exists: users, their devices, activity and
// contacts, conversations and their members. Nothing is stored for anybody:
// everything is derived by hashing (seed, purpose, index), so that millions of
// users cost nothing until they are asked for, and equal seeds give equal
// populations on every machine. It is pure, has no network, no clock and no
// goroutines, and imports nothing of this module.
package population

import "math/rand/v2"

// UserID is a user's number plus one, 1..users, and above that the generation.
type UserID = uint64

// GroupID names a group; what kind and which one can be read from its bits, so
// members are found from the id alone. Ids stay below 2^53, as JSON needs.
type GroupID = uint64

// Figures of WORKLOAD.md sections 2a and 5; sim/scenario's profile lists them
// with source and confidence.
const (
	activitySigma = 1.2   // of the lognormal of a user's rate of sends
	meanContacts  = 489.6 // exponential
	// Linked devices: 0.2 a user on average in the profile, at most 3 here (the
	// service's limit is 4); the split is an assumption.
	oneLinked, twoLinked, threeLinked = 0.11, 0.03, 0.01
	meanLinked                        = oneLinked + 2*twoLinked + 3*threeLinked
)

// Population is a population of users of one seed. Safe for concurrent use.
type Population struct {
	seed  uint64
	users int64
	// order maps the position of a user in the order of activity to its
	// number: the quantile of a user's activity is its position's.
	order permutation
	sizes sizeLaw
	links float64 // linked devices, relative to the profile
	// generation is part of every id.
	generation uint64
}

// New returns the population of a seed with the given number of users (at
// least 2) and the chat mix of a preset of the scenario package (A, B, C,
// direct; anything else counts as B). devices is the mean number of devices of a
// user, 1 to 2.
func New(seed uint64, users int64, preset string, devices float64) *Population {
	users = max(users, 2)
	return &Population{
		seed:  seed,
		users: users,
		order: newPermutation(NewStream(seed, purposeUsers, 0, 0), uint64(users)),
		sizes: newSizeLaw(preset),
		links: (devices - 1) / meanLinked,
	}
}

// Generations is how many generations there are.
const Generations = 1 << 21

// Low bits of a user's id: those that the generation does not use.
const userBits = 1 << 40

// Generation returns the same population under other ids, the g-th (below
// Generations) such set; New's is the 0-th. A deployment that has carried a
// run remembers what its users have sent, so another run needs other users.
// Ids of generations from 256 on are above 2^53.
func (p *Population) Generation(g uint64) *Population {
	c := *p
	c.generation = g % Generations
	return &c
}

// mark is the generation within an id whose kind leaves the bits from at free.
func (p *Population) mark(at uint) uint64 { return p.generation>>8<<50 | p.generation&0xff<<at }

// user is the id of a number from 1.
func (p *Population) user(n uint64) UserID { return p.mark(40) | n }

// after is the user after another, for who looks for a free one.
func (p *Population) after(u UserID) UserID { return p.user(u&(userBits-1)%uint64(p.users) + 1) }

// Seed is what everything is derived from.
func (p *Population) Seed() uint64 { return p.seed }

// Users is how many there are.
func (p *Population) Users() int64 { return p.users }

// Devices of a user: the phone, which is device 0, and the linked ones.
func (p *Population) Devices(u UserID) int {
	s := NewStream(p.seed, purposeDevices, u, 0)
	switch x := s.Float64() / p.links; {
	case x < threeLinked:
		return 4
	case x < threeLinked+twoLinked:
		return 3
	case x < threeLinked+twoLinked+oneLinked:
		return 2
	}
	return 1
}

// Activity of a user relative to the mean: lognormal with sigma 1.2.
func (p *Population) Activity(u UserID) float64 {
	q := (float64(p.order.from(u&(userBits-1)-1)) + 0.5) / float64(p.users)
	return Exp(float64(activitySigma*NormQuantile(q)) - activitySigma*activitySigma/2)
}

// SampleByActivity draws a user with probability proportional to activity, in
// constant time: the logarithm of a size-biased lognormal is the normal
// shifted by sigma squared, so the drawn quantile is Phi(Z + sigma).
func (p *Population) SampleByActivity(rng *rand.Rand) UserID {
	return p.byActivity((float64(rng.Uint64()>>12) + 0.5) / (1 << 52))
}

// Sample is SampleByActivity from a Stream.
func (p *Population) Sample(s *Stream) UserID { return p.byActivity(s.Float64()) }

func (p *Population) byActivity(u float64) UserID {
	return p.user(p.order.at(index(NormCDF(NormQuantile(u)+activitySigma), uint64(p.users))) + 1)
}

// Contacts is how many contacts a user has, at least 1: exponential with mean
// 489.6, bounded by the population.
func (p *Population) Contacts(u UserID) int {
	s := NewStream(p.seed, purposeContacts, u, 0)
	return max(1, int(min(float64(p.users-1), meanContacts*s.Exp()+0.5)))
}

// Contact is the j-th contact of a user, another user drawn by activity.
// Contacts are not symmetric, and two indices can name the same user.
func (p *Population) Contact(u UserID, j int) UserID {
	s := NewStream(p.seed, purposeContact, u, uint64(j))
	for range 16 {
		if c := p.Sample(&s); c != u {
			return c
		}
	}
	return p.after(u)
}
