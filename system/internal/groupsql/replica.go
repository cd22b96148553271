package groupsql

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"throng/system/internal/obs"
	"throng/system/internal/sqlstore"
)

const (
	defaultMaxLag  = 5 * time.Second
	beatEvery      = time.Second
	replicaTimeout = time.Second // of one read; then the next source is asked
	replicaReaders = 4
)

// Replica is a read-only copy of the primary, which follows it by itself.
type Replica struct {
	DSN string // of the store's driver
	At  Place
}

// Place is where a process or a database is. Empty names are nowhere known.
type Place struct{ Zone, Region string }

// distance of another place: 0 in the same zone, 1 in the same region, else 2.
// Who does not know where it is has nothing far away.
func (p Place) distance(other Place) int {
	switch {
	case p.Zone == "" || p.Zone == other.Zone:
		return 0
	case p.Region != "" && p.Region == other.Region:
		return 1
	}
	return 2
}

// replica is one of them. It is asked while it is well; watch alone finds out
// when it is well again.
type replica struct {
	name string // its place in Config.Replicas, in metrics
	cfg  sqlstore.Config
	db   atomic.Pointer[sqlstore.DB] // nil until it could be opened
	well atomic.Bool
	lag  prometheus.Gauge
	seen time.Time // heartbeat last read; watch's
}

// replicas are the read side of a store.
type replicas struct {
	primary *sqlstore.DB
	maxLag  time.Duration
	all     []*replica
	// order is in which they are asked: the nearest first, none that is farther
	// than the primary.
	order                     []*replica
	reads, seconds, fallbacks *prometheus.CounterVec

	stop context.CancelFunc // ends watch
	done sync.WaitGroup
}

func newReplicas(cfg Config, primary *sqlstore.DB) (*replicas, error) {
	reg := cfg.Metrics
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	rs := &replicas{primary: primary, maxLag: cfg.MaxLag}
	if rs.maxLag <= 0 {
		rs.maxLag = defaultMaxLag
	}
	lag, err := obs.Register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "throng_group_replica_lag_seconds",
		Help: "How far a replica is behind the primary by the heartbeat row, to the second; of one that does not answer, since when."}, []string{"replica"}))
	if err != nil {
		return nil, err
	}
	if rs.reads, err = obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "throng_group_reads_total",
		Help: "Reads of versions and members by who answered: primary, or the number of the replica."}, []string{"source"})); err != nil {
		return nil, err
	}
	if rs.seconds, err = obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "throng_group_read_seconds_total",
		Help: "Time that reads of versions and members took who answered them, by the same."}, []string{"source"})); err != nil {
		return nil, err
	}
	if rs.fallbacks, err = obs.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "throng_group_read_fallbacks_total",
		Help: "Reads that a replica could not answer, because it was behind or failed, and the next source was asked."}, []string{"reason"})); err != nil {
		return nil, err
	}
	for i, r := range cfg.Replicas {
		name := strconv.Itoa(i)
		rs.all = append(rs.all, &replica{name: name, lag: lag.WithLabelValues(name), seen: time.Now(),
			cfg: sqlstore.Config{Driver: cfg.Driver, DSN: r.DSN, Name: "group_replica_" + name, Readers: replicaReaders, Metrics: cfg.Metrics}})
	}
	for far := range cfg.At.distance(cfg.PrimaryAt) + 1 {
		for i, r := range cfg.Replicas {
			if cfg.At.distance(r.At) == far {
				rs.order = append(rs.order, rs.all[i])
			}
		}
	}
	return rs, nil
}

// start makes the first measurement and goes on each second. Without replicas
// there is nothing to do.
func (rs *replicas) start(ctx context.Context) {
	if len(rs.all) == 0 {
		return
	}
	rs.watch(ctx)
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	rs.stop = stop
	rs.done.Go(func() {
		tick := time.NewTicker(beatEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				rs.watch(work)
			case <-work.Done():
				return
			}
		}
	})
}

func (rs *replicas) close() error {
	if rs.stop != nil {
		rs.stop()
	}
	rs.done.Wait()
	var errs []error
	for _, r := range rs.all {
		if db := r.db.Load(); db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// watch measures each replica, then writes the next heartbeat: by then the
// last one has had a second to arrive.
func (rs *replicas) watch(ctx context.Context) {
	newest, err := beat(ctx, rs.primary)
	if err != nil {
		newest = time.Now() // the primary does not say: who has an old beat is behind
	}
	var wg sync.WaitGroup
	for _, r := range rs.all {
		wg.Go(func() { rs.measure(ctx, r, newest) })
	}
	wg.Wait()
	// All instances do this; the condition lets one of them write each second.
	ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	now := time.Now()
	// What fails here is seen as the lag of every replica.
	_, _ = rs.primary.Exec(ctx, "UPDATE chat_heartbeat SET at_us = ? WHERE id = 1 AND at_us <= ?",
		now.UnixMicro(), now.Add(-beatEvery*9/10).UnixMicro())
}

// measure finds out how far r is behind, and with that whether it may be asked.
func (rs *replicas) measure(ctx context.Context, r *replica, newest time.Time) {
	db := r.db.Load()
	var err error
	if db == nil {
		openCtx, cancel := context.WithTimeout(ctx, replicaTimeout)
		defer cancel()
		if db, err = sqlstore.Open(openCtx, r.cfg); err == nil {
			r.db.Store(db)
		}
	}
	at := time.Time{}
	if err == nil {
		at, err = beat(ctx, db)
	}
	lag := time.Duration(0)
	if err == nil {
		r.seen = at
	}
	if err != nil || at.Before(newest) {
		lag = time.Since(r.seen)
	}
	r.lag.Set(lag.Seconds())
	r.well.Store(err == nil && lag <= rs.maxLag)
}

// beat reads the heartbeat of a database.
func beat(ctx context.Context, db *sqlstore.DB) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	at, err := numbers(db.Query(ctx, "SELECT at_us FROM chat_heartbeat WHERE id = 1"))
	if err == nil && len(at) != 1 {
		err = errors.New("there is no heartbeat")
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("groupsql: heartbeat: %w", err)
	}
	return time.UnixMicro(int64(at[0])), nil
}

// errBehind: the database does not have the version that is needed.
var errBehind = errors.New("groupsql: behind")

// read asks the nearest replica that is well, the next where that cannot
// answer, and the primary at last. ask returns errBehind where a database does not have
// what the caller knows to exist; from the primary that comes as it is.
func (rs *replicas) read(ctx context.Context, ask func(context.Context, *sqlstore.DB) error) error {
	for _, r := range rs.order {
		if !r.well.Load() {
			continue
		}
		start := time.Now()
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
			defer cancel()
			return ask(ctx, r.db.Load())
		}()
		switch {
		case err == nil:
			rs.answered(r.name, start)
			return nil
		case ctx.Err() != nil:
			return err
		case errors.Is(err, errBehind):
			rs.fallbacks.WithLabelValues("behind").Inc()
		default:
			r.well.Store(false)
			rs.fallbacks.WithLabelValues("failed").Inc()
		}
	}
	return rs.exact(ctx, ask)
}

// exact asks the primary.
func (rs *replicas) exact(ctx context.Context, ask func(context.Context, *sqlstore.DB) error) error {
	start := time.Now()
	err := ask(ctx, rs.primary)
	rs.answered("primary", start)
	return err
}

// answered counts a read that began at start.
func (rs *replicas) answered(source string, start time.Time) {
	rs.reads.WithLabelValues(source).Inc()
	rs.seconds.WithLabelValues(source).Add(time.Since(start).Seconds())
}
