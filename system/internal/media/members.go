package media

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"

	"throng/system/internal/obs"
	"throng/system/internal/rpc"
	"throng/system/placement"
)

// lookupTimeout bounds a question to one group instance.
const lookupTimeout = 2 * time.Second

// version names the members of a group in one version, which never change.
type version struct{ group, version uint64 }

// members knows who was a member in which version: it asks the group service,
// and keeps what was used last.
type members struct {
	conns  []*grpc.ClientConn
	groups []rpc.GroupClient
	limit  int // members kept
	metric *obs.Queue
	asked  singleflight.Group

	mu   sync.Mutex
	lru  *simplelru.LRU[version, []uint64]
	kept int
}

func newMembers(cfg Config, limit int, metric *obs.Queue) (*members, error) {
	stats, err := obs.RPCStats(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("media: metrics: %w", err)
	}
	m := &members{limit: limit, metric: metric}
	// An entry has at least the weight 1, so this limit is never the one met.
	m.lru, _ = simplelru.NewLRU(limit+1, func(_ version, list []uint64) { m.kept -= weight(list) })
	for i, addr := range cfg.Groups {
		cc, err := rpc.Dial(addr, grpc.WithStatsHandler(stats), cfg.Identity.Dialling("group"))
		if err != nil {
			m.close()
			return nil, fmt.Errorf("media: group instance %d: %w", i, err)
		}
		m.conns, m.groups = append(m.conns, cc), append(m.groups, rpc.NewGroupClient(cc))
	}
	return m, nil
}

func weight(list []uint64) int { return max(1, len(list)) }

func (m *members) close() {
	for _, cc := range m.conns {
		cc.Close()
	}
}

// of returns the members of a version, sorted.
func (m *members) of(ctx context.Context, v version) ([]uint64, error) {
	m.mu.Lock()
	list, ok := m.lru.Get(v)
	m.mu.Unlock()
	if ok {
		return list, nil
	}
	answer := m.asked.DoChan(strconv.FormatUint(v.group, 36)+"."+strconv.FormatUint(v.version, 36), func() (any, error) {
		return m.ask(context.WithoutCancel(ctx), v) // others may wait for it too
	})
	select {
	case r := <-answer:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.([]uint64), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ask asks each group instance, first the one that looks after the group.
func (m *members) ask(ctx context.Context, v version) ([]uint64, error) {
	var errs []error
	first := placement.GroupInstance(v.group, len(m.groups))
	for i := range m.groups {
		callCtx, cancel := context.WithTimeout(ctx, lookupTimeout)
		// No offset: the grant says which version it was.
		res, err := m.groups[(first+i)%len(m.groups)].Members(callCtx, &rpc.MembersRequest{Group: v.group, Offset: -1, Version: v.version})
		cancel()
		if err == nil {
			slices.Sort(res.Members)
			m.keep(v, res.Members)
			return res.Members, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("media: members of group %d, version %d: %w", v.group, v.version, errors.Join(errs...))
}

func (m *members) keep(v version, list []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lru.Contains(v) {
		return
	}
	m.lru.Add(v, list)
	m.kept += weight(list)
	for m.kept > m.limit && m.lru.Len() > 1 {
		m.lru.RemoveOldest()
		m.metric.Dropped.Inc()
	}
	m.metric.Depth.Set(float64(m.kept))
}
