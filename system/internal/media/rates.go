package media

import (
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"throng/system/internal/limit"
)

// remembered bounds the users and the addresses of whom is known how much they have
// transferred; the ones that have done nothing for the longest time are forgotten.
const remembered = 65_536

// rates bound what users and addresses transfer, on average: a request that was
// begun is carried out, and who has used up more than there was waits with the
// next one.
type rates struct {
	sources   limit.Sources
	user      limit.Rate
	address   limit.Rate
	start     time.Time
	users     *limit.Table[uint64, limit.Bucket]
	addresses *limit.Table[netip.Addr, limit.Bucket]
}

func newRates(s limit.Sources, l *Limits, m *metrics) *rates {
	return &rates{sources: s, start: time.Now(),
		user:      limit.Rate{PerSecond: float64(l.UserRate), Burst: l.UserBurst},
		address:   limit.Rate{PerSecond: float64(l.AddressRate), Burst: l.AddressBurst},
		users:     limit.NewTable[uint64, limit.Bucket](remembered, m.users.Dropped.Inc),
		addresses: limit.NewTable[netip.Addr, limit.Bucket](remembered, m.addresses.Dropped.Inc)}
}

// account is what a request is counted on.
type account struct {
	of   *rates
	user *limit.Entry[uint64, limit.Bucket]
	from *limit.Entry[netip.Addr, limit.Bucket] // nil: not limited by address
}

// open returns the account of a request, or answers it with 429.
func (s *Service) open(w http.ResponseWriter, r *http.Request, user uint64) (*account, bool) {
	t := s.rates
	a := &account{of: t, user: t.users.Hold(user, nil)}
	if key, ok := t.sources.Key(t.sources.Client(r.RemoteAddr, r.Header)); ok {
		a.from = t.addresses.Hold(key, nil)
	}
	now := time.Since(t.start)
	wait, reason := a.user.V.Wait(t.user, now), "user_bytes"
	if a.from != nil {
		if more := a.from.V.Wait(t.address, now); more > wait {
			wait, reason = more, "address_bytes"
		}
	}
	if wait <= 0 {
		return a, true
	}
	a.close()
	s.m.refused.WithLabelValues(reason).Inc()
	w.Header().Set("Retry-After", seconds(wait))
	http.Error(w, "too many bytes in too short a time", http.StatusTooManyRequests)
	return nil, false
}

// spend counts n bytes.
func (a *account) spend(n int) {
	now := time.Since(a.of.start)
	a.user.V.Charge(a.of.user, int64(n), now)
	if a.from != nil {
		a.from.V.Charge(a.of.address, int64(n), now)
	}
}

func (a *account) close() {
	a.of.users.Release(a.user, nil)
	a.of.addresses.Release(a.from, nil)
}

// seconds is a wait as Retry-After has it: whole seconds, at least one.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((max(d, 1)+time.Second-1)/time.Second), 10)
}
