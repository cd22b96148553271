package load

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"throng/sim/audit"
	"throng/sim/client"
	"throng/sim/history"
	"throng/sim/metrics"
	"throng/sim/workload"
	"throng/system/wire"
)

// Limits of what the engine does with media.
const (
	maxFetching   = 2048 // fetches under way while the load goes on; more wait for the proof
	proofFetching = 48   // and in the proof
	mediaTimeout  = 60 * time.Second
	mediaBlock    = 1 << 20
	mediaExamples = 5
)

// media uploads the objects of this engine's sends, and fetches those of its
// users' messages. An object belongs to the index of its send: its content and
// so its hash follow from that, and the hash travels in the message's body.
type media struct {
	e     *Engine
	http  *client.Media
	block []byte // of random bytes; objects are pieces of it behind a header of their own

	upload, firstByte, fetch, whole metrics.Kind
	uploadOf, fetchOf               []metrics.Kind // by class of size

	ctx      context.Context // of the run, set before the first action
	flying   atomic.Int64    // uploads and fetches under way
	fetching atomic.Int64

	mu       sync.Mutex
	ready    map[int32]uploaded // uploads whose message is not made yet
	seen     map[mediaPair]bool // true: proved
	waiting  []fetch            // for the proof
	examples []string
	audit    history.MediaAudit
}

// uploaded is an object that its message can refer to.
type uploaded struct {
	id  wire.MediaID
	sum [32]byte
	at  time.Duration
	// took is from the intended time to at.
	took time.Duration
}

// mediaPair is a message's object and a user who fetches it, on the first of
// their devices that has the message.
type mediaPair struct {
	index int32
	user  uint64
}

// fetch is what a device learned of an object.
type fetch struct {
	mediaPair
	device uint32
	id     wire.MediaID
	grant  []byte
	sum    [32]byte
	sent   time.Duration // intended time of the upload
	at     time.Duration // when the device had the message
	live   bool
}

// newMedia returns nil where the run has no media, or others play its users.
func newMedia(e *Engine, bases []string, tlsConfig *tls.Config) (*media, error) {
	if e.spec.Media.Share == 0 || e.cfg.Crew != nil {
		return nil, nil
	}
	if len(bases) == 0 {
		return nil, errors.New("load: the scenario has media, and the target no media service")
	}
	m := &media{e: e, block: make([]byte, mediaBlock), ready: map[int32]uploaded{}, seen: map[mediaPair]bool{},
		http:   &client.Media{Bases: bases, HTTP: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, TLSClientConfig: tlsConfig, WriteBufferSize: 32 << 10}}},
		upload: e.rec.Kind(history.KindMediaUpload), firstByte: e.rec.Kind(history.KindMediaFirstByte),
		fetch: e.rec.Kind(history.KindMediaFetch), whole: e.rec.Kind(history.KindMediaWhole)}
	for _, c := range history.MediaClasses {
		m.uploadOf = append(m.uploadOf, e.rec.Kind(history.KindMediaUploadOf+c.Name))
		m.fetchOf = append(m.fetchOf, e.rec.Kind(history.KindMediaFetchOf+c.Name))
	}
	rng := rand.New(rand.NewPCG(e.spec.Seed, mediaStream))
	for i := 0; i < len(m.block); i += 8 {
		binary.LittleEndian.PutUint64(m.block[i:], rng.Uint64())
	}
	return m, nil
}

// mediaStream names the random stream of the objects' bytes.
const mediaStream = 0x6d65646961

// content is an object: run and index, then bytes of the block.
type content struct {
	m      *media
	header [8]byte
}

func (m *media) contentOf(index int32) *content {
	c := &content{m: m}
	binary.LittleEndian.PutUint32(c.header[0:], m.e.nonce)
	binary.LittleEndian.PutUint32(c.header[4:], uint32(index))
	return c
}

// ReadAt implements io.ReaderAt; it has no end.
func (c *content) ReadAt(p []byte, at int64) (n int, err error) {
	if at < int64(len(c.header)) {
		n = copy(p, c.header[at:])
	}
	for n < len(p) {
		from := int((at + int64(n)) % int64(len(c.m.block)))
		n += copy(p[n:], c.m.block[from:])
	}
	return n, nil
}

