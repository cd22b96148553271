package group

import (
	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/obs"
)

// Tiers of the cache; "sql" is where a miss ends.
const (
	tierProcess = "process"
	tierRedis   = "redis"
	tierSQL     = "sql"
)

type metrics struct {
	cache, acts                  *prometheus.CounterVec
	checks, changes, cacheErrors prometheus.Counter
	cached, stale, creators      *obs.Queue
	change                       *obs.Op
}

func (m *metrics) register(reg prometheus.Registerer, cached int) error {
	var err error
	if m.cache, err = obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_group_cache_total", Help: "Look-ups of members by where they were found."}, []string{"tier", "result"})); err != nil {
		return err
	}
	if m.acts, err = obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "throng_group_acts_total", Help: "Requests of clients by action and answer."}, []string{"action", "code"})); err != nil {
		return err
	}
	for _, c := range []struct {
		to         *prometheus.Counter
		name, help string
	}{
		{&m.checks, "throng_group_checks_total", "Pairs of group and user checked."},
		{&m.changes, "throng_group_changes_total", "Versions made of groups."},
		{&m.cacheErrors, "throng_group_cache_errors_total", "Operations of the shared cache that failed and were done without it."},
	} {
		if *c.to, err = obs.Register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: c.name, Help: c.help})); err != nil {
			return err
		}
	}
	if m.cached, err = obs.NewQueue(reg, "group_cached_members", cached); err != nil {
		return err
	}
	if m.creators, err = obs.NewQueue(reg, "group_creators", maxCreators); err != nil {
		return err
	}
	if m.stale, err = obs.NewQueue(reg, "group_stale_pointers", maxStale); err != nil {
		return err
	}
	ops, err := obs.NewOps(reg)
	m.change = ops.Op("group.change")
	return err
}

func (m *metrics) cacheHit(tier string)  { m.cache.WithLabelValues(tier, "hit").Inc() }
func (m *metrics) cacheMiss(tier string) { m.cache.WithLabelValues(tier, "miss").Inc() }
