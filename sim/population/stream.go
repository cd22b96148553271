package population

import "math"

// Purpose names what a random stream is for: equal seeds and indices of
// different purposes are independent.
type Purpose uint64

// Purposes of this package; other packages number theirs from 1000.
const (
	purposeUsers Purpose = iota + 1
	purposeDevices
	purposeContacts
	purposeContact
	purposeMembers
	purposeBigGroup
)

// Stream is a deterministic stream of random numbers (SplitMix64), named by
// seed, purpose and index. It costs nothing to make, is the same on every
// machine, and is a rand.Source of math/rand/v2. Not for concurrent use.
type Stream struct{ state uint64 }

// NewStream returns the stream of (seed, purpose, a, b) at its beginning. Of a
// the low 40 bits count: what a user does does not depend on the generation in
// their id.
func NewStream(seed uint64, purpose Purpose, a, b uint64) Stream {
	h := mix(seed ^ 0x6a09e667f3bcc909)
	h = mix(h ^ uint64(purpose)*0xbb67ae8584caa73b)
	h = mix(h ^ a&(userBits-1))
	return Stream{state: mix(h ^ b*0xa54ff53a5f1d36f1)}
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	return x ^ (x >> 31)
}

// Uint64 is the next number.
func (s *Stream) Uint64() uint64 {
	x := mix(s.state)
	s.state += 0x9e3779b97f4a7c15
	return x
}

// Float64 is uniform on the open interval (0,1).
func (s *Stream) Float64() float64 { return (float64(s.Uint64()>>12) + 0.5) / (1 << 52) }

// IntN is uniform on [0,n), n > 0.
func (s *Stream) IntN(n int) int { return int(s.Float64() * float64(n)) }

// Exp is exponential with mean 1.
func (s *Stream) Exp() float64 { return -Ln(s.Float64()) }

// Normal is standard normal.
func (s *Stream) Normal() float64 { return NormQuantile(s.Float64()) }

// LogNormal is lognormal with the parameters of its logarithm.
func (s *Stream) LogNormal(mu, sigma float64) float64 { return Exp(mu + float64(sigma*s.Normal())) }

// LogNormalMean is lognormal with mean 1.
func (s *Stream) LogNormalMean(sigma float64) float64 {
	return s.LogNormal(-float64(sigma*sigma)/2, sigma)
}

// permutation is a bijection of [0,n) without a table: a Feistel network over
// the next even number of bits, walked until it falls into the range.
type permutation struct {
	n    uint64
	half uint
	mask uint64
	keys [4]uint64
}

func newPermutation(s Stream, n uint64) permutation {
	p := permutation{n: n, half: 1}
	for uint64(1)<<(2*p.half) < n {
		p.half++
	}
	p.mask = 1<<p.half - 1
	for i := range p.keys {
		p.keys[i] = s.Uint64()
	}
	return p
}

// at is where x goes.
func (p *permutation) at(x uint64) uint64 {
	for {
		l, r := x>>p.half, x&p.mask
		for _, k := range p.keys {
			l, r = r, l^(mix(r^k)&p.mask)
		}
		if x = l<<p.half | r; x < p.n {
			return x
		}
	}
}

// from is the inverse of at.
func (p *permutation) from(x uint64) uint64 {
	for {
		l, r := x>>p.half, x&p.mask
		for i := len(p.keys) - 1; i >= 0; i-- {
			l, r = r^(mix(l^p.keys[i])&p.mask), l
		}
		if x = l<<p.half | r; x < p.n {
			return x
		}
	}
}

// index maps u in [0,1] to [0,n).
func index(u float64, n uint64) uint64 {
	return min(uint64(math.Floor(u*float64(n))), n-1)
}
