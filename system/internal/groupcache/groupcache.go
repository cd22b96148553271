// Package groupcache is the group.Cache of a deployment on Redis: the members
// of each version of a group, which never change, and a pointer to the current
// version, which only rises. Everything expires. It may not import a role
// other than group, whose port it implements.
package groupcache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"

	"throng/system/internal/group"
	"throng/system/internal/obs"
)

// Config says where the cache is. Zero durations mean the defaults.
type Config struct {
	Addr string
	// PointerTTL bounds how long a pointer that could not be raised (Redis was
	// away, and then the process that would repair it died) is believed;
	// default 30 s.
	PointerTTL time.Duration
	// MembersTTL is how long a version's members are kept; default 1 h.
	MembersTTL time.Duration
	// LockTTL bounds how long the others wait for one that loads; default 500 ms.
	LockTTL time.Duration
	// Timeout of a connection attempt; default 1 s.
	Timeout time.Duration
	Metrics prometheus.Registerer // may be nil
}

// Cache is a group.Cache. It connects with the first operation.
type Cache struct {
	cfg    Config
	client atomic.Pointer[rueidis.Client]
	raise  *rueidis.Lua
	ops    *prometheus.CounterVec
	calls  *obs.Ops
}

var _ group.Cache = (*Cache)(nil)

// raiseScript sets a pointer unless it is at least as high, so that a slow
// reader cannot put an old version back.
const raiseScript = `local v = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
if v < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 0`

// New returns a cache; it does not wait for Redis.
func New(cfg Config) (*Cache, error) {
	if cfg.Addr == "" {
		return nil, errors.New("groupcache: no address given")
	}
	for _, d := range []struct {
		to  *time.Duration
		def time.Duration
	}{
		{&cfg.PointerTTL, 30 * time.Second}, {&cfg.MembersTTL, time.Hour},
		{&cfg.LockTTL, 500 * time.Millisecond}, {&cfg.Timeout, time.Second},
	} {
		if *d.to <= 0 {
			*d.to = d.def
		}
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	ops, err := obs.Register(cfg.Metrics, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_redis_ops_total", Help: "Commands sent to Redis."}, []string{"op"}))
	if err != nil {
		return nil, fmt.Errorf("groupcache: %w", err)
	}
	calls, err := obs.NewOps(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("groupcache: %w", err)
	}
	return &Cache{cfg: cfg, raise: rueidis.NewLuaScript(raiseScript), ops: ops, calls: calls}, nil
}

// Close closes the connection.
func (c *Cache) Close() {
	if cl := c.client.Load(); cl != nil {
		(*cl).Close()
	}
}

// connect returns the client, and makes it if there is none.
func (c *Cache) connect(ctx context.Context) (rueidis.Client, error) {
	if cl := c.client.Load(); cl != nil {
		return *cl, nil
	}
	opt := rueidis.ClientOption{
		InitAddress: []string{c.cfg.Addr}, ForceSingleClient: true, DisableCache: true,
		ConnWriteTimeout: 2 * c.cfg.Timeout, ClientSetInfo: []string{"throng", "1"}, RingScaleEachConn: 9,
	}
	opt.Dialer.Timeout = c.cfg.Timeout
	cl, err := rueidis.NewClient(opt)
	if err != nil {
		return nil, fmt.Errorf("groupcache: connect to redis %s: %w", c.cfg.Addr, err)
	}
	timed := obs.TimedRedis(cl, c.calls)
	if !c.client.CompareAndSwap(nil, &timed) {
		cl.Close() // another caller was faster
	}
	return *c.client.Load(), ctx.Err()
}

func pointerKey(id uint64) string { return "throng:group:" + strconv.FormatUint(id, 36) + ":v" }

func membersKey(id, version uint64) string {
	return "throng:group:" + strconv.FormatUint(id, 36) + ":m" + strconv.FormatUint(version, 36)
}

func lockKey(id, version uint64) string { return membersKey(id, version) + ":lock" }

// Version implements group.Cache.
func (c *Cache) Version(ctx context.Context, id uint64) (uint64, bool, error) {
	cl, err := c.connect(ctx)
	if err != nil {
		return 0, false, err
	}
	c.ops.WithLabelValues("get").Inc()
	s, err := cl.Do(ctx, cl.B().Get().Key(pointerKey(id)).Build().Pin()).ToString()
	if rueidis.IsRedisNil(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("groupcache: pointer: %w", err)
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, false, fmt.Errorf("groupcache: pointer: %w", err)
	}
	return v, true, nil
}

// SetVersion implements group.Cache.
func (c *Cache) SetVersion(ctx context.Context, id, version uint64) error {
	cl, err := c.connect(ctx)
	if err != nil {
		return err
	}
	c.ops.WithLabelValues("eval").Inc()
	err = c.raise.Exec(ctx, cl, []string{pointerKey(id)}, []string{
		strconv.FormatUint(version, 10), strconv.FormatInt(c.cfg.PointerTTL.Milliseconds(), 10)}).Error()
	if err != nil {
		return fmt.Errorf("groupcache: raise the pointer: %w", err)
	}
	return nil
}

// Members implements group.Cache. A value that cannot be read is a miss.
func (c *Cache) Members(ctx context.Context, id, version uint64) ([]uint64, bool, error) {
	cl, err := c.connect(ctx)
	if err != nil {
		return nil, false, err
	}
	c.ops.WithLabelValues("get").Inc()
	b, err := cl.Do(ctx, cl.B().Get().Key(membersKey(id, version)).Build().Pin()).AsBytes()
	if rueidis.IsRedisNil(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("groupcache: members: %w", err)
	}
	if len(b)%8 != 0 {
		return nil, false, nil
	}
	members := make([]uint64, len(b)/8)
	for i := range members {
		members[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return members, true, nil
}

// SetMembers implements group.Cache.
func (c *Cache) SetMembers(ctx context.Context, id, version uint64, members []uint64) error {
	cl, err := c.connect(ctx)
	if err != nil {
		return err
	}
	b := make([]byte, 0, 8*len(members))
	for _, u := range members {
		b = binary.LittleEndian.AppendUint64(b, u)
	}
	c.ops.WithLabelValues("set").Inc()
	c.ops.WithLabelValues("del").Inc()
	for _, res := range cl.DoMulti(ctx,
		cl.B().Set().Key(membersKey(id, version)).Value(rueidis.BinaryString(b)).Px(c.cfg.MembersTTL).Build().Pin(),
		cl.B().Del().Key(lockKey(id, version)).Build().Pin()) {
		if err := res.Error(); err != nil {
			return fmt.Errorf("groupcache: keep members: %w", err)
		}
	}
	return nil
}

// Lock implements group.Cache.
func (c *Cache) Lock(ctx context.Context, id, version uint64) (bool, error) {
	cl, err := c.connect(ctx)
	if err != nil {
		return false, err
	}
	c.ops.WithLabelValues("set").Inc()
	err = cl.Do(ctx, cl.B().Set().Key(lockKey(id, version)).Value("1").Nx().Px(c.cfg.LockTTL).Build().Pin()).Error()
	if rueidis.IsRedisNil(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("groupcache: lock: %w", err)
	}
	return true, nil
}