func (c *content) sum(size int64) (sum [32]byte) {
	h := sha256.New()
	_, _ = io.Copy(h, io.NewSectionReader(c, 0, size)) // neither side fails
	return [32]byte(h.Sum(nil))
}

// compose makes a send, once its object is uploaded if it has one.
func (e *Engine) compose(a *workload.Action) {
	if e.media == nil || !e.media.begin(a) {
		e.submit(a)
	}
}

// begin uploads the object of a send, which comes back to its worker after that;
// false if it has none.
func (m *media) begin(a *workload.Action) bool {
	object, ok := m.e.sched.MediaOf(a)
	if !ok {
		return false
	}
	m.flying.Add(1)
	m.e.readers.Go(func() {
		defer m.flying.Add(-1)
		m.send(a, object)
	})
	return true
}

func (m *media) send(a *workload.Action, object workload.Media) {
	e := m.e
	ctx, cancel := context.WithTimeout(m.ctx, mediaTimeout)
	defer cancel()
	c := m.contentOf(a.Index)
	sum := c.sum(object.Bytes)
	token, err := e.access.Token(a.User, a.Device)
	var id wire.MediaID
	resumed := 0
	if err == nil {
		id, resumed, err = m.http.Upload(ctx, a.User, token, client.MediaObject{Kind: mediaKind(a.MsgKind), Size: object.Bytes, SHA256: sum, Content: c, Interrupt: object.Interrupt})
	}
	now := e.now()
	m.mu.Lock()
	m.audit.Resumed += int64(resumed)
	if err != nil {
		m.audit.UploadsFailed++
		m.example("upload of send %d: %v", a.Index, err)
		m.mu.Unlock()
		e.stats.unstarted.Add(1)
		return
	}
	m.audit.Uploads++
	m.audit.BytesUp += object.Bytes
	m.ready[a.Index] = uploaded{id: id, sum: sum, at: now}
	m.mu.Unlock()
	e.rec.Record(m.upload, (now - e.loadStart - a.At).Microseconds())
	e.rec.Record(m.uploadOf[mediaClass(object.Bytes)], (now - e.loadStart - a.At).Microseconds())
	e.enqueue(job{action: a, uploaded: true})
}

// example keeps the first few errors, for people. The caller holds m.mu.
func (m *media) example(format string, args ...any) {
	if len(m.examples) < mediaExamples {
		m.examples = append(m.examples, "media: "+fmt.Sprintf(format, args...))
	}
}

// mediaClass is the index of an object's class of size.
func mediaClass(bytes int64) int {
	return slices.IndexFunc(history.MediaClasses, func(c history.SizeClass) bool { return bytes <= int64(c.Max) })
}

func mediaKind(k int32) string {
	return [...]string{"", "image", "voice", "video", "other"}[k]
}

// object returns the uploaded object of a send, once; nil if it has none.
func (e *Engine) object(a *workload.Action) *uploaded {
	if e.media == nil {
		return nil
	}
	e.media.mu.Lock()
	defer e.media.mu.Unlock()
	u, ok := e.media.ready[a.Index]
	if !ok {
		return nil
	}
	delete(e.media.ready, a.Index)
	return &u
}

// mediaHeader is what the body of a message with an object has at least: after the
// header of each body the object's hash, and how long it took to upload it, in
// microseconds, at most an hour.
const mediaHeader = bodyHeader + sha256.Size + 4

// refer makes a message refer to the object.
func (u *uploaded) refer(s *wire.Send) {
	s.Media = u.id[:]
	s.Body = append(s.Body, make([]byte, max(0, mediaHeader-len(s.Body)))...)
	copy(s.Body[bodyHeader:], u.sum[:])
	binary.LittleEndian.PutUint32(s.Body[mediaHeader-4:], uint32(min(max(u.took.Microseconds(), 0), math.MaxUint32)))
}

