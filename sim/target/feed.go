package target

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"throng/sim/target/provider"
	"throng/system/wire"
)

// Pushes reads the provider's feed; see ReadPushes.
func (e *Embedded) Pushes(ctx context.Context, f func(Push)) error {
	return ReadPushes(ctx, nil, e.sys.Provider.URL, f)
}

// ReadPushes reads the feed of the provider at url with c; nil: with a client
// of its own. It returns nil when ctx is done. That f was too slow for what came, or
// a line made no sense, is an error: evidence is missing then.
func ReadPushes(ctx context.Context, c *http.Client, url string, f func(Push)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var broken error
	err := provider.ReadFeed(ctx, c, url, nil, func(line provider.Push) {
		if broken != nil {
			return
		}
		push, err := pushOf(line)
		if err != nil {
			broken = err
			cancel(err)
			return
		}
		f(push)
	})
	if broken != nil {
		return broken
	}
	return err
}

// pushOf reads a line of the feed.
func pushOf(line provider.Push) (Push, error) {
	if line.Lost > 0 {
		return Push{}, fmt.Errorf("target: feed of pushes: %d were lost because they were not read in time", line.Lost)
	}
	id, err := hex.DecodeString(line.MessageID)
	if err != nil || len(id) != len(wire.MessageID{}) {
		return Push{}, fmt.Errorf("target: feed of pushes: message id %q", line.MessageID)
	}
	return Push{Outcome: PushOutcome(line.Outcome), Token: line.Token, User: line.User, Device: line.Device, MessageID: wire.MessageID(id), At: time.UnixMicro(line.AtUnixUS)}, nil
}
