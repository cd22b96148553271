package media

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"throng/system/internal/limit"
	"throng/system/internal/obs"
	"throng/system/wire"
)

// Limits of a media instance. Zero means the default, in brackets.
type Limits struct {
	// Bytes of one object by its kind. [image and voice 16 MiB, video 64 MiB,
	// other 100 MiB]
	ImageBytes, VoiceBytes, VideoBytes, OtherBytes int64
	// What one user has stored at a time, see Quota. [10,000 and 2 GiB]
	UserObjects int
	UserBytes   int64
	// Requests at a time that carry a body up, and that fetch; of all users and of
	// one. [128 and 4, 512 and 8]
	Uploads, UserUploads, Downloads, UserDownloads int
	// Connections, and those from one address. Above either the newest is closed.
	// [8,192 and 2,048]
	Connections, AddressConnections int
	// Bytes/s that one user and one address (of IPv6, a /64) send and fetch on average,
	// after so many at once; whoever has had more is answered 429. Below 0: no such
	// limit. [4 MiB/s after 1 GiB, 64 MiB/s after 8 GiB]
	UserRate, UserBurst, AddressRate, AddressBurst int64
	// Expiry of what not all have fetched, UploadExpiry of an upload that was
	// begun, FetchedGrace of what all have: for their other devices. [30 days, 24 h, 24 h]
	Expiry, UploadExpiry, FetchedGrace time.Duration
	// LinkTTL is how long a signed URL can be used. [5 min]
	LinkTTL time.Duration
	// MinFree is what uploads leave of the blob store's room for everybody else,
	// in bytes. [256 MiB]
	MinFree int64
	// PartBytes is the most that is kept of an upload in one blob. [4 MiB]
	PartBytes int64
	// NetworkTimeout is how long a client may take to send its headers, or be
	// silent while it sends or fetches. [10 s]
	NetworkTimeout time.Duration
	// MinRate is what a client must send on average, bytes/s, once it has taken
	// longer than NetworkTimeout. [2 KiB/s]
	MinRate int64
	// SweepEvery is how often is looked for what has expired. [1 min]
	SweepEvery time.Duration
	// CachedMembers bounds the members of groups kept in memory. [1,048,576]
	CachedMembers int
}

const (
	idleTimeout = time.Minute // of a connection between two requests
	// spareParts is how many parts an object may have beside those that its size
	// needs at minPart each: interruptions make small ones.
	spareParts = 256
	minPart    = 64 << 10
)

func set[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (l Limits) withDefaults() Limits {
	set(&l.ImageBytes, 16<<20)
	set(&l.VoiceBytes, 16<<20)
	set(&l.VideoBytes, 64<<20)
	set(&l.OtherBytes, 100<<20)
	set(&l.UserObjects, 10_000)
	set(&l.UserBytes, 2<<30)
	set(&l.Uploads, 128)
	set(&l.UserUploads, 4)
	set(&l.Downloads, 512)
	set(&l.UserDownloads, 8)
	set(&l.Connections, 8192)
	set(&l.AddressConnections, 2048)
	set(&l.UserRate, 4<<20)
	set(&l.UserBurst, 1<<30)
	set(&l.AddressRate, 64<<20)
	set(&l.AddressBurst, 8<<30)
	set(&l.Expiry, 30*24*time.Hour)
	set(&l.UploadExpiry, 24*time.Hour)
	set(&l.FetchedGrace, 24*time.Hour)
	set(&l.LinkTTL, 5*time.Minute)
	set(&l.MinFree, 256<<20)
	set(&l.PartBytes, 4<<20)
	set(&l.NetworkTimeout, 10*time.Second)
	set(&l.MinRate, 2<<10)
	set(&l.SweepEvery, time.Minute)
	set(&l.CachedMembers, 1<<20)
	return l
}

// kindOf returns the kind of that name, and the bytes that one may have; 0 if
// there is no such kind.
func (l *Limits) kindOf(name string) (wire.Kind, int64) {
	switch name {
	case "image":
		return wire.Kind_KIND_IMAGE, l.ImageBytes
	case "voice":
		return wire.Kind_KIND_VOICE, l.VoiceBytes
	case "video":
		return wire.Kind_KIND_VIDEO, l.VideoBytes
	case "other":
		return wire.Kind_KIND_OTHER, l.OtherBytes
	}
	return 0, 0
}

// maxParts bounds the parts of an object.
func maxParts(size int64) int { return int(size/minPart) + spareParts }

func bearer(r *http.Request) string {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}

// slots bounds how many requests are carried out at a time, of all users and of
// each. Its map is as large as the number of slots taken.
type slots struct {
	all, each int
	metric    *obs.Queue

	mu   sync.Mutex
	used int
	by   map[uint64]int
}

func newSlots(all, each int, metric *obs.Queue) *slots {
	return &slots{all: all, each: each, metric: metric, by: map[uint64]int{}}
}

// take returns the HTTP status to refuse with, or 0 and what gives the slot back.
func (s *slots) take(user uint64) (code int, release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.by[user] >= s.each:
		code = http.StatusTooManyRequests
	case s.used >= s.all:
		code = http.StatusServiceUnavailable
	default:
		s.used++
		s.by[user]++
		s.metric.Depth.Set(float64(s.used))
		return 0, func() { s.release(user) }
	}
	s.metric.Dropped.Inc()
	return code, nil
}

func (s *slots) release(user uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.by[user]--; s.by[user] == 0 {
		delete(s.by, user)
	}
	s.metric.Depth.Set(float64(s.used))
}

// listener closes connections above the limits as they come.
type listener struct {
	net.Listener
	limits  Limits
	metric  *obs.Queue
	sources limit.Sources

	mu   sync.Mutex
	used int
	by   map[netip.Addr]int // but for those that are not limited
}

func newListener(ln net.Listener, l Limits, s limit.Sources, m *metrics) *listener {
	return &listener{Listener: ln, limits: l, metric: m.connections, sources: s, by: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ap, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // none: not limited
		from, limited := l.sources.Key(ap.Addr())
		if limited = limited && !l.sources.Proxy(ap.Addr()); !limited {
			from = netip.Addr{}
		}
		if l.admit(from) {
			return &conn{Conn: c, from: from, of: l}, nil
		}
		c.Close()
	}
}

// admit counts a connection from an address; that of nobody is not limited.
func (l *listener) admit(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used >= l.limits.Connections || from.IsValid() && l.by[from] >= l.limits.AddressConnections {
		l.metric.Dropped.Inc()
		return false
	}
	l.used++
	l.by[from]++
	l.metric.Depth.Set(float64(l.used))
	return true
}

func (l *listener) gone(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used--
	if l.by[from]--; l.by[from] == 0 {
		delete(l.by, from)
	}
	l.metric.Depth.Set(float64(l.used))
}

// conn tells its listener when it is closed.
type conn struct {
	net.Conn
	from netip.Addr
	of   *listener
	once sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() { c.of.gone(c.from) })
	return c.Conn.Close()
}