// arrived fetches what a message refers to, once for each user but its sender.
func (m *media) arrived(to audit.Device, d *wire.Deliver, h header, class audit.Class, now time.Duration) {
	if m == nil || len(d.Media) != len(wire.MediaID{}) || d.From == to.User || len(d.Body) < mediaHeader {
		return
	}
	f := fetch{mediaPair: mediaPair{h.index, to.User}, device: to.Device, id: wire.MediaID(d.Media), grant: d.MediaGrant,
		at: now, live: class == audit.Live}
	f.sent = h.intended - time.Duration(binary.LittleEndian.Uint32(d.Body[mediaHeader-4:]))*time.Microsecond
	copy(f.sum[:], d.Body[bodyHeader:])
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, again := m.seen[f.mediaPair]; again {
		return
	}
	m.seen[f.mediaPair] = false
	m.audit.Pairs++
	if class == audit.Proof || m.e.closing.Load() || m.fetching.Load() >= maxFetching {
		m.waiting = append(m.waiting, f)
		return
	}
	m.flying.Add(1)
	m.fetching.Add(1)
	m.e.readers.Go(func() {
		defer m.flying.Add(-1)
		defer m.fetching.Add(-1)
		ctx, cancel := context.WithTimeout(m.ctx, mediaTimeout)
		defer cancel()
		m.get(ctx, f, true)
	})
}

// get fetches an object and judges it. What cannot be had now is tried again in
// the proof; there it is missing.
func (m *media) get(ctx context.Context, f fetch, timed bool) {
	token, err := m.e.access.Token(f.user, f.device)
	h := sha256.New()
	var first time.Duration
	counted := &counter{w: h}
	if err == nil {
		err = m.http.Fetch(ctx, f.user, token, f.id, f.grant, counted, func() { first = m.e.now() })
	}
	now := m.e.now()
	if err != nil {
		m.mu.Lock()
		m.waiting = append(m.waiting, f)
		m.example("fetch of send %d by user %d: %v", f.index, f.user, err)
		m.mu.Unlock()
		return
	}
	right := [32]byte(h.Sum(nil)) == f.sum
	m.mu.Lock()
	m.audit.BytesDown += counted.n
	if right {
		m.audit.Proved++
		m.seen[f.mediaPair] = true
	} else {
		m.audit.Corrupt++
		m.example("send %d: user %d fetched something else", f.index, f.user)
	}
	m.mu.Unlock()
	if timed {
		m.e.rec.Record(m.firstByte, (first - f.at).Microseconds())
		m.e.rec.Record(m.fetch, (now - f.at).Microseconds())
		m.e.rec.Record(m.fetchOf[mediaClass(counted.n)], (now - f.at).Microseconds())
	}
	if f.live {
		m.e.rec.Record(m.whole, (now - f.sent).Microseconds())
	}
	if err := m.http.Fetched(ctx, f.user, token, f.id, f.grant); err != nil {
		m.mu.Lock()
		m.example("fetched, send %d: %v", f.index, err)
		m.mu.Unlock()
	}
}

// counter counts what is written through it.
type counter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// moving says how much is under way.
func (m *media) moving() int64 {
	if m == nil {
		return 0
	}
	return m.flying.Load()
}

// ProveMedia fetches what this engine's users could not have before, and returns
// their audit. The load is over.
func (e *Engine) ProveMedia(ctx context.Context) history.MediaAudit { return e.media.prove(ctx) }

// prove fetches what could not be had before, and returns the audit.
func (m *media) prove(ctx context.Context) history.MediaAudit {
	if m == nil {
		return history.MediaAudit{}
	}
	for m.moving() > 0 && ctx.Err() == nil {
		m.e.sleepUntil(ctx, m.e.now()+50*time.Millisecond)
	}
	for range 3 { // a fetch that fails is tried again
		m.mu.Lock()
		todo := m.waiting
		m.waiting = nil
		m.mu.Unlock()
		var wg sync.WaitGroup
		slots := make(chan struct{}, proofFetching)
		for _, f := range todo {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				ctx, cancel := context.WithTimeout(ctx, mediaTimeout)
				defer cancel()
				m.get(ctx, f, false)
			})
		}
		wg.Wait()
		if ctx.Err() != nil {
			break
		}
	}
	m.http.HTTP.CloseIdleConnections()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.audit.Missing = m.audit.Pairs - m.audit.Proved - m.audit.Corrupt
	m.audit.Examples = m.examples
	return m.audit
}
