package crew

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// pings is how often a clock is asked for one estimate: the quickest answer says
// most.
const pings = 12

// offset is by how much another clock is ahead of this one's, and how wrong
// that can be at most, if nothing but the way there and back took time.
type offset struct{ ahead, within time.Duration }

// estimate asks a clock several times. ask returns what it says; now is the
// clock here.
func estimate(now func() time.Duration, ask func() (time.Duration, error)) (offset, error) {
	best := offset{within: 1<<63 - 1}
	var failed error
	for range pings {
		before := now()
		there, err := ask()
		if err != nil {
			failed = err
			continue
		}
		if half := (now() - before) / 2; half < best.within {
			best = offset{there - before - half, half}
		}
	}
	if best.within == 1<<63-1 {
		return offset{}, fmt.Errorf("crew: the clock of an agent does not answer: %w", failed)
	}
	return best, nil
}

// askClock reads an agent's clocks.
func askClock(ctx context.Context, nc *nats.Conn, id string) (clock, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subjectClock+id, nil)
	if err != nil {
		return clock{}, err
	}
	return decode[clock](m.Data)
}

// bootID names this boot of this kernel; "" where there is no such thing.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
