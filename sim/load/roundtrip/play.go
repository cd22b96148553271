package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"throng/sim/history"
	"throng/sim/load"
	"throng/sim/population"
	"throng/sim/scenario"
	"throng/sim/workload"
	"throng/system/wire"
)

// Seconds of the work before its steady phase.
const (
	RampS   = 8 // of Work.RampS, where it does not say
	WarmupS = 2
)

// Work is what is played.
type Work struct {
	Gateway  string // ws://host:port
	Users    int    // each writes one message a second
	RampS    int    // users connect in all but the last of them; 0: RampS, else at least 2
	SteadyS  int    // measured, after the ramp and the warm-up
	To       uint64 // each writes to the one so many further; 0: to themselves
	Spool    *os.File
	Progress func(load.Progress) // may be nil
}

// Played is what the engine recorded in the steady phase.
type Played struct {
	From  time.Duration // run time
	Trips int64         // answered
	CPU   time.Duration // of this process
	Over  time.Duration // that it was counted over
	Late  *hdrhistogram.Histogram
	Sent  *hdrhistogram.Histogram // round trips from the intended time, µs
	Rig   []history.Rig           // of the whole run
}

// Play plays the work with the engine of sim/load.
func Play(ctx context.Context, w Work) (*Played, error) {
	if w.RampS == 0 {
		w.RampS = RampS
	}
	from := time.Duration(w.RampS+WarmupS) * time.Second
	spec, err := scenario.Parse("round trips", []byte(fmt.Sprintf(`
name: bench_round_trips
question: What does a round trip cost the generator?
preset: direct
rates: {users: %d, sends_per_s: 10, logins_per_s: 10, mean_session: 30s, devices: 1}
phases: {provision: 1s, ramp: %ds, backlog: 0s, warmup: %ds, steady: %ds, settle: 1s, proof: 5s}
resolution: 1ms
`, 4*w.Users, w.RampS, WarmupS, w.SteadyS)))
	if err != nil {
		return nil, fmt.Errorf("roundtrip: %w", err)
	}
	pop := population.New(spec.Seed, int64(4*w.Users), spec.Preset, 1)
	t := &tally{played: Played{From: from, Late: hdrhistogram.New(1, 60_000_000, 3), Sent: hdrhistogram.New(1, 60_000_000, 3)}}
	e, err := load.New(load.Config{Spec: spec, Population: pop, Schedule: workload.Custom(spec, pop, w.actions()), Target: bare{w.Gateway}, History: t,
		Spool: w.Spool, Start: time.Now(), Progress: w.Progress})
	if err != nil {
		return nil, fmt.Errorf("roundtrip: %w", err)
	}
	if _, err := e.Run(ctx, ctx); err != nil {
		return nil, fmt.Errorf("roundtrip: %w", err)
	}
	return &t.played, nil
}

func (w Work) actions() []workload.Action {
	ramp := time.Duration(w.RampS) * time.Second
	end := ramp + time.Duration(WarmupS+w.SteadyS+5)*time.Second
	users := uint64(w.Users)
	var out []workload.Action
	for u := range users {
		out = append(out, workload.Action{Kind: workload.Open, User: u + 1, Until: end, ReplyTo: -1, Index: -1, Stratum: -1,
			At: time.Duration(u) * (ramp - time.Second) / time.Duration(users)})
	}
	for i := range users * uint64(WarmupS+w.SteadyS) {
		u := i % users
		out = append(out, workload.Action{Kind: workload.Send, At: ramp + time.Duration(i)*time.Second/time.Duration(users), User: u + 1,
			Conv: workload.Conv{Peer: (u+w.To)%users + 1}, BodyLen: 100, ReplyTo: -1, Index: -1, Stratum: -1})
	}
	return out
}

// bare is a deployment that is nothing but a Gateway.
type bare struct{ url string }

func (t bare) Gateways() []string                       { return []string{t.url} }
func (t bare) Token(u uint64, _ uint32) (string, error) { return strconv.FormatUint(u, 10), nil }
func (t bare) Offers() load.Offers                      { return load.Offers{Partitions: -1} }
func (t bare) Sample() ([]history.RoleSample, error)    { return nil, nil }
func (t bare) Scrape(context.Context) ([]history.CounterSample, error) {
	return nil, nil
}
func (t bare) Provision(_ context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error) {
	res := &wire.ProvisionResult{}
	for {
		p, err := next()
		if errors.Is(err, io.EOF) {
			return res, nil
		}
		if err != nil {
			return nil, err
		}
		res.Users += uint64(len(p.Users))
	}
}
func (t bare) Pushes(context.Context, func(load.Push)) error { return nil }
func (t bare) Kill(string, int) error                        { return errors.ErrUnsupported }
func (t bare) Restart(string, int) error                     { return errors.ErrUnsupported }
func (t bare) Flush(string, int) (int64, error)              { return 0, errors.ErrUnsupported }
func (t bare) ChangeMembers(context.Context, *wire.MembershipChange) (*wire.MembershipResult, error) {
	return nil, errors.ErrUnsupported
}

// tally keeps what is looked at.
type tally struct {
	played Played
	steady bool // the last second was in it
	cpu    time.Duration
}

func (t *tally) Second(s history.Second) error {
	cpu := ownCPU()
	if s.Phase == "steady" && t.steady {
		t.played.CPU += cpu - t.cpu
		t.played.Over += time.Second
		t.played.Trips += s.Accepted
	}
	t.steady, t.cpu = s.Phase == "steady", cpu
	return nil
}

func (t *tally) Interval(i history.Interval) error {
	if i.Start < t.played.From.Seconds() {
		return nil
	}
	switch i.Kind {
	case history.KindLate:
		t.played.Late.Merge(i.Hist)
	case history.KindSent:
		t.played.Sent.Merge(i.Hist)
	}
	return nil
}
func (t *tally) Role(history.RoleSample) error        { return nil }
func (t *tally) Counters(history.CounterSample) error { return nil }
func (t *tally) Stages(*history.Stages) error         { return nil }
func (t *tally) Event(history.Event) error            { return nil }
func (t *tally) Rig(r history.Rig) error {
	t.played.Rig = append(t.played.Rig, r)
	return nil
}

// ownCPU is the CPU that this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
