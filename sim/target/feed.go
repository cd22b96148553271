package target

import (
	"context"
	"errors"
)

// Pushes reads the provider's feed.
func (e *Embedded) Pushes(ctx context.Context, f func(Push)) error {
	return errors.New("not yet")
}
